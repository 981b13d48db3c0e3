"""Collectives across nodes: every GPU is on its own rail, and the two kinds of link work at the same time.

    seconds = launch + steps x step_s + max(node_s - launch, rail_s)

    node_s    the collective inside the node, of the whole message S (NVLS where NCCL used it)         inside
    rail_s    ring or tree over the N nodes, whichever is faster, of the rail's S/G bytes; an all-gather and a
              reduce-scatter have a ring only                                                          steps
              bytes / B_n x slowest rail: the NIC with least left, or a leaf's way up

A ring goes at its slowest link. On a tree of leaves every rail's ring leaves each leaf once, so its G rails put G
copies on a way up that is worth what is below it over the oversubscription; on rails no ring leaves its leaf.
N nodes of G ranks, B_n NIC bytes/s per GPU; NCCL pipelines chunks, so the busier kind of link decides. Sources:
NCCL src/graph/tuning.cc (ring and tree steps); SimAI ratio tables: 4-7 us per step, which is 0.28 of the 19.9 us
that an H100 send/recv across nodes takes with its launch (Vidur). The sum is a model, not a measurement:
*estimated*.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np

from moesim.cluster import CLUSTERS, Cluster, Group, Link
from moesim.cluster.nouns import check_group
from moesim.collectives.inside import BAND, STEP_SHARE, inside, launch_s, slowest_hop
from moesim.collectives.steps import fastest, once_around, ring
from moesim.cost import BASIS, ESTIMATED, Cost, FloatArray, cost
from moesim.errors import MoesimError
from moesim.network import families, leaf_of, nic_of

# Send/recv of one pair (Vidur 7d47513) over what all-to-all achieves on the presets' NVLink; H200's is that of H100.
_ONE_PAIR: Final = {
    CLUSTERS["dgx-a100"].scale_up: 280.0 / 203.0,
    CLUSTERS["dgx-h100"].scale_up: 357.0 / 320.0,
    CLUSTERS["dgx-h200"].scale_up: 357.0 / 320.0,
}


def all_reduce(cluster: Cluster, group: Group, size_bytes: FloatArray | float) -> Cost:
    """Sum ``size_bytes`` over the group; every rank ends with the sum."""
    return _collective(cluster, group, "all_reduce", size_bytes)


def all_gather(cluster: Cluster, group: Group, gathered_bytes: FloatArray | float) -> Cost:
    """Every rank ends with ``gathered_bytes``, of which it brought ``1 / size``."""
    return _collective(cluster, group, "all_gather", gathered_bytes)


def reduce_scatter(cluster: Cluster, group: Group, input_bytes: FloatArray | float) -> Cost:
    """Sum ``input_bytes`` over the group; every rank ends with its ``1 / size`` of the sum."""
    return _collective(cluster, group, "reduce_scatter", input_bytes)


def point_to_point(cluster: Cluster, size_bytes: FloatArray | float, same_node: bool, alone: bool = False) -> Cost:
    """One rank sends ``size_bytes`` to the next one: latency + bytes / bandwidth of the slowest such way.

    All ranks of the node send alike, as the stages of a pipeline do; or all others are idle (``alone``).
    """
    size = np.asarray(size_bytes, dtype=np.float64)
    link = cluster.scale_up if same_node else nic(cluster)
    slower, waits_for = slowest_hop(cluster, alone) if same_node else _next_node(cluster, alone)
    faster = _ONE_PAIR.get(link, 1.0)
    moving_s = size * slower / min(link.bandwidth_bytes_per_s * faster, link.peak_bytes_per_s)
    if cluster.scale_up.kind == "pcie":  # what leaves a node passes it too
        moving_s = np.maximum(moving_s, size / cluster.scale_up.bandwidth_bytes_per_s)
    limited_by = waits_for if np.mean(moving_s) > link.latency_s else "launch"
    bound_s = size * slower / link.peak_bytes_per_s
    source = link.source if faster == 1.0 else f"{faster:.2f} x all-to-all, as one pair on A100 and H100; {link.source}"
    band, basis = (0.25, BASIS[link.basis]) if slower == 1.0 else (BAND, ESTIMATED)
    return cost(link.latency_s + moving_s, band, bound_s, limited_by, basis, source)


def _next_node(cluster: Cluster, alone: bool) -> tuple[float, str]:
    """By how much the slowest way from a node to the next one is slower than a NIC, and what waits."""
    nodes = max(2, cluster.nodes)
    group = Group(size=nodes * cluster.gpus_per_node, per_node=cluster.gpus_per_node)
    return slowest_rail(replace(cluster, nodes=nodes), group, alone)


def nic(cluster: Cluster) -> Link:
    """The link between nodes, of a cluster that has one."""
    if cluster.scale_out is None:
        raise MoesimError(f"cluster {cluster.name} has no scale_out link: describe its NICs to send between nodes")
    return cluster.scale_out


def _collective(cluster: Cluster, group: Group, op: str, size_bytes: FloatArray | float) -> Cost:
    check_group(cluster, group)
    size = np.asarray(size_bytes, dtype=np.float64)
    node = inside(cluster, group, op, size)
    if group.nodes == 1:
        return node
    out, start_s = nic(cluster), launch_s(cluster, group, op)
    node_s = np.maximum(node.seconds - start_s, 0.0)
    slower, waits_for = slowest_rail(cluster, group)
    rail_bytes = size / group.per_node
    steps_s, rail_s = fastest(
        op, group.nodes, rail_bytes, STEP_SHARE * out.latency_s, slower / out.bandwidth_bytes_per_s
    )
    least = ring if op == "all_reduce" else once_around
    phases = [("launch", start_s + steps_s), (_link(cluster, node), node_s), (waits_for, rail_s)]
    return cost(
        start_s + steps_s + np.maximum(node_s, rail_s),
        BAND,
        np.maximum(least(group.nodes).share * rail_bytes / out.peak_bytes_per_s, node.bound_s),
        max(phases, key=lambda phase: float(np.mean(phase[1])))[0],
        ESTIMATED,
        f"{op} model over {group.nodes} nodes; {cluster.scale_up.kind}: {node.source}; nic: {out.source}",
    )


def _link(cluster: Cluster, node: Cost) -> str:
    """What the bytes inside the node wait for."""
    return cluster.scale_up.kind if node.limited_by == "launch" else node.limited_by


@lru_cache(maxsize=256)
def slowest_rail(cluster: Cluster, group: Group, alone: bool = False) -> tuple[float, str]:
    """By how much the slowest link of the rings between nodes is slower than a whole NIC, and its kind.

    One ring on each rail, or one in all (``alone``).
    """
    worth = families(cluster, group)
    on_nic = 1.0 if alone else np.tile(np.bincount(nic_of(cluster, group.per_node)), group.nodes)
    by_kind = {"nic": float(np.max(on_nic / np.minimum(worth["nic_out"], worth["nic_in"])))}
    if cluster.fabric.between == "tree" and len(set(leaf_of(cluster, group).tolist())) > 1:
        ways = np.minimum(worth["leaf_up"], worth["leaf_down"])
        by_kind["uplink"] = (1.0 if alone else group.per_node) / float(ways.min())
    kind = max(by_kind, key=lambda name: by_kind[name])
    return by_kind[kind], kind
