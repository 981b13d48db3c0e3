"""Which links the bytes of each pair of ranks cross: the flows of drawn routing, one for each pair.

    same node        up_out of the source, up_in of the destination     switch
                     up_out, host, host again, up_in                    host
                     the link between the two                           mesh
                     every shortest way, an equal share on each         graph
    other node       nic_out, leaf_up and leaf_down where the leaves differ, nic_in
      forwarded      up_out, up_in of the GPU on the destination's rail, that GPU's nic_out, nic_in

The load of these flows on every link is that of ``links.loads``. A torus has no flows here: its shortest ways are
many and long, and its busiest link decides.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.cluster import Cluster, Group
from moesim.cost import FloatArray
from moesim.errors import MoesimError
from moesim.network.links import KIND, Route, bytes_per_s, families, forwards, leaf_of, nic_of
from moesim.network.maxmin import Flows
from moesim.network.pairs import Dense, IntArray
from moesim.network.wires import shortest

MOST_WAYS: Final = 20_000  # of a graph: the flows of one all-to-all


class Hop(NamedTuple):
    """One link on the way of some pairs."""

    family: str
    link: IntArray  # [pair]
    crossed: NDArray[np.bool_]  # [pair] whether the pair's way leads there


def pair_flows(
    cluster: Cluster,
    group: Group,
    dense: Dense,
    route: Route = "forwarded",
    token_bytes: float = 1.0,
    start_s: FloatArray | float = 0.0,
) -> Flows:
    """The flows of one traffic (no batch), source by source; pairs that send nothing are left out.

    ``start_s`` says when the source begins: one number, or ``[rank]``.
    """
    assert dense.shape == ()
    first, capacity = link_table(cluster, group)
    crossing = dense.copies * (1.0 - np.eye(group.size))
    src, dst = np.nonzero(crossing)
    copies = crossing[src, dst]
    if cluster.fabric.inside == "graph":
        path, number = _wire_paths(cluster, group, src, dst)
        src, copies = np.repeat(src, number), np.repeat(copies / number, number)
    else:
        hops = _inside_hops(cluster, group, src, dst) + _far_hops(cluster, group, route, src, dst)
        path = _packed([np.where(hop.crossed, first[hop.family] + hop.link, -1) for hop in hops])
    return Flows(
        path=path,
        size_bytes=copies * token_bytes,
        copies=np.ones(len(path)),
        capacity_bytes_per_s=capacity,
        start_s=np.broadcast_to(start_s, group.size)[src],
    )


def link_table(cluster: Cluster, group: Group) -> tuple[dict[str, int], FloatArray]:
    """The first link of each family, and the bytes/s of all links, one family after another."""
    first: dict[str, int] = {}
    capacity: list[FloatArray] = []
    for name, worth in families(cluster, group).items():
        first[name] = sum(map(len, capacity))
        capacity.append(worth * bytes_per_s(cluster, KIND[name])[0])
    return first, np.concatenate(capacity)


def owned(cluster: Cluster, group: Group) -> dict[str, IntArray]:
    """``[rank]`` by family: the link that a rank's bytes cross there, as a source or as a destination."""
    rank = np.arange(group.size)
    steps = np.diff(nic_of(cluster, group.per_node), prepend=-1) > 0
    nic = rank // group.per_node * np.count_nonzero(steps) + np.tile(np.cumsum(steps) - 1, group.nodes)
    leaf, node = leaf_of(cluster, group), rank // group.per_node
    return {
        "up_out": rank, "up_in": rank, "host": node, "nic_out": nic, "nic_in": nic, "leaf_up": leaf, "leaf_down": leaf,
    }  # fmt: skip


def way_count(cluster: Cluster, group: Group) -> int:
    """Shortest ways between all ranks of a graph: its flows."""
    ways = shortest(cluster.fabric.wires, group.size)[1][: group.size, : group.size]
    return int(ways.sum() - np.trace(ways))


def _inside_hops(cluster: Cluster, group: Group, src: IntArray, dst: IntArray) -> list[Hop]:
    inside, per_node = cluster.fabric.inside, group.per_node
    near = src // per_node == dst // per_node
    if inside == "torus":
        raise MoesimError(f"{cluster.name}: a torus has no flows for each pair: ask for the loads of its links")
    if inside == "mesh":
        return [Hop("mesh", src * per_node + dst % per_node, near)]
    through = [Hop("host", src // per_node, near)] * 2 if inside == "host" else []
    return [Hop("up_out", src, near), *through, Hop("up_in", dst, near)]


def _far_hops(cluster: Cluster, group: Group, route: Route, src: IntArray, dst: IntArray) -> list[Hop]:
    if group.nodes == 1:
        return []
    own, per_node = owned(cluster, group), group.per_node
    far = src // per_node != dst // per_node
    if forwards(cluster, route):
        middle = src // per_node * per_node + dst % per_node
        turns = far & (src != middle)
        forward = [Hop("up_out", src, turns), Hop("up_in", middle, turns)]
        return [*forward, Hop("nic_out", own["nic_out"][middle], far), Hop("nic_in", own["nic_in"][dst], far)]
    up, down = own["leaf_up"][src], own["leaf_down"][dst]
    climbs = far & (up != down)
    climbing = [Hop("leaf_up", up, climbs), Hop("leaf_down", down, climbs)]
    return [Hop("nic_out", own["nic_out"][src], far), *climbing, Hop("nic_in", own["nic_in"][dst], far)]


def _packed(columns: list[IntArray]) -> IntArray:
    """``[flow, hop]`` without empty columns; the order of hops does not matter."""
    path = -np.sort(-np.stack(columns, axis=1), axis=1)
    return path[:, : max(1, int(np.max(np.sum(path >= 0, axis=1), initial=0)))]


def _wire_paths(cluster: Cluster, group: Group, src: IntArray, dst: IntArray) -> tuple[IntArray, IntArray]:
    """Every shortest way of every pair, ``[way, hop]``, and the number of ways of each pair."""
    steps, ways, ends = shortest(cluster.fabric.wires, group.size)
    if way_count(cluster, group) > MOST_WAYS:
        raise MoesimError(f"{cluster.name}: more than {MOST_WAYS} shortest ways: give fewer ranks, or ask for loads")
    leaving: dict[int, list[tuple[int, int]]] = {}
    for link, (one, other) in enumerate(ends.tolist()):
        leaving.setdefault(one, []).append((link, other))
    paths: list[list[int]] = []
    for source, target in zip(src.tolist(), dst.tolist(), strict=True):
        found: list[tuple[int, list[int]]] = [(source, [])]
        for far in range(int(steps[source, target]) - 1, -1, -1):
            found = [
                (there, [*path, link])
                for here, path in found
                for link, there in leaving[here]
                if steps[there, target] == far
            ]
        paths += [path for _, path in found]
    longest = max(map(len, paths), default=1)
    filled = np.array([path + [-1] * (longest - len(path)) for path in paths], dtype=int).reshape(-1, longest)
    return filled, ways[src, dst].astype(int)
