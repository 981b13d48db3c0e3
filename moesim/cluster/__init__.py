"""What it runs on: GPUs, and the two kinds of link between them.

    Cluster = nodes x gpus_per_node x Gpu
      scale_up    the link inside a node (an NVLink domain or PCIe box), per GPU and direction
      scale_out   the link between nodes (NIC), per GPU and direction, already divided when GPUs share a NIC

fabric     Fabric: how the links are joined, Degraded: which are slow
tiers      Tier, Tiers: memories behind that of a GPU
nouns      Gpu, Link, Cluster, Group
presets    GPUS, CLUSTERS: stated figures, each with its source
graph      the same cluster as a networkx graph, to describe, check and draw
from_yaml  a user's own cluster; wiring reads and checks its wires
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from moesim.cluster.fabric import Degraded, Fabric, Wire
from moesim.cluster.graph import graph
from moesim.cluster.nouns import Cluster, Gpu, Group, Link, check_group
from moesim.cluster.presets import CLUSTERS, GPUS
from moesim.cluster.tiers import Tier, Tiers
from moesim.errors import MoesimError, choice

__all__ = [
    "CLUSTERS", "GPUS", "Cluster", "Degraded", "Fabric", "Gpu", "Group", "Link", "Tier", "Tiers", "Wire", "check_group",
    "graph", "load_cluster",
]  # fmt: skip
PROFILES_VARIABLE: Final = "MOESIM_PROFILES"  # folders of the user's own profiles


def load_cluster(name_or_path: str, nodes: int | None = None) -> Cluster:
    """A preset by its name, or a cluster from a YAML file, with its first ``nodes`` nodes or more of them."""
    name = str(name_or_path)
    if name in CLUSTERS:
        cluster = CLUSTERS[name]
    elif Path(name).suffix in {".yaml", ".yml"} or Path(name).is_file():
        from moesim.cluster.from_yaml import read_cluster

        cluster = read_cluster(Path(name))
        _check_searched(Path(name))
    else:
        raise choice("cluster", name, list(CLUSTERS))
    if nodes is None:
        return cluster
    return replace(cluster, nodes=nodes, fabric=cluster.fabric.cut_to(nodes, cluster.nics_per_node))


def _check_searched(path: Path) -> None:
    """Refuse a cluster that lies beside measured tables which nobody would read."""
    home = path.resolve().parent
    searched = [Path(folder).resolve() for folder in os.environ.get(PROFILES_VARIABLE, "").split(os.pathsep) if folder]
    if (home / "meta.json").is_file() and home.parent not in searched:
        raise MoesimError(
            f"{path} lies beside measured tables that are not searched: set {PROFILES_VARIABLE}={path.parent.parent}"
        )
