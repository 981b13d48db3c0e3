"""List schedule over arrays: one pass over the ops, every time an array [..., ranks]."""

from collections.abc import Mapping

import numpy as np

from moesim.cost import FloatArray
from moesim.program import RANK_STREAMS, Program


def play_batched(program: Program, durations: Mapping[str, FloatArray]) -> FloatArray:
    """End of the program, shape of ``durations`` without the rank axis.

    Each op starts at the later of its stream's last end and the ends it waits for; across streams it
    waits for the slowest rank.
    """
    if all(durations[key].size == 1 for key in program.keys):
        return np.full(durations[program[0].key].shape[:-1], _end_of_one(program, durations))
    free: dict[str, FloatArray] = {}
    ends: list[FloatArray] = []
    zero = np.zeros(1)
    for op in program:
        start = free.get(op.stream, zero)
        for index in op.across:
            start = np.maximum(start, ends[index])
        end = start + durations[op.key]
        free[op.stream] = end
        ends.append(end.max(axis=-1, keepdims=True) if op.stream in RANK_STREAMS else end)
    return np.asarray(np.maximum.reduce([end.max(axis=-1) for end in np.broadcast_arrays(*free.values())]))


def _end_of_one(program: Program, durations: Mapping[str, FloatArray]) -> float:
    """The same for a single candidate and rank: plain floats are ten times as fast as arrays of one."""
    seconds = {key: float(durations[key].item()) for key in program.keys}
    free = dict.fromkeys(program.streams, 0.0)
    ends = [0.0] * len(program)
    for index, op in enumerate(program.ops):
        start = free[op.stream]
        for other in op.across:
            if ends[other] > start:
                start = ends[other]
        ends[index] = free[op.stream] = start + seconds[op.key]
    return max(free.values())
