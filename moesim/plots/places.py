"""Where the things of a topology stand, and the lines of its links.

tiers   nodes side by side; in each, from below: host, switch, GPUs, NICs; leaves and spine above all
        a link between two GPUs (mesh) is an arc below them
torus   places on a grid, a third dimension slantwise; a link round the edge is a stub on both sides
wires   as springs would pull them
"""

from collections.abc import Callable, Container
from math import cos, pi, prod, sin
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import networkx as nx

Place = tuple[float, float]
Edge = tuple[str, str]

TIERS: Final = {"host": -1.0, "switch": 0.0, "gpu": 1.0, "nic": 2.0, "leaf": 3.0, "spine": 4.0}
NODES_DRAWN: Final = 4
GPUS_DRAWN: Final = 8
SIDE_DRAWN: Final = {1: 8, 2: 8, 3: 4}  # places along a dimension of a torus, by dimensions drawn
_STUBS: Final = ((0.4, 0.0), (0.0, -0.4), (0.3, 0.3))  # along each dimension: to the right, down, slantwise


class Drawing(NamedTuple):
    """What is drawn of a graph: places by name, and a line for each link; a link round a torus has two."""

    places: dict[str, Place]
    lines: list[tuple[Edge, list[Place]]]
    left_out: str  # in words, "" if all is drawn


def nodes_of(graph: "nx.DiGraph[str]") -> list[str]:
    """Names of the nodes, in order: what stands before the dot in "n3.gpu5"."""
    return list(dict.fromkeys(name.split(".")[0] for name in graph.nodes if "." in name))


def members(graph: "nx.DiGraph[str]", node: str, kind: str) -> list[str]:
    """The things of one kind in a node."""
    return [name for name in graph.nodes if name.startswith(f"{node}.") and graph.nodes[name]["kind"] == kind]


def tiers(graph: "nx.DiGraph[str]", busiest: Edge | None) -> Drawing:
    """More than four nodes: two of them; more than eight GPUs a node: eight; those of the busiest link among them."""
    nodes = nodes_of(graph)
    drawn, rail = _drawn_nodes(nodes, busiest), _rail(graph, busiest)
    places: dict[str, Place] = {}
    left = 0.0
    for node in drawn:
        gpus = members(graph, node, "gpu")
        first = max(0, min(rail - GPUS_DRAWN // 2 + 1, len(gpus) - GPUS_DRAWN))
        gpus = gpus[first : first + GPUS_DRAWN]
        nics = [name for name in members(graph, node, "nic") if any(graph.has_edge(gpu, name) for gpu in gpus)]
        for row in (members(graph, node, "host"), members(graph, node, "switch"), gpus, nics):
            places |= _spread(graph, row, left, left + len(gpus) - 1)
        left += len(gpus) + 1.0
    above = [name for name in graph.nodes if graph.nodes[name]["kind"] == "leaf"]
    leaves = [name for name in above if any(graph.has_edge(nic, name) for nic in places)]
    spines = [name for name in graph.nodes if graph.nodes[name]["kind"] == "spine"]
    for row in (leaves, spines):
        places |= _spread(graph, row, 0.0, max(0.0, left - 2.0))
    lines = [(edge, _tier_line(places, edge)) for edge in _once(graph, places)]
    return Drawing(
        places, lines, f"{len(nodes) - len(drawn):,} more nodes not drawn" if len(nodes) > len(drawn) else ""
    )


def torus(graph: "nx.DiGraph[str]", _: Edge | None) -> Drawing:
    """The first places along each of the first three dimensions."""
    sides: tuple[int, ...] = graph.graph["torus"]
    at = {f"n0.place{place}": _coordinates(sides, place) for place in range(prod(sides))}
    places = {name: _on_grid(sides, where) for name, where in at.items() if _in_sight(where)}
    lines: list[tuple[Edge, list[Place]]] = []
    for one, other in _once(graph, at):
        axis = next(k for k, (here, there) in enumerate(zip(at[one], at[other], strict=True)) if here != there)
        step = at[other][axis] - at[one][axis]
        if abs(step) == 1 and axis < 2 and one in places and other in places:
            lines.append(((one, other), [places[one], places[other]]))
        elif axis < len(_STUBS):
            way = step if abs(step) == 1 else -step  # to the next, or round the edge
            ends = [(name, towards) for name, towards in ((one, way), (other, -way)) if name in places]
            lines += [((one, other), _stub(places[name], axis, towards)) for name, towards in ends]
    more = len(at) - len(places)
    return Drawing(places, lines, f"{more:,} more places not drawn" if more else "")


def wires(graph: "nx.DiGraph[str]", _: Edge | None) -> Drawing:
    """The same picture each time: the springs start from one seed."""
    import networkx as nx

    ends = [name for name in graph.nodes if graph.nodes[name]["kind"] in ("gpu", "switch")]
    joined = graph.subgraph(ends).to_undirected()
    found = nx.spring_layout(joined, seed=1, iterations=300, weight=None)
    width = len(ends) ** 0.5 * 0.9
    places = {name: (float(found[name][0]) * width, float(found[name][1]) * width) for name in ends}
    return Drawing(places, [(edge, [places[edge[0]], places[edge[1]]]) for edge in _once(graph, places)], "")


LAYOUTS: Final[dict[str, Callable[["nx.DiGraph[str]", Edge | None], Drawing]]] = {
    "switch": tiers, "mesh": tiers, "host": tiers, "torus": torus, "graph": wires,
}  # fmt: skip


def _drawn_nodes(nodes: list[str], busiest: Edge | None) -> list[str]:
    if len(nodes) <= NODES_DRAWN:
        return nodes
    ends = [end.split(".")[0] for end in busiest or ()]
    hot = next((node for node in nodes[1:] if node in ends), nodes[1])
    return [nodes[0], hot]


def _rail(graph: "nx.DiGraph[str]", busiest: Edge | None) -> int:
    """The number in its node of a GPU on the busiest link."""
    ends = set(busiest or ())
    for node in nodes_of(graph):
        for local, gpu in enumerate(members(graph, node, "gpu")):
            if gpu in ends or any(link["kind"] == "attach" and end in ends for end, link in graph[gpu].items()):
                return local
    return 0


def _spread(graph: "nx.DiGraph[str]", row: list[str], left: float, right: float) -> dict[str, Place]:
    """Evenly between left and right, each in the middle of its share; on the tier of its kind."""
    share = (right - left + 1.0) / max(1, len(row))
    return {
        name: (left - 0.5 + share * (index + 0.5), TIERS[graph.nodes[name]["kind"]]) for index, name in enumerate(row)
    }


def _once(graph: "nx.DiGraph[str]", things: Container[str]) -> list[Edge]:
    """Each link between the things once: both directions share a line."""
    pairs = {frozenset(edge): edge for edge in graph.edges if edge[0] in things and edge[1] in things}
    return list(pairs.values())


def _tier_line(places: dict[str, Place], edge: Edge) -> list[Place]:
    one, other = (places[end] for end in edge)
    if one[1] != other[1]:
        return [one, other]
    middle, radius = (one[0] + other[0]) / 2, abs(one[0] - other[0]) / 2
    depth = 0.25 + 0.16 * radius
    turns = [pi * k / 24 for k in range(25)]
    return [(middle - radius * cos(turn), one[1] - depth * sin(turn)) for turn in turns]


def _coordinates(sides: tuple[int, ...], place: int) -> tuple[int, ...]:
    return tuple(place // prod(sides[k + 1 :]) % side for k, side in enumerate(sides))


def _in_sight(where: tuple[int, ...]) -> bool:
    shown = where[: len(_STUBS)]
    return all(at < SIDE_DRAWN[len(shown)] for at in shown) and not any(where[len(_STUBS) :])


def _on_grid(sides: tuple[int, ...], where: tuple[int, ...]) -> Place:
    right, down, plane = (*where, 0, 0)[:3]
    return right + plane * (min(sides[0], SIDE_DRAWN[3]) + 1.0), -float(down)


def _stub(start: Place, axis: int, towards: int) -> list[Place]:
    """The beginning of a link."""
    sign = 1.0 if towards > 0 else -1.0
    return [start, (start[0] + sign * _STUBS[axis][0], start[1] + sign * _STUBS[axis][1])]
