"""Measured points under the roof that a GPU's data sheet draws."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from moesim.plots.style import COLOURS, SMALL, legend_above, say_empty, tidy
from moesim.units import TFLOPS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Told apart by colour and by shape.
MARKS: Final = tuple(zip(
    (COLOURS[name] for name in ("attention", "all-to-all", "experts", "tp", "imbalance", "dense", "optimizer")),
    "osD^vP*", strict=True,
))  # fmt: skip
ROOF: Final = "0.25"


def roofline(
    frame: "pd.DataFrame", ax: "Axes", *, flops_per_s: Mapping[str, float], bytes_per_s: float
) -> "Axes":  # fmt: skip
    """Achieved arithmetic over arithmetic intensity, both logarithmic, one mark per series.

    Columns: series, flops, bytes (moved at least), seconds. ``flops_per_s`` names the flat roofs by dtype.
    """
    names = list(dict.fromkeys(frame["series"]))
    handles: list[Artist] = []
    for name, (colour, marker) in zip(names, MARKS, strict=False):
        rows = frame[frame["series"] == name]
        intensity = (rows["flops"] / rows["bytes"]).to_numpy(dtype=float)
        achieved = (rows["flops"] / rows["seconds"]).to_numpy(dtype=float) / TFLOPS
        handles += ax.plot(
            intensity, achieved, marker, color=colour, markersize=3.5, alpha=0.6, markeredgewidth=0,
            label=f"{name}: {len(rows):,}", rasterized=True,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    if not names:
        say_empty(ax, "measured kernels")
        return ax
    _roofs(ax, (frame["flops"] / frame["bytes"]).to_numpy(dtype=float), flops_per_s, bytes_per_s)
    ax.set_xlabel("arithmetic intensity (FLOP per byte that must move)")
    ax.set_ylabel("achieved (TFLOP/s)")
    tidy(ax)
    legend_above(ax, handles)
    return ax


def _roofs(ax: "Axes", intensity: np.ndarray, flops_per_s: Mapping[str, float], bytes_per_s: float) -> None:
    """The slope of the memory and one flat line for each different peak, named at their ends."""
    left, right = (
        float(intensity.min()) / 2.0,
        float(max(intensity.max(), max(flops_per_s.values()) / bytes_per_s)) * 4.0,
    )
    ax.set_xlim(left, right)
    top = max(flops_per_s.values()) / bytes_per_s
    ax.plot([left, top], [left * bytes_per_s / TFLOPS, top * bytes_per_s / TFLOPS], color=ROOF, linewidth=1.2)
    middle = left * (top / left) ** 0.25
    ax.annotate(
        f"{bytes_per_s / 1e12:.3g} TB/s", (middle, middle * bytes_per_s / TFLOPS), xytext=(-4, 6),
        textcoords="offset points", ha="right", fontsize=SMALL, color=ROOF,
    )  # fmt: skip
    for peak in sorted(set(flops_per_s.values())):
        dtypes = "/".join(name for name, flops in flops_per_s.items() if flops == peak)
        ax.plot([peak / bytes_per_s, right], [peak / TFLOPS] * 2, color=ROOF, linewidth=1.2)
        ax.annotate(
            f"{dtypes} {peak / TFLOPS:,.0f} TFLOP/s", (right, peak / TFLOPS), xytext=(0, 4),
            textcoords="offset points", ha="right", fontsize=SMALL, color=ROOF,
        )  # fmt: skip
    ax.set_ylim(top=max(flops_per_s.values()) / TFLOPS * 3.0)
