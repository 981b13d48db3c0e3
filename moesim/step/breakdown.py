"""Where the time of a step goes, and how sure it is: seconds of the fullest stage by family.

    compute    attention, mamba, dense, experts (mean rank), gate, recompute, optimizer
    waiting    imbalance: the slowest rank's experts beyond the mean rank's; host: the GPU waits for launches
    exposed    communication that nothing hides, by family: all-to-all, tp, cp, etp, dp, pp
    bubble     the stage waits for other stages

They add up to the step. A family's exposed seconds are the pass's idle compute time, divided among the
communication families in proportion to their busy time.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from math import sqrt
from typing import Final, NamedTuple

import numpy as np

from moesim.cost import Basis, FloatArray
from moesim.program import RANK_STREAMS, Passes
from moesim.step.ends import Ends, ends
from moesim.step.experts import class_weights
from moesim.step.launches import host
from moesim.step.layers import batched, slowed
from moesim.step.parts import HEAD_SHARES, by_class, embedding, head, layer_counts, layer_pass
from moesim.step.passes import LayerPass, pass_key
from moesim.step.play import step_seconds
from moesim.step.price import COMMUNICATION, Price
from moesim.step.scenario import Scenario, split_in
from moesim.step.times import StepTimes, stage_work
from moesim.step.turns import Turns, turns
from moesim.strategy import Strategy

OVER_DP: Final = ("gather_first", "gather_rest", "gather_chunk", "reduce_chunk", "reduce_rest", "reduce_last")


class Breakdown(NamedTuple):
    """``seconds`` by family add up to the step; ``error`` is the relative half-width of its 90 % band."""

    seconds: dict[str, float]
    errors: dict[str, float]  # relative half-width of each family's seconds
    error: float
    basis: Basis
    sources: tuple[str, ...]

    @property
    def exposed_s(self) -> float:
        """Communication that nothing hides."""
        return sum(self.seconds.get(family, 0.0) for family in COMMUNICATION)


class _Ledger:
    """Adds up seconds by family, and every priced second by what it rests on."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.errors: defaultdict[str, float] = defaultdict(float)  # seconds of half-width
        self.busy: defaultdict[str, float] = defaultdict(float)  # hidden or not
        self.basis = np.zeros(3)
        self.sources: defaultdict[str, float] = defaultdict(float)

    def rest_on(self, one: Price, seconds: float) -> None:
        """``seconds`` of work, hidden or not, were priced by ``one``."""
        self.errors[one.family] += seconds * one.error
        self.busy[one.family] += seconds
        self.basis += seconds * np.array(one.basis)
        for source in one.sources if seconds > 0 else ():
            self.sources[source] += seconds

    def hide(self, seconds: float) -> None:
        """Passes that ran interleaved took ``seconds`` less than alone: communication that was not exposed, and beyond
        it the work of chunks, which a pair does not need."""
        exposed = sum(self.seconds[family] for family in COMMUNICATION)
        hidden = min(seconds, exposed)
        self._scale(COMMUNICATION, hidden, exposed)
        self._scale(tuple(self.seconds), seconds - hidden, sum(self.seconds.values()))

    def _scale(self, families: Iterable[str], less_s: float, of_s: float) -> None:
        for family in families:
            self.seconds[family] -= less_s * self.seconds[family] / of_s if of_s > 0 else 0.0

    def add(self, one: Price, seconds: float) -> None:
        self.seconds[one.family] += seconds
        self.rest_on(one, seconds)


def breakdown(scenario: Scenario, strategy: Strategy, passes: Passes, times: StepTimes, step_s: float) -> Breakdown:
    """Explain ``step_s``, the seconds of a step whose ops took ``times``."""
    stage = int(np.argmax(stage_work(passes, times, passes.micro_batches)))
    ledger = _Ledger()
    key = pass_key(scenario, strategy)
    found = turns(passes, stage)
    for kind, by_part in _alone(passes, found).items():  # [part, micro-batch class]
        for layer, count in layer_counts(scenario, split_in(scenario, strategy)).items():  # [part, layer class]
            if (count.T @ by_part).any():
                one = layer_pass(scenario, layer, key, strategy.recompute, kind)
                _add_pass(ledger, one, count.T @ by_part, strategy.ep)
                _add_host(ledger, scenario, one, count.T @ by_part)
        out = head(scenario, strategy, backward=kind != "forward")
        ledger.add(out, float(by_part[-1].sum()) * HEAD_SHARES.get(kind, 1.0) * float(out.seconds.sum()))
        first = embedding(scenario, strategy, kind)
        if first is not None:
            ledger.add(first, float(by_part[0].sum()) * float(first.seconds.sum()))
    ledger.hide(_saved(passes, times, found["pair"]))
    _add_ends(ledger, ends(scenario, strategy), times, passes, stage, step_s)
    total = sum(ledger.seconds.values())
    priced = float(ledger.basis.sum())
    return Breakdown(
        seconds={family: s for family, s in ledger.seconds.items() if s > 0},
        errors={family: e / ledger.busy[family] for family, e in ledger.errors.items() if ledger.busy[family] > 0},
        error=sqrt(sum(e**2 for e in ledger.errors.values())) / max(total, priced, 1e-30),
        basis=Basis(*(ledger.basis / priced).tolist()) if priced > 0 else Basis(0.0, 0.0, 1.0),
        sources=tuple(sorted(ledger.sources, key=lambda source: -ledger.sources[source])),
    )


def _alone(passes: Passes, found: Turns) -> dict[str, FloatArray]:
    """How often each kind of pass runs, a pair counted as its two passes: [part, micro-batch class]."""
    often = {kind: count for kind, count in found.items() if kind != "pair"}
    often["forward"] = often["forward"] + found["pair"].sum(axis=(2, 3))
    for part, partners in enumerate(passes.partners):
        often["backward"][list(partners)] += found["pair"][part].sum(axis=0)
    return {kind: count for kind, count in often.items() if count.any()}


def _saved(passes: Passes, times: StepTimes, pairs: FloatArray) -> float:
    """What a stage's pairs save against their passes one after the other."""
    if not pairs.size:
        return 0.0
    apart = times.forward[..., None, None] + times.backward[passes.partners][:, None]
    return float((pairs * (apart - times.pair)).sum())


def _add_pass(ledger: _Ledger, one: LayerPass, times: FloatArray, ranks: int) -> None:
    """A layer pass, ``times[layer class, micro-batch class]`` over."""
    counts = Counter(op.key for op in one.program)
    streams = {op.key: op.stream for op in one.program}
    ended = float((by_class(batched(one._replace(host_s=0.0)), len(times)) * times).sum())
    computed, moved = 0.0, []
    durations = slowed(one)
    for name, count in counts.items():
        priced = one.price(name)._replace(seconds=durations[name], slowest=durations[name].max(axis=1))
        slowest = float((by_class(priced.slowest, len(times)) * times).sum()) * count
        if streams[name] not in RANK_STREAMS:
            moved.append((priced, slowest))
            continue
        mean = _mean_rank(priced, ranks, times) * count
        ledger.add(priced, mean)
        ledger.seconds["imbalance"] += slowest - mean
        computed += slowest
    busy = sum(seconds for _, seconds in moved)
    exposed = max(0.0, ended - computed)
    for priced, seconds in moved:
        ledger.rest_on(priced, seconds)
        ledger.seconds[priced.family] += exposed * seconds / busy if busy > 0 else 0.0


def _add_host(ledger: _Ledger, scenario: Scenario, one: LayerPass, times: FloatArray) -> None:
    """What the pass takes longer than its ops do, because its kernels are not launched yet."""
    waited = np.maximum(0.0, one.host_s - batched(one._replace(host_s=0.0)))
    ledger.add(host(scenario), float((by_class(waited, len(times)) * times).sum()))


def _mean_rank(priced: Price, ranks: int, times: FloatArray) -> float:
    classes = priced.seconds.shape[1]
    by_rank = priced.seconds @ class_weights(ranks, classes) if classes > 1 else priced.seconds[:, 0]
    return float((by_class(by_rank, len(times)) * times).sum())


def _add_ends(ledger: _Ledger, end: Ends, times: StepTimes, passes: Passes, stage: int, step_s: float) -> None:
    """Optimizer; data parallelism and transfers as what the step loses without them; the rest is bubble."""
    for one in (end.gather[stage], end.reduce[stage], end.tie[stage], end.send[stage]):
        ledger.rest_on(one, float(one.seconds.sum()))
    ledger.add(end.optimizer[stage], float(end.optimizer[stage].seconds.sum()))
    left = max(0.0, step_s - sum(ledger.seconds.values()))
    for family, names in (("dp", OVER_DP), ("pp", ("send",))):
        without = times._replace(**{name: np.zeros_like(times.send) for name in names})
        exposed = min(left, max(0.0, step_s - float(step_seconds(passes, without, events=False))))
        ledger.seconds[family] += exposed
        left -= exposed
    ledger.seconds["bubble"] += left
