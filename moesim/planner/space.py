"""Which strategies are considered: layouts, what they keep in memory, and how they communicate.

    layout    tp, cp, pp, ep, etp; dp is what is left
    frame     a layout with micro-batch, exchange of keys and values, ZeRO stage, recompute and schedule that fits
    variant   all-to-all, chunks, overlap, placement

A frame that keeps less than another fitting one of its layout (more recompute, a higher ZeRO stage) is never faster:
it is dropped as dominated. So is one whose keys and values travel slower (cp: all-gather, or the ring, which holds
less), and an all-to-all that takes longer than another one both to dispatch and to combine the frame's own traffic,
chunk by chunk: which is fastest depends on message size, scale and skew, and is not for the user to guess. A shortcut
is never chosen: experts that read an earlier representation are another model.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from moesim.alltoall import ALGORITHMS, FUSED, WORKLOADS, unsupported
from moesim.cluster import Cluster, Group
from moesim.errors import MoesimError
from moesim.memory import memory, state_bytes
from moesim.metrics import does_not_fit, may_fill
from moesim.planner.kv_exchange import exchanges, fastest_exchange
from moesim.schedule import SCHEDULES, Pipe
from moesim.step import experts
from moesim.step.experts import Spread
from moesim.step.parts import head
from moesim.step.passes import (
    backward_pass,
    forward_pass,
    pass_key,
    priced_key,
    splits_tokens,
    spread,
    variant_key,
)
from moesim.step.scenario import Scenario
from moesim.strategy import RECOMPUTE, Strategy, groups, why_not

MICRO_BATCHES = (1, 2, 4)
MOST_VIRTUAL = 3  # numbers of virtual stages that are tried
DUAL_STAGES = 4  # pipeline stages below which DualPipe has nothing to interleave
ZERO = (1, 2, 3)  # 2 and 3 without pipeline stages only: each micro-batch would reduce and gather anew
CHUNKS = (1, 2, 4, 8)
OUTSIDE = "a kernel's shape is far outside what was measured (moesim cost names it)"
LEAST_CONTEXT_SLICE = 4096  # tokens of a sequence below which context parallelism is not tried


class Variant(NamedTuple):
    """How a frame communicates."""

    all_to_all: str
    chunks: int
    overlap: str
    placement: str


class Options(NamedTuple):
    """The variants of a frame that can win, and how many more have a slower all-to-all."""

    variants: tuple[Variant, ...]
    slower: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """Frames that can run, and why the others cannot."""

    frames: list[Strategy]
    options: list[Options]  # by frame
    infeasible: Counter[str] = field(default_factory=Counter)  # strategies by reason
    dominated: int = 0  # strategies


def space(scenario: Scenario, some_layouts: Sequence[Strategy] | None = None) -> Space:
    """Every frame of the given layouts (all of them by default) that fits, best of its kind."""
    found: list[Strategy] = []
    infeasible: Counter[str] = Counter()
    dominated = 0
    for given in layouts(scenario) if some_layouts is None else some_layouts:
        layout = _with_all_to_all(scenario, given)
        some = sum(1 for _ in _variants(scenario, layout))
        fits = True
        for micro_batch in _micro_batches(scenario, layout):  # ascending: what does not fit will not fit larger
            sized = replace(layout, micro_batch=micro_batch)
            kept = _keeping(scenario, sized)
            reason = why_not(scenario.model, scenario.cluster, scenario.workload, sized)
            if reason is not None:
                infeasible[reason] += len(kept) * some
                continue
            fitting = _fitting(scenario, sized, kept) if fits else []
            fits = bool(fitting)
            if fitting and not _priced(scenario, sized):
                infeasible[OUTSIDE] += len(kept) * some
                continue
            best = _undominated(fitting, fastest_exchange(scenario, sized)) if fitting else []
            infeasible["does not fit in GPU memory"] += (len(kept) - len(fitting)) * some
            dominated += (len(fitting) - len(best)) * some
            found += best
    options = [variants(scenario, frame) for frame in found]
    return Space(frames=found, options=options, infeasible=+infeasible, dominated=dominated)


def layouts(scenario: Scenario) -> Iterator[Strategy]:
    """Degrees that multiply to the cluster; what they must divide is left to ``why_not``."""
    cluster, model, work = scenario.cluster, scenario.model, scenario.workload
    ffn = model.moe
    node = _powers_of_two(min(cluster.gpus_per_node, 8))
    contexts = [1] if work.kind == "decode" else [c for c in node if work.queries // c >= LEAST_CONTEXT_SLICE or c == 1]
    for tp, cp, pp in product(node, contexts, _divisors(cluster.gpus, min(len(model.layers), 64))):
        if cluster.gpus % (tp * cp * pp):
            continue
        stage = cluster.gpus // pp
        for ep, etp in product(_divisors(ffn.experts, stage) if ffn else [1], node if ffn else [1]):
            if ep * etp <= stage:
                yield Strategy(dp=stage // (tp * cp), tp=tp, cp=cp, pp=pp, ep=ep, etp=etp)


def _micro_batches(scenario: Scenario, layout: Strategy) -> list[int]:
    """Sequences per micro-batch. Serving runs all of a rank's sequences at once, or one share per stage."""
    own = max(1, scenario.workload.sequences // layout.dp)
    share = max(1, own // layout.pp)
    if scenario.workload.trains:
        return [m for m in MICRO_BATCHES if m <= own]
    if scenario.workload.kind == "decode":
        return [share]
    return sorted({own // 2**i for i in range(own.bit_length()) if own % 2**i == 0} | {1})


Keep = tuple[str, str, int, str, int]  # exchange of keys and values, recompute, ZeRO stage, schedule, virtual stages


def _keeping(scenario: Scenario, layout: Strategy) -> list[Keep]:
    """Exchange of keys and values, recompute, ZeRO stage, schedule and virtual stages to try."""
    if not scenario.workload.trains:
        return [(exchange, "none", 1, "1f1b", 1) for exchange in exchanges(layout)]
    zero = ZERO if layout.pp == 1 else ZERO[:1]
    everything = product(exchanges(layout), RECOMPUTE, zero)
    return [(*how, *order) for how in everything for order in _orders(scenario, layout)]


def _orders(scenario: Scenario, layout: Strategy) -> list[tuple[str, int]]:
    """Schedules that can run, with their virtual stages."""
    micro_batches = layout.micro_batches(scenario.workload.sequences)
    if micro_batches == 1:
        return [("1f1b", 1), ("zero_bubble", 1)] if layout.pp > 1 else [("1f1b", 1)]
    if layout.pp == 1:
        return [("1f1b", 1), *[("combined_1f1b", 1)] * _dispatches(scenario, layout)]
    deepest = -(-len(scenario.model.layers) // layout.pp)  # layers of a stage
    virtual = [v for v in _divisors(deepest, deepest) if v > 1 and v * layout.pp <= len(scenario.model.layers)]
    tried = [("1f1b", 1), ("gpipe", 1), ("zero_bubble", 1), *(("interleaved", v) for v in virtual[:MOST_VIRTUAL])]
    if _dispatches(scenario, layout):  # else a pair has nothing to hide
        tried += [("combined_1f1b", v) for v in (1, *virtual[:1])]
        tried += [("dualpipe", 1)] if layout.pp >= DUAL_STAGES else []
    return [(name, v) for name, v in tried if SCHEDULES[name].why_not(Pipe(layout.pp, micro_batches, v)) is None]


def _fitting(scenario: Scenario, sized: Strategy, kept: list[Keep]) -> list[Strategy]:
    """The ways of keeping that fit under the drawn skew; nothing is drawn where not even the least fits."""
    made = [
        replace(sized, cp_exchange=exchange, recompute=recompute, zero=zero, schedule=name, virtual=v)
        for exchange, recompute, zero, name, v in kept
        if not scenario.workload.trains or _keeps(scenario, sized, zero, name, v)
    ]
    if scenario.model.moe is None:
        return [one for one in made if _fits(scenario, one, 1.0)]
    if not any(_fits(scenario, one, 1.0) for one in reversed(made)):
        return []
    skew = experts.load(scenario, spread(scenario, pass_key(scenario, sized))).fullness
    return [one for one in made if _fits(scenario, one, skew)]


def _keeps(scenario: Scenario, sized: Strategy, zero: int, schedule: str, virtual: int) -> bool:
    """Whether there is room for the parameters and what belongs to them, before any activation."""
    bare = replace(sized, micro_batch=1, zero=zero, schedule=schedule, virtual=virtual)
    return state_bytes(scenario.model, scenario.workload, bare) <= may_fill(scenario.cluster.gpu)


def _priced(scenario: Scenario, sized: Strategy) -> bool:
    """Whether every kernel of its layer passes lies within reach of the profile."""
    key = pass_key(scenario, sized)
    try:
        for kind in scenario.model.layer_kinds():
            forward_pass(scenario, kind.layer, key)
            if scenario.workload.trains:
                backward_pass(scenario, kind.layer, key, "none")
        head(scenario, sized, backward=scenario.workload.trains)
    except MoesimError:
        return False
    return True


def _fits(scenario: Scenario, strategy: Strategy, skew: float) -> bool:
    found = memory(scenario.model, scenario.workload, strategy, skew)
    return does_not_fit(scenario.cluster.gpu, found) is None


def _undominated(fitting: list[Strategy], exchange: str | None) -> list[Strategy]:
    """Without those that another one of the same schedule beats in recompute, ZeRO stage and exchange of keys and
    values; ``exchange`` is the fastest, None where that depends on the layer."""

    def slower(one: Strategy, other: Strategy) -> bool:
        mine = RECOMPUTE.index(one.recompute), one.zero, one.cp_exchange != exchange
        theirs = RECOMPUTE.index(other.recompute), other.zero, other.cp_exchange != exchange
        alike = (one.schedule, one.virtual) == (other.schedule, other.virtual)
        comparable = alike and (exchange is not None or one.cp_exchange == other.cp_exchange)
        return comparable and mine != theirs and all(a >= b for a, b in zip(mine, theirs, strict=True))

    return [one for one in fitting if not any(slower(one, other) for other in fitting)]


def variants(scenario: Scenario, frame: Strategy) -> Options:
    """Ways of communicating that differ for this frame and can be the best."""
    everything = tuple(_variants(scenario, frame))
    if not _dispatches(scenario, frame):
        return Options(everything, 0)
    key, group = pass_key(scenario, frame), groups(frame, scenario.cluster)["ep"]
    winners = {
        one[1:]: fastest(scenario, spread(scenario, priced_key(variant_key(key, *one))), group, one.chunks)
        for one in everything
        if one.all_to_all == everything[0].all_to_all
    }
    kept = tuple(one for one in everything if one.all_to_all in winners[one[1:]])
    return Options(kept, len(everything) - len(kept))


def _variants(scenario: Scenario, frame: Strategy) -> Iterator[Variant]:
    """Every way of communicating that can run."""
    dispatches, apart = _dispatches(scenario, frame), not _in_pairs(scenario, frame)
    usable = _usable(scenario, frame) if dispatches else ("linear",)
    cuts = CHUNKS if dispatches and apart else CHUNKS[:1]
    overlaps = [(1, "none"), *((n, "chunked") for n in cuts)]
    if dispatches and not scenario.workload.trains and frame.micro_batch * scenario.workload.queries > 1:
        overlaps.append((1, "dual_batch"))
    if dispatches and apart and scenario.model.moe and scenario.model.moe.shared_width:
        overlaps.append((1, "shared"))
    skewed = frame.ep > 1 and scenario.routing.kind != "uniform"
    for algorithm, (chunks, overlap) in product(usable, overlaps):
        for placement in ("contiguous", "balanced") if skewed else ("contiguous",):
            yield Variant(algorithm, chunks, overlap, placement)


def _with_all_to_all(scenario: Scenario, layout: Strategy) -> Strategy:
    """The layout with an all-to-all that can run, if there is one: on a torus the plain choice cannot."""
    usable = _usable(scenario, layout) if layout.ep > 1 else ()
    return replace(layout, all_to_all=usable[0]) if usable else layout


def _dispatches(scenario: Scenario, frame: Strategy) -> bool:
    return frame.ep > 1 and splits_tokens(scenario, frame.tp, frame.ep * frame.etp)


def _in_pairs(scenario: Scenario, frame: Strategy) -> bool:
    """Whether most of its passes run beside another one: nothing is cut into chunks there."""
    return scenario.workload.trains and SCHEDULES[frame.schedule].pairs


def _usable(scenario: Scenario, frame: Strategy) -> tuple[str, ...]:
    return usable_on(scenario.cluster, groups(frame, scenario.cluster)["ep"], scenario.workload.kind)


@lru_cache(maxsize=256)
def usable_on(cluster: Cluster, group: Group, workload: str) -> tuple[str, ...]:
    """All-to-alls that can run on a group."""
    kept = [name for name in ALGORITHMS if name not in FUSED and workload in WORKLOADS.get(name, (workload,))]
    return tuple(name for name in kept if unsupported(cluster, group, name) is None)


@lru_cache(maxsize=16384)
def fastest(scenario: Scenario, load: Spread, group: Group, chunks: int) -> frozenset[str]:
    """All-to-alls that no other one beats both ways, with one chunk of this load."""
    ways = [(way, experts.row_bytes(scenario.workload.dtype, way)) for way in experts.DIRECTIONS]
    seconds = {
        name: [
            float(experts.exchange(scenario, load, group, name, chunks, way, size).slowest.mean()) for way, size in ways
        ]
        for name in usable_on(scenario.cluster, group, scenario.workload.kind)
    }
    ordered = sorted(seconds, key=lambda name: sum(seconds[name]))  # no later one beats an earlier one both ways
    kept: list[str] = []
    for name in ordered:
        if not any(all(a <= b for a, b in zip(seconds[other], seconds[name], strict=True)) for other in kept):
            kept.append(name)
    return frozenset(kept)


def with_variant(frame: Strategy, variant: Variant) -> Strategy:
    return replace(frame, **variant._asdict())


@lru_cache(maxsize=1024)
def _divisors(number: int, most: int) -> list[int]:
    return [d for d in range(1, min(number, most) + 1) if number % d == 0]


def _powers_of_two(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length())]
