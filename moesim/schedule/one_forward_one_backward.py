"""1F1B: forwards until the pipeline is full, then one backward for each forward.

Idle for (p - 1)(F + B) a step, as GPipe; stage s holds no more than p - s micro-batches.
Narayanan et al. 2021, arXiv:2104.04473, figure 4 top.
"""

from typing import Final

from moesim.schedule.passes import Pass, Pipe, Rule, alternate, not_virtual, one_each, own_part


def order(stage: int, pipe: Pipe) -> list[Pass]:
    """On the first of two stages ``F0 F1 B0 F2 B1 B2``."""
    forwards = [Pass("forward", j, stage) for j in range(pipe.micro_batches)]
    backwards = [Pass("backward", j, stage) for j in range(pipe.micro_batches)]
    return alternate(forwards, backwards, min(pipe.stages - stage - 1, pipe.micro_batches))


RULE: Final = Rule(order, own_part, one_each, not_virtual)
