"""Seconds of a kernel that only moves bytes: norms, activations, permutations, gate softmax.

    seconds = bytes / (achieved x data-sheet memory speed) + a launch

On a calibrated GPU both numbers are fitted to the permutations and copies measured there.
"""

from typing import Final, NamedTuple

import numpy as np

from moesim.cost import ESTIMATED, Basis, Cost, FloatArray, cost
from moesim.profile import Measured, Profile, non_negative

ACHIEVED: Final = 0.8  # of the data sheet's memory speed; and 3 us a kernel:
KERNEL_S: Final = 3e-6  # aiconfigurator 0.12.0 systems/*.yaml, gpu_mem_bw_empirical_scaling_factor, constant_latency
ERROR: Final = 0.35
_SOURCE: Final = "data sheet memory speed x 0.8 + 3 us (aiconfigurator 0.12.0 system files)"
_OPS: Final = ("permute", "unpermute")
_TAIL: Final = 0.9
_LEAST_ROWS: Final = 6  # that no cache serves
_BEYOND_L2: Final = 2.0


class _Speed(NamedTuple):
    seconds_per_byte: float
    kernel_s: float
    error: float
    basis: Basis
    source: str


def memory_bound(profile: Profile, size_bytes: FloatArray | float) -> Cost:
    """Seconds to move ``size_bytes`` (reads and writes together)."""
    size = np.asarray(size_bytes, dtype=np.float64)
    speed = _speed(profile)
    bound_s = size / profile.gpu.memory_bytes_per_s
    seconds = np.where(size > 0.0, np.maximum(bound_s, size * speed.seconds_per_byte + speed.kernel_s), 0.0)
    where = "memory" if np.sum(bound_s) > speed.kernel_s * size.size else "launch"
    return cost(seconds, speed.error, bound_s, where, speed.basis, speed.source)


def _speed(profile: Profile) -> _Speed:
    key = ("memory_bound",)
    if key not in profile.memo:
        stated = 1.0 / (ACHIEVED * profile.gpu.memory_bytes_per_s)
        default = _Speed(stated, KERNEL_S, ERROR, ESTIMATED, _SOURCE)
        tables = profile.tables["kernels"]
        profile.memo[key] = (_measured(tables[0]) if tables else None) or default
    found: _Speed = profile.memo[key]
    return found


def _measured(measured: Measured) -> _Speed | None:
    """Rows within the L2 say what a launch takes, and the others how fast memory is."""
    rows = measured.table.take(np.isin(measured.table.text["op"], _OPS))
    size, time_s = rows.numbers["bytes"], rows.time_s
    large = size > _BEYOND_L2 * measured.gpu.l2_bytes
    if large.sum() < _LEAST_ROWS:
        return None
    parts = np.stack([size / measured.gpu.memory_bytes_per_s, np.full_like(size, 1e-6)], axis=-1)
    slower = float(non_negative(parts[large] / time_s[large, None])[0])
    left_s = time_s[~large] - slower * parts[~large, 0]
    launch_s = max(0.0, float(np.median(left_s))) if left_s.size else KERNEL_S
    misses = np.abs(np.log((slower * parts[:, 0] + launch_s) / time_s))
    return _Speed(
        seconds_per_byte=slower / measured.gpu.memory_bytes_per_s,
        kernel_s=launch_s,
        error=float(np.expm1(np.quantile(misses, _TAIL))),
        basis=measured.basis,
        source=f"{measured.source}; {', '.join(_OPS)}",
    )
