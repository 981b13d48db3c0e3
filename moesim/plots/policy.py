"""Seconds of an expert layer over the load: what a policy takes, and what static choices take."""

from typing import TYPE_CHECKING

from moesim.plots.style import SMALL, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SHADES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#604382", "#9AE1B0")


def policy(frame: "pd.DataFrame", ax: "Axes") -> "Axes":
    """Columns capacity_factor, choice ("policy" or the best static choice of an r), milliseconds, run."""
    for number, (choice, rows) in enumerate(frame[frame["choice"] != "policy"].groupby("choice", sort=True)):
        ax.plot(
            rows["capacity_factor"], rows["milliseconds"], marker="o", markersize=3, label=choice,
            color=SHADES[number % len(SHADES)], linewidth=1.2,
        )  # fmt: skip
    chosen = frame[frame["choice"] == "policy"]
    ax.plot(chosen["capacity_factor"], chosen["milliseconds"], color="black", linewidth=4, alpha=0.25, label="policy")
    ax.set(xlabel="capacity factor", ylabel="expert layer (ms)")
    ax.set_ylim(bottom=0.0)
    tidy(ax)
    ax.legend(frameon=False, fontsize=SMALL, title="static: best of each r", title_fontsize=SMALL)
    return ax
