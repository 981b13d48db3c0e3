"""Fabric: how the links of a cluster are joined, and which of them are slow.

inside a node    switch     every GPU reaches every other at its full bandwidth (NVSwitch, PCIe with peer access)
                 mesh       a link of its own between each two GPUs: the bandwidth divides over them
                 host       PCIe without peer access: every byte goes into the host's memory and out of it
                 torus      ``torus`` places along each dimension, equally many GPUs on each place; the bandwidth
                            is that of one link in one direction
                 graph      the ``wires`` themselves, of any shape
between nodes    rail       a leaf switch for each rail, a spine above; bytes for another rail go by NVLink to the
                            GPU of that rail first (NCCL's PXN)
                 rail_only  the same without a spine
                 spine      leaves as for rail, but bytes for another rail climb to the spine
                 tree       a leaf switch for ``leaf_nodes`` nodes, a spine above
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Final, Literal, get_args

from moesim.errors import MoesimError, choice

Inside = Literal["switch", "mesh", "host", "torus", "graph"]
Between = Literal["rail", "rail_only", "spine", "tree"]
DegradedKind = Literal["up", "nic", "uplink"]
LEAST_SHARE: Final = 0.001  # of a slow link; less is a broken one, which moesim does not route around
MOST_RATIO: Final = 1000.0  # of oversubscription, of ecmp
MOST_LEAF_NODES: Final = 1_000_000
MOST_DIMENSIONS: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Wire:
    """One cable of a ``graph``, in both directions; GPUs are named gpu0, gpu1, ..., switches as you like."""

    one: str
    other: str
    bandwidth_bytes_per_s: float

    def __post_init__(self) -> None:
        if self.one == self.other:
            raise MoesimError(f"wire {self.one} - {self.other}: give two different ends")
        if not 0 < self.bandwidth_bytes_per_s < float("inf"):
            raise MoesimError(
                f"wire {self.one} - {self.other} bandwidth {self.bandwidth_bytes_per_s}: give a number above zero"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Degraded:
    """Links that carry only a ``share`` of what they should, in both directions.

    up: a GPU's link inside its node; in a torus the cables that leave its place. nic: a NIC. uplink: a leaf's way
    up, and then ``node`` counts leaves. Without an ``index`` all of the node's are slow, as in a node with fewer
    NICs than the others.
    """

    link: DegradedKind
    node: int
    index: int | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.link not in get_args(DegradedKind):
            raise choice("degraded link", self.link, list(get_args(DegradedKind)))
        if not LEAST_SHARE <= self.share <= 1:
            raise MoesimError(f"degraded {self.link} share {self.share}: give {LEAST_SHARE} to 1")
        if self.node < 0 or (self.index or 0) < 0:
            raise MoesimError(f"degraded {self.link} of node {self.node}, index {self.index}: count from 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fabric:
    """See above. ``oversubscription``: below a leaf over its way up; ``ecmp``: the busiest way up over the mean."""

    inside: Inside = "switch"
    host_bytes_per_s: float | None = None  # host: what a node's memory takes in and gives out together
    torus: tuple[int, ...] = ()
    wires: tuple[Wire, ...] = ()
    between: Between = "rail"
    leaf_nodes: int = 1
    oversubscription: float = 1.0
    ecmp: float = 1.0
    degraded: tuple[Degraded, ...] = ()

    def __post_init__(self) -> None:
        for what, value, known in (
            ("inside", self.inside, get_args(Inside)), ("between", self.between, get_args(Between)),
        ):  # fmt: skip
            if value not in known:
                raise choice(f"fabric {what}", value, list(known))
        if (self.host_bytes_per_s is not None) != (self.inside == "host"):
            raise MoesimError(f"fabric inside={self.inside}: host_bytes_per_s belongs to inside=host, and it needs it")
        if bool(self.torus) != (self.inside == "torus") or any(places < 1 for places in self.torus):
            raise MoesimError(f"fabric torus {list(self.torus)}: give places along each dimension with inside=torus")
        if self.torus and (len(self.torus) > MOST_DIMENSIONS or self.places < 2):
            raise MoesimError(
                f"fabric torus {list(self.torus)}: give up to {MOST_DIMENSIONS} dimensions, 2 places or more"
            )
        if bool(self.wires) != (self.inside == "graph"):
            raise MoesimError(f"fabric inside={self.inside} with {len(self.wires)} wires: they belong to inside=graph")
        joined = {frozenset((wire.one, wire.other)) for wire in self.wires}
        if len(joined) < len(self.wires):
            raise MoesimError("fabric wires: two join the same ends: give one of their bandwidth together")
        _check_numbers(self)

    def leaves(self, nodes: int, rails: int) -> int:
        """Leaf switches above ``nodes`` nodes with ``rails`` NICs each."""
        return -(-nodes // self.leaf_nodes) if self.between == "tree" else rails

    def cut_to(self, nodes: int, rails: int) -> "Fabric":
        """The same for the first ``nodes`` nodes: what is slow beyond them is left out."""
        there = {"up": nodes, "nic": nodes, "uplink": self.leaves(nodes, rails)}
        return replace(self, degraded=tuple(slow for slow in self.degraded if slow.node < there[slow.link]))

    @property
    def places(self) -> int:
        """Places of the torus."""
        return prod(self.torus)

    @property
    def climbs(self) -> bool:
        """Whether bytes can wait on a leaf's way up."""
        return self.between in ("spine", "tree")


def _check_numbers(fabric: Fabric) -> None:
    if fabric.host_bytes_per_s is not None and not 0 < fabric.host_bytes_per_s < float("inf"):
        raise MoesimError(f"fabric host_bytes_per_s {fabric.host_bytes_per_s}: give a number above zero")
    for what, number, least, most in (
        ("leaf_nodes", fabric.leaf_nodes, 1, MOST_LEAF_NODES),
        ("oversubscription", fabric.oversubscription, 1 / MOST_RATIO, MOST_RATIO),
        ("ecmp", fabric.ecmp, 1, MOST_RATIO),
    ):  # fmt: skip
        if not least <= number <= most:
            raise MoesimError(f"fabric {what} {number}: give {least:g} to {most:,.0f}")


PLAIN: Final = Fabric()
