"""What the busiest link of each kind carries in all of an exchange, algorithm by algorithm.

Copies ``[...]`` by kind, up, host, nic or uplink, counted as in network: what a GPU's own link would carry in the time
that the busiest one takes for its load. Steps that follow one another over the same links add up.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from moesim.alltoall.bruck import blocks_on_links, largest_block
from moesim.alltoall.hierarchical import rail_links, rail_ports
from moesim.alltoall.leader import leader_links
from moesim.alltoall.pods import pod_links
from moesim.alltoall.ports import link_copies
from moesim.alltoall.reach import distinct_copies
from moesim.alltoall.traffic import Traffic
from moesim.cluster import Cluster, Group
from moesim.cost import FloatArray
from moesim.network import Route

Copies = dict[str, FloatArray]
Carry = Callable[[Cluster, Group, Traffic], Copies]
Slower = Callable[[Cluster, Group, Traffic], FloatArray]


def _over(route: Route) -> Carry:
    return lambda cluster, group, traffic: link_copies(cluster, group, traffic, route).copies


def _blocks(cluster: Cluster, group: Group, traffic: Traffic) -> Copies:
    block = largest_block(traffic.pairs)
    return {kind: block * steps.sum() for kind, steps in blocks_on_links(cluster, group).items()}


def _along_rails(cluster: Cluster, group: Group, traffic: Traffic) -> Copies:
    return rail_ports(cluster, group, traffic) | rail_links(cluster, group, traffic).copies


def _over_pods(cluster: Cluster, group: Group, traffic: Traffic) -> Copies:
    near, far = pod_links(cluster, group, traffic)
    return rail_ports(cluster, group, traffic) | far | {"nic": near["nic"] + far["nic"]}


def _by_leaders(cluster: Cluster, group: Group, traffic: Traffic) -> Copies:
    to_leader, between, from_leader = leader_links(cluster, group, traffic)
    ends = {kind: np.maximum(each, from_leader[kind]) for kind, each in to_leader.items() if kind != "node"}
    if "host" in ends:
        ends["host"] = to_leader["host"] + from_leader["host"]
    return ends | between


def _everything(_: Cluster, group: Group, traffic: Traffic) -> Copies:
    """All-gather: a rank passes on what all others bring; in the node every rank receives it, by NIC its rail's."""
    tokens = np.full(traffic.pairs.shape, float(traffic.tokens))
    found = {"up": tokens * group.size * (group.per_node - 1) / group.per_node}
    return found | {"nic": tokens * (group.nodes - 1)} if group.nodes > 1 else found


def _slower(route: Route) -> Slower:
    return lambda cluster, group, traffic: link_copies(cluster, group, traffic, route).slower


def _slower_rail(cluster: Cluster, group: Group, traffic: Traffic) -> FloatArray:
    return rail_links(cluster, group, traffic).slower


CARRIED: Final[dict[str, Carry]] = {
    "linear": _over("forwarded"), "pairwise": _over("forwarded"), "bruck": _blocks, "2dh": _along_rails,
    "3dh": _over_pods, "leader": _by_leaders, "rail": _along_rails, "ag_rs": _everything, "deepep": distinct_copies,
    "hybrid_ep": distinct_copies, "deepep_ll": _over("direct"), "tiles": _over("direct"), "torus": _over("forwarded"),
}  # fmt: skip
SLOWER: Final[dict[str, Slower]] = {
    "linear": _slower("forwarded"), "deepep_ll": _slower("direct"), "tiles": _slower("direct"),
    "2dh": _slower_rail, "rail": _slower_rail,
}  # fmt: skip
"""By how much links that wait for one another make it slower than its busiest; the others are priced without."""
