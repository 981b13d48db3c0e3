"""How much of the wall time of a training run is useful: barriers, stragglers, failures, checkpoints.

    goodput = step / (step + waits + stragglers)  x  useful share between failures

    waits        exposed seconds of each collective x deviation x Phi^-1((R - .375) / (R + .25))     network.jitter
                 a barrier waits for the latest of R ranks; an exchange that is hidden hides its waits too
    stragglers   computing seconds x slowness x (1 - (1 - p)^nodes)        one slow node slows every step
    useful       tau / (M e^(r/M) (e^((tau+d)/M) - 1))                     Daly 2006
                 tau computing between checkpoints, d writing one, r restarting, M = MTBF of a GPU / GPUs
    tau          sqrt(2 d M) (1 + sqrt(d/2M)/3 + d/18M) - d; M where d >= 2M     Daly 2006, "A higher order
                 estimate of the optimum checkpoint interval"; Young 1974: sqrt(2 d M)

Failures are exponential and any GPU's stops all. Every input has a default that was published (``FACTS``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import exp, expm1, isfinite, sqrt
from typing import Any, Final, NamedTuple

from moesim.cluster import Cluster
from moesim.errors import MoesimError
from moesim.memory import TRAINING_WEIGHT_BYTES, optimizer_bytes
from moesim.metrics import Result
from moesim.model import Model, mtp_parameters, parameters
from moesim.network.jitter import expected_latest_s
from moesim.strategy import Strategy

DAY_S: Final = 86400.0
_LLAMA: Final = "Llama 3, arXiv:2407.21783"
_MEGASCALE: Final = "MegaScale, arXiv:2402.15627"
_FLASHMOE_RANKS: Final = 32


class Fact(NamedTuple):
    """The default of an input, in SI units, and where it comes from."""

    value: float
    unit: str
    source: str


FACTS: Final = {
    "gpu_mtbf_s": Fact(
        16384 * 54 * DAY_S / 419, "s",
        f"{_LLAMA}, table 5: 419 unexpected interruptions in 54 days on 16,384 H100",
    ),
    "restart_s": Fact(600.0, "s", f"{_MEGASCALE}: detecting and diagnosing take less than 10 min"),
    "write_bytes_per_s": Fact(
        2e12 / 16384, "bytes/s a GPU", f"{_LLAMA}, section 3.3.1: storage sustains 2 TB/s for 16,384 GPUs"
    ),
    "slow_share": Fact(0.005, "of the nodes", f"{_MEGASCALE}: about 0.5 % of the machines are slow"),
    "slowness": Fact(0.10, "of the computing time", f"{_MEGASCALE}: by about 10 %"),
    "deviation": Fact(
        0.09 / expected_latest_s(1.0, _FLASHMOE_RANKS), "of an exchange",
        "FlashMoE, arXiv:2506.04667, table 2: all-to-alls take 1.09 x the fastest rank's time on 32 A100 (median)",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Reality:
    """What goes wrong. Defaults: ``FACTS``."""

    gpu_mtbf_s: float = FACTS["gpu_mtbf_s"].value
    restart_s: float = FACTS["restart_s"].value
    write_bytes_per_s: float = FACTS["write_bytes_per_s"].value  # of one GPU
    slow_share: float = FACTS["slow_share"].value  # of the nodes, on average
    slowness: float = FACTS["slowness"].value  # extra computing time of a slow one
    deviation: float = FACTS["deviation"].value  # of a rank's arrival at a barrier, over the time of the exchange
    interval_s: float | None = None  # computing between two checkpoints; None: the best

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            above = each.name in ("gpu_mtbf_s", "write_bytes_per_s", "interval_s")
            if value is None:
                continue
            if not isfinite(value) or value < 0 or (above and value == 0):
                raise MoesimError(f"goodput {each.name} {value}: give a number {'above' if above else 'of at least'} 0")
        if self.slow_share > 1:
            raise MoesimError(f"goodput slow_share {self.slow_share}: give at most 1, a share of the nodes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodput:
    """Useful over wall time of one training run, and where the rest goes."""

    step_s: float  # as simulated
    waits_s: float  # added to a step at its barriers
    stragglers_s: float
    useful_share: float  # of the time between failures: not written, restarted or computed again
    lost: dict[str, float]  # share of the wall time by cause; with ``goodput`` they add up to one
    mtbf_s: float  # of the whole cluster
    write_s: float
    interval_s: float
    checkpoint_bytes: float
    tokens_per_s: float
    sources: dict[str, str]

    @property
    def goodput(self) -> float:
        """Simulated seconds over wall seconds of the same steps."""
        return self.useful_share * self.step_s / self.real_step_s

    @property
    def real_step_s(self) -> float:
        """A step with its waits and stragglers."""
        return self.step_s + self.waits_s + self.stragglers_s

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            "goodput": self.goodput,
            "real_step_s": self.real_step_s,
            "interruptions_per_day": DAY_S / self.mtbf_s,
            "checkpoint_steps": self.interval_s / self.real_step_s,
            **found,
        }


def goodput(result: Result, reality: Reality | None = None) -> Goodput:
    """What a played training step means over weeks."""
    reality = reality or Reality()
    scenario, strategy, cluster = result.scenario, result.strategy, result.scenario.cluster
    if not scenario.workload.trains:
        raise MoesimError(f"goodput of a {scenario.workload.kind} workload: it is defined for training, use -w train")
    step_s = result.step_s
    waits_s = waiting_s(result.breakdown.seconds, ranks(strategy), reality.deviation)
    stragglers_s = straggling_s(step_s - result.breakdown.exposed_s, cluster.nodes, reality)
    mtbf_s = reality.gpu_mtbf_s / cluster.gpus
    size = checkpoint_bytes(scenario.model, scenario.workload.dtype)
    write_s = size / (reality.write_bytes_per_s * cluster.gpus)
    interval_s = reality.interval_s or daly_s(write_s, mtbf_s)
    share = useful_share(interval_s, write_s, reality.restart_s, mtbf_s)
    real_s = step_s + waits_s + stragglers_s
    found = share * step_s / real_s
    return Goodput(
        step_s=step_s, waits_s=waits_s, stragglers_s=stragglers_s, useful_share=share,
        lost={
            "barriers": share * waits_s / real_s,
            "stragglers": share * stragglers_s / real_s,
            **_between_failures(interval_s, write_s, reality.restart_s, mtbf_s),
        },
        mtbf_s=mtbf_s, write_s=write_s, interval_s=interval_s, checkpoint_bytes=size,
        tokens_per_s=found * scenario.workload.tokens / step_s,
        sources=_sources(reality, cluster),
    )  # fmt: skip


def ranks(strategy: Strategy) -> dict[str, int]:
    """Ranks that meet in the collectives of each family."""
    return {
        "all-to-all": strategy.ep, "tp": strategy.tp, "cp": strategy.cp, "etp": strategy.etp,
        "dp": strategy.dp * strategy.cp,
    }  # fmt: skip


def waiting_s(exposed_s: Mapping[str, float], ranks: Mapping[str, int], deviation: float) -> float:
    """What barriers add to a step: every exchange ends with the latest of its ranks."""
    return sum(
        expected_latest_s(deviation * exposed_s.get(family, 0.0), members)
        for family, members in ranks.items()
        if members > 1
    )


def straggling_s(computing_s: float, nodes: int, reality: Reality) -> float:
    """What slow nodes add to a step on average: it is as slow as the slowest."""
    return computing_s * reality.slowness * (1.0 - (1.0 - reality.slow_share) ** nodes)


def checkpoint_bytes(model: Model, dtype: str) -> float:
    """bf16 weights and what Adam keeps in that recipe, once."""
    return (parameters(model) + mtp_parameters(model)) * (TRAINING_WEIGHT_BYTES + optimizer_bytes(dtype))


def young_s(write_s: float, mtbf_s: float) -> float:
    """Young's first-order interval."""
    return sqrt(2.0 * write_s * mtbf_s)


def daly_s(write_s: float, mtbf_s: float) -> float:
    """Daly's interval: computing time between two checkpoints that wastes least."""
    if write_s >= 2.0 * mtbf_s:
        return mtbf_s
    ratio = write_s / (2.0 * mtbf_s)
    return young_s(write_s, mtbf_s) * (1.0 + sqrt(ratio) / 3.0 + ratio / 9.0) - write_s


def useful_share(interval_s: float, write_s: float, restart_s: float, mtbf_s: float) -> float:
    """Computing time that counts over wall time; a restart may fail too. 0 where a segment never ends."""
    if max(restart_s, interval_s + write_s) / mtbf_s > 300.0:
        return 0.0
    return interval_s / (mtbf_s * exp(restart_s / mtbf_s) * expm1((interval_s + write_s) / mtbf_s))


def _between_failures(interval_s: float, write_s: float, restart_s: float, mtbf_s: float) -> dict[str, float]:
    """Shares of the wall time: writing what counts, restarting, computing or writing again what was lost."""
    share = useful_share(interval_s, write_s, restart_s, mtbf_s)
    writing = share * write_s / interval_s
    restarting = (1.0 - exp(-restart_s / mtbf_s)) if share else 1.0  # of an interval's wall time, all of it downtime
    return {"checkpoints": writing, "restarts": restarting, "repeated work": 1.0 - share - writing - restarting}


def _sources(reality: Reality, cluster: Cluster) -> dict[str, str]:
    """Value and source of every input."""
    told = {}
    for name, fact in FACTS.items():
        value = getattr(reality, name)
        told[name] = f"{value:.4g} {fact.unit}: {fact.source if value == fact.value else 'given'}"
    told["interval_s"] = "given" if reality.interval_s else "the best: Daly 2006"
    told["mtbf_s"] = f"gpu_mtbf_s / {cluster.gpus} GPUs"
    return told
