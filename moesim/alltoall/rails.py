"""Rail: two steps that never leave a rail (SE-MoE, arXiv 2205.10034: resource-aware all-to-all).

    inside    rank (n, g) gives (n, l) all that must leave on rail l, by NVSwitch
    along     (n, l) sends to (m, l) on its own rail: one leaf switch, no spine

    seconds = curve(inside load) + a_n + g x messages + max(NIC, uplink load) / bandwidth      hierarchical

The loads of 2dh without its stride copies: the first step is assumed to write where the second reads, for nothing. It
is the only way between all ranks of a ``rail_only`` fabric besides NCCL's forwarding.
"""

import numpy as np

from moesim.alltoall.hierarchical import INTER_START_S, along_rails, rail_start_s, to_rails
from moesim.alltoall.ports import BAND
from moesim.alltoall.traffic import Traffic
from moesim.cluster import Cluster, Group
from moesim.collectives.hierarchical import nic
from moesim.cost import ESTIMATED, Cost, cost
from moesim.units import US


def rail(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds of both steps, each by its busiest link."""
    inside, along = to_rails(cluster, group, traffic), along_rails(cluster, group, traffic)
    along_s = rail_start_s(cluster, group) + along.seconds
    return cost(
        inside.seconds + along_s,
        BAND,
        inside.bound_s + along.peak_s,
        cluster.scale_up.kind if np.mean(inside.seconds) > np.mean(along_s) else along.waits_for,
        ESTIMATED,
        f"rail {direction} model (SE-MoE), {INTER_START_S / US:.0f} us of the network step assumed; "
        f"{inside.source}; nic: {nic(cluster).source}",
    )
