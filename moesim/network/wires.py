"""A graph of any shape: what its cables carry when bytes divide evenly over all shortest ways.

    share of (s, d) on the cable u -> v = ways(s, u) ways(v, d) / ways(s, d)  where it lies on a shortest way

ways(a, b) counts the shortest ways from a to b, by the number of cables (Brandes 2001). GPUs are named gpu0, gpu1,
...; every other end is a switch. Made for the tens to hundreds of GPUs of a machine that no preset describes.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from moesim.cluster import Cluster, Group, Wire
from moesim.cost import FloatArray
from moesim.errors import MoesimError
from moesim.network.pairs import Dense, IntArray, Pairs

if TYPE_CHECKING:
    import networkx as nx


def wire_loads(cluster: Cluster, group: Group, pairs: Pairs) -> dict[str, FloatArray]:
    """``[..., cable and direction]``, in the order of the fabric's wires, there and back."""
    if not isinstance(pairs, Dense):
        raise MoesimError(f"{cluster.name}: a graph carries drawn routing only: give fewer ranks")
    steps, ways, ends = shortest(cluster.fabric.wires, group.size)
    ranks = slice(0, group.size)
    each_way = pairs.copies / np.maximum(ways[ranks, ranks], 1.0)
    found = np.zeros((*pairs.shape, len(ends)))
    for link, (one, other) in enumerate(ends):
        through = steps[ranks, one, None] + 1 + steps[None, other, ranks]
        on_way = (through == steps[ranks, ranks]) * ways[ranks, one, None] * ways[None, other, ranks]
        found[..., link] = np.einsum("...sd,sd->...", each_way, on_way)
    return {"wires": found}


@lru_cache(maxsize=32)
def shortest(wires: tuple[Wire, ...], ranks: int) -> tuple[IntArray, FloatArray, IntArray]:
    """``steps[end, end]`` and ``ways[end, end]``, ranks first; ``ends[cable and direction, 2]``.

    MoesimError: a GPU without a cable, or two GPUs without a way between them.
    """
    import networkx as nx

    net = wired(wires)
    for rank in range(ranks):
        if f"gpu{rank}" not in net:
            raise MoesimError(f"fabric wires: gpu{rank} has none: connect it, or describe fewer GPUs")
    parts = list(nx.connected_components(net))
    if len(parts) > 1:
        one, other = (sorted(part)[0] for part in parts[:2])
        raise MoesimError(f"fabric wires: no way from {one} to {other}: connect the {len(parts)} parts of the graph")
    names = [f"gpu{rank}" for rank in range(ranks)]
    names += [name for name in net if name not in set(names)]
    index = {name: number for number, name in enumerate(names)}
    joined = np.asarray(nx.to_numpy_array(net, nodelist=names, weight=""))
    steps, ways = _counted(joined)
    both = [(index[wire.one], index[wire.other]) for wire in wires]
    return steps, ways, np.array([pair for one, other in both for pair in ((one, other), (other, one))])


def wired(wires: tuple[Wire, ...]) -> "nx.Graph[str]":
    """The cables as a graph with ``bandwidth_bytes_per_s``."""
    import networkx as nx

    net: nx.Graph[str] = nx.Graph()
    for wire in wires:
        net.add_edge(wire.one, wire.other, bandwidth_bytes_per_s=wire.bandwidth_bytes_per_s)
    return net


def _counted(joined: FloatArray) -> tuple[IntArray, FloatArray]:
    """Steps and numbers of shortest ways between all ends, from the matrix of neighbours."""
    ends = len(joined)
    steps = np.where(np.eye(ends, dtype=bool), 0, -1)
    ways, front, far = np.eye(ends), np.eye(ends), 0
    while np.any(steps < 0):
        far += 1
        reached = front @ joined
        new = (steps < 0) & (reached > 0)
        steps[new], front = far, np.where(new, reached, 0.0)
        ways = ways + front
    return steps, ways
