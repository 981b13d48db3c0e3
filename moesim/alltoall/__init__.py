"""Where the all-to-all cost comes from.

    tokens[src, expert]  --owner[expert]-->  copies[src, dst]  --algorithm-->  load of each link  -->
    seconds

A token is copied once for each of its experts; copies that stay on their rank are free. An
algorithm decides which links a copy crosses. A phase lasts as long as its busiest link: in or out, NVLink
or NIC. Then

    seconds = latency + sum over phases of  max over links of  load_bytes / achieved_bytes_per_s
    bound_s =           the same with data-sheet peaks and no latency

Combine sends every copy home: the same with source and destination exchanged.

traffic         Traffic, copies_by_rank, sent_and_received
linear          every rank to every rank at once (NCCL grouped send/receive)
hierarchical    "2dh": inside the node to the right rail, then along the rail (Tutel)
deepep          "deepep" and "deepep_ll": one copy for each node or expert (DeepEP normal, low latency)
reach           how many tokens reach a rank or a node
gather_scatter  "ag_rs": everybody gets every token, outputs are summed on the way back
"""

from typing import Final, Literal

import numpy as np

from moesim.alltoall.deepep import low_latency, normal
from moesim.alltoall.gather_scatter import gather_scatter
from moesim.alltoall.hierarchical import hierarchical
from moesim.alltoall.linear import linear
from moesim.alltoall.traffic import Traffic, copies_by_rank, resized, sent_and_received, turned
from moesim.cluster import Cluster, Group
from moesim.cluster.nouns import check_group
from moesim.cost import BASIS, Cost, cost
from moesim.errors import MoesimError, choice

__all__ = [
    "ALGORITHMS", "Direction", "Traffic", "all_to_all", "copies_by_rank", "resized", "sent_and_received", "unsupported",
]  # fmt: skip

Direction = Literal["dispatch", "combine"]
ALGORITHMS: Final = {
    "linear": linear, "2dh": hierarchical, "ag_rs": gather_scatter, "deepep": normal, "deepep_ll": low_latency,
}  # fmt: skip
_DEEPEP: Final = ("hopper", "blackwell")  # its kernels need one of these, and NVLink


def all_to_all(
    cluster: Cluster, group: Group, traffic: Traffic, algorithm: str, direction: Direction = "dispatch"
) -> Cost:
    """Seconds of one dispatch or combine. ``copies[..., src, dst]`` gives costs of shape ``[...]``."""
    check_group(cluster, group)
    if traffic.pairs.ranks != group.size:
        raise MoesimError(f"copies of {traffic.pairs.ranks} ranks in a group of {group.size}: draw them for it")
    reason = unsupported(cluster, group, algorithm)
    if reason is not None:
        raise MoesimError(f"all-to-all {algorithm}: {reason}")
    if group.size == 1:
        zero = np.zeros(traffic.pairs.shape)
        return cost(zero, 0.0, zero, cluster.scale_up.kind, BASIS["published"], "one rank exchanges nothing")
    if direction == "dispatch":
        return ALGORITHMS[algorithm](cluster, group, traffic, direction)
    return ALGORITHMS[algorithm](cluster, group, turned(traffic), direction)


def unsupported(cluster: Cluster, group: Group, algorithm: str) -> str | None:
    """The first reason why this algorithm cannot run on this group, or None."""
    if algorithm not in ALGORITHMS:
        raise choice("all-to-all algorithm", algorithm, list(ALGORITHMS))
    if group.nodes > 1 and cluster.scale_out is None:
        return f"{cluster.name} has no link between nodes"
    if algorithm.startswith("deepep") and (
        cluster.scale_up.kind != "nvlink" or cluster.gpu.architecture not in _DEEPEP
    ):
        return f"{algorithm} needs NVLink and a Hopper or Blackwell GPU; {cluster.name} has {cluster.gpu.name}"
    if algorithm == "2dh" and group.nodes == 1:
        return f"2dh needs ranks on more than one node; the group's {group.size} share one"
    if algorithm == "2dh" and group.per_node == 1:
        return "2dh needs more than one rank on a node; without them it is linear"
    return None
