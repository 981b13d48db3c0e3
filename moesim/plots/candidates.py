"""Every strategy that was priced, and the few that were played."""

from textwrap import fill
from typing import TYPE_CHECKING, Final

import numpy as np

from moesim.plots.style import COLOURS, SMALL, say_empty, tidy
from moesim.units import GIB

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PRICED: Final = {
    "bound": ("bound only (cannot be faster)", "#BBBBBB"),
    "batched": ("estimated by the list schedule", COLOURS["dense"]),
}
PLAYED: Final = COLOURS["attention"]
WINNER: Final = COLOURS["imbalance"]
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
    for name, (meaning, colour) in PRICED.items():
        chosen = state == name
        if chosen.any():
            size = 18.0 if chosen.sum() < 200 else 4.0
            ax.scatter(
                x[chosen], y[chosen], s=size, color=colour, linewidths=0, rasterized=True,
                label=f"{meaning}: {chosen.sum():,}",
            )  # fmt: skip
    _limits(ax, x, y, memory_limit_bytes)
    _played(ax, frame[state == "played"], winner)
    ax.set_xlabel("memory per GPU (GiB)")
    ax.set_ylabel("tokens/s per GPU")
    tidy(ax)
    if len(frame):
        ax.legend(
            loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, fontsize=SMALL, frameon=False,
            borderaxespad=0.2, handletextpad=0.4, columnspacing=1.2, markerscale=1.5,
        )  # fmt: skip
    else:
        say_empty(ax, "strategies")
    return ax


def _played(ax: "Axes", played: "pd.DataFrame", winner: str | None) -> None:
    if not len(played):
        return
    x = played["memory_bytes_per_gpu"].to_numpy(dtype=float) / GIB
    y = played["tokens_per_s_per_gpu"].to_numpy(dtype=float)
    band = np.abs(np.stack([y - played["low"].to_numpy(float), played["high"].to_numpy(float) - y]))
    ax.errorbar(
        x, y, yerr=band, fmt="o", markersize=4, color=PLAYED, elinewidth=0.8, zorder=3,
        label=f"played, with 90 % band: {len(played):,}",
    )  # fmt: skip
    labels = played["label"].astype(str).tolist()
    best = labels.index(winner) if winner in labels else int(np.argmax(y))
    ax.plot(
        [x[best]], [y[best]], marker="*", markersize=15, color=WINNER, markeredgecolor="white",
        linestyle="none", zorder=5, label="recommended",
    )  # fmt: skip
    _name_winner(ax, float(x[best]), float(y[best]), labels[best])


def _name_winner(ax: "Axes", x: float, y: float, label: str) -> None:
    """Beside the star, on the side of the middle."""
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    aside = 1.0 if x < (left + right) / 2 else -1.0
    above = 1.0 if y < (bottom + top) / 2 else -1.0
    ax.annotate(
        fill(label, 34), (x, y), xytext=(24 * aside, 30 * above), textcoords="offset points", fontsize=SMALL,
        ha="left" if aside > 0 else "right", va="center", zorder=6,
        arrowprops={"arrowstyle": "-", "color": WINNER, "linewidth": 1.0},
        bbox={"facecolor": "white", "edgecolor": WINNER, "alpha": 0.9, "boxstyle": "round,pad=0.3"},
    )  # fmt: skip


def _limits(ax: "Axes", x: "np.ndarray", y: "np.ndarray", memory_limit_bytes: float | None) -> None:
    """Axes from zero; a long tail of strategies that do not fit is counted, not drawn."""
    right, top = max(x, default=1.0) * 1.05, max(y, default=1.0) * 1.1
    if memory_limit_bytes is not None:
        limit = memory_limit_bytes / GIB
        beyond = int((x > BEYOND * limit).sum())
        right = BEYOND * limit if beyond else max(right, limit * 1.1)
        ax.axvline(limit, color="0.3", linestyle="--", linewidth=1.0, zorder=2)
        ax.text(
            limit, top * 0.99, f" limit {limit:.0f} GiB", ha="left", va="top", fontsize=SMALL, color="0.3"
        )
        if beyond:
            ax.text(
                right, top * 0.5, f"{beyond:,} need more →", ha="right", va="center", fontsize=SMALL,
                color="0.3", rotation=90,
            )  # fmt: skip
    ax.set_xlim(0.0, right)
    ax.set_ylim(0.0, top)
