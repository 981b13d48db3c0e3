"""Collectives across nodes: every GPU is on its own rail, and the two kinds of link work at the same time.

    seconds = launch + steps x step_s + max(node_s - launch, nic_s)

    all-reduce       node_s: the node's all-reduce curve (NVLS where NCCL used it) of the whole buffer S
                     nic_s:  ring 2 (N-1)/N x S/G / B_n, steps 2 (N-1);  tree 2 x S/G / B_n, steps 2
                     ceil(log2 N)
    all-gather,      node_s: the node's curve of the gathered bytes S (what came by NIC is forwarded by
                     NVLink)
    reduce-scatter   nic_s:  ring (N-1)/N x S/G / B_n, steps N-1

N nodes of G ranks, B_n NIC bytes/s per GPU. NCCL takes the faster of ring and tree, and pipelines chunks,
so the busier link decides. Sources: NCCL src/graph/tuning.cc (ring and tree steps); SimAI ratio tables:
4-7 us per step, which is 0.28 of the 19.9 us that an H100 send/recv across nodes takes with its launch
(Vidur). The sum is a model, not a measurement: *estimated*.
"""

from typing import Final

import numpy as np

from moesim.cluster import Cluster, Group, Link
from moesim.cluster.nouns import check_group
from moesim.collectives.curves import floor_share, in_node
from moesim.cost import BASIS, ESTIMATED, Cost, FloatArray, cost
from moesim.errors import MoesimError

STEP_SHARE: Final = 0.28  # a ring step's latency over a send/recv's: 5.5 us of 19.9 us
BAND: Final = 0.40
# send/recv of one pair (Vidur) over what all-to-all achieves: 357 over 320 GB/s, 280 over 203 GB/s
_ONE_PAIR: Final = {"hopper": 357.0 / 320.0, "ampere": 280.0 / 203.0}


def all_reduce(cluster: Cluster, group: Group, size_bytes: FloatArray | float) -> Cost:
    """Sum ``size_bytes`` over the group; every rank ends with the sum."""
    return _collective(cluster, group, "all_reduce", size_bytes)


def all_gather(cluster: Cluster, group: Group, gathered_bytes: FloatArray | float) -> Cost:
    """Every rank ends with ``gathered_bytes``, of which it brought ``1 / size``."""
    return _collective(cluster, group, "all_gather", gathered_bytes)


def reduce_scatter(cluster: Cluster, group: Group, input_bytes: FloatArray | float) -> Cost:
    """Sum ``input_bytes`` over the group; every rank ends with its ``1 / size`` of the sum."""
    return _collective(cluster, group, "reduce_scatter", input_bytes)


def point_to_point(cluster: Cluster, size_bytes: FloatArray | float, same_node: bool) -> Cost:
    """One rank sends ``size_bytes`` to another: latency + bytes / bandwidth of the link between them."""
    size = np.asarray(size_bytes, dtype=np.float64)
    link = cluster.scale_up if same_node else nic(cluster)
    faster = _ONE_PAIR.get(cluster.gpu.architecture, _ONE_PAIR["hopper"]) if link.kind == "nvlink" else 1.0
    bandwidth = min(link.bandwidth_bytes_per_s * faster, link.peak_bytes_per_s)
    moving_s = size / bandwidth
    limited_by = link.kind if np.mean(moving_s) > link.latency_s else "launch"
    bound_s = size / link.peak_bytes_per_s
    return cost(link.latency_s + moving_s, 0.25, bound_s, limited_by, BASIS[link.basis], link.source)


def nic(cluster: Cluster) -> Link:
    """The link between nodes, of a cluster that has one."""
    if cluster.scale_out is None:
        raise MoesimError(f"cluster {cluster.name} has no scale_out link: describe its NICs to send between nodes")
    return cluster.scale_out


def _collective(cluster: Cluster, group: Group, op: str, size_bytes: FloatArray | float) -> Cost:
    check_group(cluster, group)
    if group.nodes == 1:
        return in_node(cluster, op, group.size, size_bytes)
    size = np.asarray(size_bytes, dtype=np.float64)
    out = nic(cluster)
    node = in_node(cluster, op, group.per_node, size)
    launch_s = float(in_node(cluster, op, group.per_node, 0.0).seconds) or (1.0 - STEP_SHARE) * out.latency_s
    node_s = np.maximum(node.seconds - launch_s, 0.0)
    steps_s, nic_s = _rail(op, group.nodes, size / group.per_node, out)
    return cost(
        launch_s + steps_s + np.maximum(node_s, nic_s),
        BAND,
        np.maximum(floor_share(op, group.nodes) * size / group.per_node / out.peak_bytes_per_s, node.bound_s),
        _busiest(cluster, launch_s + steps_s, node_s, nic_s),
        ESTIMATED,
        f"{op} model over {group.nodes} nodes; {cluster.scale_up.kind}: {node.source}; nic: {out.source}",
    )


def _rail(op: str, nodes: int, size: FloatArray, out: Link) -> tuple[FloatArray, FloatArray]:
    """Seconds of step latency and of moving, on one rail, for the ``size`` bytes that belong to it."""
    step_s = STEP_SHARE * out.latency_s
    moving_s = size / out.bandwidth_bytes_per_s
    ring = np.full_like(size, (nodes - 1) * step_s), (nodes - 1) / nodes * moving_s
    if op != "all_reduce":
        return ring
    tree = np.full_like(size, np.ceil(np.log2(nodes)) * step_s), moving_s
    use_tree = tree[0] + tree[1] < ring[0] + ring[1]
    return 2 * np.where(use_tree, tree[0], ring[0]), 2 * np.where(use_tree, tree[1], ring[1])


def _busiest(cluster: Cluster, latency_s: FloatArray, node_s: FloatArray, nic_s: FloatArray) -> str:
    """What most of the batch waits for."""
    node_mean_s, nic_mean_s = float(np.mean(node_s)), float(np.mean(nic_s))
    if float(np.mean(latency_s)) > max(node_mean_s, nic_mean_s):
        return "launch"
    return "nic" if nic_mean_s > node_mean_s else cluster.scale_up.kind
