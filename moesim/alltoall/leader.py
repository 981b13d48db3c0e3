"""Leader: the GPUs of a node send and receive through one of them (HetuMoE, arXiv 2203.14685, as released).

    gather       every rank gives its whole buffer to local rank 0, the leader
    transform    the leader groups the node's buffers by destination: read once, written once
    exchange     the N leaders, over the leader's NIC: N - 1 messages of G x G blocks each
    transform    and scatter: the same back

    seconds = 2 gathers + 2 (a_k + 2 G S / B_m) + a0 + g (N - 1) + max(NIC, uplink load) / bandwidth
    gather  = latency + max( (G - 1) S / B_v,  the bytes of an all-to-all of S a rank inside the node )

The bytes between nodes are those of a linear exchange, and they use one NIC of the node: all of it where the GPUs share
it, one of eight else. Messages are fewer: N - 1 on the NIC instead of G x G x (N - 1), each g (posts). So it is for
small messages and one NIC a node. a0, g as in linear, a_k and B_m as in 2dh; a node is assumed to move no more bytes a
second in a gather than in an all-to-all.
"""

import numpy as np

from moesim.alltoall.hierarchical import COPY_LAUNCH_S, COPY_SHARE
from moesim.alltoall.linear import PER_PEER_S, START_S, nic_share
from moesim.alltoall.ports import BAND, busiest
from moesim.alltoall.traffic import Traffic, remembered
from moesim.cluster import Cluster, Group
from moesim.collectives.hierarchical import nic
from moesim.cost import ESTIMATED, Cost, FloatArray, cost
from moesim.network import bytes_per_s, inside_loads, leaf_of, longest, nic_of
from moesim.units import US

Loads = dict[str, FloatArray]


def leader(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds of the five steps, each by its busiest node."""
    to_leader, between, from_leader = leader_links(cluster, group, traffic)
    gather_s, gather_peak_s = _gather(cluster, group, to_leader, traffic.token_bytes)
    scatter_s, scatter_peak_s = _gather(cluster, group, from_leader, traffic.token_bytes)
    touched = (to_leader["node"] + from_leader["node"]) * 2 * traffic.token_bytes
    transform_peak_s = touched / cluster.gpu.memory_bytes_per_s
    transform_s = 2 * COPY_LAUNCH_S + transform_peak_s / COPY_SHARE
    moved = busiest(
        cluster, 1, {kind: each * traffic.token_bytes for kind, each in between.items()},
        {"nic": nic_share(cluster, group.nodes - 1)},
    )  # fmt: skip
    exchange_s = START_S + PER_PEER_S * (group.nodes - 1) + moved.seconds
    phases = {"memory": transform_s, cluster.scale_up.kind: gather_s + scatter_s, moved.waits_for: exchange_s}
    return cost(
        gather_s + scatter_s + transform_s + exchange_s,
        BAND,
        gather_peak_s + scatter_peak_s + transform_peak_s + moved.peak_s,
        max(phases, key=lambda name: float(np.mean(phases[name]))),
        ESTIMATED,
        f"leader {direction} model (HetuMoE), {START_S / US:.0f} us and {PER_PEER_S / US:.1f} us a message assumed; "
        f"{cluster.scale_up.source}; nic: {nic(cluster).source}",
    )


def leader_links(cluster: Cluster, group: Group, traffic: Traffic) -> tuple[Loads, Loads, Loads]:
    """Copies on the busiest link by kind: to the leaders, between them, from them; "node": all of a node's."""
    return remembered(traffic, ("leader", cluster, group), lambda: _loads(cluster, group, traffic))


def _loads(cluster: Cluster, group: Group, traffic: Traffic) -> tuple[Loads, Loads, Loads]:
    shape, pairs = (*traffic.pairs.shape, group.size), traffic.pairs
    sent = np.broadcast_to(pairs.buffers(), shape)
    received = np.broadcast_to(pairs.turned().buffers(), shape)
    return (
        _one_end(cluster, group, sent),
        longest(cluster, group, _between(cluster, group, traffic)),
        _one_end(cluster, group, received),
    )


def _one_end(cluster: Cluster, group: Group, buffers: FloatArray) -> Loads:
    """All ``buffers[..., rank]`` of a node to its first rank, or from there: the same links the other way round."""
    square = buffers.reshape(*buffers.shape[:-1], group.nodes, group.per_node)
    out, into = square.copy(), np.zeros_like(square)
    out[..., 0] = 0.0
    into[..., 0] = out.sum(axis=-1)
    found = longest(
        cluster, group, inside_loads(cluster, group, out.reshape(buffers.shape), into.reshape(buffers.shape))
    )
    return found | {"node": square.sum(axis=-1).max(axis=-1)}


def _between(cluster: Cluster, group: Group, traffic: Traffic) -> Loads:
    """What the first NIC of every node carries, and the leaves' ways up where leaders stand below several leaves."""
    sums = traffic.pairs.sums(group.per_node)
    nics = int(nic_of(cluster, group.per_node).max()) + 1
    found = {}
    for name, side in (("nic_out", sums.far_out), ("nic_in", sums.far_in)):
        by_nic = np.zeros((*traffic.pairs.shape, group.nodes, nics))
        by_nic[..., 0] = side.reshape(*side.shape[:-1], group.nodes, group.per_node).sum(axis=-1)
        found[name] = by_nic.reshape(*traffic.pairs.shape, -1)
    if cluster.fabric.between == "tree":
        up, down = traffic.pairs.climbing(group.per_node, leaf_of(cluster, group))
        found |= {"leaf_up": up, "leaf_down": down}
    return found


def _gather(
    cluster: Cluster, group: Group, copies: Loads, token_bytes: FloatArray | float
) -> tuple[FloatArray, FloatArray]:
    """Seconds as achieved and at peak."""
    each = copies["node"] * token_bytes * (group.per_node - 1) / group.per_node**2  # a port's share of the bytes
    together = busiest(cluster, group.per_node, {"up": each})
    ports = {kind: copies[kind] * token_bytes / bytes_per_s(cluster, kind)[0] for kind in copies if kind != "node"}
    moving_s = np.maximum.reduce([together.seconds, *ports.values()])
    peak_s = copies["up"] * token_bytes / cluster.scale_up.peak_bytes_per_s
    return cluster.scale_up.latency_s + moving_s, peak_s
