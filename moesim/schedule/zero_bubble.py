"""Zero bubble, ZB-H1: gradients of weights apart from those of data, later, where a stage would idle.

The gradient that the stage before waits for leaves first. Stage s lets s gradients of weights wait, so that
no stage holds more micro-batches than 1F1B's first one. With B and W the two halves of the backward pass the
idle time is (p - 1)(F + B - W) a step, a third of 1F1B's when F = B = W: what a stage has left to do when its last
gradient of data has gone delays nobody else.
Qi et al. 2023, arXiv:2401.10241, section 2.2 and table 2.
"""

from typing import Final

from moesim.schedule.passes import Pass, Pipe, Rule, not_virtual, one_each, own_part


def order(stage: int, pipe: Pipe) -> list[Pass]:
    """On the last of two stages ``F0 B0 F1 B1 W0 F2 B2 W1 W2``."""
    ahead = min(pipe.stages - stage - 1, pipe.micro_batches)
    passes = [Pass("forward", j, stage) for j in range(ahead)]
    done = 0  # gradients of weights
    for j in range(pipe.micro_batches):
        steady = ahead + j < pipe.micro_batches
        if steady:
            passes.append(Pass("forward", ahead + j, stage))
        passes.append(Pass("data", j, stage))
        if j >= stage or not steady:
            passes.append(Pass("weights", done, stage))
            done += 1
    return passes + [Pass("weights", j, stage) for j in range(done, pipe.micro_batches)]


RULE: Final = Rule(order, own_part, one_each, not_virtual, splits=True)
