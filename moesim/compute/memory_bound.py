"""Seconds of a kernel that only moves bytes: norms, activations, permutations, gate softmax."""

from typing import Final

import numpy as np

from moesim.cost import ESTIMATED, Cost, FloatArray, cost
from moesim.profile import Profile

ACHIEVED: Final = 0.8  # of the data sheet's memory speed; and 3 us a kernel:
KERNEL_S: Final = 3e-6  # aiconfigurator 0.12.0 systems/*.yaml, gpu_mem_bw_empirical_scaling_factor, constant_latency
_SOURCE: Final = "data sheet memory speed x 0.8 + 3 us (aiconfigurator 0.12.0 system files)"


def memory_bound(profile: Profile, size_bytes: FloatArray | float) -> Cost:
    """Seconds to move ``size_bytes`` (reads and writes together)."""
    size = np.asarray(size_bytes, dtype=np.float64)
    bound_s = size / profile.gpu.memory_bytes_per_s
    seconds = np.where(size > 0.0, bound_s / ACHIEVED + KERNEL_S, 0.0)
    where = "memory" if np.sum(bound_s) > KERNEL_S * size.size else "launch"
    return cost(seconds, 0.35, bound_s, where, ESTIMATED, _SOURCE)
