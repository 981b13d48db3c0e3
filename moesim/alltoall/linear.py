"""Linear: every rank sends to every rank at once, as NCCL's grouped send/receive does.

    one node         the measured NCCL all-to-all curve, read at the bytes of the busiest rank:
                     seconds = curve(busiest x R/(R-1)), since R ranks that send S each put S (R-1)/R on a
                     link
    several nodes    seconds = a0 + g (R-1) + max(NVLink load / B_v, NIC load / B_n)

a0 = 130 us and g = 0.3 us per peer are assumptions: a0 from the half-size of SimAI's all-to-all efficiency
table (6 MB at 4-8 nodes of ConnectX-7, 110-140 us), g as the cost of posting one more message. With equal
loads the bandwidth term gives nccl-tests' bus bandwidth B_n (R-1)/(R-G), G ranks a node.
"""

from typing import Final

import numpy as np

from moesim.alltoall.traffic import Traffic, busiest, by_node, remembered
from moesim.cluster import Cluster, Group
from moesim.collectives.curves import in_node
from moesim.collectives.hierarchical import nic
from moesim.cost import ESTIMATED, Cost, FloatArray, cost
from moesim.units import US

START_S: Final = 130 * US
PER_PEER_S: Final = 0.3 * US
BAND: Final = 0.40


def linear(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds by the busiest NVLink or NIC, in or out."""
    if group.nodes == 1:
        most = remembered(traffic, "busiest", lambda: busiest(traffic.copies))
        return node_exchange(cluster, group.per_node, most * traffic.token_bytes)
    up, out = cluster.scale_up, nic(cluster)
    loads = remembered(traffic, ("linear", group.per_node), lambda: link_loads(traffic.copies, group.per_node))
    inside, outside = (load * traffic.token_bytes for load in loads)
    latency_s = START_S + PER_PEER_S * (group.size - 1)
    up_s = moving_s(cluster, group.per_node, inside)
    out_s = outside / out.bandwidth_bytes_per_s
    waits = "nic" if np.mean(out_s) > np.mean(up_s) else up.kind
    return cost(
        latency_s + np.maximum(up_s, out_s),
        BAND,
        np.maximum(inside / up.peak_bytes_per_s, outside / out.peak_bytes_per_s),
        waits if np.mean(np.maximum(up_s, out_s)) > latency_s else "launch",
        ESTIMATED,
        f"linear {direction} model, {START_S / US:.0f} us and {PER_PEER_S / US:.1f} us a peer assumed; "
        f"nic: {out.source}",
    )


def link_loads(copies: FloatArray, per_node: int) -> tuple[FloatArray, FloatArray]:
    """Copies over the busiest NVLink port and over the busiest NIC, in or out: ``[...]`` twice."""
    square = by_node(copies, per_node)  # [..., src node, src local, dst node, dst local]
    node = np.arange(square.shape[-2])
    near = np.moveaxis(square[..., node, :, node, :], 0, -3)  # [..., node, src local, dst local]
    inside = busiest(near).max(axis=-1)
    near_sent = near.sum(axis=-1).reshape(*copies.shape[:-1])  # [..., rank]
    near_received = near.sum(axis=-2).reshape(*copies.shape[:-1])
    sent = (copies.sum(axis=-1) - near_sent).max(axis=-1)
    received = (copies.sum(axis=-2) - near_received).max(axis=-1)
    return inside, np.maximum(sent, received)


def node_exchange(cluster: Cluster, ranks: int, busiest_bytes: FloatArray) -> Cost:
    """An all-to-all inside a node whose busiest port carries ``busiest_bytes``; launch included."""
    if ranks == 1:
        return in_node(cluster, "all_to_all", 1, busiest_bytes)
    return in_node(cluster, "all_to_all", ranks, busiest_bytes * ranks / (ranks - 1))


def moving_s(cluster: Cluster, ranks: int, busiest_bytes: FloatArray) -> FloatArray:
    """The same without its launch."""
    launch_s = node_exchange(cluster, ranks, np.zeros(())).seconds
    return np.maximum(node_exchange(cluster, ranks, busiest_bytes).seconds - launch_s, 0.0)
