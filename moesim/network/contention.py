"""How much longer than its busiest link an all-to-all takes, because flows that wait for one link leave another idle.

    contention = time of the max-min fair flows / time of the busiest link >= 1

It is one where flows can wait for one kind of link only: behind a switch, over a mesh, along rails. Two kinds can bind
together where the way up from a leaf is narrower than the NICs below it, behind a host's memory (PCIe and memory), and
on a graph. Even then it counts as one while the less busy kind has less than ``ALIKE`` of the other's time: 0.3 %
below the fluid on average, 1.7 % at worst of 43 draws (64 to 1,024 ranks, 1:1 to 16:1). Class flows are solved in
steps of ``STEP`` of the bound, within 0.2 % of every end in turn on average. They are folded at every size: at 16 to
64 ranks the fold is as near to the flows of all pairs as those are in steps (1.2 % at worst), and several times as
fast. A torus counts as its busiest link, and so does a graph with too many ways to play.
"""

from typing import Final, cast

import numpy as np

from moesim.cluster import Cluster, Group
from moesim.cost import FloatArray
from moesim.network.classes import class_flows
from moesim.network.links import Route, bytes_per_s, forwards, waits
from moesim.network.maxmin import Flows, ends
from moesim.network.pairs import Dense, Pairs, Product
from moesim.network.ways import MOST_WAYS, pair_flows, way_count

ALIKE: Final = 0.15
STEP: Final = 0.01


def contention(cluster: Cluster, group: Group, pairs: Pairs, route: Route = "forwarded") -> FloatArray:
    """``[...]`` for each traffic of the batch, whatever the bytes of a copy."""
    found = np.ones(pairs.shape)
    kinds = {kind: wait / bytes_per_s(cluster, kind)[0] for kind, wait in waits(cluster, group, pairs, route).items()}
    bound_s = np.maximum.reduce(list(kinds.values()))
    alike = np.zeros(pairs.shape, dtype=bool)
    for one, other in meeting(cluster, group, route):
        alike |= np.minimum(kinds[one], kinds[other]) > ALIKE * np.maximum(kinds[one], kinds[other])
    for index in np.argwhere(alike):
        flows = _flows(cluster, group, traffic(pairs, tuple(index)), route)
        found[tuple(index)] = np.maximum(1.0, ends(flows, STEP).max(initial=0.0) / bound_s[tuple(index)])
    return found


def meeting(cluster: Cluster, group: Group, route: Route) -> list[tuple[str, str]]:
    """Pairs of kinds of link that the same flows can wait for; a kind with itself where they cross several of it."""
    if cluster.fabric.inside == "graph":
        return [("up", "up")] if way_count(cluster, group) <= MOST_WAYS else []
    found = [("up", "host")] if cluster.fabric.inside == "host" else []
    climbs = group.nodes > 1 and not forwards(cluster, route)
    return [*found, ("nic", "uplink")] if climbs and _narrow(cluster) else found


def _narrow(cluster: Cluster) -> bool:
    """Whether a way up carries less than the NICs below it: at 1:1 it adds nothing (64 ranks, five draws each)."""
    fabric = cluster.fabric
    return fabric.oversubscription * fabric.ecmp > 1.0 or any(slow.link == "uplink" for slow in fabric.degraded)


def traffic(pairs: Pairs, index: tuple[int, ...]) -> Pairs:
    """One traffic of a batch."""
    if isinstance(pairs, Dense):
        return Dense(copies=pairs.copies[index])
    product = cast(Product, pairs)
    shape = (*product.shape, product.ranks)
    sent, share = (np.broadcast_to(each, shape)[index] for each in (product.sent, product.share))
    return Product(sent=sent, share=share)


def _flows(cluster: Cluster, group: Group, pairs: Pairs, route: Route) -> Flows:
    if cluster.fabric.inside == "graph":
        assert isinstance(pairs, Dense)  # a graph carries nothing else
        return pair_flows(cluster, group, pairs, route)
    return class_flows(cluster, group, pairs, route)
