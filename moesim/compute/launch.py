"""What launching kernels one by one takes, as PyTorch does; a CUDA graph spares both.

gap     seconds that a stream waits from one kernel to the next, beyond those between kernels of one CUDA graph:
        tables of kernels are timed in such graphs and hold these
host    seconds of CPU time for each kernel: no stretch of work ends before all of its kernels are launched
"""

from typing import Final

import numpy as np

from moesim.cost import PUBLISHED, Cost, cost
from moesim.profile import Measured, Profile, non_negative

STREAM_GAP_S: Final = 2e-6  # median on the compute stream (p10 1, p90 3) of DeepSeek's H800 training trace (2025)
GRAPH_GAP_S: Final = 1e-6  # assumed
LAUNCH_GAP_S: Final = STREAM_GAP_S - GRAPH_GAP_S
# CPU time of one forward of torch.nn.Linear in bf16, which is one kernel, on a DGX H100 (Xeon 8480C): NVIDIA's
# TransformerEngine, issue 2053 (2025). The band reaches from a bare launch, 5 us, to the same on GB200, 37 us.
HOST_S: Final = 13.48e-6
HOST_ERROR: Final = 1.7
_SOURCE: Final = "torch.nn.Linear on a DGX H100: 13.5 us of CPU time (github.com/NVIDIA/TransformerEngine issue 2053)"


def host_launch(profile: Profile) -> Cost:
    """CPU seconds of one operation of a framework: published, but no less than a tiny kernel's own launch, where that
    was measured."""
    key = ("host_launch",)
    if key not in profile.memo:
        published = cost(HOST_S, HOST_ERROR, 0.0, "launch", PUBLISHED, _SOURCE)
        launches = [one for table in profile.tables["launch"] if (one := _measured(table)) is not None]
        profile.memo[key] = max([published, *launches], key=lambda one: float(one.seconds))
    found: Cost = profile.memo[key]
    return found


def _measured(measured: Measured) -> Cost | None:
    """The slope over the number of kernels in a stream."""
    rows = measured.table.select(how="stream")
    if rows.rows < 2:
        return None
    parts = np.stack([rows.numbers["kernels"], np.ones(rows.rows)], axis=-1)
    found = non_negative(parts / rows.time_s[:, None])
    error = float(np.abs(np.log(parts @ found / rows.time_s)).max())
    return cost(found[0], np.expm1(error), 0.0, "launch", measured.basis, measured.source)
