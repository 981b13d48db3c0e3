"""The cluster as tiers: switches inside the nodes, GPUs, NICs, leaves, spine."""

from typing import TYPE_CHECKING, Final

from matplotlib.collections import LineCollection

from moesim.plots.style import COLOURS, SMALL
from moesim.units import GB

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes

TIERS: Final = {"switch": 0.0, "gpu": 1.0, "nic": 2.0, "leaf": 3.0, "spine": 4.0}
LINKS: Final = {
    "nvlink": ("NVLink", COLOURS["experts"]),
    "pcie": ("PCIe", COLOURS["attention"]),
    "nic": ("network", COLOURS["all-to-all"]),
    "share": ("share of NIC", COLOURS["attention"]),
    "uplink": ("uplink", COLOURS["imbalance"]),
}
SWITCHES: Final = {"nvswitch": "NVSwitch", "pcie": "PCIe switch"}
NODES_DRAWN: Final = 4
GPUS_DRAWN: Final = 8

Place = tuple[float, float]


def topology(graph: "nx.DiGraph[str]", ax: "Axes") -> "Axes":
    """Draw ``cluster.graph`` with the bandwidth of each tier per link and direction.

    More than four nodes: the first two and the spine. More than eight GPUs a node: the first eight.
    """
    nodes = _nodes(graph)
    drawn = nodes if len(nodes) <= NODES_DRAWN else nodes[:2]
    places = _places(graph, drawn)
    _links(graph, ax, places)
    for name, (x, y) in places.items():
        _box(ax, name, x, y)
    right = max((x for x, _ in places.values()), default=0.0)
    _tier_labels(graph, ax, places, right + 0.7)
    _captions(graph, ax, places, drawn, len(nodes))
    ax.set_xlim(-1.0, right + 4.5)
    ax.set_ylim(-1.0, 0.6 + max((y for _, y in places.values()), default=1.0))
    ax.set_axis_off()
    return ax


def _nodes(graph: "nx.DiGraph[str]") -> list[str]:
    """Names of the nodes, in order: what stands before the dot in "n3.gpu5"."""
    return list(dict.fromkeys(name.split(".")[0] for name in graph.nodes if "." in name))


def _places(graph: "nx.DiGraph[str]", drawn: list[str]) -> dict[str, Place]:
    """Where each drawn thing stands: nodes side by side, leaves and spine above them."""
    places: dict[str, Place] = {}
    left = 0.0
    for node in drawn:
        inside = [name for name in graph.nodes if name.startswith(f"{node}.")]
        gpus = [name for name in inside if graph.nodes[name]["kind"] == "gpu"][:GPUS_DRAWN]
        nics = [name for name in inside if graph.nodes[name]["kind"] == "nic"]
        nics = [name for name in nics if any(graph.has_edge(gpu, name) for gpu in gpus)]
        switches = [name for name in inside if graph.nodes[name]["kind"] == "switch"]
        for row in (switches, gpus, nics):
            places |= _spread(graph, row, left, left + len(gpus) - 1)
        left += len(gpus) + 1.0
    above = [name for name in graph.nodes if graph.nodes[name]["kind"] == "leaf"]
    leaves = [name for name in above if any(graph.has_edge(nic, name) for nic in places)]
    places |= _spread(graph, leaves, 0.0, max(0.0, left - 2.0))
    spines = [name for name in graph.nodes if graph.nodes[name]["kind"] == "spine"]
    return places | _spread(graph, spines, 0.0, max(0.0, left - 2.0))


def _spread(graph: "nx.DiGraph[str]", row: list[str], left: float, right: float) -> dict[str, Place]:
    """Evenly between left and right, each in the middle of its share; on the tier of its kind."""
    share = (right - left + 1.0) / max(1, len(row))
    return {
        name: (left - 0.5 + share * (index + 0.5), TIERS[graph.nodes[name]["kind"]]) for index, name in enumerate(row)
    }


def _links(graph: "nx.DiGraph[str]", ax: "Axes", places: dict[str, Place]) -> None:
    by_kind: dict[str, list[list[Place]]] = {}
    for one, other, link in graph.edges(data=True):
        if one in places and other in places and places[one][1] < places[other][1]:
            by_kind.setdefault(str(link["kind"]), []).append([places[one], places[other]])
    for kind, lines in by_kind.items():
        ax.add_collection(LineCollection(lines, colors=LINKS[kind][1], linewidths=1.0, zorder=1))


def _box(ax: "Axes", name: str, x: float, y: float) -> None:
    """Short names; which node it is in is written below the node."""
    words = name.split(".")[-1]
    text = SWITCHES.get(words, words.lstrip("abcdefghijklmnopqrstuvwxyz") or words)
    ax.text(
        x, y, text, ha="center", va="center", fontsize=SMALL, zorder=3,
        bbox={"facecolor": "white", "edgecolor": "0.4", "boxstyle": "round,pad=0.25"},
    )  # fmt: skip


def _tier_labels(graph: "nx.DiGraph[str]", ax: "Axes", places: dict[str, Place], x: float) -> None:
    """Right of the drawing: what stands on each tier, and the bandwidth of the links between tiers."""
    for kind, tier in TIERS.items():
        if kind in ("gpu", "nic", "leaf") and any(y == tier for _, y in places.values()):
            name = {"gpu": "GPUs", "nic": "NICs", "leaf": "leaf switches, one per rail"}[kind]
            ax.text(x, tier, name, ha="left", va="center", fontsize=SMALL, color="0.3")
    found: dict[tuple[float, str], list[float]] = {}
    for one, other, link in graph.edges(data=True):
        if one in places and other in places and places[one][1] < places[other][1]:
            middle = (places[one][1] + places[other][1]) / 2
            kind = "share" if graph.nodes[other]["kind"] == "nic" else str(link["kind"])
            found.setdefault((middle, kind), []).append(link["bandwidth_bytes_per_s"])
    for (middle, kind), bandwidths in found.items():
        name, colour = LINKS[kind]
        ax.text(
            x, middle, f"{name} {_gigabytes(bandwidths)}", ha="left", va="center", fontsize=SMALL + 1,
            color=colour, fontweight="bold",
        )  # fmt: skip


def _gigabytes(bandwidths: list[float]) -> str:
    shown = [f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in (min(bandwidths) / GB, max(bandwidths) / GB)]
    return f"{' to '.join(dict.fromkeys(shown))} GB/s"


def _captions(graph: "nx.DiGraph[str]", ax: "Axes", places: dict[str, Place], drawn: list[str], nodes: int) -> None:
    """Below each node its number and GPUs; at the bottom what was left out."""
    for number, node in enumerate(drawn):
        gpus = sum(name.startswith(f"{node}.") and graph.nodes[name]["kind"] == "gpu" for name in graph)
        here = [x for name, (x, _) in places.items() if name.startswith(f"{node}.")]
        cut = f", {GPUS_DRAWN} drawn" if gpus > GPUS_DRAWN else ""
        ax.text(
            (min(here) + max(here)) / 2, -0.45, f"node {number}: {gpus} GPUs{cut}", ha="center", va="center",
            fontsize=SMALL + 1,
        )  # fmt: skip
    left_out = f"{nodes - len(drawn):,} more nodes not drawn; " if nodes > len(drawn) else ""
    text = f"{left_out}bandwidth per link and direction"
    ax.text(-0.8, -0.85, text, ha="left", va="center", fontsize=SMALL, color="0.3")
