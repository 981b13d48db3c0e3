"""Exchanges in steps: in step s every rank i sends one message to rank i + s, and nobody else.

    sent[..., step, src] copies  --fabric-->  copies on the busiest link of each kind in that step

Links are those of the network: between nodes by NVLink to the GPU of the destination's rail first where the fabric
forwards, else from the rank's own NIC. A step starts with one call of the library:

    in a node     the measured time of NCCL's smallest all-to-all on these GPUs
    across        the latency of the NIC: send/recv between nodes
"""

from typing import cast

import numpy as np

from moesim.alltoall.ports import node_exchange
from moesim.cluster import Cluster, Group
from moesim.collectives.hierarchical import nic
from moesim.cost import FloatArray
from moesim.network import Dense, Pairs, Product, forwards, inside_loads, leaf_of, longest, nic_of
from moesim.network.pairs import IntArray, grouped


def step_start_s(cluster: Cluster, group: Group) -> float:
    """Seconds until the bytes of a step move."""
    if group.nodes > 1:
        return nic(cluster).latency_s
    return float(node_exchange(cluster, group.per_node, np.zeros(())).seconds)


def step_waits(cluster: Cluster, group: Group, sent: FloatArray, shifts: IntArray) -> dict[str, FloatArray]:
    """``sent[..., step, src]`` to rank ``src + shifts[step]``, modulo the ranks -> ``[..., step]`` by kind of link."""
    rank, local = np.arange(group.size), np.arange(group.size) % group.per_node
    node = rank // group.per_node
    target, source = (rank + shifts[:, None]) % group.size, (rank - shifts[:, None]) % group.size  # [step, rank]
    crosses, arrives = node[target] != node, node[source] != node
    got = np.take_along_axis(sent, np.broadcast_to(source, sent.shape), axis=-1)
    near_out, near_in = np.where(crosses, 0.0, sent), np.where(arrives, 0.0, got)
    if group.nodes == 1:
        return longest(cluster, group, inside_loads(cluster, group, near_out, near_in))
    leaving, far_in = sent - near_out, got - near_in
    found = {}
    if forwards(cluster, "forwarded"):
        other_rail = (shifts % group.per_node != 0)[:, None]
        near_out = near_out + leaving * other_rail
        hands_over = np.broadcast_to(node[source] * group.per_node + local, sent.shape)  # the source's node, my rail
        leaving = np.zeros_like(sent)
        np.put_along_axis(leaving, hands_over, far_in, axis=-1)
        near_in = near_in + leaving * other_rail
    else:
        leaf = leaf_of(cluster, group)
        up, down = (leaf[target] != leaf) & crosses, (leaf[source] != leaf) & arrives
        found = {"leaf_up": grouped(sent * up, leaf, -1), "leaf_down": grouped(got * down, leaf, -1)}
    found |= {"nic_out": by_nic(cluster, group, leaving), "nic_in": by_nic(cluster, group, far_in)}
    return longest(cluster, group, found | inside_loads(cluster, group, near_out, near_in))


def by_nic(cluster: Cluster, group: Group, by_rank: FloatArray) -> FloatArray:
    """``[..., rank]`` -> ``[..., node and NIC]``, as the network's families count them."""
    nics = nic_of(cluster, group.per_node)
    port = np.arange(group.nodes)[:, None] * (int(nics.max()) + 1) + nics
    return grouped(by_rank, port.reshape(-1), -1)


def written(pairs: Pairs) -> FloatArray:
    """``[..., src, dst]`` copies, written out where they were not."""
    if isinstance(pairs, Dense):
        return pairs.copies
    product = cast(Product, pairs)
    return product.sent[..., :, None] * product.share[..., None, :]
