"""A cluster's links drawn, with the load on each if one is given.

Without loads the colour says what kind of link it is. With them it says how long the link is busy, as a share of
the busiest one; of the two directions the busier counts. On grey lines nothing waits.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.ticker import PercentFormatter

from moesim.plots.places import GPUS_DRAWN, LAYOUTS, TIERS, Drawing, Edge, members, nodes_of
from moesim.plots.style import COLOURS, SMALL
from moesim.units import GB

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes

LINKS: Final = {
    "nvlink": ("NVLink", COLOURS["experts"]),
    "pcie": ("PCIe", COLOURS["attention"]),
    "ici": ("ICI", COLOURS["experts"]),
    "host": ("host memory", COLOURS["tp"]),
    "nic": ("network", COLOURS["all-to-all"]),
    "uplink": ("uplink", COLOURS["imbalance"]),
    "attach": ("", "0.8"),
}
SWITCHES: Final = {"nvswitch": "NVSwitch", "pcie": "PCIe switch", "host": "host memory"}
NAMES: Final = {"gpu": "GPU", "nic": "NIC", "leaf": "leaf", "place": "place"}
LOAD_COLOURS: Final = ListedColormap(colormaps["viridis_r"](np.linspace(0.1, 1.0, 256)), name="load")


def topology(graph: "nx.DiGraph[str]", ax: "Axes", loads: Mapping[Edge, float] | None = None) -> "Axes":
    """Draw ``cluster.graph``; ``loads`` by edge, in seconds or shares: what counts is how they compare."""
    busiest = max(loads, key=lambda edge: loads[edge]) if loads and max(loads.values()) > 0 else None
    drawing = LAYOUTS[graph.graph["inside"]](graph, busiest)
    if loads is not None and busiest is not None:
        _loaded_lines(graph, ax, drawing, {edge: load / loads[busiest] for edge, load in loads.items()})
    else:
        _plain_lines(graph, ax, drawing)
    points = [*drawing.places.values(), *(point for _, line in drawing.lines for point in line)]
    left, right = min(x for x, _ in points) - 0.8, max(x for x, _ in points) + 0.8
    bottom = min(y for _, y in points) - 0.45
    for name, (x, y) in drawing.places.items():
        _box(ax, _short(graph, name), x, y)
    if _tiered(graph):
        _tier_labels(graph, ax, drawing, right, plain=busiest is None)
        _node_captions(graph, ax, drawing, bottom)
        bottom -= 0.4
        right += 0.2 * (right - left)  # room for the labels
    else:
        ax.set_aspect("equal", anchor="W")
    ax.text(left, bottom, _caption(graph, drawing, busiest), ha="left", va="top", fontsize=SMALL, color="0.3")
    ax.set_xlim(left, right)
    ax.set_ylim(bottom - 0.6, max(y for _, y in points) + 0.6)
    ax.set_axis_off()
    return ax


def _tiered(graph: "nx.DiGraph[str]") -> bool:
    return graph.graph["inside"] not in ("torus", "graph")


def _plain_lines(graph: "nx.DiGraph[str]", ax: "Axes", drawing: Drawing) -> None:
    colours = [LINKS[graph.edges[edge]["kind"]][1] for edge, _ in drawing.lines]
    ax.add_collection(LineCollection([line for _, line in drawing.lines], colors=colours, linewidths=1.0, zorder=1))


def _loaded_lines(graph: "nx.DiGraph[str]", ax: "Axes", drawing: Drawing, shares: dict[Edge, float]) -> None:
    """The busiest on top; a bar that says what the colours mean."""
    found = []
    for edge, line in drawing.lines:
        share = max(shares.get(edge, 0.0), shares.get((edge[1], edge[0]), 0.0))
        grey = graph.edges[edge]["kind"] == "attach"
        found.append((share, "0.8" if grey else LOAD_COLOURS(share), line))
    found.sort(key=lambda each: each[0])
    ax.add_collection(
        LineCollection(
            [line for *_, line in found], colors=[colour for _, colour, _ in found],
            linewidths=[1.0 + 2.0 * share for share, *_ in found], zorder=1,
        )
    )  # fmt: skip
    bar = ax.figure.colorbar(ScalarMappable(cmap=LOAD_COLOURS), ax=ax, shrink=0.7, aspect=25, pad=0.01)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label("time that the link is busy, of the busiest", fontsize=SMALL)


def _box(ax: "Axes", text: str, x: float, y: float) -> None:
    ax.text(
        x, y, text, ha="center", va="center", fontsize=SMALL, zorder=3,
        bbox={"facecolor": "white", "edgecolor": "0.4", "boxstyle": "round,pad=0.25"},
    )  # fmt: skip


def _short(graph: "nx.DiGraph[str]", name: str) -> str:
    """A number where the tier or the caption says of what; with wires the name that the user gave."""
    thing, kind = name.split(".")[-1], graph.nodes[name]["kind"]
    if graph.graph["inside"] == "graph":
        return thing
    return thing.removeprefix(kind) if kind in NAMES else SWITCHES.get(thing, thing)


def _long(graph: "nx.DiGraph[str]", name: str) -> str:
    """``NIC 2 of node 1`` for n1.nic2."""
    node, _, _ = name.rpartition(".")
    kind, short = graph.nodes[name]["kind"], _short(graph, name)
    words = f"{NAMES[kind]} {short}" if short.isdecimal() else short
    return f"{words} of node {node[1:]}" if node and len(nodes_of(graph)) > 1 else words


def _tier_labels(graph: "nx.DiGraph[str]", ax: "Axes", drawing: Drawing, x: float, *, plain: bool) -> None:
    """Right of the drawing: what stands on each tier, and the bandwidth of the links between tiers."""
    places = drawing.places
    leaves = "leaf switches" if graph.graph["between"] == "tree" else "leaf switches, one per rail"
    for kind, name in (("gpu", "GPUs"), ("nic", "NICs"), ("leaf", leaves)):
        if any(y == TIERS[kind] for _, y in places.values()):
            ax.text(x, TIERS[kind], name, ha="left", va="center", fontsize=SMALL, color="0.3")
    found: dict[tuple[float, str], list[float]] = {}
    for (one, other), _ in drawing.lines:
        link, heights = graph.edges[one, other], (places[one][1], places[other][1])
        middle = sum(heights) / 2 - (0.4 if heights[0] == heights[1] else 0.0)  # a mesh hangs below its GPUs
        found.setdefault((middle, str(link["kind"])), []).append(link["bandwidth_bytes_per_s"])
    for (middle, kind), bandwidths in found.items():
        name, colour = LINKS[kind]
        if name:
            ax.text(
                x, middle, f"{name} {gigabytes(bandwidths)}", ha="left", va="center", fontsize=SMALL + 1,
                color=colour if plain else "0.3", fontweight="bold",
            )  # fmt: skip


def gigabytes(bandwidths: Iterable[float]) -> str:
    """``45 to 90 GB/s``."""
    known = list(bandwidths)
    shown = [f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in (min(known) / GB, max(known) / GB)]
    return f"{' to '.join(dict.fromkeys(shown))} GB/s"


def _node_captions(graph: "nx.DiGraph[str]", ax: "Axes", drawing: Drawing, y: float) -> None:
    """Below each node its number and GPUs."""
    for node in nodes_of(graph):
        here = [x for name, (x, _) in drawing.places.items() if name.startswith(f"{node}.")]
        if not here:
            continue
        gpus = len(members(graph, node, "gpu"))
        cut = f", {GPUS_DRAWN} drawn" if gpus > GPUS_DRAWN else ""
        text = f"node {node[1:]}: {gpus} GPUs{cut}"
        ax.text((min(here) + max(here)) / 2, y, text, ha="center", va="center", fontsize=SMALL + 1)


def _caption(graph: "nx.DiGraph[str]", drawing: Drawing, busiest: Edge | None) -> str:
    """At the bottom, a line each: the busiest link, what the bandwidths are, what was left out."""
    words = [f"busiest: {_long(graph, busiest[0])} to {_long(graph, busiest[1])}"] if busiest else []
    if _tiered(graph):
        words.append("bandwidth per link and direction")
    else:
        links = [graph.edges[edge] for edge, _ in drawing.lines]
        known = gigabytes(link["bandwidth_bytes_per_s"] for link in links) if links else "none"
        name = "wires" if graph.graph["inside"] == "graph" else "links between neighbours"
        words.append(f"{name}: {known} per direction")
    if graph.graph["inside"] == "torus":
        each = len(members(graph, "n0", "gpu")) // len(members(graph, "n0", "place"))
        words.append(f"{each} GPU{'s' if each > 1 else ''} on each place; stubs go round")
        if len(graph.graph["torus"]) > 2:
            words[-1] += ", or slanting to the next plane"
    return "\n".join([*words, drawing.left_out] if drawing.left_out else words)
