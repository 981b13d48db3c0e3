"""Collectives inside nodes, by how a node's GPUs are joined.

    switch   the measured NCCL curve; above its launch as much slower as the slowest port                curves
    mesh     n-1 rings over all links at once: a rank's bytes / ((n-1) x slowest link)
    host     a ring through host memory: bytes / min(slowest port, host memory / 2n)
    graph    a ring in the order of the ranks, each hop over its shortest ways: bytes x busiest wire
    torus    a ring in each of the k dimensions, both ways round; a k-th of the message starts in each dimension, so
             that all 2k links of a place work at once. S bytes over sides X, Y, ..., per direction of a link:

             share = sum over phases p of  max over parts of  1/(2k) (X_p - 1)/X_p / (sides of the phases before)

             which is (P-1)/P / 2k for P places with equal sides. Ranks on one place add up there first, for nothing.
             A group on a part of the torus has one ring through its places.

    seconds = 0.72 latency + steps x 0.28 latency + bytes moved by the slowest link

Ring or tree, whichever is faster; latency as between nodes (hierarchical). A torus takes its link's latency once: it is
that of a whole exchange, and the steps of its rings follow without a gap (GShard's all-reduce does not grow from 32 to
2,048 cores). Sources: NCCL src/graph (rings along
links, the slowest decides); Jain and Sabharwal 2010 and GShard (arXiv 2006.16668, appendix) for tori. *Estimated*.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Final

import numpy as np

from moesim.cluster import Cluster, Group
from moesim.collectives.curves import in_node
from moesim.collectives.steps import fastest, floor_share
from moesim.cost import ESTIMATED, Cost, FloatArray, cost
from moesim.network import Dense, bytes_per_s, families, waits

STEP_SHARE: Final = 0.28  # a ring step's latency over a send/recv's: 5.5 us of 19.9 us
BAND: Final = 0.40


def inside(cluster: Cluster, group: Group, op: str, size_bytes: FloatArray) -> Cost:
    """Seconds of ``op`` among the group's ranks of each node, at the slowest node."""
    ranks = group.per_node
    if ranks == 1 or cluster.fabric.inside == "switch":
        return _slowed(cluster, group, op, in_node(cluster, op, ranks, size_bytes))
    up = cluster.scale_up
    model = _torus if cluster.fabric.inside == "torus" else _ring
    latency_s, moving_s, bound_s, waits_for = model(cluster, group, op, size_bytes)
    latency_s = (1.0 - STEP_SHARE) * up.latency_s + latency_s
    return cost(
        latency_s + moving_s,
        BAND,
        bound_s,
        waits_for if np.mean(moving_s) > np.mean(latency_s) else "launch",
        ESTIMATED,
        f"{op} model of a {cluster.fabric.inside}; {up.source}",
    )


def launch_s(cluster: Cluster, group: Group, op: str) -> float:
    """What the smallest message takes inside the node; with one rank there, the start of a message between nodes."""
    if group.per_node > 1:
        return float(inside(cluster, group, op, np.zeros(())).seconds)
    return (1.0 - STEP_SHARE) * (cluster.scale_out or cluster.scale_up).latency_s


@lru_cache(maxsize=256)
def slowest_hop(cluster: Cluster, alone: bool) -> tuple[float, str]:
    """By how much a message from a rank of a node to the next one is slower than a GPU's whole link, and what waits.

    The slowest of all such hops, each by itself (``alone``) or all at once.
    """
    ranks, kind = cluster.gpus_per_node, cluster.scale_up.kind
    group = Group(size=ranks, per_node=ranks)
    if ranks == 1:
        return 1.0, kind
    if cluster.fabric.inside == "torus":
        return 1.0 / float(families(cluster, group)["torus"].min()), kind
    hops = np.roll(np.eye(ranks), 1, axis=1)
    found = waits(cluster, group, Dense(copies=np.eye(ranks)[:, :, None] * hops if alone else hops), "direct")
    slower = {
        name: float(each.max()) / bytes_per_s(cluster, name)[0] * cluster.scale_up.bandwidth_bytes_per_s
        for name, each in found.items()
    }
    most = max(slower, key=lambda name: slower[name])
    return slower[most], kind if most == "up" else most


def _slowed(cluster: Cluster, group: Group, op: str, found: Cost) -> Cost:
    """A ring, a tree and a switch all wait for the slowest port."""
    worst = _slowest_port(cluster, group)
    if worst == 1.0 or group.per_node == 1:
        return found
    start_s = float(in_node(cluster, op, group.per_node, np.zeros(())).seconds)
    ratio = (start_s + (found.seconds - start_s) / worst) / found.seconds
    return replace(
        found,
        seconds=found.seconds * ratio,
        low=found.low * ratio,
        high=found.high * ratio,
        basis=ESTIMATED,
        source=f"slowest port at {worst:.0%}; {found.source}",
    )


@lru_cache(maxsize=256)
def _slowest_port(cluster: Cluster, group: Group) -> float:
    ports = (float(worth.min()) for name, worth in families(cluster, group).items() if name.startswith("up_"))
    return min(ports, default=1.0)  # a mesh has none


def _ring(
    cluster: Cluster, group: Group, op: str, size_bytes: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, str]:
    by_kind = _S_PER_BYTE[cluster.fabric.inside](cluster, group)
    waits_for = max(by_kind, key=lambda kind: by_kind[kind])
    step_s = STEP_SHARE * cluster.scale_up.latency_s
    latency_s, moving_s = fastest(op, group.per_node, size_bytes, step_s, by_kind[waits_for])
    bound_s = floor_share(cluster, op, group.per_node) * size_bytes / _most_bytes_per_s(cluster, group)
    return latency_s, moving_s, bound_s, waits_for


def _most_bytes_per_s(cluster: Cluster, group: Group) -> float:
    """What the rank with the narrowest links can send over all of them together."""
    if cluster.fabric.inside != "graph":
        return cluster.scale_up.peak_bytes_per_s
    names = [f"gpu{rank}" for rank in range(group.per_node)]
    wires = cluster.fabric.wires
    return min(sum(each.bandwidth_bytes_per_s for each in wires if name in (each.one, each.other)) for name in names)


def _mesh(cluster: Cluster, group: Group) -> dict[str, float]:
    slowest = float(families(cluster, group)["mesh"].min())
    return {cluster.scale_up.kind: 1.0 / ((group.per_node - 1) * slowest * cluster.scale_up.bandwidth_bytes_per_s)}


def _host(cluster: Cluster, group: Group) -> dict[str, float]:
    worth = families(cluster, group)
    port = min(float(worth["up_out"].min()), float(worth["up_in"].min()))
    memory = bytes_per_s(cluster, "host")[0] * float(worth["host"].min())
    return {
        cluster.scale_up.kind: 1.0 / (port * cluster.scale_up.bandwidth_bytes_per_s),
        "host": 2.0 * group.per_node / memory,
    }


def _graph(cluster: Cluster, group: Group) -> dict[str, float]:
    around = Dense(copies=np.roll(np.eye(group.per_node), 1, axis=1))
    busiest = float(waits(cluster, group, around)["up"])
    return {cluster.scale_up.kind: busiest / cluster.scale_up.bandwidth_bytes_per_s}


_S_PER_BYTE: Final[dict[str, Callable[[Cluster, Group], dict[str, float]]]] = {
    "mesh": _mesh, "host": _host, "graph": _graph,
}  # fmt: skip


def _torus(
    cluster: Cluster, group: Group, op: str, size_bytes: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, str]:
    up, fabric = cluster.scale_up, cluster.fabric
    places = -(-group.size * fabric.places // cluster.gpus_per_node)
    sides = tuple(side for side in fabric.torus if side > 1) if places == fabric.places else (places,) * (places > 1)
    rounds = 2 if op == "all_reduce" else 1
    moved_bytes = rounds * torus_share(sides) * size_bytes
    slowest = float(families(cluster, group)["torus"].min())
    return (
        np.full_like(size_bytes, STEP_SHARE * up.latency_s),
        moved_bytes / (slowest * up.bandwidth_bytes_per_s),
        moved_bytes / up.peak_bytes_per_s,
        up.kind,
    )


def torus_share(sides: tuple[int, ...]) -> float:
    """What a link carries in one direction, as a share of the message, once around every dimension."""
    k = len(sides)
    phases = [
        max((sides[(part + p) % k] - 1) / prod(sides[(part + q) % k] for q in range(p + 1)) for part in range(k))
        for p in range(k)
    ]
    return sum(phases) / (2 * k) if k else 0.0
