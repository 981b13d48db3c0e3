"""What is chosen: parallel degrees, micro-batches, all-to-all, overlap, schedule, placement.

    world = dp x cp x tp x pp                 attention and dense layers
    world = (expert data parallel) x ep x etp x pp     experts fold over the same dp x cp x tp GPUs

Ranks are numbered tp innermost, then cp, dp, pp; within a pipeline stage experts number etp innermost,
then ep. With tp > 1 the tokens between the blocks are split over tp (sequence parallelism).
"""

from dataclasses import asdict, dataclass, fields
from math import gcd, isfinite
from typing import Any, Final

from moesim.alltoall import ALGORITHMS, FUSED, REAL_ROWS, WORKLOADS, unsupported
from moesim.cluster import Cluster, Group
from moesim.errors import MoesimError, choice
from moesim.model import Model, in_pairs, indivisible
from moesim.placement import PLACEMENTS
from moesim.recompute import canonical
from moesim.schedule import SCHEDULES, Pipe
from moesim.workload import Workload

RECOMPUTE: Final = ("none", "selective", "full")  # what is tried; any set of ``recompute.PARTS`` can be given
OVERLAPS: Final = ("none", "chunked", "shared", "shortcut", "shortcut2", "shortcut3", "dual_batch", "tiles")
VIRTUAL: Final = {True: ("interleaved", "combined_1f1b"), False: tuple({*SCHEDULES} - {"interleaved"})}  # stages or not
CHUNKED: Final = ("chunked", "shortcut", "shortcut2", "shortcut3")  # may cut the all-to-all into chunks
MOST_CHUNKS: Final = 256
MOST_PASSES: Final = 1_000_000  # micro-batches of a rank times parts of the model, that a step plays
ZERO_STAGES: Final = (0, 1, 2, 3)
CP_EXCHANGES: Final = ("all_gather", "ring")  # how context parallelism moves keys and values
CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "zero": ZERO_STAGES,
    "cp_exchange": CP_EXCHANGES,
    "all_to_all": tuple(ALGORITHMS),
    "overlap": OVERLAPS,
    "schedule": tuple(SCHEDULES),
    "placement": tuple(PLACEMENTS),
    "permute": ("sparse", "einsum"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Strategy:
    """One configuration. ``micro_batch`` is sequences per micro-batch and data-parallel rank, ``virtual`` parts of
    the model per pipeline stage, ``layers`` how many layers each part holds."""

    dp: int = 1
    tp: int = 1
    ep: int = 1
    etp: int = 1
    pp: int = 1
    cp: int = 1
    cp_exchange: str = "all_gather"
    micro_batch: int = 1
    zero: int = 1
    recompute: str = "none"
    all_to_all: str = "linear"
    chunks: int = 1
    overlap: str = "none"
    schedule: str = "1f1b"
    virtual: int = 1
    placement: str = "contiguous"
    permute: str = "sparse"  # how tokens are put in send order
    capacity_factor: float | None = None  # None: dropless; 0: what drops nothing; below: at most that
    layers: tuple[int, ...] | None = None  # None: so that the largest part is least (``stages``)

    def __post_init__(self) -> None:
        for name in ("dp", "tp", "ep", "etp", "pp", "cp", "micro_batch", "chunks", "virtual"):
            if getattr(self, name) < 1:
                raise MoesimError(f"strategy has {name}={getattr(self, name)}: give at least 1")
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise choice(f"strategy {name}", str(value), [str(k) for k in known])
        object.__setattr__(self, "recompute", canonical(self.recompute))
        if self.chunks > MOST_CHUNKS:
            raise MoesimError(f"strategy has chunks={self.chunks}: give at most {MOST_CHUNKS}")
        if self.chunks > 1 and self.overlap not in CHUNKED:
            raise MoesimError(f"strategy has chunks={self.chunks} with overlap={self.overlap}: add overlap=chunked")
        if self.schedule not in VIRTUAL[self.virtual > 1]:
            raise MoesimError(
                f"strategy has schedule={self.schedule} with virtual={self.virtual}: virtual stages, two or more, "
                f"belong to schedule={' or '.join(VIRTUAL[True])}"
            )
        if self.capacity_factor is not None and not isfinite(self.capacity_factor):
            raise MoesimError(f"strategy has capacity_factor={self.capacity_factor}: give a number")
        if self.layers is not None and (
            len(self.layers) != self.parts or min((*self.layers[:-1], self.layers[-1] + 1)) < 1
        ):
            raise MoesimError(
                f"strategy has layers={','.join(map(str, self.layers))}: give at least 1 for each of the "
                f"pp x virtual = {self.parts} parts; the last, which has the head, may have 0"
            )

    @property
    def world(self) -> int:
        return self.dp * self.cp * self.tp * self.pp

    @property
    def stage_gpus(self) -> int:
        """GPUs of one pipeline stage."""
        return self.dp * self.cp * self.tp

    @property
    def expert_dp(self) -> int:
        """Replicas of each expert: GPUs of a stage over ep x etp."""
        return self.stage_gpus // (self.ep * self.etp)

    @property
    def parts(self) -> int:
        """Parts that the model's layers are cut into."""
        return self.pp * self.virtual

    def micro_batches(self, sequences: int) -> int:
        """Micro-batches per data-parallel rank; at least one."""
        return max(1, sequences // (self.dp * self.micro_batch))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"layers": None if self.layers is None else list(self.layers)}


FIELDS: Final = {field.name: field for field in fields(Strategy)}


def groups(strategy: Strategy, cluster: Cluster) -> dict[str, Group]:
    """The communicators of one GPU: which of their ranks share a node follows from the rank order.

    Where stages hold the model twice, a part's replicas are on two stages, as far apart as it goes.
    """
    strides = {
        "tp": (strategy.tp, 1),
        "cp": (strategy.cp, strategy.tp),
        "dp": (strategy.dp * strategy.cp, strategy.tp),
        "etp": (strategy.etp, 1),
        "ep": (strategy.ep, strategy.etp),
        "expert_dp": (strategy.expert_dp, strategy.ep * strategy.etp),
    }
    found = {name: spaced(size, stride, cluster) for name, (size, stride) in strides.items()}
    copies = SCHEDULES[strategy.schedule].copies
    return found | {name: _on_stages(found[name], copies, cluster) for name in ("dp", "expert_dp") if copies > 1}


def _on_stages(group: Group, stages: int, cluster: Cluster) -> Group:
    """The ranks of a group together with those of other stages that hold the same."""
    return Group(size=group.size * stages, per_node=group.per_node * (stages if cluster.nodes == 1 else 1))


def spaced(size: int, stride: int, cluster: Cluster) -> Group:
    """Nodes are cut where ranks divide: six GPUs in a row touch two nodes of eight in pairs."""
    if cluster.nodes == 1:
        return Group(size=size, per_node=size)
    each, rest = divmod(cluster.gpus_per_node, stride)
    return Group(size=size, per_node=1 if rest else gcd(size, each))


def why_not(model: Model, cluster: Cluster, workload: Workload, strategy: Strategy) -> str | None:
    """The first reason why this strategy is impossible, or None. Memory is judged apart."""
    for impossible, reason in (
        (strategy.world != cluster.gpus, "dp x cp x tp x pp differs from the number of GPUs"),
        (strategy.stage_gpus % (strategy.ep * strategy.etp), "ep x etp does not divide dp x cp x tp"),
        (strategy.parts > len(model.layers), "more parts (pp x virtual) than layers"),
        (
            strategy.micro_batches(workload.sequences) * strategy.parts > MOST_PASSES,
            f"more than {MOST_PASSES:,} passes to play: give fewer sequences",
        ),
        (
            strategy.layers is not None and sum(strategy.layers) != len(model.layers) + model.mtp_layers,
            f"layers= does not add up to {len(model.layers)} layers and {model.mtp_layers} of MTP modules",
        ),
        (workload.sequences % strategy.dp, "dp does not divide the sequences of the batch"),
        (workload.sequences // strategy.dp % strategy.micro_batch,
         "micro_batch does not divide the sequences of a data-parallel rank"),
        (not workload.trains and strategy.zero > 1, "ZeRO beyond stage 1 shards training state only"),
        (not workload.trains and strategy.recompute != "none", "recompute applies to training only"),
        (not workload.trains and strategy.virtual > 1, "virtual stages apply to training only"),
        (workload.kind == "decode" and strategy.cp > 1, "context parallelism applies to training and prefill"),
        (workload.kind != "decode" and workload.queries % (strategy.cp * strategy.tp),
         "cp x tp does not divide the sequence"),
    ):  # fmt: skip
        if impossible:
            return reason
    pipe = Pipe(strategy.pp, strategy.micro_batches(workload.sequences), strategy.virtual)
    blocked = SCHEDULES[strategy.schedule].why_not(pipe) if workload.trains else None
    if blocked:
        return blocked
    found = groups(strategy, cluster)
    if any(group.nodes > cluster.nodes for group in found.values()):
        return "the ranks of a group fall unevenly on the nodes"
    if model.weight_groups and (strategy.zero > 1 or SCHEDULES[strategy.schedule].copies > 1):
        return "weights that layers share have a gradient after the last of them: not with ZeRO 2, 3 or dualpipe"
    uneven = indivisible(model, strategy.tp, strategy.cp, strategy.ep, strategy.etp)
    shape = uneven or _why_not_overlap(model, workload, strategy)
    exchange = unsupported(cluster, found["ep"], strategy.all_to_all) if strategy.ep > 1 else None
    return shape or exchange


def _why_not_overlap(model: Model, workload: Workload, strategy: Strategy) -> str | None:
    """Overlap inside a layer that the model, or the kernels there are, cannot have."""
    if strategy.overlap.startswith("shortcut") and model.moe is None:
        return "a shortcut needs experts"
    if strategy.overlap.startswith("shortcut") and any(kind.layer.blocks < 2 for kind in model.layer_kinds()):
        return "a shortcut needs attention and a feed-forward part in every layer"
    if strategy.overlap in ("shortcut2", "shortcut3") and not in_pairs(model):
        return f"{strategy.overlap} needs a dense layer before every MoE layer"
    if (strategy.overlap == "tiles") != (strategy.all_to_all in FUSED):
        return "overlap=tiles and all_to_all=tiles go together: one kernel computes and sends"
    if workload.kind not in (kinds := WORKLOADS.get(strategy.all_to_all, (workload.kind,))):
        return f"{strategy.all_to_all} has kernels for {' and '.join(kinds)} only"
    if strategy.permute == "einsum" and (strategy.capacity_factor is None or strategy.all_to_all in REAL_ROWS):
        return "permute=einsum fills fixed slots: give a capacity_factor, and an all_to_all that sends empty ones"
    if strategy.overlap == "dual_batch" and strategy.micro_batch * workload.queries < 2:
        return "dual_batch has no token for its second half"
    return None
