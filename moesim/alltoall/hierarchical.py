"""2DH: two-dimensional hierarchical all-to-all (Tutel, arXiv 2206.03382; tutel/custom/custom_kernel.cpp).

    stride copy   group the buffer by local rank of the destination
    intra         rank (n, g) gives (n, l) everything that must leave on rail l
    stride copy   group by destination node
    inter         (n, l) sends to (m, l) along its own rail

    seconds = 2 (a_k + 2 S / B_m) + curve(intra load) + a_n + NIC load / B_n

S is the busiest rank's buffer, B_m the achieved copy bandwidth of memory. The phases follow one another. A
NIC sends N - 1 messages of S/N instead of R - G messages of S/R: less latency, more copies. a_k = 4 us a
kernel, a_n = 60 us and B_m = 0.72 of the memory's peak are assumptions; Tutel's padding to the expert
capacity is not added: what counts is what the routing sends.
"""

from typing import Final

import numpy as np

from moesim.alltoall.linear import node_exchange
from moesim.alltoall.traffic import Traffic, busiest, by_node, remembered
from moesim.cluster import Cluster, Group
from moesim.collectives.hierarchical import nic
from moesim.cost import ESTIMATED, Cost, FloatArray, cost
from moesim.units import US

COPY_LAUNCH_S: Final = 4 * US
COPY_SHARE: Final = 0.72
INTER_START_S: Final = 60 * US
BAND: Final = 0.40


def hierarchical(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds of the four phases, each by its busiest port."""
    out = nic(cluster)
    copies = traffic.copies
    loads = remembered(traffic, ("2dh", group.per_node), lambda: rail_loads(copies, group.per_node))
    inside, outside = (load * traffic.token_bytes for load in loads)
    most = remembered(traffic, "buffer", lambda: copies.sum(axis=-1).max(axis=-1))
    buffer_bytes = most * traffic.token_bytes
    peak_copies_s = 4 * buffer_bytes / cluster.gpu.memory_bytes_per_s
    copies_s = 2 * COPY_LAUNCH_S + peak_copies_s / COPY_SHARE
    intra = node_exchange(cluster, group.per_node, inside)
    inter_s = outside / out.bandwidth_bytes_per_s
    phases = {"memory": copies_s, cluster.scale_up.kind: intra.seconds, "nic": INTER_START_S + inter_s}
    return cost(
        copies_s + intra.seconds + INTER_START_S + inter_s,
        BAND,
        peak_copies_s + intra.bound_s + outside / out.peak_bytes_per_s,
        max(phases, key=lambda name: float(np.mean(phases[name]))),
        ESTIMATED,
        f"2dh {direction} model (Tutel), {INTER_START_S / US:.0f} us a network phase assumed; "
        f"{intra.source}; nic: {out.source}",
    )


def rail_loads(copies: FloatArray, per_node: int) -> tuple[FloatArray, FloatArray]:
    """Copies over the busiest NVLink port in the intra phase and over the busiest NIC in the inter phase."""
    square = by_node(copies, per_node)  # [..., src node, src local, dst node, dst local]
    to_rail = square.sum(axis=-2)  # [..., node, src local, rail]
    along = np.moveaxis(square.sum(axis=-3), -1, -3)  # [..., rail, src node, dst node]
    return busiest(to_rail).max(axis=-1), busiest(along).max(axis=-1)
