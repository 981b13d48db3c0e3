"""What the kernels of a profile compute and move, for a roofline plot.

Only balanced loads: their arithmetic intensity is that of every expert alike.
"""

from typing import TYPE_CHECKING, Final

import numpy as np

from moesim.compute.common import ACTIVATION_BYTES, WEIGHT_BYTES
from moesim.profile import Measured, Profile

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: Final = ("series", "flops", "bytes", "seconds")


def roofline_points(profile: Profile) -> "pd.DataFrame":
    """The profile's own expert layers and GEMMs: series, flops, bytes that must move, seconds."""
    import pandas as pd

    found = [
        frame
        for operation, read in (("expert_ffn", _experts), ("gemm", _gemms))
        for measured in profile.tables[operation][:1]
        if not measured.carried_error
        for frame in read(measured)
    ]
    return (
        pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["series", "flops", "bytes", "seconds"])
    )


def _experts(measured: Measured) -> "list[pd.DataFrame]":
    table = measured.table.select(load="balanced")
    n = table.numbers
    matrices, width, local = n["gated"] + 2.0, n["ffn"] / n["tp"], n["experts"] / n["ep"]
    copies = np.maximum(n["tokens"] * n["top_k"] / n["ep"], 1.0)
    flops = 2.0 * matrices * copies * n["hidden"] * width
    weights = np.minimum(local, copies) * matrices * n["hidden"] * width
    values = copies * 2.0 * n["hidden"]
    return _by_series("experts", table.text["kernel"], table.text["dtype"], flops, weights, values, table.time_s)


def _gemms(measured: Measured) -> "list[pd.DataFrame]":
    table = measured.table
    m, n, k = (table.numbers[name] for name in ("m", "n", "k"))
    text = table.text
    return _by_series("gemm", text["kernel"], text["dtype"], 2.0 * m * n * k, n * k, m * (n + k), table.time_s)


def _by_series(
    what: str, kernel: np.ndarray, dtype: np.ndarray, flops: np.ndarray, weights: np.ndarray, values: np.ndarray,
    seconds: np.ndarray,
) -> "list[pd.DataFrame]":  # fmt: skip
    """One frame per dtype of the kernel with the most rows."""
    import pandas as pd

    frames = []
    for name in sorted(set(dtype.tolist())):
        kernels, counts = np.unique(kernel[dtype == name], return_counts=True)
        keep = (dtype == name) & (kernel == kernels[counts.argmax()])
        moved = weights[keep] * WEIGHT_BYTES[name] + values[keep] * ACTIVATION_BYTES[name]
        frame = {"flops": flops[keep], "bytes": moved, "seconds": seconds[keep]}
        frames.append(pd.DataFrame({"series": f"{what} {kernels[counts.argmax()]} {name}", **frame}))
    return frames
