"""DeepEP: a token goes once to each node that has one of its experts, on its own rail, and by NVLink from there.

    normal         seconds = a + max(NIC load / B_n, NVLink load / B_v), NIC x 1.25 between two nodes
    low latency    seconds = a + max(NIC load / B_n, NVLink load / B_v), one message for each token and expert

T tokens a rank, r_n and r_d the shares of them that reach node n and rank d (reach), N nodes of G ranks:

    NIC      out  T sum of r_n over the other nodes        in   T (N - 1) r_n
    NVLink   out  T N sum of r_d over the node's others    in   T N (G - 1) r_d

Constants are fits to DeepEP V1 on H100 and H200 (aiconfigurator-core 0.12.0, DeepEP tests; DeepEP README
2025-06): normal a = 28 and 50 us, 304 and 300 GB/s of NVLink from 20 SMs on, rms 8 and 5 %; low latency a = 14.7
and 11.3 us in a node, 26 us across, 249 and 209 GB/s, rms 2 to 5 %. The NIC reaches 45 GB/s in normal mode, all
of its 48 in low latency. As shares of the cluster's links they carry over to others. On all shapes of that table
(hidden 2048 to 7168, 1 to 8 nodes): rms 11 to 22 % normal; low latency 2 to 10 %, but dispatch in one node 35 %.
"""

from typing import Final, NamedTuple

import numpy as np

from moesim.alltoall.ports import link_copies
from moesim.alltoall.reach import distinct_copies
from moesim.alltoall.traffic import Traffic, remembered
from moesim.cluster import Cluster, Group
from moesim.collectives.hierarchical import nic
from moesim.cost import BASIS, ESTIMATED, Cost, FloatArray, cost
from moesim.errors import MoesimError
from moesim.units import US

TWO_NODES: Final = 1.25  # one peer on each rail: 20 % slower than four nodes and more predict
NORMAL_NIC: Final = 45.0 / 48.0
MEASURED: Final = ("H100", "H200", "H800")


class Mode(NamedTuple):
    """Start, in a node and across, shares of the achieved NVLink and NIC bandwidth, the band; two nodes alone."""

    start_s: float
    across_s: float
    nvlink: float
    nic: float
    band: float
    two_nodes: float = 1.0  # NIC times between two nodes, over what more nodes predict


NORMAL: Final = {
    "dispatch": Mode(28 * US, 28 * US, 304 / 320, NORMAL_NIC, 0.36, TWO_NODES),
    "combine": Mode(50 * US, 50 * US, 300 / 320, NORMAL_NIC, 0.36, TWO_NODES),
}
LOW_LATENCY: Final = {
    "dispatch": Mode(14.7 * US, 26 * US, 249 / 320, 1.0, 0.40),
    "combine": Mode(11.3 * US, 26 * US, 209 / 320, 1.0, 0.20),
}


def normal(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds by the busiest port; each token crosses a link once."""
    if traffic.share is None:
        raise MoesimError("deepep: the traffic does not say how popular its experts are: give share[..., expert]")
    loads = remembered(traffic, ("deepep", cluster, group), lambda: distinct_copies(cluster, group, traffic))
    return _seconds(cluster, group, traffic, loads, NORMAL[direction], f"DeepEP normal {direction}")


def low_latency(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds by the busiest port; a token crosses a link for each of its experts there."""
    loads = link_copies(cluster, group, traffic, "direct").copies
    return _seconds(cluster, group, traffic, loads, LOW_LATENCY[direction], f"DeepEP low latency {direction}")


def _seconds(
    cluster: Cluster, group: Group, traffic: Traffic, copies: dict[str, FloatArray], mode: Mode, name: str
) -> Cost:
    up = cluster.scale_up
    inside = copies["up"] * traffic.token_bytes
    outside = np.maximum(copies.get("nic", 0.0), copies.get("uplink", 0.0)) * traffic.token_bytes
    up_s, start_s = inside / (up.bandwidth_bytes_per_s * mode.nvlink), mode.start_s
    out_s, peak_out_s = np.zeros_like(up_s), np.zeros_like(up_s)
    if group.nodes > 1:
        out = nic(cluster)
        slower = mode.two_nodes if group.nodes == 2 else 1.0
        out_s, start_s = slower * outside / (out.bandwidth_bytes_per_s * mode.nic), mode.across_s
        peak_out_s = outside / out.peak_bytes_per_s
    moving_s = np.maximum(up_s, out_s)
    waits = "nic" if np.mean(out_s) > np.mean(up_s) else up.kind
    return cost(
        start_s + moving_s,
        mode.band,
        np.maximum(inside / up.peak_bytes_per_s, peak_out_s),
        waits if np.mean(moving_s) > start_s else "launch",
        BASIS["published"] if cluster.gpu.name in MEASURED else ESTIMATED,
        f"{name} model, fitted to DeepEP V1 on H100 (aiconfigurator-core 0.12.0, DeepEP README); {up.source}",
    )
