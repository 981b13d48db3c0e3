"""Where the seconds of a step go."""

from textwrap import fill
from typing import TYPE_CHECKING

from moesim.plots.style import (
    COLOURS,
    SMALL,
    label_share,
    legend_above,
    readable_on,
    say_empty,
    swatches,
    tidy,
    time_unit,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def breakdown(frame: "pd.DataFrame", ax: "Axes") -> "Axes":
    """Stacked bars, one per row of ``frame``: column "label" names it, the columns named like a family
    (``COLOURS``) hold its seconds. A family that the first bar has no room to
    name stands above."""
    families = [family for family in COLOURS if family in frame and frame[family].fillna(0.0).sum() > 0]
    seconds = frame[families].fillna(0.0).to_numpy(dtype=float)  # [row, family]
    totals = seconds.sum(axis=1)
    whole_s = float(totals.max()) * 1.1 if families else 1.0
    unit, factor = time_unit(whole_s)
    unnamed = []
    for column, family in enumerate(families):
        left, width = seconds[:, :column].sum(axis=1) * factor, seconds[:, column] * factor
        ax.barh(
            range(len(frame)), width, left=left, height=0.75, color=COLOURS[family], edgecolor="white",
            linewidth=0.5,
        )  # fmt: skip
        named = [_label(ax, row, left[row], width[row], whole_s * factor, family) for row in range(len(frame))]
        if not named[0]:
            unnamed.append((family, COLOURS[family]))
    for row, total in enumerate(totals if families else []):
        text = f" {total * factor:.3g} {unit}"
        ax.text(total * factor, row, text, ha="left", va="center", fontsize=SMALL, fontweight="bold")
    ax.set_yticks(range(len(frame)), [fill(str(label), 38) for label in frame["label"]])
    ax.set_ylim(max(1, len(frame)) - 0.5, -0.5)
    ax.set_xlim(0.0, whole_s * factor)
    ax.set_xlabel(f"time of a step ({unit})")
    ax.set_ylabel("strategy")
    tidy(ax)
    legend_above(ax, swatches(unnamed))
    if not families:
        say_empty(ax, "strategies")
    return ax


def _label(ax: "Axes", row: int, left: float, width: float, whole: float, family: str) -> bool:
    """Write what fits into a bar: name and number, the number, nothing. Whether the name did."""
    number = f"{width:.3g}"
    fits = [text for text in (f"{family}\n{number}", number) if label_share(ax, text) <= width / whole]
    if fits and width > 0:
        ax.text(
            left + width / 2, row, fits[0], ha="center", va="center", fontsize=SMALL - 1,
            color=readable_on(COLOURS[family]), linespacing=1.0,
        )  # fmt: skip
    return len(fits) == 2
