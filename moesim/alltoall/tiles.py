"""Tiles: one-sided puts of 128-row tiles from inside the running kernel of the whole layer (FlashMoE, 2506.04667).

    seconds = 2 x signal + max over links of load / bandwidth

Each tile goes straight to its destination, over NVLink or from the rank's own NIC (NVSHMEM, IBGDA), followed by one
signal. Signals are hidden behind the tiles that follow, but for the first and the last: 1.5 us each, an assumption (1
to 2 us). No launch and no barrier: the kernel runs already. Only rows that a token was routed to are sent, never
padding. A full tile is 0.5 to 2 MB, from where a NIC gives its bandwidth; part tiles are taken to do so too, which is
too fast for a few tokens an expert. The tile is also what may overlap; that is up to the program, not to this time.
FlashMoE runs on NVLink and RDMA, on GPUs from Volta on; here: Ampere, Hopper and Blackwell with NVLink.
"""

from typing import Final

import numpy as np

from moesim.alltoall.ports import BAND, link_copies
from moesim.alltoall.traffic import Traffic
from moesim.cluster import Cluster, Group
from moesim.cost import ESTIMATED, Cost, cost
from moesim.network import bytes_per_s
from moesim.units import US

SIGNAL_S: Final = 1.5 * US
ARCHITECTURES: Final = ("ampere", "hopper", "blackwell")


def tiles(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds by the busiest link."""
    copies, slower = link_copies(cluster, group, traffic, "direct")
    by_kind = {kind: each * traffic.token_bytes / bytes_per_s(cluster, kind)[0] for kind, each in copies.items()}
    peaks = [each * traffic.token_bytes / bytes_per_s(cluster, kind)[1] for kind, each in copies.items()]
    moving_s = np.maximum.reduce(list(by_kind.values())) * slower
    slowest = max(by_kind, key=lambda kind: float(np.mean(by_kind[kind])))
    name = cluster.scale_up.kind if slowest == "up" else slowest
    return cost(
        2 * SIGNAL_S + moving_s,
        BAND,
        np.maximum.reduce(peaks),
        name if np.mean(moving_s) > 2 * SIGNAL_S else "launch",
        ESTIMATED,
        f"tiles {direction} model (FlashMoE) inside a running kernel, {SIGNAL_S / US:.1f} us a signal assumed; "
        f"{cluster.scale_up.source}",
    )
