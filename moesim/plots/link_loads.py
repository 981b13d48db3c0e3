"""What a traffic loads on the edges of ``cluster.graph``, for the picture of a topology.

    seconds of an edge = bytes of a copy x copies on its links / (their worth x bytes/s of a whole link)

``network.loads`` and ``network.families`` count links family by family; here each gets the name of its edge.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from moesim.cluster import Cluster, Group
from moesim.cluster.graph import gpu_name, hub_name, leaf_name, next_place, nic_name, place_name, wire_end
from moesim.network import Pairs, Route, bytes_per_s, families, leaf_of, loads, nic_of
from moesim.network.links import KIND

Edge = tuple[str, str]


def edge_loads(
    cluster: Cluster, group: Group, pairs: Pairs, route: Route = "forwarded", *, copy_bytes: float = 1.0
) -> dict[Edge, float]:
    """Seconds that each edge takes for what it carries, at its achieved bandwidth; of several draws their mean."""
    copies: dict[Edge, float] = {}
    for edge, load in _by_edge(cluster, group, loads(cluster, group, pairs, route)):
        copies[edge] = copies.get(edge, 0.0) + load
    widths = edge_bytes_per_s(cluster, group)
    return {edge: load * copy_bytes / widths[edge] for edge, load in copies.items() if edge in widths}


def edge_bytes_per_s(cluster: Cluster, group: Group) -> dict[Edge, float]:
    """The group's share of the bandwidth of each edge, from the families of links."""
    found: dict[Edge, float] = {}
    worth = {
        name: links * bytes_per_s(cluster, KIND[name])[0]
        for name, links in families(cluster, group).items()
        if KIND[name] != "uplink" or cluster.fabric.between != "rail_only"  # those rails have no way up
    }
    for edge, width in _by_edge(cluster, group, worth):
        found[edge] = found.get(edge, 0.0) + width
    return found


def _by_edge(cluster: Cluster, group: Group, values: dict[str, np.ndarray]) -> list[tuple[Edge, float]]:
    """Each link's value with the name of its edge; the two cables of a torus' side of two are one edge."""
    return [
        (edge, value)
        for family, links in values.items()
        for edge, value in zip(
            _EDGES[family](cluster, group), links.reshape(-1, links.shape[-1]).mean(axis=0).tolist(), strict=True
        )
        if edge[0] != edge[1]
    ]


def _up(cluster: Cluster, group: Group) -> list[Edge]:
    return [(gpu, hub_name(cluster, node)) for node, gpu in _ranks(group)]


def _mesh(_: Cluster, group: Group) -> list[Edge]:
    each = range(group.per_node)
    return [
        (gpu_name(node, one), gpu_name(node, other)) for node in range(group.nodes) for one in each for other in each
    ]


def _host(cluster: Cluster, group: Group) -> list[Edge]:
    """Into the host's memory; what comes out of it takes as long."""
    return [(hub_name(cluster, node), f"n{node}.host") for node in range(group.nodes)]


def _torus(cluster: Cluster, _: Group) -> list[Edge]:
    sides = cluster.fabric.torus
    return [
        (place_name(0, place), place_name(0, next_place(sides, place, dimension, step)))
        for dimension in range(len(sides))
        for step in (1, -1)
        for place in range(cluster.fabric.places)
    ]


def _wires(cluster: Cluster, _: Group) -> list[Edge]:
    ends = [(wire_end(0, wire.one), wire_end(0, wire.other)) for wire in cluster.fabric.wires]
    return [edge for one, other in ends for edge in ((one, other), (other, one))]


def _nic(cluster: Cluster, group: Group) -> list[Edge]:
    tree, nics = cluster.fabric.between == "tree", dict.fromkeys(nic_of(cluster, group.per_node).tolist())
    return [
        (nic_name(node, nic), leaf_name(node // cluster.fabric.leaf_nodes if tree else nic))
        for node in range(group.nodes)
        for nic in nics
    ]


def _leaf(cluster: Cluster, group: Group) -> list[Edge]:
    return [(leaf_name(leaf), "spine") for leaf in range(int(leaf_of(cluster, group).max()) + 1)]


def _ranks(group: Group) -> list[tuple[int, str]]:
    return [(node, gpu_name(node, local)) for node in range(group.nodes) for local in range(group.per_node)]


def _back(edges: Callable[[Cluster, Group], list[Edge]]) -> Callable[[Cluster, Group], list[Edge]]:
    return lambda cluster, group: [(other, one) for one, other in edges(cluster, group)]


_EDGES: Final[dict[str, Callable[[Cluster, Group], list[Edge]]]] = {
    "up_out": _up, "up_in": _back(_up), "mesh": _mesh, "host": _host, "torus": _torus, "wires": _wires,
    "nic_out": _nic, "nic_in": _back(_nic), "leaf_up": _leaf, "leaf_down": _back(_leaf),
}  # fmt: skip
