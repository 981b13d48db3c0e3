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
pairwise        one peer after another, a barrier between
bruck           log2 R steps, every block on the way several times: for tiny messages
hierarchical    "2dh": inside the node to the right rail, then along the rail (Tutel)
pods            "3dh": 2dh once more over the nodes below a leaf
leader          through one GPU of the node (HetuMoE)
rails           "rail": 2dh without its copies (SE-MoE)
gather_scatter  "ag_rs": everybody gets every token, outputs are summed on the way back
deepep          one copy for each node (DeepEP normal)
deepep_ll       one copy for each expert (DeepEP low latency)
hybrid_ep       "hybrid_ep": the same way with fewer SMs (DeepEP, branch hybrid-ep)
libraries       constants of communication kernels, with where they come from
tiles           tile by tile from inside the kernel (FlashMoE)
torus           dimension after dimension (TPU)
ports           seconds of the bytes on the busiest link of each kind
shifts, posts   steps where rank i sends to rank i + s; messages that wait for one another
reach           how many tokens reach a rank or a node
needs, carried  what an algorithm needs of a cluster; what the busiest links carry
"""

from typing import Final, Literal

import numpy as np

from moesim.alltoall.bruck import bruck
from moesim.alltoall.carried import CARRIED, SLOWER
from moesim.alltoall.deepep import normal
from moesim.alltoall.deepep_ll import low_latency
from moesim.alltoall.gather_scatter import gather_scatter
from moesim.alltoall.hierarchical import hierarchical
from moesim.alltoall.hybrid_ep import hybrid
from moesim.alltoall.leader import leader
from moesim.alltoall.linear import linear
from moesim.alltoall.needs import reason
from moesim.alltoall.pairwise import pairwise
from moesim.alltoall.pods import pods
from moesim.alltoall.rails import rail
from moesim.alltoall.tiles import tiles
from moesim.alltoall.torus import torus
from moesim.alltoall.traffic import Traffic, copies_by_rank, resized, sent_and_received, turned
from moesim.cluster import Cluster, Group
from moesim.cluster.nouns import check_group
from moesim.cost import BASIS, Cost, FloatArray, cost
from moesim.errors import MoesimError, choice

__all__ = [
    "ALGORITHMS", "FUSED", "REAL_ROWS", "WORKLOADS", "Direction", "Traffic", "all_to_all", "busiest_bytes",
    "copies_by_rank", "resized", "sent_and_received", "slower", "unsupported",
]  # fmt: skip

Direction = Literal["dispatch", "combine"]
ALGORITHMS: Final = {
    "linear": linear, "pairwise": pairwise, "bruck": bruck, "2dh": hierarchical, "3dh": pods, "leader": leader,
    "rail": rail, "ag_rs": gather_scatter, "deepep": normal, "deepep_ll": low_latency, "hybrid_ep": hybrid,
    "tiles": tiles, "torus": torus,
}  # fmt: skip
REAL_ROWS: Final = (
    "deepep",
    "deepep_ll",
    "hybrid_ep",
    "tiles",
)  # send what the routing sends; the others pad to a capacity
# Kernels that are not there for every workload: DeepEP's README keeps the low-latency ones for decoding, FlashMoE has
# no backward pass.
WORKLOADS: Final = {"deepep_ll": ("decode",), "tiles": ("prefill", "decode")}
FUSED: Final = ("tiles",)  # inside a kernel that computes the experts too: no choice for a layer made of kernels


def all_to_all(
    cluster: Cluster, group: Group, traffic: Traffic, algorithm: str, direction: Direction = "dispatch"
) -> Cost:
    """Seconds of one dispatch or combine. ``copies[..., src, dst]`` gives costs of shape ``[...]``."""
    _check(cluster, group, traffic, algorithm)
    if group.size == 1:
        zero = np.zeros(traffic.pairs.shape) * traffic.token_bytes
        return cost(zero, 0.0, zero, cluster.scale_up.kind, BASIS["published"], "one rank exchanges nothing")
    if direction == "dispatch":
        return ALGORITHMS[algorithm](cluster, group, traffic, direction)
    return ALGORITHMS[algorithm](cluster, group, turned(traffic), direction)


def busiest_bytes(
    cluster: Cluster, group: Group, traffic: Traffic, algorithm: str, direction: Direction = "dispatch"
) -> dict[str, FloatArray]:
    """``[...]`` bytes on the busiest link of each kind, as many as a GPU's own link moves in the same time."""
    _check(cluster, group, traffic, algorithm)
    if group.size == 1:
        return {}
    copies = CARRIED[algorithm](cluster, group, traffic if direction == "dispatch" else turned(traffic))
    named = {cluster.scale_up.kind if kind == "up" else kind: each for kind, each in copies.items()}
    return {kind: each * traffic.token_bytes for kind, each in named.items()}


def slower(
    cluster: Cluster, group: Group, traffic: Traffic, algorithm: str, direction: Direction = "dispatch"
) -> FloatArray:
    """``[...]`` by how much links that wait for one another make it slower than its busiest link; 1 where none does."""
    if algorithm not in SLOWER or group.size == 1:
        return np.ones(traffic.pairs.shape)
    return SLOWER[algorithm](cluster, group, traffic if direction == "dispatch" else turned(traffic))


def unsupported(cluster: Cluster, group: Group, algorithm: str) -> str | None:
    """The first reason why this algorithm cannot run on this group, or None."""
    if algorithm not in ALGORITHMS:
        raise choice("all-to-all algorithm", algorithm, list(ALGORITHMS))
    return reason(cluster, group, algorithm)


def _check(cluster: Cluster, group: Group, traffic: Traffic, algorithm: str) -> None:
    check_group(cluster, group)
    if traffic.pairs.ranks != group.size:
        raise MoesimError(f"copies of {traffic.pairs.ranks} ranks in a group of {group.size}: draw them for it")
    why = unsupported(cluster, group, algorithm)
    if why is not None:
        others = [name for name in ALGORITHMS if unsupported(cluster, group, name) is None]
        raise MoesimError(f"all-to-all {algorithm}: {why}; choose {', '.join(others) or 'another cluster'}")
