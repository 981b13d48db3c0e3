"""What a played step means: one function per metric, and a Result that holds them all.

step_time_s | ttft_s | tpot_s   seconds of the step: training | prefill | decode
tokens_per_s                    new tokens of the step over its seconds; prefill batches follow one another,
                                so there it is over the busy seconds of the fullest stage
mfu                             model FLOPs (no recompute) over the dense peak of the workload's dtype
exposed_comm_fraction           share of the step in which only communication runs
imbalance                       max/mean of the tokens that expert-parallel ranks receive
cost_per_million_tokens         GPUs x price per GPU-hour over tokens; None without a price
"""

from dataclasses import dataclass
from math import hypot, isclose
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from moesim.cluster import Gpu
from moesim.errors import MoesimError
from moesim.memory import Memory, memory
from moesim.model import Model, forward_flops, training_flops
from moesim.profile import sustained_share
from moesim.program import Passes
from moesim.step import experts
from moesim.step.breakdown import Breakdown, breakdown
from moesim.step.ends import ends
from moesim.step.launches import eager
from moesim.step.layers import batched, bounded, by_events
from moesim.step.parts import PartPasses, part_passes
from moesim.step.passes import pass_key, spread
from moesim.step.play import passes_of, step_seconds, times_of
from moesim.step.scenario import BATCH_CLASSES, LAYER_CLASSES, Scenario, split_in
from moesim.step.times import StepTimes, stage_work, step_bound
from moesim.strategy import Strategy, show, why_not
from moesim.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

TIME_METRIC: Final = {"train": "step_time_s", "prefill": "ttft_s", "decode": "tpot_s"}
FULL: Final = 0.94  # share of GPU memory that may be planned; the allocator needs the rest (estimated)
# What no kernel table knows: framework, host, clocks, missing techniques. The 90th percentile of the log error
# of the cited runs that ship with ``moesim validate`` (5 training, 17 serving figures) is 0.74 and 0.52; as
# ratios minus one:
UNMODELLED: Final = {"train": 1.10, "prefill": 0.68, "decode": 0.68}
OF_TIME: Final = ("step_time_s", "ttft_s", "tpot_s", "cost_per_million_tokens")
OF_SPEED: Final = ("tokens_per_s", "tokens_per_s_per_gpu", "mfu")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Result:
    """One strategy, played."""

    scenario: Scenario
    strategy: Strategy
    step_s: float
    bound_s: float  # that no order of the same ops can beat
    memory: Memory
    breakdown: Breakdown
    metrics: dict[str, float | None]
    interval: dict[str, list[float] | None]
    dropped_share: float
    padding_share: float
    infeasible: str | None  # why it cannot run as it is: memory

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "strategy": self.strategy.to_dict(),
            "layers_per_part": list(split_in(self.scenario, self.strategy)),
            "metrics": self.metrics,
            "interval": self.interval,
            "basis": self.breakdown.basis._asdict(),
            "bound_s": self.bound_s,
            "breakdown_s": self.breakdown.seconds,
            "memory_bytes": self.memory._asdict(),
            "dropped_share": self.dropped_share,
            "padding_share": self.padding_share,
            "infeasible": self.infeasible,
            "limits": limits(self.scenario, self.strategy),
        }

    def to_frame(self) -> "pd.DataFrame":
        """One row: strategy and metrics."""
        import pandas as pd

        return pd.DataFrame([self.strategy.to_dict() | self.metrics])


class Play(NamedTuple):
    """A strategy played: the step, what no order of its ops can beat, and what it is made of."""

    strategy: Strategy
    step_s: float
    bound_s: float
    passes: Passes
    times: StepTimes
    parts: PartPasses


def play(scenario: Scenario, strategy: Strategy, *, events: bool = True, fold: bool = False) -> Play:
    """Play ``strategy`` by SimPy (``events``) or by the batched list schedule.

    ``fold`` cuts the steady phase of the micro-batches short. Raises MoesimError when the strategy is
    impossible.
    """
    reason = why_not(scenario.model, scenario.cluster, scenario.workload, strategy)
    if reason is not None:
        work = scenario.workload
        asked = f"{scenario.cluster.gpus} GPUs, {work.sequences} sequences, {len(scenario.model.layers)} layers"
        raise MoesimError(f"this strategy cannot run: {reason} ({show(strategy)}; {asked})")
    passes = passes_of(scenario, strategy)
    parts = part_passes(scenario, strategy, by_events if events else batched)
    end = ends(scenario, strategy)
    times = times_of(scenario, strategy, parts, end)
    step_s = float(step_seconds(passes, times, events=events, fold=fold))
    floor = times_of(scenario, strategy, part_passes(scenario, strategy, bounded), end)
    bound_s = float(step_bound(passes, floor, passes.micro_batches))
    bound_s = step_s if isclose(bound_s, step_s, rel_tol=1e-9) else bound_s  # sums in another order round differently
    return Play(strategy, step_s, bound_s, passes, times, parts)


def unfolded(played: Play) -> Play:
    """The same play with every micro-batch: the list schedule of the same ops, which ends when SimPy does."""
    step_s = float(step_seconds(played.passes, played.times, events=False, fold=False))
    return played._replace(step_s=step_s, bound_s=min(played.bound_s, step_s))


def explain(scenario: Scenario, played: Play) -> Result:
    """What a play means."""
    strategy, step_s = played.strategy, played.step_s
    why = breakdown(scenario, strategy, played.passes, played.times, step_s)
    load = experts.load(scenario, spread(scenario, pass_key(scenario, strategy))) if scenario.model.moe else None
    skew = load.imbalance if load else 1.0
    found = memory(scenario.model, scenario.workload, strategy, load.fullness if load else 1.0)
    metrics = _metrics(scenario, step_s, steady_seconds(scenario, played), why, found, skew)
    error = hypot(why.error, UNMODELLED[scenario.workload.kind])
    return Result(
        scenario=scenario,
        strategy=strategy,
        step_s=step_s,
        bound_s=played.bound_s,
        memory=found,
        breakdown=why,
        metrics=metrics,
        interval={name: _band(name, value, error) for name, value in metrics.items() if name in OF_TIME + OF_SPEED},
        dropped_share=load.dropped_share if load else 0.0,
        padding_share=load.padding_share if load else 0.0,
        infeasible=does_not_fit(scenario.cluster.gpu, found),
    )


def measure(scenario: Scenario, strategy: Strategy, *, events: bool = True, fold: bool = False) -> Result:
    """Play ``strategy`` and say what it means; one that does not fit in memory is marked ``infeasible``."""
    return explain(scenario, play(scenario, strategy, events=events, fold=fold))


def steady_seconds(scenario: Scenario, played: Play) -> float:
    """Seconds per step when steps follow one another: prefill batches fill each other's bubbles."""
    if scenario.workload.kind != "prefill":
        return played.step_s
    return float(stage_work(played.passes, played.times, played.passes.micro_batches).max())


def limits(scenario: Scenario, strategy: Strategy) -> list[str]:
    """What the numbers of this answer do not know, one sentence each."""
    model = scenario.model
    told = [text for text in scenario.profile.limits if " mla" not in text or _has_mla(model)]
    up = scenario.cluster.scale_up
    told += [f"the {up.kind} bandwidth is an estimate: {up.source}"] if up.basis == "estimated" else []
    if scenario.cluster.nodes > 1:
        told.append("collectives and all-to-all between nodes are a model with assumed start-up times")
    if strategy.overlap not in ("none", "tiles") and not scenario.profile.tables["interference"]:
        told.append("what overlaps slows each other down as in one published trace (H800), not as measured here")
    if any(kind.layer.mamba for kind in model.layer_kinds()):
        told.append("Mamba's scan is priced by one published kernel (H800) at its speed per SM: estimated")
    if scenario.workload.trains:
        told.append(_clocks(scenario.cluster.gpu))
        told.append("backward passes are priced at the forward kernels' efficiency")
        if eager(scenario, strategy.capacity_factor):
            told.append("kernels are launched one by one, as Megatron-LM does: no CUDA graph, no other framework")
    if scenario.workload.trains and strategy.zero > 1:
        told.append("ZeRO 2 and 3 traffic hides behind the neighbouring layer, which is taken to be of the same kind")
    if model.moe is not None and not scenario.average:
        told.append(f"MoE layers are played as {LAYER_CLASSES} classes in {BATCH_CLASSES} micro-batches each")
    return told


def _clocks(gpu: Gpu) -> str:
    """What is known of the GPU's clocks under load."""
    share = sustained_share(gpu.name)
    if share == 1.0:
        return "kernel times were measured at locked clocks: a run at its power limit is slower"
    kept = f"{gpu.name} is taken to keep {share:.0%} of them under load (estimated, from dense runs)"
    return f"kernel times were measured at locked clocks: {kept}"


def _has_mla(model: Model) -> bool:
    return any(a.kind == "mla" for kind in model.layer_kinds() if (a := kind.layer.attention))


def does_not_fit(gpu: Gpu, found: Memory) -> str | None:
    """Why the memory of ``gpu`` is too small, or None."""
    return "does not fit in GPU memory" if found.total > may_fill(gpu) else None


def may_fill(gpu: Gpu) -> float:
    """Bytes that may be planned."""
    return FULL * gpu.memory_bytes


def model_flops(scenario: Scenario) -> float:
    """FLOPs of the model for one step over the whole cluster; recompute is not counted."""
    work, model = scenario.workload, scenario.model
    if work.trains:
        return work.sequences * training_flops(model, work.queries)
    return work.sequences * forward_flops(model, work.queries, work.past, outputs=1.0)


def peak_flops(gpu: Gpu, workload: Workload) -> float:
    """Dense peak of the workload's dtype; a GPU without it computes in bf16."""
    dtype = "fp8" if workload.dtype.startswith("fp8") else "bf16"
    return gpu.flops.get(dtype, gpu.flops["bf16"])


def cost_per_million_tokens(scenario: Scenario, tokens_per_s: float) -> float | None:
    """Price of all GPUs for the time that a million tokens take."""
    price = scenario.cluster.gpu_hour_price
    return None if price is None else price * scenario.cluster.gpus / 3600.0 / tokens_per_s * 1e6


def _metrics(
    scenario: Scenario, step_s: float, steady_s: float, why: Breakdown, found: Memory, imbalance: float
) -> dict[str, float | None]:
    work, gpus = scenario.workload, scenario.cluster.gpus
    tokens_per_s = work.tokens / steady_s
    return {
        TIME_METRIC[work.kind]: step_s,
        "tokens_per_s": tokens_per_s,
        "tokens_per_s_per_gpu": tokens_per_s / gpus,
        "mfu": model_flops(scenario) / (gpus * peak_flops(scenario.cluster.gpu, work) * steady_s),
        "memory_bytes_per_gpu": found.total,
        "exposed_comm_fraction": why.exposed_s / step_s,
        "imbalance": imbalance,
        "cost_per_million_tokens": cost_per_million_tokens(scenario, tokens_per_s),
    }


def _band(name: str, value: float | None, error: float) -> list[float] | None:
    """The 90 % band: a time between t / (1 + e) and t (1 + e); a speed the other way round, the same."""
    if value is None:
        return None
    high = value * (1.0 + error)
    return [value / (1.0 + error), max(value, min(1.0, high)) if name == "mfu" else high]
