"""Seconds of a dense GEMM: [m, k] x [k, n]."""

from typing import Final

import numpy as np

from moesim.compute.common import (
    ACTIVATION_BYTES,
    OTHER_DTYPE_ERROR,
    WEIGHT_BYTES,
    Source,
    banded,
    candidates,
    check_dtype,
    check_range,
    kernels,
    limit,
    missing,
    peak_flops,
)  # fmt: skip
from moesim.cost import Cost, FloatArray
from moesim.profile import DataSheet, Fit, Profile, fit
from moesim.profile.fit import Kernel

KERNEL: Final = Kernel(scales=(2.0, 2.0, 2.0), signal=0.4, noise=0.05, band=1.64)
FLOOR_S: Final = 3e-6
_REACH: Final = {
    "m": (0.0, 64.0),
    "n": (0.0, 32.0),
    "k": (1 / 64, 16.0),
}  # times the table's smallest, largest


def gemm(
    profile: Profile, m: FloatArray | float, n: FloatArray | float, k: FloatArray | float, dtype: str
) -> Cost:
    """Seconds of ``[m, k] x [k, n]``; m, n, k broadcast. Covers the quantisation of [m, k] where dtype is fp8."""
    check_dtype(dtype)
    m, n, k = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (m, n, k)))
    source, fitted = _fitted(profile, dtype)
    for name, asked in (("m", m), ("n", n), ("k", k)):
        column = source.measured.table.numbers[name]
        low, high = _REACH[name]
        check_range(f"gemm {name}", asked, low * column.min(), high * column.max(), source.measured.source)
    mean, deviation = fitted.at(_features(m, n, k))
    compute_s, memory_s = roofline_s(profile.gpu, m, n, k, dtype)
    seconds = (_join(compute_s, memory_s) + FLOOR_S) * np.exp(mean)
    return banded(
        seconds, KERNEL.band * deviation, np.maximum(compute_s, memory_s),
        limit(compute_s, memory_s, FLOOR_S), source,
    )  # fmt: skip


def roofline_s(
    gpu: DataSheet, m: FloatArray, n: FloatArray, k: FloatArray, dtype: str
) -> tuple[FloatArray, FloatArray]:
    """Seconds at the data sheet's peaks: of the arithmetic, of the bytes."""
    compute_s = 2.0 * m * n * k / peak_flops(gpu, dtype)
    moved = m * k * ACTIVATION_BYTES[dtype] + n * k * WEIGHT_BYTES[dtype] + 2.0 * m * n
    return compute_s, moved / gpu.memory_bytes_per_s


def _join(compute_s: FloatArray, memory_s: FloatArray) -> FloatArray:
    return np.asarray((compute_s**4 + memory_s**4) ** 0.25)


def _features(m: FloatArray, n: FloatArray, k: FloatArray) -> FloatArray:
    return np.log(np.stack([m, n, k], axis=-1))


def _fitted(profile: Profile, dtype: str) -> tuple[Source, Fit]:
    key = ("gemm", dtype)
    if key not in profile.memo:
        source = _source(profile, dtype)
        rows = source.measured.table.select(dtype=source.dtype, kernel=source.kernel)
        shape = rows.numbers["m"], rows.numbers["n"], rows.numbers["k"]
        base = _join(*roofline_s(source.measured.gpu, *shape, source.dtype)) + FLOOR_S
        profile.memo[key] = source, fit(_features(*shape), np.log(rows.time_s / base), KERNEL)
    found: tuple[Source, Fit] = profile.memo[key]
    return found


def _source(profile: Profile, dtype: str) -> Source:
    for extra, wanted in zip((0.0, OTHER_DTYPE_ERROR, OTHER_DTYPE_ERROR), candidates(dtype), strict=True):
        for measured in profile.tables["gemm"]:
            names = kernels(measured, wanted)
            if names:
                return Source(
                    measured=measured, dtype=wanted, kernel=names[0], error=measured.carried_error + extra
                )
    raise missing(profile, "gemm", dtype)
