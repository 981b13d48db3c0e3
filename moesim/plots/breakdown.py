"""Where the seconds of a step go."""

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from moesim.plots.style import COLOURS, SMALL, legend_above, readable_on, say_empty, tidy, time_unit

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

WIDE = 0.045  # share of the axis that a number needs


def breakdown(frame: "pd.DataFrame", ax: "Axes") -> "Axes":
    """Stacked bars, one per row of ``frame``: column "label" names it, the columns named like a family
    (``COLOURS``) hold its seconds."""
    families = [family for family in COLOURS if family in frame and frame[family].fillna(0.0).sum() > 0]
    seconds = frame[families].fillna(0.0).to_numpy(dtype=float)  # [row, family]
    totals = seconds.sum(axis=1)
    whole_s = float(totals.max()) if totals.size and families else 1.0
    unit, factor = time_unit(whole_s)
    rows = np.arange(len(frame))
    for column, family in enumerate(families):
        left = seconds[:, :column].sum(axis=1) * factor
        width = seconds[:, column] * factor
        ax.barh(rows, width, left=left, height=0.7, color=COLOURS[family], edgecolor="white", linewidth=0.5)
        for row in rows[width >= WIDE * whole_s * factor]:
            ax.text(
                left[row] + width[row] / 2, row, f"{width[row]:.3g}", ha="center", va="center",
                fontsize=SMALL - 1, color=readable_on(COLOURS[family]),
            )  # fmt: skip
    for row in rows if families else []:
        text = f" {totals[row] * factor:.3g} {unit}"
        ax.text(totals[row] * factor, row, text, ha="left", va="center", fontsize=SMALL, fontweight="bold")
    ax.set_yticks(rows, [fill(str(label), 38) for label in frame["label"]] if len(frame) else [])
    ax.set_ylim(max(1, len(frame)) - 0.5, -0.5)
    ax.set_xlim(0.0, whole_s * factor * 1.1)
    ax.set_xlabel(f"time of a step ({unit})")
    ax.set_ylabel("strategy")
    tidy(ax)
    legend_above(ax, [(family, COLOURS[family]) for family in families])
    if not families:
        say_empty(ax, "strategies")
    return ax
