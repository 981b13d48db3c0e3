"""A long step on a short axis: its begin and its end to scale, the middle left out and said so."""

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moesim.plots.style import SMALL
from moesim.units import show_seconds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MOST_PASSES: Final = 200  # of one stage that can still be told apart on a page
GAP: Final = 0.06  # share of the axis
TALL_IN: Final = 4.0  # inches; a lower figure has no room for the whole sentence


class Break(NamedTuple):
    """Seconds between ``left_s`` and ``right_s`` shrink to ``gap_s``."""

    left_s: float
    right_s: float
    gap_s: float
    end_s: float

    def place(self, seconds: "np.ndarray") -> "np.ndarray":
        """Where on the broken axis a time stands."""
        after = seconds - (self.right_s - self.left_s) + self.gap_s
        inside = np.clip(seconds, self.left_s, self.left_s + self.gap_s)
        return np.where(seconds <= self.left_s, seconds, np.where(seconds >= self.right_s, after, inside))


def break_of(shown: "pd.DataFrame") -> Break | None:
    """Where to break the axis, or None if the stages have few enough passes."""
    passes = shown[shown["stream"] == "stage"]
    most = int(passes.groupby("rank").size().max()) if len(passes) else 0
    if most <= MOST_PASSES:
        return None
    end_s = float(shown["end_s"].max())
    side_s = end_s * MOST_PASSES / most / 2
    return Break(side_s, end_s - side_s, 2 * side_s * GAP, end_s)


def squeezed(shown: "pd.DataFrame", cut: Break) -> "pd.DataFrame":
    """Spans at their places on the broken axis; what lies in the gap is gone, what reaches into it is cut."""
    start_s, end_s = shown["start_s"].to_numpy(), shown["end_s"].to_numpy()
    early, late = start_s < cut.left_s, end_s > cut.right_s
    start_s = np.where(early, start_s, np.maximum(start_s, cut.right_s))
    end_s = np.where(early, np.minimum(end_s, cut.left_s), end_s)
    moved = shown.assign(start_s=cut.place(start_s), end_s=cut.place(end_s))
    return moved[early | late]


def mark_break(ax: "Axes", cut: Break, factor: float) -> None:
    """The gap in grey with what it hides, and ticks that tell the true time."""
    from_s, to_s = cut.left_s, cut.left_s + cut.gap_s
    ax.axvspan(from_s * factor, to_s * factor, color="0.93", zorder=0, linewidth=0)
    tall = isinstance(ax.figure, Figure) and ax.figure.get_figheight() > TALL_IN
    hidden = show_seconds(cut.right_s - cut.left_s) + (" of the same not drawn" if tall else "\nleft out")
    ax.text(
        (from_s + to_s) / 2 * factor, 0.5, hidden, rotation=90, ha="center", va="center", fontsize=SMALL,
        color="0.3", transform=ax.get_xaxis_transform(),
    )  # fmt: skip
    sides = ((0.0, cut.left_s), (cut.right_s, cut.end_s))
    ticks = [t for low, high in sides for t in _ticks(low * factor, high * factor)]
    ax.set_xticks(cut.place(np.array(ticks) / factor) * factor, [f"{tick:g}" for tick in ticks])


def _ticks(low: float, high: float) -> list[float]:
    return [round(float(t), 9) for t in MaxNLocator(4).tick_values(low, high) if low <= t <= high]
