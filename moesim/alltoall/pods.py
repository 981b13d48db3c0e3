"""3DH: 2dh once more over pods, the nodes below one leaf of a tree fabric; P pods of N1 nodes of G ranks.

    stride copy   group the buffer by local rank of the destination
    intra         rank (p, n, g) gives (p, n, l) everything for rail l
    stride copy   group by place of the destination's node in its pod
    pod           (p, n, l) gives (p, m, l) everything for the m-th nodes of all pods, below the leaf
    stride copy   group by pod
    inter         (p, m, l) sends to (q, m, l), over the leaves' ways up

    seconds = 3 (a_k + 2 S / B_m) + curve(intra load)
              + a_n + g x (N1 - 1) + pod load / B_n + a_n + g x (P - 1) + max(NIC, uplink load) / bandwidth

The bytes that climb are those of 2dh, in messages N1 times as large and 1 / N1 as many: what it gains is g x (N - 1)
- g x (N1 + P - 2), what it pays another start, another copy and the pod's exchange. Constants as in Tutel's 2dh
(hierarchical), where a_k, a_n and B_m are assumptions.
"""

import numpy as np

from moesim.alltoall.hierarchical import INTER_START_S, stride_copies, to_rails
from moesim.alltoall.linear import PER_PEER_S, nic_share
from moesim.alltoall.ports import BAND, busiest
from moesim.alltoall.posts import sharing
from moesim.alltoall.shifts import by_nic
from moesim.alltoall.traffic import Traffic, remembered
from moesim.cluster import Cluster, Group
from moesim.collectives.hierarchical import nic
from moesim.cost import ESTIMATED, Cost, FloatArray, cost
from moesim.network import longest
from moesim.units import US

Loads = tuple[dict[str, FloatArray], dict[str, FloatArray]]


def pods(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds of the six phases, each by its busiest link."""
    copies_s, peak_copies_s = stride_copies(cluster, traffic)
    intra = to_rails(cluster, group, traffic)
    peers = (cluster.fabric.leaf_nodes, group.nodes // cluster.fabric.leaf_nodes)
    near, far = (
        busiest(
            cluster, 1, {kind: each * traffic.token_bytes for kind, each in copies.items()},
            {"nic": nic_share(cluster, count - 1)},
        )
        for copies, count in zip(pod_links(cluster, group, traffic), peers, strict=True)
    )  # fmt: skip
    near_s, far_s = start_s(cluster, group, peers[0]) + near.seconds, start_s(cluster, group, peers[1]) + far.seconds
    phases = {"memory": 3 * copies_s, cluster.scale_up.kind: intra.seconds, "nic": near_s}
    phases[far.waits_for] = np.maximum(phases.get(far.waits_for, 0.0), far_s)
    return cost(
        3 * copies_s + intra.seconds + near_s + far_s,
        BAND,
        3 * peak_copies_s + intra.bound_s + near.peak_s + far.peak_s,
        max(phases, key=lambda name: float(np.mean(phases[name]))),
        ESTIMATED,
        f"3dh {direction} model (2dh over pods of {cluster.fabric.leaf_nodes} nodes), {INTER_START_S / US:.0f} us a "
        f"network phase assumed; {intra.source}; nic: {nic(cluster).source}",
    )


def start_s(cluster: Cluster, group: Group, peers: int) -> float:
    """Seconds until the bytes of a network phase between ``peers`` move."""
    return INTER_START_S + PER_PEER_S * sharing(cluster, group) * (peers - 1)


def pod_links(cluster: Cluster, group: Group, traffic: Traffic) -> Loads:
    """Copies on the busiest link by kind, inside the pods and between them."""
    return remembered(traffic, ("pods", cluster, group), lambda: _loads(cluster, group, traffic))


def _loads(cluster: Cluster, group: Group, traffic: Traffic) -> Loads:
    places, batch = cluster.fabric.leaf_nodes, traffic.pairs.shape
    rails = traffic.pairs.along_rails(group.per_node)  # [..., rail] of nodes
    whole = (*batch, group.per_node, group.nodes // places, places)  # [..., rail, pod, place]
    near = [side.reshape(whole) for side in rails.to_rails(places).totals()]
    far = [np.broadcast_to(np.swapaxes(side, -1, -2), whole) for side in rails.along_rails(places).totals()]
    links = [
        {
            name: by_nic(cluster, group, np.moveaxis(side, -3, -1).reshape(*batch, group.size))
            for name, side in zip(("nic_out", "nic_in"), sides, strict=True)
        }
        for sides in (near, far)
    ]
    links[1] |= {name: side.sum(axis=(-3, -1)) for name, side in zip(("leaf_up", "leaf_down"), far, strict=True)}
    return longest(cluster, group, links[0]), longest(cluster, group, links[1])
