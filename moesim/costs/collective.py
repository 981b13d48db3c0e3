"""``moesim cost all-reduce | all-gather | reduce-scatter | send``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from moesim.cluster import load_cluster
from moesim.collectives import all_gather, all_reduce, point_to_point, reduce_scatter
from moesim.costs.answer import Answer, mean
from moesim.costs.hardware import (
    cluster_option,
    find_group,
    nodes_option,
    placed,
    ranks_option,
    ranks_per_node_option,
)
from moesim.costs.inputs import FLAG, SIZE, option, settle, stated

COLLECTIVES: Final = {"all_reduce": all_reduce, "all_gather": all_gather, "reduce_scatter": reduce_scatter}


@dataclass(frozen=True, kw_only=True, slots=True)
class Collective:
    """One collective over a group of ranks, consecutive ones on the same node."""

    cluster: str = cluster_option()
    nodes: int | None = nodes_option()
    ranks: int | None = ranks_option()
    ranks_per_node: int | None = ranks_per_node_option()
    bytes: float = option(
        SIZE, "64MiB, 1.5GB or bytes, counted as nccl-tests do: all-reduce the buffer of a rank, "
        "all-gather what is gathered, reduce-scatter what goes in.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Send:
    """One message between two idle GPUs."""

    cluster: str = cluster_option()
    bytes: float = option(SIZE, "64MiB, 1.5GB or bytes.")
    same_node: bool = option(FLAG, "Inside a node, or from node to node.  [default: same node]", True, off="across")

    def __post_init__(self) -> None:
        settle(self)


def price_collective(name: str) -> Callable[[Collective], Answer]:
    """The function that prices the collective of this name."""

    def price(asked: Collective) -> Answer:
        cluster, group = find_group(asked)
        cost = COLLECTIVES[name](cluster, group, asked.bytes)
        return Answer(mean(cost), stated(asked) | placed(cluster, group), {})

    return price


def price_send(asked: Send) -> Answer:
    """The message's seconds."""
    cluster = load_cluster(asked.cluster)
    cost = point_to_point(cluster, asked.bytes, asked.same_node, alone=True)
    return Answer(mean(cost), stated(asked) | {"cluster": cluster.name}, {})
