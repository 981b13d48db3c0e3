"""The cluster of an all-to-all with the time that each link is busy, and the table of it: mean over the draws.

Algorithms that send a copy straight from its source to its destination load the links so. Of the others, which gather,
forward or deduplicate on the way, the picture shows what the same copies load when each is sent on its own (linear),
and says so.
"""

from pathlib import Path
from typing import Any, Final

from moesim.alltoall import Direction
from moesim.cluster import graph
from moesim.costs.all_to_all import AllToAll, Priced, priced
from moesim.costs.inputs import make
from moesim.errors import MoesimError
from moesim.network import Route
from moesim.units import show_bytes, show_seconds

ROUTES: Final[dict[str, Route]] = {
    "linear": "forwarded", "pairwise": "forwarded", "torus": "forwarded", "deepep_ll": "direct", "tiles": "direct",
}  # fmt: skip
MOST_RANKS: Final = 4096
SIZES_IN: Final = {"torus": (8.0, 6.5), "graph": (8.0, 6.5)}


def draw(given: dict[str, Any], path: Path) -> None:
    """Picture and table of the exchange that these options describe; ``path`` ends in .png or another format."""
    import pandas as pd

    from moesim.plots import edge_loads, figure, save, save_table, topology

    asked = make(AllToAll, given)
    found = priced(asked)
    if found.group.size > MOST_RANKS:
        raise MoesimError(f"--plot of {found.group.size:,} ranks: it draws up to {MOST_RANKS:,}; give fewer nodes")
    traffic = found.traffic(found.chosen)
    pairs = traffic.pairs if asked.direction == "dispatch" else traffic.pairs.turned()
    route = ROUTES.get(found.chosen, "forwarded")
    loads = edge_loads(found.cluster, found.group, pairs, route, copy_bytes=float(traffic.token_bytes))
    drawn, ax = figure(*SIZES_IN.get(found.cluster.fabric.inside, (12.0, 5.5)))
    topology(graph(found.cluster), ax, loads)
    ax.set_title(title(found, asked.direction), fontsize="medium")
    save(drawn, path)
    rows = [{"from": one, "to": other, "busy_s": seconds} for (one, other), seconds in loads.items()]
    save_table(pd.DataFrame(rows), path)


def title(found: Priced, direction: Direction) -> str:
    """``linear dispatch between 32 ranks: 7.53 ms``, and whose loads these are where they are not its own."""
    seconds = show_seconds(float(found.costs[found.chosen].seconds))
    words = (
        f"{found.chosen} {direction} between {found.group.size} ranks, {show_bytes(found.token_bytes)} a row: {seconds}"
    )
    return (
        words if found.chosen in ROUTES else f"{words}\n(links: as they are loaded when every copy is sent on its own)"
    )
