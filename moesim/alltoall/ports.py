"""Seconds that bytes take once it is known how many copies the busiest link of each kind carries.

    up       the measured NCCL all-to-all curve of the node's switch, read at the bytes of the busiest port:
             curve(busiest x R/(R-1)), since R ranks that send S each put S (R-1)/R on a port.
             Mesh, host, torus and graph have no curve: latency + bytes / bandwidth
    host, nic, uplink    bytes / achieved bandwidth

Where bytes share a leaf's way up, a host or the wires of a graph, all of it takes ``contention`` times as long as the
busiest link (network).
"""

from typing import Final, NamedTuple

import numpy as np

from moesim.alltoall.traffic import Traffic, remembered
from moesim.cluster import Cluster, Group
from moesim.collectives.curves import in_node
from moesim.cost import ESTIMATED, Cost, FloatArray, cost
from moesim.network import Pairs, Route, bytes_per_s, contention, waits

BAND: Final = 0.40


class Moved(NamedTuple):
    """One phase without its start."""

    seconds: FloatArray  # [...]
    peak_s: FloatArray  # at data-sheet bandwidths
    waits_for: str  # "nvlink", "pcie", "ici", "host", "nic", "uplink"


class Loaded(NamedTuple):
    """Copies on the busiest link by kind, and by how much sharing a way up makes all of it slower."""

    copies: dict[str, FloatArray]
    slower: FloatArray


def link_copies(cluster: Cluster, group: Group, traffic: Traffic, route: Route = "forwarded") -> Loaded:
    """What the network says of the traffic's pairs, once for these pairs."""
    return remembered(traffic, (cluster, group, route), lambda: _loaded(cluster, group, traffic.pairs, route))


def moved(
    cluster: Cluster, group: Group, traffic: Traffic, route: Route = "forwarded", shares: dict[str, float] | None = None
) -> Moved:
    """All pairs at once; ``shares`` of the achieved bandwidth that the algorithm reaches, by kind of link."""
    copies, slower = link_copies(cluster, group, traffic, route)
    size_bytes = {kind: each * traffic.token_bytes for kind, each in copies.items()}
    found = busiest(cluster, group.per_node, size_bytes, shares)
    return found._replace(seconds=found.seconds * slower)


def busiest(
    cluster: Cluster, ranks: int, size_bytes: dict[str, FloatArray], shares: dict[str, float] | None = None
) -> Moved:
    """Seconds of the kind of link that takes longest, for the bytes on the busiest link of each kind."""
    by_kind = {kind: seconds_by_kind(cluster, ranks, kind, each) for kind, each in size_bytes.items()}
    by_kind = {kind: each / (shares or {}).get(kind, 1.0) for kind, each in by_kind.items()}
    peaks = [each / bytes_per_s(cluster, kind)[1] for kind, each in size_bytes.items()]
    slowest = max(by_kind, key=lambda kind: float(np.mean(by_kind[kind])))
    name = cluster.scale_up.kind if slowest == "up" else slowest
    return Moved(np.maximum.reduce(list(by_kind.values())), np.maximum.reduce(peaks), name)


def seconds_by_kind(cluster: Cluster, ranks: int, kind: str, size_bytes: FloatArray) -> FloatArray:
    """Seconds of the busiest link of a kind, without the start."""
    if kind == "up":
        start_s = node_exchange(cluster, ranks, np.zeros(())).seconds
        return np.maximum(node_exchange(cluster, ranks, size_bytes).seconds - start_s, 0.0)
    return np.asarray(size_bytes / bytes_per_s(cluster, kind)[0])


def node_exchange(
    cluster: Cluster, ranks: int, busiest_bytes: FloatArray, host_bytes: FloatArray | float = 0.0,
    slower: FloatArray | float = 1.0,
) -> Cost:  # fmt: skip
    """An all-to-all inside a node by the bytes of its busiest port and of its host's memory; launch included.

    ``slower``: behind no switch, by how much links that wait for one another make it so.
    """
    if cluster.fabric.inside == "switch":
        return in_node(cluster, "all_to_all", ranks, busiest_bytes * ranks / max(1, ranks - 1))
    up = cluster.scale_up
    host_s = host_bytes / (cluster.fabric.host_bytes_per_s or np.inf)
    port_s = busiest_bytes / up.bandwidth_bytes_per_s
    moving_s = np.maximum(port_s, host_s) * slower
    waits_for = "host" if np.mean(host_s) > np.mean(port_s) else up.kind
    return cost(
        up.latency_s + moving_s,
        BAND,
        np.maximum(busiest_bytes / up.peak_bytes_per_s, host_s),
        waits_for if np.mean(moving_s) > up.latency_s else "launch",
        ESTIMATED,
        f"busiest link of a {cluster.fabric.inside}; {up.source}",
    )


def _loaded(cluster: Cluster, group: Group, pairs: Pairs, route: Route) -> Loaded:
    return Loaded(waits(cluster, group, pairs, route), contention(cluster, group, pairs, route))
