"""Seconds of one of moesim's own kernels by its name, where this GPU has been calibrated.

    seconds = closed form (arithmetic, bytes, launch)  x  a correction learned from kernels.csv

The rows say what each call computes and moves, so one method serves the router, the permutation, the
gradients and the baselines; nothing is carried over to another GPU.
"""

from typing import Final, NamedTuple

import numpy as np

from moesim.compute.common import Source as Rows
from moesim.compute.common import banded, joined, limit, outside, peak_flops
from moesim.cost import Cost, FloatArray
from moesim.errors import MoesimError, choice
from moesim.profile import DataSheet, Fit, Measured, Profile, Table, fit
from moesim.profile.fitting import Kernel

KERNEL: Final = Kernel(scales=(2.0, 2.0), signal=0.3, noise=0.05)
REACH: Final = 64.0  # times the most bytes measured
FORWARD: Final = ("gate_up", "down")
GRADIENTS: Final = {"data": "dgrad", "weights": "wgrad"}
_TAIL: Final = 0.9
_FEW: Final = 4  # pairs of rows below which their spread says nothing
_FEW_ERROR: Final = 0.30  # then: the band of a gradient that nobody measured


class Gradient(NamedTuple):
    """A gradient of the experts against their forward pass, for equal arithmetic."""

    slower: float  # its seconds over the forward's
    error: float  # half-width of the 90 % band, relative
    measured: Measured


def kernel(profile: Profile, op: str, dtype: str, flops: FloatArray | float, size_bytes: FloatArray | float) -> Cost:
    """Seconds of the kernel ``op`` that computes ``flops`` and moves ``size_bytes``; they broadcast.

    Raises MoesimError where this GPU has no kernels.csv, or none of that op, or nothing near that size.
    """
    work, size = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (flops, size_bytes)))
    measured = _table(profile)
    family = _fitted(profile, measured, op, dtype)
    most = REACH * float(_rows(measured, op, dtype).numbers["bytes"].max())
    problem = outside(f"{op} bytes", size, 0.0, most, f"{measured.gpu.name} kernels")
    if problem is not None:
        raise problem
    compute_s, memory_s = _roofline_s(profile.gpu, dtype, work, size)
    correction, half_width = family.correction(_features(work, size))
    seconds = family.base_s(_parts(compute_s, memory_s)) * np.exp(correction)
    source = Rows(measured=measured, dtype=dtype, kernel=op, error=0.0)
    return banded(
        seconds, half_width, np.maximum(compute_s, memory_s), limit(compute_s, memory_s, seconds), source
    )  # fmt: skip


def gradient(profile: Profile, which: str, dtype: str) -> Gradient | None:
    """How much slower the gradient ("data" or "weights") is than the forward pass; None where unmeasured.

    Both are taken from the same shapes and loads, and weighed by their time: training is large.
    """
    key = ("gradient", which, dtype)
    if key not in profile.memo:
        tables = profile.tables["kernels"]
        profile.memo[key] = _gradient(tables[0], GRADIENTS[which], dtype) if tables else None
    found: Gradient | None = profile.memo[key]
    return found


def _gradient(measured: Measured, op: str, dtype: str) -> Gradient | None:
    forward: dict[tuple[object, ...], FloatArray] = {}  # seconds, FLOPs of both GEMMs of a layer
    for name in FORWARD:
        for case, cost in _by_case(_rows(measured, name, dtype)):
            forward[case] = forward.get(case, np.zeros(2)) + cost
    pairs = [(cost, forward[case]) for case, cost in _by_case(_rows(measured, op, dtype)) if case in forward]
    if not pairs:
        return None
    own, other = (np.array(side) for side in zip(*pairs, strict=True))
    expected_s = other[:, 0] * own[:, 1] / other[:, 1]
    slower = float(own[:, 0].sum() / expected_s.sum())
    large = expected_s >= np.median(expected_s)
    misses = np.abs(np.log(own[large, 0] / (slower * expected_s[large])))
    error = float(np.expm1(np.quantile(misses, _TAIL))) if len(pairs) >= _FEW else _FEW_ERROR
    return Gradient(slower=slower, error=error, measured=measured)


def _by_case(rows: Table) -> list[tuple[tuple[object, ...], FloatArray]]:
    names = ("tokens", "hidden", "ffn", "experts", "top_k")
    cases = zip(rows.text["model"], rows.text["load"], *(rows.numbers[name] for name in names), strict=True)
    return list(zip(cases, np.stack([rows.time_s, rows.numbers["flops"]], axis=-1), strict=True))


def _table(profile: Profile) -> Measured:
    if not profile.tables["kernels"]:
        raise MoesimError(f"no kernels were measured on {profile.gpu.name}: run moesim calibrate there")
    return profile.tables["kernels"][0]


def _rows(measured: Measured, op: str, dtype: str) -> Table:
    return measured.table.select(op=op, dtype=dtype)


def _fitted(profile: Profile, measured: Measured, op: str, dtype: str) -> Fit:
    key = ("kernel", op, dtype)
    if key not in profile.memo:
        rows = _rows(measured, op, dtype)
        if not rows.rows:
            pairs = zip(measured.table.text["op"], measured.table.text["dtype"], strict=True)
            raise choice("kernel", f"{op} {dtype}", sorted({f"{name} {of}" for name, of in pairs}))
        work, size = rows.numbers["flops"], rows.numbers["bytes"]
        parts = _parts(*_roofline_s(measured.gpu, dtype, work, size))
        profile.memo[key] = fit(parts, _features(work, size), rows.time_s, rows.text["model"], KERNEL)
    found: Fit = profile.memo[key]
    return found


def _roofline_s(gpu: DataSheet, dtype: str, flops: FloatArray, size: FloatArray) -> tuple[FloatArray, FloatArray]:
    return flops / peak_flops(gpu, dtype), size / gpu.memory_bytes_per_s


def _parts(compute_s: FloatArray, memory_s: FloatArray) -> FloatArray:
    """[..., part] seconds: joined, arithmetic, bytes, launch."""
    return np.stack([joined(compute_s, memory_s), compute_s, memory_s, np.full_like(memory_s, 1e-6)], axis=-1)


def _features(flops: FloatArray, size: FloatArray) -> FloatArray:
    """[..., feature] logs: bytes, FLOPs for each byte."""
    return np.stack([np.log(np.maximum(size, 1.0)), np.log1p(flops / np.maximum(size, 1.0))], axis=-1)
