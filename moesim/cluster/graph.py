"""A cluster as a networkx graph: to describe, to check and to draw. Costs use the arrays of ``network/``.

    inside a node   switch   gpu <-> nvswitch or pcie
                    mesh     gpu <-> gpu, the bandwidth divided over the other GPUs of the node
                    host     gpu <-> pcie <-> host: the host's memory takes in half of its bytes/s and gives out half
                    torus    place <-> next place along each dimension; GPUs are attached to their place
                    graph    the wires, once in every node
    between nodes   gpu <-> nic <-> leaf <-> spine; a leaf for each rail, or with a tree for ``leaf_nodes`` nodes

    bandwidth of a NIC      what its GPUs may send together
    bandwidth of an uplink  what the NICs below the leaf send together / (oversubscription x ecmp)

GPU g of every node uses NIC ``g x nics // gpus``. An edge of kind "attach" joins what nothing waits between: its
bandwidth is infinite. Degraded links have the bandwidth that is left. The latency of a message is the sum along its
path, counted at the GPUs and NICs; hops between switches or places add none.
"""

import re
from collections.abc import Callable
from math import inf, prod
from typing import TYPE_CHECKING, Final

from moesim.cluster.fabric import DegradedKind
from moesim.cluster.nouns import Cluster, Link

if TYPE_CHECKING:
    import networkx as nx

GPU_END: Final = re.compile(r"gpu\d+")  # an end of a wire that is a GPU


def graph(cluster: Cluster) -> "nx.DiGraph[str]":
    """Nodes carry ``kind``; edges carry ``kind``, ``bandwidth_bytes_per_s`` and ``latency_s``; the whole what it is."""
    import networkx as nx

    fabric = cluster.fabric
    net: nx.DiGraph[str] = nx.DiGraph(
        name=cluster.name, inside=fabric.inside, between=fabric.between, torus=fabric.torus
    )
    for node in range(cluster.nodes):
        net.add_nodes_from((gpu_name(node, local) for local in range(cluster.gpus_per_node)), kind="gpu")
        _INSIDE[fabric.inside](net, cluster, node)
        if cluster.scale_out is not None:
            _nics(net, cluster, node)
    if cluster.scale_out is not None and cluster.nodes > 1:
        _leaves(net, cluster, cluster.scale_out)
    return net


def gpu_name(node: int, local: int) -> str:
    """The graph's name of one GPU: ``n3.gpu5``."""
    return f"n{node}.gpu{local}"


def hub_name(cluster: Cluster, node: int) -> str:
    """The switch that joins a node's GPUs, with inside=switch or host: ``n3.nvswitch`` or ``n3.pcie``."""
    return f"n{node}.{'nvswitch' if cluster.scale_up.kind == 'nvlink' else 'pcie'}"


def nic_name(node: int, nic: int) -> str:
    """``n3.nic1``."""
    return f"n{node}.nic{nic}"


def place_name(node: int, place: int) -> str:
    """A place of a torus, counted row by row: ``n0.place17``."""
    return f"n{node}.place{place}"


def wire_end(node: int, end: str) -> str:
    """An end of a wire in one of the nodes: ``n0.gpu3``, ``n0.plx1``."""
    return f"n{node}.{end}"


def leaf_name(leaf: int) -> str:
    """``leaf2``."""
    return f"leaf{leaf}"


def next_place(sides: tuple[int, ...], place: int, dimension: int, step: int) -> int:
    """The neighbour of a torus' place along one dimension, ``step`` 1 upwards or -1 downwards."""
    stride = prod(sides[dimension + 1 :])
    at = place // stride % sides[dimension]
    return place + ((at + step) % sides[dimension] - at) * stride


def _switch(net: "nx.DiGraph[str]", cluster: Cluster, node: int) -> None:
    up, hub = cluster.scale_up, hub_name(cluster, node)
    net.add_node(hub, kind="switch")
    for local in range(cluster.gpus_per_node):
        whole = up.bandwidth_bytes_per_s * _left(cluster, "up", node, local)
        _join(net, gpu_name(node, local), hub, kind=up.kind, bandwidth=whole, latency_s=up.latency_s / 2)


def _mesh(net: "nx.DiGraph[str]", cluster: Cluster, node: int) -> None:
    up, gpus = cluster.scale_up, cluster.gpus_per_node
    for one in range(gpus):
        for other in range(one + 1, gpus):
            whole = up.bandwidth_bytes_per_s / (gpus - 1) * _left(cluster, "up", node, one, other)
            ends = gpu_name(node, one), gpu_name(node, other)
            _join(net, *ends, kind=up.kind, bandwidth=whole, latency_s=up.latency_s)


def _host(net: "nx.DiGraph[str]", cluster: Cluster, node: int) -> None:
    _switch(net, cluster, node)
    assert cluster.fabric.host_bytes_per_s is not None
    net.add_node(f"n{node}.host", kind="host")
    half = cluster.fabric.host_bytes_per_s / 2
    _join(net, hub_name(cluster, node), f"n{node}.host", kind="host", bandwidth=half, latency_s=0.0)


def _torus(net: "nx.DiGraph[str]", cluster: Cluster, node: int) -> None:
    """Two places along a dimension are joined by two cables, drawn as one edge of twice the bandwidth."""
    up, sides, places = cluster.scale_up, cluster.fabric.torus, cluster.fabric.places
    net.add_nodes_from((place_name(node, place) for place in range(places)), kind="place")
    for local in range(cluster.gpus_per_node):
        ends = gpu_name(node, local), place_name(node, local // (cluster.gpus_per_node // places))
        _join(net, *ends, kind="attach", bandwidth=inf, latency_s=up.latency_s / 2)
    for place in range(places):
        whole = up.bandwidth_bytes_per_s * _left(cluster, "up", node, place)
        for dimension, side in enumerate(sides):
            for step in (1, -1) if side > 1 else ():
                edge = place_name(node, place), place_name(node, next_place(sides, place, dimension, step))
                there = net.edges[edge]["bandwidth_bytes_per_s"] if net.has_edge(*edge) else 0.0
                net.add_edge(*edge, kind=up.kind, bandwidth_bytes_per_s=there + whole, latency_s=0.0)


def _wires(net: "nx.DiGraph[str]", cluster: Cluster, node: int) -> None:
    up = cluster.scale_up
    for wire in cluster.fabric.wires:
        gpus = sum(GPU_END.fullmatch(end) is not None for end in (wire.one, wire.other))
        ends = wire_end(node, wire.one), wire_end(node, wire.other)
        net.add_nodes_from((end for end in ends if end not in net), kind="switch")
        bandwidth = wire.bandwidth_bytes_per_s
        _join(net, *ends, kind=up.kind, bandwidth=bandwidth, latency_s=up.latency_s * gpus / 2)


_INSIDE: Final[dict[str, Callable[["nx.DiGraph[str]", Cluster, int], None]]] = {
    "switch": _switch, "mesh": _mesh, "host": _host, "torus": _torus, "graph": _wires,
}  # fmt: skip


def _nics(net: "nx.DiGraph[str]", cluster: Cluster, node: int) -> None:
    nics, gpus = cluster.nics_per_node, cluster.gpus_per_node
    net.add_nodes_from((nic_name(node, nic) for nic in range(nics)), kind="nic")
    for local in range(gpus):
        ends = gpu_name(node, local), nic_name(node, local * nics // gpus)
        _join(net, *ends, kind="attach", bandwidth=inf, latency_s=0.0)


def _leaves(net: "nx.DiGraph[str]", cluster: Cluster, out: Link) -> None:
    """NICs to their leaves; leaves to the spine, but for rails without one."""
    fabric, nics, gpus = cluster.fabric, cluster.nics_per_node, cluster.gpus_per_node
    sharers = [sum(local * nics // gpus == nic for local in range(gpus)) for nic in range(nics)]
    below = [share * cluster.nodes for share in sharers]  # GPUs below each leaf; below a tree's where it is full
    if fabric.between == "tree":
        below = [gpus * fabric.leaf_nodes] * fabric.leaves(cluster.nodes, nics)
    net.add_nodes_from((leaf_name(leaf) for leaf in range(len(below))), kind="leaf")
    for node in range(cluster.nodes):
        for nic, share in enumerate(sharers):
            leaf, whole = (
                node // fabric.leaf_nodes if fabric.between == "tree" else nic,
                share * out.bandwidth_bytes_per_s,
            )
            left = whole * _left(cluster, "nic", node, nic)
            _join(net, nic_name(node, nic), leaf_name(leaf), kind="nic", bandwidth=left, latency_s=out.latency_s / 2)
    if fabric.between == "rail_only":
        return
    net.add_node("spine", kind="spine")
    for leaf, ranks in enumerate(below):
        up = (
            ranks
            * out.bandwidth_bytes_per_s
            / (fabric.oversubscription * fabric.ecmp)
            * _left(cluster, "uplink", leaf, 0)
        )
        _join(net, leaf_name(leaf), "spine", kind="uplink", bandwidth=up, latency_s=0.0)


def _left(cluster: Cluster, link: DegradedKind, node: int, *owners: int) -> float:
    """The share that is left of a link that belongs to the ``owners``."""
    hits = (slow for slow in cluster.fabric.degraded if slow.link == link and slow.node == node)
    return prod(slow.share for slow in hits if slow.index is None or slow.index in owners)


def _join(net: "nx.DiGraph[str]", one: str, other: str, *, kind: str, bandwidth: float, latency_s: float) -> None:
    """In both directions."""
    both = [(one, other), (other, one)]
    net.add_edges_from(both, kind=kind, bandwidth_bytes_per_s=bandwidth, latency_s=latency_s)
