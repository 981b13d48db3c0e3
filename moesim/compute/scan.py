"""Seconds of the matrix products of Mamba-2's scan (arXiv:2405.21060 section 6).

    seconds = FLOPs / (rate of one SM x SMs) + a launch

They are small, one chunk and one head each, with exponentials between them: tensor cores mostly wait, so that their
peak does not matter, but the number of SMs does. What the kernels read and write for them is in the rate.
"""

from typing import Final

import numpy as np

from moesim.compute.memory_bound import KERNEL_S
from moesim.cost import ESTIMATED, Cost, FloatArray, cost
from moesim.profile import Profile

# 134.4 TFLOP/s (14 % of the peak) on the 132 SMs of an H800: the kernel of two of the products, 8 sequences x 8,192
# tokens, 80 heads of 64, state 128, causal FLOPs (tile-ai/tilelang benchmark/mamba2/README.md). Published for them
# there; taken for all four products and for every GPU it is estimated.
SM_FLOPS: Final = 134.4e12 / 132
ERROR: Final = 0.5
_SOURCE: Final = "1.02 TFLOP/s an SM (chunk scan on H800, tile-ai/tilelang benchmark/mamba2/README.md)"


def scan(profile: Profile, flops: FloatArray | float) -> Cost:
    """Seconds of so many FLOPs in the products of a scan."""
    bound_s = np.asarray(flops, dtype=np.float64) / profile.gpu.flops["bf16"]
    work_s = np.asarray(flops, dtype=np.float64) / (SM_FLOPS * profile.gpu.sms)
    seconds = np.where(work_s > 0.0, work_s + KERNEL_S, 0.0)
    return cost(seconds, ERROR, bound_s, "compute", ESTIMATED, _SOURCE)
