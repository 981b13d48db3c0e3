"""2DH: two-dimensional hierarchical all-to-all (Tutel, arXiv 2206.03382; tutel/custom/custom_kernel.cpp).

    stride copy   group the buffer by local rank of the destination
    intra         rank (n, g) gives (n, l) everything that must leave on rail l
    stride copy   group by destination node
    inter         (n, l) sends to (m, l) along its own rail

    seconds = 2 (a_k + 2 S / B_m) + curve(intra load) + a_n + g x messages + max(NIC, uplink load) / bandwidth

S is the busiest rank's buffer, B_m the achieved copy bandwidth of memory. The phases follow one another. A rank
sends N - 1 messages of S/N instead of R - G messages of S/R (posts): less latency, more copies. a_k = 4 us a
kernel, a_n = 60 us and B_m = 0.72 of the memory's peak are assumptions; Tutel's padding to the expert
capacity is not added: what counts is what the routing sends.
"""

from typing import Final

import numpy as np

from moesim.alltoall.linear import PER_PEER_S, nic_share
from moesim.alltoall.ports import BAND, Loaded, Moved, busiest, link_copies, node_exchange
from moesim.alltoall.posts import along_rail
from moesim.alltoall.shifts import by_nic, written
from moesim.alltoall.traffic import Traffic, remembered
from moesim.cluster import Cluster, Group
from moesim.collectives.hierarchical import nic
from moesim.cost import ESTIMATED, Cost, FloatArray, cost
from moesim.network import inside_loads, leaf_of, longest
from moesim.units import US

COPY_LAUNCH_S: Final = 4 * US
COPY_SHARE: Final = 0.72
INTER_START_S: Final = 60 * US


def hierarchical(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds of the four phases, each by its busiest link."""
    copies_s, peak_copies_s = stride_copies(cluster, traffic)
    intra = to_rails(cluster, group, traffic)
    inter = along_rails(cluster, group, traffic)
    inter_s = rail_start_s(cluster, group) + inter.seconds
    phases = {"memory": 2 * copies_s, cluster.scale_up.kind: intra.seconds, inter.waits_for: inter_s}
    return cost(
        2 * copies_s + intra.seconds + inter_s,
        BAND,
        2 * peak_copies_s + intra.bound_s + inter.peak_s,
        max(phases, key=lambda name: float(np.mean(phases[name]))),
        ESTIMATED,
        f"2dh {direction} model (Tutel), {INTER_START_S / US:.0f} us a network phase assumed; "
        f"{intra.source}; nic: {nic(cluster).source}",
    )


def stride_copies(cluster: Cluster, traffic: Traffic) -> tuple[FloatArray, FloatArray]:
    """Seconds of one copy of the busiest rank's buffer, as achieved and at the memory's peak."""
    most = remembered(traffic, "buffer", lambda: traffic.pairs.buffers().max(axis=-1))
    peak_s = 2 * most * traffic.token_bytes / cluster.gpu.memory_bytes_per_s
    return COPY_LAUNCH_S + peak_s / COPY_SHARE, peak_s


def rail_start_s(cluster: Cluster, group: Group) -> float:
    """Seconds until the bytes of an exchange along rails move."""
    return INTER_START_S + PER_PEER_S * along_rail(cluster, group)


def to_rails(cluster: Cluster, group: Group, traffic: Traffic) -> Cost:
    """Inside every node: each rank gives the rank of a rail all that must leave there; launch included."""
    copies = rail_ports(cluster, group, traffic)
    host_bytes = copies["host"] * traffic.token_bytes if "host" in copies else 0.0
    return node_exchange(cluster, group.per_node, copies["up"] * traffic.token_bytes, host_bytes)


def along_rails(cluster: Cluster, group: Group, traffic: Traffic) -> Moved:
    """Between nodes, every rank on its own rail."""
    found = rail_links(cluster, group, traffic)
    size_bytes = {kind: each * traffic.token_bytes for kind, each in found.copies.items()}
    moved = busiest(cluster, 1, size_bytes, {"nic": nic_share(cluster, along_rail(cluster, group))})
    return moved._replace(seconds=moved.seconds * found.slower)


def rail_ports(cluster: Cluster, group: Group, traffic: Traffic) -> dict[str, FloatArray]:
    """Copies on the busiest link inside the nodes on the way to the rails, by kind."""
    return remembered(traffic, ("to_rails", cluster, group), lambda: _rail_ports(cluster, group, traffic))


def rail_links(cluster: Cluster, group: Group, traffic: Traffic) -> Loaded:
    """Copies on the busiest link along the rails, by kind."""
    return remembered(traffic, ("along_rails", cluster, group), lambda: _rails(cluster, group, traffic))


def _rail_ports(cluster: Cluster, group: Group, traffic: Traffic) -> dict[str, FloatArray]:
    inside = traffic.pairs.to_rails(group.per_node)  # [..., node] of its ranks
    if cluster.fabric.inside == "mesh":
        crossing = written(inside) * (1.0 - np.eye(group.per_node))
        return longest(cluster, group, {"mesh": crossing.reshape(*traffic.pairs.shape, -1)})
    out, into = inside.totals()
    shape = (*traffic.pairs.shape, group.size)
    return longest(cluster, group, inside_loads(cluster, group, out.reshape(shape), into.reshape(shape)))


def _rails(cluster: Cluster, group: Group, traffic: Traffic) -> Loaded:
    """What climbs and what arrives is that of the linear exchange, and so is what waits for one another there."""
    along = traffic.pairs.along_rails(group.per_node)  # [..., rail] of nodes
    leaf = leaf_of(cluster, Group(size=group.nodes, per_node=1))
    loads = {
        name: by_nic(cluster, group, np.swapaxes(side, -1, -2).reshape(*traffic.pairs.shape, group.size))
        for name, side in zip(("nic_out", "nic_in"), along.totals(), strict=True)
    }
    if cluster.fabric.between != "tree":  # a rail has a leaf of its own
        return Loaded(longest(cluster, group, loads), np.ones(traffic.pairs.shape))
    up, down = (side.sum(axis=-2) for side in along.climbing(1, leaf))
    slower = link_copies(cluster, group, traffic).slower
    return Loaded(longest(cluster, group, loads | {"leaf_up": up, "leaf_down": down}), slower)
