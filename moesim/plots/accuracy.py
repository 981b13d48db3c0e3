"""Predicted against measured: on the diagonal is right."""

from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from moesim.plots.style import COLOURS, SMALL, say_empty, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from moesim.cost import FloatArray

NEAR: Final = 0.2  # half-width of the shaded corridor
MOST_PANELS: Final = 16
SHORT: Final = 200.0  # an axis that spans less has no two powers of ten to name
APART: Final = 2.0  # an axis whose figures span less has one label
TITLE: Final = 7.0  # points: the longest kernel names fit above their panel
_ACROSS: Final = 4
_ROOM: Final = 1.6  # beyond the smallest and largest


def accuracy(frame: "pd.DataFrame", ax: "Axes") -> "Axes":
    """Predicted over measured, both logarithmic; shaded: within 20 %. Columns: measured, predicted, low, high, unit.

    Filled where the measurement lies inside the predicted 90 % band, hollow where it does not.
    """
    if not len(frame):
        say_empty(ax, "judged figures")
        return ax
    measured, predicted, low, high = (
        frame[name].to_numpy(dtype=float) for name in ("measured", "predicted", "low", "high")
    )
    inside = (low <= measured) & (measured <= high)
    ends = np.array([min(measured.min(), predicted.min()) / _ROOM, max(measured.max(), predicted.max()) * _ROOM])
    ax.fill_between(ends, ends * (1 - NEAR), ends * (1 + NEAR), color="0.9", linewidth=0)
    ax.plot(ends, ends, color="0.5", linewidth=0.8)
    colour = COLOURS["attention"]
    ax.plot(measured[inside], predicted[inside], "o", markersize=3, color=colour, alpha=0.6, markeredgewidth=0)
    ax.plot(
        measured[~inside], predicted[~inside], "o", markersize=4, markerfacecolor="none",
        markeredgecolor=COLOURS["imbalance"], markeredgewidth=0.9,
    )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    unit = str(frame["unit"].iloc[0])
    ax.set_xlabel(f"measured ({unit})", fontsize=SMALL)
    ax.set_ylabel(f"predicted ({unit})", fontsize=SMALL)
    tidy(ax)
    for axis in (ax.xaxis, ax.yaxis):
        _few_ticks(axis, ends)
    return ax


def _few_ticks(axis: "Axis", ends: "FloatArray") -> None:
    """Powers of ten; on a short axis three plain numbers, so that no two labels overlap."""
    axis.set_minor_formatter(NullFormatter())
    if ends[1] / ends[0] < SHORT:
        low, high = ends[0] * _ROOM, ends[1] / _ROOM
        wanted = np.geomspace(low, high, 3) if high > APART * low else [np.sqrt(low * high)]
        ticks = [float(f"{tick:.2g}") for tick in wanted]
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.{1 if value < 10 else 0}f}"))
        axis.set_minor_locator(NullLocator())


def accuracy_panels(frame: "pd.DataFrame") -> Figure:
    """One panel for each group of judged figures, the largest first; column ``group`` names them."""
    counts = frame["group"].value_counts()
    names = [str(name) for name in counts.index[:MOST_PANELS]] or [""]
    across = min(_ACROSS, len(names))
    down = -(-len(names) // across)
    drawn = Figure(figsize=(3.2 * across, 3.1 * down + 0.5), layout="constrained")
    panels = list(drawn.subplots(down, across, squeeze=False).flat)
    for ax, name in zip(panels, names, strict=False):
        rows = frame[frame["group"] == name]
        accuracy(rows, ax)
        if len(rows):
            median = float(np.median(np.abs(rows["predicted"] / rows["measured"] - 1.0)))
            counted = f"{len(rows):,} {'figures' if len(rows) > 1 else 'figure'}"
            ax.set_title(f"{_two_lines(name)}\n{counted}, median error {median:.1%}", fontsize=TITLE)
    for ax in panels[len(names) :]:
        ax.remove()
    left_out = len(counts.index[MOST_PANELS:])
    more = f"; not drawn, fewest figures: {left_out} groups in the table beside" if left_out else ""
    drawn.suptitle(
        f"shaded: within {NEAR:.0%}; hollow: the measurement lies outside the predicted 90 % band{more}",
        fontsize=SMALL,
    )  # fmt: skip
    return drawn


def _two_lines(name: str) -> str:
    """A long name broken at the space nearest to its middle."""
    if len(name) <= 34:
        return name
    spaces = [i for i, character in enumerate(name) if character == " "] or [len(name) // 2]
    middle = min(spaces, key=lambda i: abs(i - len(name) // 2))
    return f"{name[:middle]}\n{name[middle:].strip()}"
