"""Messages that wait for one another to be posted: those of the ranks that share a NIC, and of a rank inside its node.

    all peers       (G - 1) + x (R - G)      G ranks a node, R in all, x of them on one NIC
    along a rail    x (N - 1)                N nodes
    leaders         N - 1

Each takes g = 0.3 us (linear). That ranks on one NIC post one after another is an assumption: it is why small messages
are slow where eight GPUs share a NIC, and what leader aggregation gains.
"""

import numpy as np

from moesim.cluster import Cluster, Group
from moesim.network import nic_of


def sharing(cluster: Cluster, group: Group) -> int:
    """Ranks on the NIC that most of them share."""
    return int(np.bincount(nic_of(cluster, group.per_node)).max())


def to_all(cluster: Cluster, group: Group) -> int:
    """Messages of an exchange where every rank posts one for every other."""
    if group.nodes == 1:
        return group.size - 1
    return group.per_node - 1 + sharing(cluster, group) * (group.size - group.per_node)


def along_rail(cluster: Cluster, group: Group) -> int:
    """Messages of an exchange where every rank posts one for each other node."""
    return sharing(cluster, group) * (group.nodes - 1)
