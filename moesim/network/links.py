"""The links that a group of ranks uses, and how long the busiest of each kind takes.

    family         one for each             carries
    up_out, up_in  rank                     what it sends or receives inside its node
    mesh           ordered pair of ranks    NVLink between the two, where no switch joins them
    host           node                     every byte of the node: once into host memory, once out of it
    torus          place and direction      what passes there, dimension after dimension
    wires          cable and direction      what the shortest ways load on it
    nic_out, _in   NIC of the group         what leaves or enters the node there
    leaf_up, _down leaf switch              what leaves or enters the ranks below the leaf

What a link carries follows from the copies, the fabric and the ``route``:

    forwarded      between nodes by NVLink to the GPU of the destination's rail, then along the rail (PXN)
    direct         from the source's own NIC to the destination's

A group stands for all of its kind in the cluster, and so for the slowest: damage anywhere counts as if it were the
group's own, at the same place of a node (modulo its size). Ranks of other groups on the same NIC or leaf are busy
alike: the group has its share of a link. ``waits`` are copies: as many as a whole link of the kind, a GPU's own,
moves in the time that the busiest one takes for its load.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Final, Literal

import numpy as np

from moesim.cluster import Cluster, Degraded, Group
from moesim.cost import FloatArray
from moesim.errors import MoesimError
from moesim.network.pairs import Dense, IntArray, Pairs
from moesim.network.torus import torus_loads
from moesim.network.wires import wire_loads

Route = Literal["forwarded", "direct"]
KIND: Final = {
    "up_out": "up", "up_in": "up", "mesh": "up", "host": "host", "torus": "up", "wires": "up",
    "nic_out": "nic", "nic_in": "nic", "leaf_up": "uplink", "leaf_down": "uplink",
}  # fmt: skip


@lru_cache(maxsize=256)
def families(cluster: Cluster, group: Group) -> dict[str, FloatArray]:
    """``[link]`` by family: how many whole links each is worth, after its width, hashing and damage."""
    inside = _INSIDE[cluster.fabric.inside](cluster, group)
    found = inside | _nics(cluster, group) | _uplinks(cluster, group) if group.nodes > 1 else inside
    for slow in cluster.fabric.degraded:
        for name in (name for name in found if KIND[name] == slow.link):
            found[name] = _damaged(name, found[name], slow, cluster, group)
    return found


def loads(cluster: Cluster, group: Group, pairs: Pairs, route: Route) -> dict[str, FloatArray]:
    """``[..., link]`` by family: copies that each link carries."""
    sums, fabric = pairs.sums(group.per_node), cluster.fabric
    near_out, near_in, leaving = sums.near_out, sums.near_in, sums.far_out
    found: dict[str, FloatArray] = {}
    if group.nodes > 1:
        if forwards(cluster, route):
            near_out, near_in = near_out + leaving - sums.own_rail, near_in + sums.to_rail - sums.own_rail
            leaving = sums.to_rail
        found = {"nic_out": _by_nic(cluster, group, leaving), "nic_in": _by_nic(cluster, group, sums.far_in)}
        if not forwards(cluster, route):
            up, down = pairs.climbing(group.per_node, leaf_of(cluster, group))
            found |= {"leaf_up": up, "leaf_down": down}
    if fabric.inside in _ROUTED:
        return found | _ROUTED[fabric.inside](cluster, group, pairs)
    return found | inside_loads(cluster, group, near_out, near_in)


def inside_loads(cluster: Cluster, group: Group, near_out: FloatArray, near_in: FloatArray) -> dict[str, FloatArray]:
    """What ``[..., rank]`` copies inside the nodes load on their ports, and on the host's memory."""
    found = {"up_out": near_out, "up_in": near_in}
    if cluster.fabric.inside == "host":
        through = near_out + near_in
        found["host"] = through.reshape(*through.shape[:-1], group.nodes, -1).sum(axis=-1)
    return found


def waits(cluster: Cluster, group: Group, pairs: Pairs, route: Route = "forwarded") -> dict[str, FloatArray]:
    """``[...]`` by kind of link (up, host, nic, uplink): the busiest one's load over its worth, in copies."""
    return longest(cluster, group, loads(cluster, group, pairs, route))


def longest(cluster: Cluster, group: Group, carried: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """``[...]`` by kind: the same for loads ``[..., link]`` by family."""
    worth = families(cluster, group)
    found: dict[str, FloatArray] = {}
    for name, load in carried.items():
        most = np.max(load / worth[name], axis=-1, initial=0.0)
        kind = KIND[name]
        found[kind] = np.maximum(found[kind], most) if kind in found else most
    return found


def bytes_per_s(cluster: Cluster, kind: str) -> tuple[float, float]:
    """Achieved and data-sheet bytes/s of a whole link of the kind."""
    if kind == "host":
        assert cluster.fabric.host_bytes_per_s is not None
        return cluster.fabric.host_bytes_per_s, cluster.fabric.host_bytes_per_s
    link = cluster.scale_up if kind == "up" else cluster.scale_out
    if link is None:
        raise MoesimError(f"cluster {cluster.name} has no scale_out link: describe its NICs to send between nodes")
    return link.bandwidth_bytes_per_s, link.peak_bytes_per_s


def forwards(cluster: Cluster, route: Route) -> bool:
    """Whether bytes for another rail go by NVLink first: only a switch joins a node's GPUs well enough."""
    joined = cluster.scale_up.kind == "nvlink" and cluster.fabric.inside == "switch"
    return route == "forwarded" and joined and cluster.fabric.between in ("rail", "rail_only")


def leaf_of(cluster: Cluster, group: Group) -> IntArray:
    """``[rank]`` the leaf switch above it, counted from 0."""
    if cluster.fabric.between == "tree":
        return np.arange(group.size) // (group.per_node * cluster.fabric.leaf_nodes)
    return np.tile(nic_of(cluster, group.per_node), group.nodes)


def nic_of(cluster: Cluster, per_node: int) -> IntArray:
    """``[local rank]`` its NIC: GPU g uses NIC g x nics // gpus, as in the graph."""
    return np.arange(per_node) * cluster.nics_per_node // cluster.gpus_per_node


def _switch(cluster: Cluster, group: Group) -> dict[str, FloatArray]:
    return {"up_out": np.ones(group.size), "up_in": np.ones(group.size)}


def _mesh(cluster: Cluster, group: Group) -> dict[str, FloatArray]:
    """A GPU's bandwidth divides over its links to the other GPUs of the node."""
    return {"mesh": np.full(group.size * group.per_node, 1.0 / max(1, cluster.gpus_per_node - 1))}


def _host(cluster: Cluster, group: Group) -> dict[str, FloatArray]:
    """Each GPU's own PCIe link, and the host memory behind them, which the node's groups share."""
    return _switch(cluster, group) | {"host": np.full(group.nodes, group.per_node / cluster.gpus_per_node)}


def _torus(cluster: Cluster, group: Group) -> dict[str, FloatArray]:
    fabric = cluster.fabric
    return {"torus": np.ones(2 * len(fabric.torus) * fabric.places)}


def _wires(cluster: Cluster, group: Group) -> dict[str, FloatArray]:
    one_way = np.array([wire.bandwidth_bytes_per_s for wire in cluster.fabric.wires])
    return {"wires": np.repeat(one_way / cluster.scale_up.bandwidth_bytes_per_s, 2)}


_INSIDE: Final[dict[str, Callable[[Cluster, Group], dict[str, FloatArray]]]] = {
    "switch": _switch, "mesh": _mesh, "host": _host, "torus": _torus, "graph": _wires,
}  # fmt: skip


def _mesh_loads(cluster: Cluster, group: Group, pairs: Pairs) -> dict[str, FloatArray]:
    if not isinstance(pairs, Dense):
        raise MoesimError(f"{cluster.name}: a mesh carries drawn routing only: give fewer ranks")
    shape = (*pairs.shape, group.nodes, group.per_node, group.nodes, group.per_node)
    node = np.arange(group.nodes)
    inside = np.moveaxis(pairs.copies.reshape(shape)[..., node, :, node, :], 0, -3)
    crossing = inside * (1.0 - np.eye(group.per_node))
    return {"mesh": crossing.reshape(*pairs.shape, -1)}


_ROUTED: Final[dict[str, Callable[[Cluster, Group, Pairs], dict[str, FloatArray]]]] = {
    "mesh": _mesh_loads, "torus": torus_loads, "graph": wire_loads,
}  # fmt: skip


def _nics(cluster: Cluster, group: Group) -> dict[str, FloatArray]:
    """A NIC is worth as many links as the group has ranks on it."""
    ranks = np.tile(np.bincount(nic_of(cluster, group.per_node)).astype(float), group.nodes)
    return {"nic_out": ranks, "nic_in": ranks.copy()}


def _uplinks(cluster: Cluster, group: Group) -> dict[str, FloatArray]:
    """What a full leaf could send, over the oversubscription and the unevenness of hashing: the group's share of it."""
    fabric = cluster.fabric
    below = np.bincount(leaf_of(cluster, group)).astype(float)
    if fabric.between == "tree":  # a leaf with fewer nodes than the others has as wide a way up
        nodes = np.minimum(cluster.nodes - np.arange(below.size) * fabric.leaf_nodes, fabric.leaf_nodes)
        below = below * fabric.leaf_nodes / nodes
    worth = below / (fabric.oversubscription * fabric.ecmp)
    return {"leaf_up": worth, "leaf_down": worth.copy()}


def _by_nic(cluster: Cluster, group: Group, by_rank: FloatArray) -> FloatArray:
    """``[..., rank]`` -> ``[..., node and NIC]``."""
    starts = np.flatnonzero(np.diff(nic_of(cluster, group.per_node), prepend=-1))
    square = by_rank.reshape(*by_rank.shape[:-1], group.nodes, group.per_node)
    return np.add.reduceat(square, starts, axis=-1).reshape(*by_rank.shape[:-1], -1)


def _damaged(name: str, worth: FloatArray, slow: Degraded, cluster: Cluster, group: Group) -> FloatArray:
    """``worth`` with a share of it left on the slow links, wherever in the cluster they are."""
    here = 1 if name.startswith("leaf") else worth.size // group.nodes  # links of a node, or of a leaf
    owner = _OWNER[name](cluster, group, np.arange(here)) if name in _OWNER else np.arange(here)[None]  # [end, link]
    mine = np.ones(here, dtype=bool)
    if slow.index is not None:
        mine = np.any(owner == slow.index % (int(owner.max()) + 1), axis=0)
    hit = np.zeros((worth.size // here, here), dtype=bool)
    hit[slow.node % len(hit)] = mine
    return np.where(hit.ravel(), worth * slow.share, worth)


# Which of a node's GPUs a link belongs to, where it is not one after another: both ends of a mesh link; the place.
_OWNER: Final[dict[str, Callable[[Cluster, Group, IntArray], IntArray]]] = {
    "mesh": lambda _, group, link: np.stack([link // group.per_node, link % group.per_node]),
    "torus": lambda cluster, _, link: (link % cluster.fabric.places)[None],
}
