"""What an algorithm needs of a cluster and a group: the first reason why it cannot run there, or None.

A torus is crossed by its own algorithm only, a graph by what knows its wires. Without a spine (rail_only) bytes reach
another rail inside a node only: forwarded by NVLink, or by algorithms that stay on their rail.
"""

from collections.abc import Callable
from typing import Final

from moesim.alltoall.pairwise import MOST_RANKS
from moesim.alltoall.tiles import ARCHITECTURES
from moesim.cluster import Cluster, Group
from moesim.network import forwards, nic_of

Need = Callable[[Cluster, Group, str], str | None]
_DEEPEP: Final = ("hopper", "blackwell")


def reason(cluster: Cluster, group: Group, name: str) -> str | None:
    """Why ``name`` cannot run on this group, or None."""
    return next((why for need in NEEDS[name] if (why := need(cluster, group, name)) is not None), None)


def _link_between_nodes(cluster: Cluster, group: Group, _: str) -> str | None:
    if group.nodes > 1 and cluster.scale_out is None:
        return f"{cluster.name} has no link between nodes"
    return None


def _inside(*known: str) -> Need:
    def need(cluster: Cluster, _: Group, name: str) -> str | None:
        if cluster.fabric.inside in known:
            return None
        here = f"that of {cluster.name} is a {cluster.fabric.inside}"
        *others, last = known
        return f"{name} needs a node joined as {' or '.join([', '.join(others), last] if others else [last])}; {here}"

    return need


def _several_nodes(_: Cluster, group: Group, name: str) -> str | None:
    return f"{name} needs ranks on more than one node; the group's {group.size} share one" if group.nodes == 1 else None


def _several_on_a_node(_: Cluster, group: Group, name: str) -> str | None:
    return f"{name} needs more than one rank on a node; without them it is linear" if group.per_node == 1 else None


def _way_across_rails(forwarded: bool) -> Need:
    def need(cluster: Cluster, group: Group, name: str) -> str | None:
        rails = int(nic_of(cluster, group.per_node).max()) + 1 if group.nodes > 1 else 1
        if cluster.fabric.between != "rail_only" or rails == 1 or (forwarded and forwards(cluster, "forwarded")):
            return None
        return f"{name} sends from rail to rail, and {cluster.name} has no spine between its {rails} rails"

    return need


def _deepep_gpu(cluster: Cluster, _: Group, name: str) -> str | None:
    if cluster.scale_up.kind == "nvlink" and cluster.gpu.architecture in _DEEPEP:
        return None
    return f"{name} needs NVLink and a Hopper or Blackwell GPU; {cluster.name} has {cluster.gpu.name}"


def _tile_gpu(cluster: Cluster, _: Group, name: str) -> str | None:
    if cluster.scale_up.kind == "nvlink" and cluster.gpu.architecture in ARCHITECTURES:
        return None
    return f"{name} needs NVLink and an Ampere, Hopper or Blackwell GPU; {cluster.name} has {cluster.gpu.name}"


def _few_ranks(_: Cluster, group: Group, name: str) -> str | None:
    return f"{name} is priced for at most {MOST_RANKS:,} ranks, not {group.size:,}" if group.size > MOST_RANKS else None


def _pods(cluster: Cluster, group: Group, name: str) -> str | None:
    fabric = cluster.fabric
    if fabric.between != "tree":
        return f"{name} needs pods, the nodes below a leaf of between=tree; {cluster.name} is {fabric.between}"
    if fabric.leaf_nodes == 1 or group.nodes <= fabric.leaf_nodes or group.nodes % fabric.leaf_nodes:
        pods = f"pods of {fabric.leaf_nodes} nodes"
        return f"{name} needs several whole pods of several nodes; the group has {group.nodes} nodes, in {pods}"
    return None


_LINKS: Final = (_link_between_nodes, _inside("switch", "mesh", "host", "graph"), _way_across_rails(forwarded=True))
_STEPS: Final = (_link_between_nodes, _inside("switch", "host"), _way_across_rails(forwarded=True))
_RAILS: Final = (_several_nodes, _link_between_nodes, _several_on_a_node, _inside("switch", "mesh", "host"))
_KERNELS: Final = (_deepep_gpu, _link_between_nodes, _inside("switch"))
_DIRECT: Final = (_link_between_nodes, _inside("switch"), _way_across_rails(forwarded=False))

NEEDS: Final[dict[str, tuple[Need, ...]]] = {
    "linear": _LINKS,
    "pairwise": (*_STEPS, _few_ranks),
    "bruck": _STEPS,
    "2dh": _RAILS,
    "3dh": (*_RAILS, _pods),
    "leader": (_several_nodes, _link_between_nodes, _several_on_a_node, _inside("switch", "host")),
    "rail": _RAILS,
    "ag_rs": (_link_between_nodes, _inside("switch", "mesh", "host")),
    "deepep": _KERNELS,
    "hybrid_ep": _KERNELS,
    "deepep_ll": (_deepep_gpu, *_DIRECT),
    "tiles": (_tile_gpu, *_DIRECT),
    "torus": (_inside("torus"),),
}
