"""One expert layer, and a way to run it.

    r = 0     the weights of all experts are gathered before the layer; tokens stay (data parallel, as ZeRO 3)
    r >= 1    an expert has W / E GPUs. They hold r parts of its width; a token goes to each part, so it is sent r
              times. The (W / E) / r GPUs with the same part share its tokens and gather its weights from one another

With at least as many experts as GPUs an expert has one GPU: r = 1 is plain expert parallelism.
"""

from dataclasses import dataclass
from math import gcd
from typing import Final, NamedTuple

from moesim.alltoall import ALGORITHMS, FUSED, REAL_ROWS, unsupported
from moesim.cluster import Cluster, Group
from moesim.compute import DTYPES
from moesim.errors import MoesimError, choice
from moesim.memory import TRAINING_WEIGHT_BYTES
from moesim.metrics import FULL
from moesim.model import Experts, Layer, Model, expert_parameters

CHUNKS: Final = (1, 2, 4, 8)  # Tutel, section 4.2: more never helps
# Those that send a buffer of fixed capacity: a load is its size. ag_rs sends every token to everybody instead.
PADDED: Final = tuple(name for name in ALGORITHMS if name not in (*REAL_ROWS, *FUSED, "ag_rs"))


class Way(NamedTuple):
    """A way to run an expert layer. Where nothing is dispatched (r = 0), one chunk and no algorithm."""

    r: int
    chunks: int
    all_to_all: str

    def __str__(self) -> str:
        if self.r == 0:
            return "r=0 (weights gathered)"
        return f"r={self.r} {self.all_to_all} x{self.chunks}"


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeLayer:
    """The experts of one layer over all GPUs of a cluster, and the tokens that a GPU brings at a time."""

    experts: Experts
    hidden: int
    expert_parameters: int  # of one expert
    tokens: int  # of one GPU
    dtype: str = "bf16"
    trains: bool = True  # forward and backward; else forward

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise choice("dtype", self.dtype, list(DTYPES))
        for name in ("hidden", "expert_parameters", "tokens"):
            if getattr(self, name) < 1:
                raise MoesimError(f"expert layer has {name} {getattr(self, name)}: give at least 1")

    @property
    def weight_bytes(self) -> float:
        """Of all experts, as they are gathered."""
        return self.experts.experts * self.expert_parameters * TRAINING_WEIGHT_BYTES


def layer_of(model: Model, tokens: int, *, dtype: str = "bf16", trains: bool = True) -> MoeLayer:
    """The first expert layer of a model."""
    layer: Layer | None = next((kind.layer for kind in model.layer_kinds() if kind.layer.is_moe), None)
    if layer is None or not isinstance(layer.ffn, Experts):
        raise MoesimError(f"model {model.name!r} has no experts: a policy chooses how to run an expert layer")
    return MoeLayer(
        experts=layer.ffn,
        hidden=model.hidden,
        expert_parameters=expert_parameters(model, layer),
        tokens=tokens,
        dtype=dtype,
        trains=trains,
    )


def copies_of(layer: MoeLayer, cluster: Cluster) -> int:
    """W / E: GPUs that share an expert; 1 where a GPU has several."""
    return max(1, cluster.gpus // layer.experts.experts)


def gather_group(layer: MoeLayer, cluster: Cluster, r: int) -> Group:
    """Who gathers weights from one another: all GPUs, or those with the same part of an expert, one beside the next."""
    if r == 0:
        return Group(size=cluster.gpus, per_node=cluster.gpus_per_node)
    size = copies_of(layer, cluster) // r
    return Group(size=size, per_node=gcd(size, cluster.gpus_per_node))


def why_not(layer: MoeLayer, cluster: Cluster, way: Way) -> str | None:
    """The first reason why this way cannot run, or None."""
    experts, gpus = layer.experts.experts, cluster.gpus
    if way.r == 0:
        fits = layer.weight_bytes <= FULL * cluster.gpu.memory_bytes
        return None if fits else "the gathered weights of one layer do not fit in GPU memory"
    if experts % gpus and gpus % experts:
        return "neither of experts and GPUs divides the other"
    if copies_of(layer, cluster) % way.r:
        return "r does not divide the GPUs of an expert"
    if layer.experts.width % way.r:
        return "r does not divide the expert width"
    return unsupported(cluster, gather_all(cluster), way.all_to_all) if gpus > 1 else None


def gather_all(cluster: Cluster) -> Group:
    """The group of the all-to-all: every GPU."""
    return Group(size=cluster.gpus, per_node=cluster.gpus_per_node)


def possible(
    layer: MoeLayer, cluster: Cluster, algorithms: tuple[str, ...] = PADDED
) -> tuple[list[Way], dict[str, int]]:
    """The ways that can run, and how many cannot for each reason; r: 0, and the divisors of W / E."""
    for name in algorithms:
        if name not in PADDED:
            raise choice("all-to-all of a policy", name, PADDED)
    copies = copies_of(layer, cluster)
    asked = [Way(0, 1, "none")] + [
        Way(r, chunks, name)
        for r in range(1, copies + 1)
        if copies % r == 0
        for name in algorithms
        for chunks in CHUNKS
    ]
    found: list[Way] = []
    reasons: dict[str, int] = {}
    for way in asked:
        why = why_not(layer, cluster, way)
        if why is None:
            found.append(way)
        else:
            reasons[why] = reasons.get(why, 0) + 1
    return found, reasons
