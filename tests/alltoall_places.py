"""Clusters of every kind for the tests of all-to-alls, and traffic to send there."""

from dataclasses import replace

import numpy as np

from moesim.alltoall import ALGORITHMS, Traffic, all_to_all, unsupported
from moesim.cluster import Fabric, Group, load_cluster
from moesim.network import Dense

TWO = load_cluster("dgx-h100", 2)
FOUR = Group(size=4, per_node=2)  # nodes {0, 1} and {2, 3}
TREE = replace(load_cluster("dgx-h100", 4), fabric=Fabric(between="tree", leaf_nodes=2))
PODS = Group(size=8, per_node=2)  # four nodes of two, in two pods
AT_PEAK = replace(  # links that reach their data sheet
    TWO,
    scale_up=replace(TWO.scale_up, bandwidth_bytes_per_s=TWO.scale_up.peak_bytes_per_s),
    scale_out=replace(TWO.scale_out, bandwidth_bytes_per_s=TWO.scale_out.peak_bytes_per_s),
)
TORUS = load_cluster("tpu-v3")
PLACES = [  # cluster and group of every kind
    (load_cluster("dgx-h100"), Group(size=4, per_node=4)),
    (TWO, FOUR),
    (AT_PEAK, FOUR),
    (AT_PEAK, Group(size=8, per_node=8)),
    (TREE, PODS),
    (replace(TREE, fabric=replace(TREE.fabric, oversubscription=2.0)), PODS),
    (replace(TWO, fabric=Fabric(between="rail_only")), FOUR),
    (replace(TWO, fabric=Fabric(between="spine")), FOUR),
    (load_cluster("pcie-a30", 2), FOUR),
    (replace(load_cluster("pcie-a30", 2), fabric=Fabric(inside="host", host_bytes_per_s=20e9)), FOUR),
    (replace(TWO, fabric=Fabric(inside="mesh")), FOUR),
    (replace(TORUS, gpus_per_node=4, fabric=Fabric(inside="torus", torus=(2, 2))), Group(size=4, per_node=4)),
]
RUNS = [(c, g, name) for c, g in PLACES for name in ALGORITHMS if unsupported(c, g, name) is None]


def traffic(copies, token_bytes=1e6):
    sent = np.asarray(copies, dtype=float)
    share = sent.sum(axis=-2) + 1e-9
    tokens = float(sent.sum(axis=-1).max())
    return Traffic(
        pairs=Dense(copies=sent),
        tokens=tokens,
        token_bytes=token_bytes,
        share=share / share.sum(axis=-1, keepdims=True),
    )


def seconds(cluster, group, name, copies, token_bytes=1e6, direction="dispatch"):
    return all_to_all(cluster, group, traffic(copies, token_bytes), name, direction).seconds
