"""The GPU, the cluster and the group of ranks that were named."""

from typing import Any, Final

from moesim.cluster import CLUSTERS, GPUS, Cluster, Group, check_group, load_cluster
from moesim.costs.inputs import COUNT, TEXT, option
from moesim.errors import choice
from moesim.profile import DataSheet, measured_gpus

GPU_ABOUT: Final = (
    f"{', '.join(GPUS)}; a device that moesim calibrate measured; or a cluster, preset or YAML file, for its GPU."
)
CLUSTER_ABOUT: Final = f"{', '.join(CLUSTERS)}; or a YAML file."


def gpu_option() -> Any:
    """--gpu"""
    return option(TEXT, GPU_ABOUT)


def cluster_option() -> Any:
    """--cluster"""
    return option(TEXT, CLUSTER_ABOUT)


def nodes_option() -> Any:
    """--nodes"""
    return option(COUNT, "Nodes of the cluster.  [default: as the cluster says, presets 1]", None)


def ranks_option() -> Any:
    """--ranks"""
    return option(COUNT, "GPUs that take part.  [default: all of the cluster]", None)


def ranks_per_node_option() -> Any:
    """--ranks-per-node"""
    return option(COUNT, "Of them on one node.  [default: as many as a node holds]", None)


def find_gpu(name: str) -> DataSheet:
    """``h200``, ``H200``, a device that was calibrated, or the GPU of a cluster."""
    own = {gpu.name: gpu for gpu in measured_gpus()}
    by_name: dict[str, DataSheet] = {known.lower(): gpu for known, gpu in (own | GPUS).items()}
    if name.lower() in by_name:
        return by_name[name.lower()]
    if name in CLUSTERS or name.endswith((".yaml", ".yml")):
        return load_cluster(name).gpu
    raise choice("gpu", name, [*(own | GPUS), *CLUSTERS])


def find_group(noun: Any) -> tuple[Cluster, Group]:
    """The cluster, and the group that the ranks of a noun form on it."""
    cluster = load_cluster(noun.cluster, noun.nodes)
    ranks = noun.ranks or cluster.gpus
    group = Group(size=ranks, per_node=noun.ranks_per_node or min(ranks, cluster.gpus_per_node))
    check_group(cluster, group)
    return cluster, group


def placed(cluster: Cluster, group: Group) -> dict[str, Any]:
    """Cluster and group as they were understood; what is left of the slowest link of each kind that has slow ones."""
    left: dict[str, float] = {}
    for slow in cluster.fabric.degraded:
        kind = cluster.scale_up.kind if slow.link == "up" else slow.link
        left[kind] = min(slow.share, left.get(kind, 1.0))
    understood = {
        "cluster": cluster.name, "nodes": cluster.nodes,
        "ranks": group.size, "ranks_per_node": group.per_node,
    }  # fmt: skip
    return understood | ({"share_left": left} if left else {})
