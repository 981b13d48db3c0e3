"""Every strategy that was priced, and the few that were played."""

from textwrap import fill
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.lines import Line2D

from moesim.plots.style import COLOURS, SMALL, legend_above, say_empty, tidy
from moesim.units import GIB

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

PRICED: Final = {
    "bound": ("bound only (cannot be faster)", "#BBBBBB"),
    "batched": ("estimated by the list schedule", COLOURS["dense"]),
}
PLAYED: Final = COLOURS["attention"]
WINNER: Final = COLOURS["imbalance"]
HEADROOM: Final = 1.35  # the winner's name stands above all points
BEYOND: Final = 1.6  # x-axis ends at this multiple of the memory limit


def candidates(
    frame: "pd.DataFrame", ax: "Axes", *, memory_limit_bytes: float | None = None, winner: str | None = None
) -> "Axes":
    """Speed against memory of every strategy.

    Columns: memory_bytes_per_gpu, tokens_per_s_per_gpu, state ("bound", "batched" or "played"), low and high
    (90 % band of the speed of played ones), label. ``winner`` is a label; by default the fastest played one.
    """
    x = frame["memory_bytes_per_gpu"].to_numpy(dtype=float) / GIB
    y = frame["tokens_per_s_per_gpu"].to_numpy(dtype=float)
    state = frame["state"].to_numpy()
    handles: list[Artist] = []
    for name, (meaning, colour) in PRICED.items():
        chosen = state == name
        if chosen.any():
            size = 18.0 if chosen.sum() < 200 else 4.0
            ax.scatter(x[chosen], y[chosen], s=size, color=colour, linewidths=0, rasterized=True)
            handles.append(_dot(f"{meaning}: {chosen.sum():,}", colour))
    played = frame[state == "played"]
    high = max([*y, *played["high"].astype(float)], default=1.0)
    ax.set_ylim(0.0, high * HEADROOM)
    _memory_limit(ax, x, memory_limit_bytes)
    handles += _played(ax, played, winner)
    ax.set_xlabel("memory per GPU (GiB)")
    ax.set_ylabel("tokens/s per GPU")
    tidy(ax)
    legend_above(ax, handles)
    if not len(frame):
        say_empty(ax, "strategies")
    return ax


def _dot(label: str, colour: str, marker: str = "o", size: float = 5.0) -> Line2D:
    return Line2D([], [], marker=marker, linestyle="none", color=colour, markersize=size, label=label)


def _played(ax: "Axes", played: "pd.DataFrame", winner: str | None) -> "list[Artist]":
    """Points with their bands, and the winner's name above all points; the legend's entries."""
    if not len(played):
        return []
    x = played["memory_bytes_per_gpu"].to_numpy(dtype=float) / GIB
    y = played["tokens_per_s_per_gpu"].to_numpy(dtype=float)
    low, high = played["low"].to_numpy(dtype=float), played["high"].to_numpy(dtype=float)
    ax.vlines(x, low, high, color=PLAYED, linewidth=0.8, zorder=3)
    ax.plot(x, y, "o", markersize=4, color=PLAYED, zorder=3)
    labels = played["label"].astype(str).tolist()
    best = labels.index(winner) if winner in labels else int(np.argmax(y))
    ax.plot([x[best]], [y[best]], "*", markersize=15, color=WINNER, markeredgecolor="white", zorder=5)
    left, right = ax.get_xlim()
    across = (float(x[best]) - left) / (right - left)
    ax.annotate(
        fill(labels[best], 42), (x[best], y[best]), xytext=(min(0.98, max(0.02, across)), 0.93),
        textcoords="axes fraction", fontsize=SMALL, va="top", zorder=6,
        ha="left" if across < 0.3 else "right" if across > 0.7 else "center",
        arrowprops={"arrowstyle": "-", "color": WINNER, "linewidth": 1.0},
        bbox={"facecolor": "white", "edgecolor": WINNER, "alpha": 0.9, "boxstyle": "round,pad=0.3"},
    )  # fmt: skip
    return [
        _dot(f"played (lines: 90 % bands of those ranked): {len(played):,}", PLAYED),
        _dot("recommended", WINNER, marker="*", size=9.0),
    ]


def _memory_limit(ax: "Axes", x: "np.ndarray", memory_limit_bytes: float | None) -> None:
    """The x-axis from zero, or where all need much from a little before the least; a long tail of strategies that do
    not fit is counted, not drawn."""
    right = max(x, default=1.0) * 1.05
    if memory_limit_bytes is not None:
        limit = memory_limit_bytes / GIB
        beyond = int((x > BEYOND * limit).sum())
        right = BEYOND * limit if beyond else max(right, limit * 1.1)
        ax.axvline(limit, color="0.3", linestyle="--", linewidth=1.0, zorder=2)
        _note(ax, limit, f"limit {limit:.0f} GiB ")
        if beyond:
            _note(ax, right, f"{beyond:,} need more →")
    left = float(min(x, default=0.0))
    ax.set_xlim(left - 0.05 * (right - left) if left > 0.5 * right else 0.0, right)


def _note(ax: "Axes", x: float, text: str) -> None:
    ax.text(x, 0.99, text, ha="right", va="top", fontsize=SMALL, color="0.3", transform=ax.get_xaxis_transform())
