"""Gpu, Link, Cluster, Group: what a cluster is, checked when it is made."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from moesim.cluster.fabric import PLAIN, Fabric
from moesim.cluster.tiers import Tiers
from moesim.errors import MoesimError, choice

MOST_LATENCY_S = 0.01  # more is a slip of the unit
MOST_GPUS = 1_000_000  # of a cluster
LinkKind = Literal["nvlink", "pcie", "ici", "nic"]  # ici: between the chips of a TPU torus
BasisName = Literal["measured", "published", "estimated"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One accelerator, as its data sheet states it."""

    name: str  # "H200"; also the folder of its profile, in lower case
    architecture: str  # "hopper"
    memory_bytes: float
    memory_bytes_per_s: float
    flops: dict[str, float] = field(hash=False)  # dense FLOP/s by dtype: "bf16", "fp8", "int8", "fp4"
    sms: int
    l2_bytes: float
    source: str

    def __post_init__(self) -> None:
        for what in ("memory_bytes", "memory_bytes_per_s", "sms", "l2_bytes"):
            _positive(f"gpu {self.name} {what}", getattr(self, what))
        if "bf16" not in self.flops:
            raise MoesimError(f"gpu {self.name} flops {self.flops}: state the dense bf16 FLOP/s at least")
        for dtype, flops in self.flops.items():
            _positive(f"gpu {self.name} flops {dtype}", flops)


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One GPU's share of a link, in one direction."""

    kind: LinkKind
    latency_s: float  # of one message between two idle GPUs
    bandwidth_bytes_per_s: float  # achieved by large messages
    peak_bytes_per_s: float  # data sheet
    basis: BasisName  # of latency and bandwidth
    source: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(LinkKind):
            raise choice("link kind", self.kind, list(get_args(LinkKind)))
        if self.basis not in get_args(BasisName):
            raise choice("basis", self.basis, list(get_args(BasisName)))
        if not 0.0 <= self.latency_s <= MOST_LATENCY_S:
            raise MoesimError(f"{self.kind} latency {self.latency_s:g} s: give 0 to 10 ms, for example 20us")
        _positive(f"{self.kind} bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        _positive(f"{self.kind} peak_bytes_per_s", self.peak_bytes_per_s)
        if self.bandwidth_bytes_per_s > self.peak_bytes_per_s:
            raise MoesimError(
                f"{self.kind} bandwidth {self.bandwidth_bytes_per_s / 1e9:g} GB/s is above its peak "
                f"{self.peak_bytes_per_s / 1e9:g} GB/s: raise the peak or lower the bandwidth"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Equal nodes of equal GPUs. A *node* is a scale-up domain: 8 GPUs in a DGX, 72 in an NVL72 rack, a TPU torus."""

    name: str
    gpu: Gpu
    nodes: int
    gpus_per_node: int
    scale_up: Link  # inside a node, per GPU and direction
    scale_out: Link | None = None  # between nodes, per GPU and direction (a shared NIC already divided)
    nics_per_node: int = 0
    fabric: Fabric = PLAIN
    tiers: Tiers | None = None  # of one GPU; None: those of a preset of this name, or unknown
    gpu_hour_price: float | None = None
    gpu_hour_price_source: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for what in ("nodes", "gpus_per_node"):
            count = getattr(self, what)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise MoesimError(f"cluster {self.name}: {what} {count}: give a whole number of at least 1")
        if self.gpus > MOST_GPUS:
            raise MoesimError(
                f"cluster {self.name}: {self.nodes} nodes of {self.gpus_per_node} GPUs: give at most {MOST_GPUS:,} GPUs"
            )
        if self.nodes > 1 and self.scale_out is None:
            raise MoesimError(f"cluster {self.name} has {self.nodes} nodes and no scale_out link: describe its NICs")
        if self.scale_up.kind == "nic" or (self.scale_out is not None and self.scale_out.kind != "nic"):
            raise MoesimError(f"cluster {self.name}: scale_up is nvlink, pcie, ici; scale_out is nic: correct them")
        if (self.scale_out is None) != (self.nics_per_node == 0) or self.nics_per_node < 0:
            raise MoesimError(
                f"cluster {self.name}: nics_per_node {self.nics_per_node}: "
                "give at least 1 with a scale_out link, else 0"
            )
        if self.gpu_hour_price is not None:
            _positive(f"cluster {self.name} gpu_hour_price", self.gpu_hour_price)
        _check_fabric(self)

    @property
    def gpus(self) -> int:
        """All GPUs of the cluster."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A communicator: ``size`` ranks, of which ``per_node`` consecutive ones share a node."""

    size: int
    per_node: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.per_node < 1 or self.per_node > self.size:
            raise MoesimError(f"a group of {self.size} ranks with {self.per_node} a node: 1 <= per_node <= size")
        if self.size % self.per_node:
            raise MoesimError(f"a group of {self.size} ranks does not divide into nodes of {self.per_node}")

    @property
    def nodes(self) -> int:
        """Nodes that the group touches."""
        return self.size // self.per_node


def check_group(cluster: Cluster, group: Group) -> None:
    """Refuse a group that the cluster cannot hold."""
    if group.per_node > cluster.gpus_per_node:
        raise MoesimError(
            f"a group with {group.per_node} ranks a node on {cluster.name}: its nodes have {cluster.gpus_per_node} GPUs"
        )
    if group.size > cluster.gpus or group.nodes > cluster.nodes:
        raise MoesimError(
            f"a group of {group.size} ranks on {group.nodes} nodes does not fit {cluster.name} with "
            f"{cluster.nodes} nodes of {cluster.gpus_per_node} GPUs: add nodes or make the group smaller"
        )


def _check_fabric(cluster: Cluster) -> None:
    """What the fabric names must be there."""
    fabric, here = cluster.fabric, f"cluster {cluster.name}"
    if cluster.nodes > 1 and fabric.inside in ("torus", "graph"):
        raise MoesimError(f"{here}: {cluster.nodes} nodes with inside={fabric.inside}: it is one domain, give nodes: 1")
    if cluster.nics_per_node > cluster.gpus_per_node:
        raise MoesimError(
            f"{here}: nics_per_node {cluster.nics_per_node} with {cluster.gpus_per_node} GPUs: "
            "several NICs of one GPU count as one, of their bandwidth together"
        )
    if fabric.inside == "torus" and cluster.gpus_per_node % fabric.places:
        raise MoesimError(
            f"{here}: a torus of {'x'.join(map(str, fabric.torus))} places with {cluster.gpus_per_node} GPUs: "
            f"give a multiple of {fabric.places} as gpus_per_node"
        )
    if fabric.inside == "graph" and any(slow.link == "up" for slow in fabric.degraded):
        raise MoesimError(f"{here}: degraded up with inside=graph: give the wire the bandwidth that it has")
    if fabric.between == "rail_only" and any(slow.link == "uplink" for slow in fabric.degraded):
        raise MoesimError(f"{here}: degraded uplink with between=rail_only: its leaves have no way up, leave it out")
    leaves = fabric.leaves(cluster.nodes, cluster.nics_per_node)
    there = {
        "up": (cluster.nodes, fabric.places if fabric.inside == "torus" else cluster.gpus_per_node),
        "nic": (cluster.nodes, cluster.nics_per_node),
        "uplink": (leaves, 1),
    }
    for slow in fabric.degraded:
        count, each = there[slow.link]
        if slow.node >= count or (slow.index or 0) >= each:
            where = f"degraded {slow.link} of node {slow.node}, index {slow.index or 0}"
            raise MoesimError(f"{here}: {where}: there are {count} with {each} each, counted from 0")


def _positive(what: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise MoesimError(f"{what} {value}: give a number above zero")
