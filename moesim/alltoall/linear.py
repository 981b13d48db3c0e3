"""Linear: every rank sends to every rank at once, as NCCL's grouped send/receive does.

    one node         seconds = curve(busiest port), or latency + contention x busiest link     ports
    several nodes    seconds = a0 + g messages + max over links of load / bandwidth            network, posts, ports
                     a NIC with c connections open moves 1 / (1 + c / C) of its bandwidth

    c = N-1 where bytes go by NVLink to the rail's own NIC first (NCCL 2.12 and later: PXN), else the ranks on the
        NIC times R-G, for N nodes of G ranks (NVIDIA's blog on NCCL 2.12 gives fewer and larger messages between
        fewer pairs as the reason for PXN)

a0 = 83 us: the mean, in logs, of two sources that disagree: torch's all-to-all of one token on 16 to 128 H100
(pplx-kernels README 2bd6e30, net of its payload) 63 us, the half-size of SimAI's efficiency table 110 us. g = 0.3 us
a message is assumed; the slope of the same pplx rows is 0.13 +- 0.17 us.
C = 740 on HDR: Tutel's README figure (NCCL 2.10, 256 MiB, linear minus 2dh at 16 to 1,024 A100s) fitted with this one
number, rms 1.9 ms of exchanges of 6 to 28 ms; no loss is known on ConnectX-7. With equal loads the bandwidth term
gives nccl-tests' bus bandwidth B_n (R-1)/(R-G).
"""

from math import inf
from typing import Final

import numpy as np

from moesim.alltoall.ports import BAND, link_copies, moved, node_exchange
from moesim.alltoall.posts import sharing, to_all
from moesim.alltoall.traffic import Traffic
from moesim.cluster import Cluster, Group
from moesim.collectives.hierarchical import nic
from moesim.cost import ESTIMATED, Cost, cost
from moesim.network import forwards
from moesim.units import US

START_S: Final = 83 * US
PER_PEER_S: Final = 0.3 * US
CROWD: Final = {"hopper": inf, "blackwell": inf}  # connections that halve a NIC, by the GPUs that come with it
HDR_CROWD: Final = 740.0


def linear(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds by the busiest link."""
    if group.nodes == 1:
        copies, slower = link_copies(cluster, group, traffic)
        host_bytes = copies["host"] * traffic.token_bytes if "host" in copies else 0.0
        return node_exchange(cluster, group.size, copies["up"] * traffic.token_bytes, host_bytes, slower)
    share = nic_share(cluster, connections(cluster, group))
    found = moved(cluster, group, traffic, shares={"nic": share})
    latency_s = START_S + PER_PEER_S * to_all(cluster, group)
    return cost(
        latency_s + found.seconds,
        BAND,
        found.peak_s,
        found.waits_for if np.mean(found.seconds) > latency_s else "launch",
        ESTIMATED,
        f"linear {direction} model, {START_S / US:.0f} us and {PER_PEER_S / US:.1f} us a message assumed, "
        f"NIC at {share:.0%} with its connections; nic: {nic(cluster).source}",
    )


def connections(cluster: Cluster, group: Group) -> int:
    """That the busiest NIC keeps open to other nodes, when every rank sends to every rank."""
    if forwards(cluster, "forwarded"):
        return group.nodes - 1
    return sharing(cluster, group) * (group.size - group.per_node)


def nic_share(cluster: Cluster, opened: int) -> float:
    """What a NIC still moves of its bandwidth with so many connections open."""
    return 1.0 / (1.0 + opened / CROWD.get(cluster.gpu.architecture, HDR_CROWD))
