"""Closed-form lower bound: no schedule of the ops can end earlier."""

from collections.abc import Mapping

import numpy as np

from moesim.cost import FloatArray
from moesim.program import Program


def lower_bound(program: Program, durations: Mapping[str, FloatArray]) -> FloatArray:
    """The larger of the busiest stream's work and the longest chain of waits.

    Durations [..., ranks]; the result drops the rank axis.
    """
    zero = np.zeros(1)
    work: dict[str, FloatArray] = {}
    chain: list[FloatArray] = []
    for op in program:
        work[op.stream] = work.get(op.stream, zero) + durations[op.key]
        start = zero
        for index in op.waits:
            same = program[index].stream == op.stream
            start = np.maximum(start, chain[index] if same else chain[index].max(axis=-1, keepdims=True))
        chain.append(start + durations[op.key])
    ends = [end.max(axis=-1) for end in (*work.values(), *chain)]
    return np.asarray(np.maximum.reduce(np.broadcast_arrays(*ends)))
