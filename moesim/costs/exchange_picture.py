"""The cluster of an all-to-all with the time that each link is busy, and the table of it: mean over the draws.

Algorithms that send a copy straight from its source to its destination load the links so; 2dh and rail do where linear
goes by the rails too. Of the others, which gather, forward or deduplicate on the way, no load is known link by link:
the picture shows that of a linear exchange of the same copies, says so, and gives no time.
"""

from pathlib import Path
from typing import Any, Final

from moesim.alltoall import Direction
from moesim.cluster import Cluster, graph
from moesim.costs.all_to_all import AllToAll, Priced, priced
from moesim.costs.inputs import make
from moesim.errors import MoesimError
from moesim.network import Route, forwards
from moesim.units import show_bytes, show_seconds

ROUTES: Final[dict[str, Route]] = {
    "linear": "forwarded", "pairwise": "forwarded", "torus": "forwarded", "deepep_ll": "direct", "tiles": "direct",
}  # fmt: skip
RAILS: Final = ("2dh", "rail")
COLUMNS: Final = ("from", "to", "busy_s")
MOST_RANKS: Final = 4096
SIZES_IN: Final = {"torus": (8.0, 6.5), "graph": (8.0, 6.5)}


def draw(given: dict[str, Any], path: Path) -> None:
    """Picture and table of the exchange that these options describe; ``path`` ends in .png or another format."""
    import pandas as pd

    from moesim.plots import edge_loads, figure, save, save_table, topology

    _check_table(path.with_suffix(".csv"))
    asked = make(AllToAll, given)
    found = priced(asked)
    if found.group.size > MOST_RANKS:
        raise MoesimError(f"--plot of {found.group.size:,} ranks: it draws up to {MOST_RANKS:,}; give fewer nodes")
    traffic = found.traffic(found.chosen)
    pairs = traffic.pairs if asked.direction == "dispatch" else traffic.pairs.turned()
    route = own_route(found.cluster, found.chosen) or "forwarded"
    loads = edge_loads(found.cluster, found.group, pairs, route, copy_bytes=float(traffic.token_bytes))
    drawn, ax = figure(*SIZES_IN.get(found.cluster.fabric.inside, (12.0, 5.5)))
    topology(graph(found.cluster), ax, loads)
    ax.set_title(title(found, asked.direction), fontsize="medium")
    save(drawn, path)
    rows = [(one, other, seconds) for (one, other), seconds in loads.items()]
    save_table(pd.DataFrame(rows, columns=COLUMNS), path)


def own_route(cluster: Cluster, algorithm: str) -> Route | None:
    """How the algorithm's copies go, if each goes on its own."""
    if algorithm in RAILS and forwards(cluster, "forwarded"):
        return "forwarded"
    return ROUTES.get(algorithm)


def title(found: Priced, direction: Direction) -> str:
    """``linear dispatch between 32 ranks: 7.53 ms``; without the time where the loads are not the algorithm's own."""
    words = f"{direction} between {found.group.size} ranks, {show_bytes(found.token_bytes)} a row"
    if own_route(found.cluster, found.chosen) is None:
        return f"{words}: every copy sent on its own (linear)\n(what {found.chosen} loads is not known link by link)"
    return f"{found.chosen} {words}: {show_seconds(float(found.costs[found.chosen].seconds))}"


def _check_table(path: Path) -> None:
    """Refuse to write over a file that is no table of links."""
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            ours = file.readline().strip() == ",".join(COLUMNS)
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise MoesimError(f"--plot would write its table over {path}, which is something else: give another name")
