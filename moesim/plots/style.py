"""How every plot looks, and how it is saved."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from moesim.errors import MoesimError
from moesim.timeline import write_whole

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# One colour per family of time, everywhere. The eight of Okabe and Ito (jfly.uni-koeln.de/color) for what
# is large, shades of them for what is small: compute blue and green, communication orange to violet.
COLOURS: Final = {
    "attention": "#0072B2",
    "mamba": "#0A2A9E",
    "dense": "#56B4E9",
    "head": "#14213D",
    "experts": "#009E73",
    "imbalance": "#D55E00",
    "host": "#8C6D31",
    "gate": "#F0E442",
    "recompute": "#9AE1B0",
    "all-to-all": "#E69F00",
    "tp": "#CC79A7",
    "cp": "#88537D",
    "etp": "#DAB9DF",
    "dp": "#604382",
    "pp": "#9A7AE4",
    "optimizer": "#4D4D4D",
    "bubble": "#DDDDDD",
}
FORMATS: Final = (".png", ".svg", ".pdf")
SMALL: Final = 8.0  # points
CHARACTER: Final = 0.56  # width of a character over the size of the font
DPI: Final = 150


def figure(width_in: float = 10.0, height_in: float = 5.0, *, rows: int | None = None) -> "tuple[Figure, Axes]":
    """An empty figure, apart from pyplot's global state; as high as ``rows`` of bars need, if given."""
    if rows is not None:
        height_in = min(14.0, 1.3 + 0.5 * max(1, rows))
    drawn = Figure(figsize=(width_in, height_in), layout="constrained")
    return drawn, drawn.add_subplot()


def save(drawn: Figure, path: Path) -> None:
    """Write the figure, whole or not at all; the ending of ``path`` says in which format."""
    if path.suffix not in FORMATS:
        raise MoesimError(f"plot file {path}: end its name in one of {', '.join(FORMATS)}")
    write_whole(path, lambda partial: drawn.savefig(partial, format=path.suffix[1:], dpi=DPI))


def save_table(frame: "pd.DataFrame", path: Path) -> Path:
    """Write the plot's table as CSV beside it, and say where."""
    table = path.with_suffix(".csv")
    write_whole(table, lambda partial: frame.to_csv(partial, index=False))
    return table


def readable_on(colour: str) -> str:
    """Black or white, whichever can be read on ``colour``."""
    red, green, blue = to_rgb(colour)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "black"


def tidy(ax: "Axes") -> None:
    """Only the axes that carry numbers."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL)


def legend_above(ax: "Axes", handles: "Sequence[Artist]") -> None:
    """Names above the data, where they cover nothing, in as few rows as the axes are wide."""
    names = [str(handle.get_label()) for handle in handles]
    rows = 1
    while rows < len(names) and _columns_width(ax, names, rows) > 1.0:
        rows += 1
    if names:
        ax.legend(
            handles=list(handles), loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=-(-len(names) // rows),
            fontsize=SMALL, frameon=False, borderaxespad=0.2, handlelength=1.0, columnspacing=1.2,
        )  # fmt: skip


def _columns_width(ax: "Axes", names: list[str], rows: int) -> float:
    """Share of the axes that a legend filled column by column takes."""
    columns = [names[start : start + rows] for start in range(0, len(names), rows)]
    return sum(label_share(ax, "M" * 4 + max(column, key=len)) for column in columns)


def swatches(entries: Iterable[tuple[str, str]]) -> list[Patch]:
    """Legend entries of (name, colour)."""
    return [Patch(facecolor=colour, label=name) for name, colour in entries]


def label_share(ax: "Axes", text: str) -> float:
    """Share of the axes' width that a small label needs, with a character of room."""
    points = ax.bbox.width / ax.figure.dpi * 72.0
    return CHARACTER * SMALL * (1 + max((len(line) for line in text.splitlines()), default=0)) / points


def say_empty(ax: "Axes", what: str) -> None:
    """What stands in an empty plot."""
    ax.text(0.5, 0.5, f"no {what} to show", ha="center", va="center", transform=ax.transAxes, color="0.4")


def time_unit(longest_s: float) -> tuple[str, float]:
    """Unit and factor in which ``longest_s`` is a number below 1000."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if longest_s * factor >= 1.0:
            return unit, factor
    return "µs", 1e6
