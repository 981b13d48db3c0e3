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
    joined,
    kernels,
    limit,
    missing,
    outside,
    peak_flops,
)  # fmt: skip
from moesim.cost import Cost, FloatArray
from moesim.profile import DataSheet, Fit, Profile, fit
from moesim.profile.fitting import Kernel

KERNEL: Final = Kernel(scales=(1.5, 4.0, 4.0, 4.0), signal=0.2, noise=0.04)
_HIGH: Final = {
    "m": 64.0,
    "n": 64.0,
    "k": 64.0,
}  # times the table's largest: more tiles at the same efficiency
_LOW: Final = 1.0  # smaller than the table: the launch binds


def gemm(profile: Profile, m: FloatArray | float, n: FloatArray | float, k: FloatArray | float, dtype: str) -> Cost:
    """Seconds of ``[m, k] x [k, n]``; m, n, k broadcast. fp8: the quantisation of [m, k] is included."""
    check_dtype(dtype)
    m, n, k = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (m, n, k)))
    source, fitted = _fitted(profile, dtype)
    for name, asked in (("m", m), ("n", n), ("k", k)):
        high = _HIGH[name] * float(source.measured.table.numbers[name].max())
        problem = outside(f"gemm {name}", asked, _LOW, high, f"{source.measured.gpu.name} gemm")
        if problem is not None:
            raise problem
    compute_s, memory_s = roofline_s(profile.gpu, m, n, k, dtype)
    correction, half_width = fitted.correction(_features(profile.gpu, m, n, k))
    seconds = fitted.base_s(_parts(profile.gpu, m, n, k, dtype)) * np.exp(correction)
    bound_s = np.maximum(compute_s, memory_s)
    return banded(seconds, half_width, bound_s, limit(compute_s, memory_s, seconds), source)


def roofline_s(
    gpu: DataSheet, m: FloatArray, n: FloatArray, k: FloatArray, dtype: str
) -> tuple[FloatArray, FloatArray]:
    """Seconds at the data sheet's peaks: of the arithmetic, of the bytes."""
    compute_s = 2.0 * m * n * k / peak_flops(gpu, dtype)
    moved = m * k * ACTIVATION_BYTES[dtype] + n * k * WEIGHT_BYTES[dtype] + 2.0 * m * n
    return compute_s, moved / gpu.memory_bytes_per_s


def _parts(gpu: DataSheet, m: FloatArray, n: FloatArray, k: FloatArray, dtype: str) -> FloatArray:
    """[..., part] seconds: joined, arithmetic, reading and quantising [m, k], launch."""
    compute_s, memory_s = roofline_s(gpu, m, n, k, dtype)
    quantise_s = m * k * 3.0 / gpu.memory_bytes_per_s
    one = np.full_like(compute_s, 1e-6)
    return np.stack([joined(compute_s, memory_s), compute_s, quantise_s, one], axis=-1)


def _features(gpu: DataSheet, m: FloatArray, n: FloatArray, k: FloatArray) -> FloatArray:
    """[..., feature] logs: m, n, k, tiles of 128 x 128 over the SMs."""
    tiles = np.ceil(m / 128.0) * np.ceil(n / 128.0) / gpu.sms
    return np.log(np.stack([m, n, k, tiles], axis=-1))


def _fitted(profile: Profile, dtype: str) -> tuple[Source, Fit]:
    key = ("gemm", dtype)
    if key not in profile.memo:
        source = _source(profile, dtype)
        rows = source.measured.table.select(dtype=source.dtype, kernel=source.kernel)
        m, n, k = (rows.numbers[name] for name in ("m", "n", "k"))
        gpu = source.measured.gpu
        profile.memo[key] = source, fit(
            _parts(gpu, m, n, k, source.dtype), _features(gpu, m, n, k), rows.time_s, n * 1e6 + k, KERNEL
        )  # fmt: skip
    found: tuple[Source, Fit] = profile.memo[key]
    return found


def _source(profile: Profile, dtype: str) -> Source:
    for number, wanted in enumerate(candidates(dtype)):
        for measured in profile.tables["gemm"]:
            names = kernels(measured, wanted)
            if names:
                error = measured.carried_error + (OTHER_DTYPE_ERROR if number else 0.0)
                return Source(measured=measured, dtype=wanted, kernel=names[0], error=error)
    raise missing(profile, "gemm", dtype)
