"""A cluster as a networkx graph: to describe, to check and to draw. Costs use the arrays.

    gpu  <->  switch (NVSwitch or PCIe, one per node)          kind "nvlink" or "pcie"
    gpu  <->  nic  <->  leaf (one per rail)  <->  spine        kind "pcie", "nic", "uplink"

GPU g of every node shares NIC ``g * nics // gpus`` and so its rail. Leaves are not oversubscribed: a leaf
has as much bandwidth up as down. The latency of a message is the sum along its path.
"""

from typing import TYPE_CHECKING

from moesim.cluster.nouns import Cluster, Link

if TYPE_CHECKING:
    import networkx as nx


def graph(cluster: Cluster) -> "nx.DiGraph[str]":
    """Nodes carry ``kind``; edges carry ``kind``, ``bandwidth_bytes_per_s`` and ``latency_s``."""
    import networkx as nx

    net: nx.DiGraph[str] = nx.DiGraph(name=cluster.name)
    for node in range(cluster.nodes):
        _add_node(net, cluster, node)
    if cluster.scale_out is not None and cluster.nodes > 1:
        _add_fabric(net, cluster, cluster.scale_out)
    return net


def gpu_name(node: int, local: int) -> str:
    """The graph's name of one GPU: ``n3.gpu5``."""
    return f"n{node}.gpu{local}"


def _add_node(net: "nx.DiGraph[str]", cluster: Cluster, node: int) -> None:
    up = cluster.scale_up
    switch = f"n{node}.{'nvswitch' if up.kind == 'nvlink' else 'pcie'}"
    net.add_node(switch, kind="switch")
    gpus = [gpu_name(node, local) for local in range(cluster.gpus_per_node)]
    net.add_nodes_from(gpus, kind="gpu")
    both = [(gpu, switch) for gpu in gpus] + [(switch, gpu) for gpu in gpus]
    net.add_edges_from(both, kind=up.kind, bandwidth_bytes_per_s=up.bandwidth_bytes_per_s, latency_s=up.latency_s / 2)
    if cluster.scale_out is not None:
        _add_nics(net, cluster, cluster.scale_out, node)


def _add_nics(net: "nx.DiGraph[str]", cluster: Cluster, out: Link, node: int) -> None:
    """A GPU's share of its NIC is the capacity of the edge between them."""
    nics, gpus = cluster.nics_per_node, cluster.gpus_per_node
    net.add_nodes_from((f"n{node}.nic{nic}" for nic in range(nics)), kind="nic")
    for local in range(gpus):
        gpu, nic = gpu_name(node, local), f"n{node}.nic{local * nics // gpus}"
        for edge in ((gpu, nic), (nic, gpu)):
            net.add_edge(*edge, kind="pcie", bandwidth_bytes_per_s=out.bandwidth_bytes_per_s, latency_s=0.0)


def _add_fabric(net: "nx.DiGraph[str]", cluster: Cluster, out: Link) -> None:
    """One leaf per rail, one spine above them."""
    nics, gpus = cluster.nics_per_node, cluster.gpus_per_node
    sharers = [0] * nics  # GPUs of one node on each NIC
    for local in range(gpus):
        sharers[local * nics // gpus] += 1
    net.add_node("spine", kind="spine")
    for rail, share in enumerate(sharers):
        leaf, nic_bytes_per_s = f"leaf{rail}", share * out.bandwidth_bytes_per_s
        net.add_node(leaf, kind="leaf")
        down = [edge for node in range(cluster.nodes) for edge in _both(f"n{node}.nic{rail}", leaf)]
        net.add_edges_from(down, kind="nic", bandwidth_bytes_per_s=nic_bytes_per_s, latency_s=out.latency_s / 2)
        up = nic_bytes_per_s * cluster.nodes
        net.add_edges_from(_both(leaf, "spine"), kind="uplink", bandwidth_bytes_per_s=up, latency_s=0.0)


def _both(one: str, other: str) -> list[tuple[str, str]]:
    return [(one, other), (other, one)]
