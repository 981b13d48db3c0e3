"""Linear: every rank sends to every rank at once, as NCCL's grouped send/receive does.

    one node         seconds = curve(busiest port)                                    ports
    several nodes    seconds = a0 + g (R-1) + max over links of load / bandwidth      network, ports

a0 = 130 us and g = 0.3 us per peer are assumptions: a0 from the half-size of SimAI's all-to-all efficiency
table (6 MB at 4-8 nodes of ConnectX-7, 110-140 us), g as the cost of posting one more message. With equal
loads the bandwidth term gives nccl-tests' bus bandwidth B_n (R-1)/(R-G), G ranks a node.
"""

from typing import Final

import numpy as np

from moesim.alltoall.ports import BAND, link_copies, moved, node_exchange
from moesim.alltoall.traffic import Traffic
from moesim.cluster import Cluster, Group
from moesim.collectives.hierarchical import nic
from moesim.cost import ESTIMATED, Cost, cost
from moesim.units import US

START_S: Final = 130 * US
PER_PEER_S: Final = 0.3 * US


def linear(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds by the busiest link."""
    if group.nodes == 1:
        copies = link_copies(cluster, group, traffic).copies
        host_bytes = copies["host"] * traffic.token_bytes if "host" in copies else 0.0
        return node_exchange(cluster, group.size, copies["up"] * traffic.token_bytes, host_bytes)
    found = moved(cluster, group, traffic)
    latency_s = START_S + PER_PEER_S * (group.size - 1)
    return cost(
        latency_s + found.seconds,
        BAND,
        found.peak_s,
        found.waits_for if np.mean(found.seconds) > latency_s else "launch",
        ESTIMATED,
        f"linear {direction} model, {START_S / US:.0f} us and {PER_PEER_S / US:.1f} us a peer assumed; "
        f"nic: {nic(cluster).source}",
    )
