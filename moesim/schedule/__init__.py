"""The order of micro-batches on pipeline stages.

    passes.py                     Pass, Rule: what waits for what
    gpipe.py                      all forwards, then all backwards
    one_forward_one_backward.py   1F1B
    interleaved.py                1F1B with virtual stages
    combined_1f1b.py              1F1B, forward and backward interleaved
    zero_bubble.py                gradients of weights apart (ZB-H1)
    dualpipe.py                   both directions, forward and backward interleaved
    forward_only.py               inference
    weave.py                      all stages in one list; refuses orders that block each other
    held.py                       micro-batches whose activations a stage holds

An order rule maps (stage, pipe) to the stage's passes in the order it runs them. A new one is a file with a
``RULE`` and a line in ``SCHEDULES``.
"""

from typing import Final

import numpy as np

from moesim.cost import FloatArray
from moesim.schedule import (
    combined_1f1b,
    dualpipe,
    forward_only,
    gpipe,
    held,
    interleaved,
    one_forward_one_backward,
    zero_bubble,
)
from moesim.schedule.held import OWES, RUNS, WAITS
from moesim.schedule.passes import Pass, Pipe, Rule, Works
from moesim.schedule.weave import weave

SCHEDULES: Final[dict[str, Rule]] = {
    "gpipe": gpipe.RULE,
    "1f1b": one_forward_one_backward.RULE,
    "interleaved": interleaved.RULE,
    "combined_1f1b": combined_1f1b.RULE,
    "zero_bubble": zero_bubble.RULE,
    "dualpipe": dualpipe.RULE,
}
FORWARD: Final = forward_only.RULE


def in_flight(schedule: str, pipe: Pipe) -> FloatArray:
    """Micro-batches a stage holds at each moment that could be its worst: [stage, moment, part of the stage,
    waits for its backward pass | owes its gradients of weights | runs its backward pass]."""
    if schedule == "gpipe":
        return np.broadcast_to([[[[float(pipe.micro_batches), 0.0, 1.0]]]], (pipe.stages, 1, 1, 3))
    return held.held(SCHEDULES[schedule], pipe)


__all__ = [
    "FORWARD",
    "OWES",
    "RUNS",
    "SCHEDULES",
    "WAITS",
    "Pass",
    "Pipe",
    "Rule",
    "Works",
    "in_flight",
    "weave",
]
