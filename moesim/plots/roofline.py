"""Measured points under the roof that a GPU's data sheet draws."""

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Final

import numpy as np

from moesim.plots.style import COLOURS, SMALL, legend_above, say_empty, tidy
from moesim.units import GB, TB, TFLOPS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Told apart by colour and by shape.
MARKS: Final = tuple(zip(
    (COLOURS[name] for name in ("attention", "all-to-all", "experts", "tp", "imbalance", "dense", "optimizer")),
    "osD^vx+", strict=True,
))  # fmt: skip
ROOF: Final = "0.25"


def roofline(
    frame: "pd.DataFrame", ax: "Axes", *, flops_per_s: Mapping[str, float], bytes_per_s: float
) -> "Axes":  # fmt: skip
    """Achieved arithmetic over arithmetic intensity, both logarithmic, one mark per series.

    Columns: series, flops, bytes (moved at least), seconds. ``flops_per_s`` names the flat roofs by dtype.
    """
    names = list(dict.fromkeys(frame["series"]))
    scale, unit = (TFLOPS, "TFLOP/s") if max(flops_per_s.values()) > 10 * TFLOPS else (TFLOPS / 1e3, "GFLOP/s")
    handles: list[Artist] = []
    for name, (colour, marker) in zip(names, cycle(MARKS), strict=False):
        rows = frame[frame["series"] == name]
        intensity = (rows["flops"] / rows["bytes"]).to_numpy(dtype=float)
        achieved = (rows["flops"] / rows["seconds"]).to_numpy(dtype=float) / scale
        handles += ax.plot(
            intensity, achieved, marker, color=colour, markersize=4.5, alpha=0.7,
            markeredgewidth=1.2 if marker in "+x" else 0, label=f"{name}: {len(rows):,}", rasterized=True,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    if not names:
        say_empty(ax, "measured kernels")
        return ax
    _roofs(ax, (frame["flops"] / frame["bytes"]).to_numpy(dtype=float), flops_per_s, bytes_per_s, (scale, unit))
    ax.set_xlabel("arithmetic intensity (FLOP per byte that must move)")
    ax.set_ylabel(f"achieved ({unit})")
    tidy(ax)
    legend_above(ax, handles)
    return ax


def _roofs(
    ax: "Axes", intensity: np.ndarray, flops_per_s: Mapping[str, float], bytes_per_s: float, shown: tuple[float, str]
) -> None:
    """The slope of the memory and one flat line for each different peak, named at their ends."""
    left, right = (
        float(intensity.min()) / 2.0,
        float(max(intensity.max(), max(flops_per_s.values()) / bytes_per_s)) * 4.0,
    )
    ax.set_xlim(left, right)
    scale, unit = shown
    top = max(flops_per_s.values()) / bytes_per_s
    ax.plot([left, top], [left * bytes_per_s / scale, top * bytes_per_s / scale], color=ROOF, linewidth=1.2)
    middle = left * (top / left) ** 0.25
    speed = f"{bytes_per_s / TB:.3g} TB/s" if bytes_per_s > TB / 10 else f"{bytes_per_s / GB:.3g} GB/s"
    ax.annotate(
        speed, (middle, middle * bytes_per_s / scale), xytext=(-4, 6), textcoords="offset points", ha="right",
        fontsize=SMALL, color=ROOF,
    )  # fmt: skip
    for peak in sorted(set(flops_per_s.values())):
        dtypes = "/".join(name for name, flops in flops_per_s.items() if flops == peak)
        ax.plot([peak / bytes_per_s, right], [peak / scale] * 2, color=ROOF, linewidth=1.2)
        ax.annotate(
            f"{dtypes} {peak / scale:,.0f} {unit}", (right, peak / scale), xytext=(0, 4),
            textcoords="offset points", ha="right", fontsize=SMALL, color=ROOF,
        )  # fmt: skip
    ax.set_ylim(top=max(flops_per_s.values()) / scale * 3.0)
