"""The order of micro-batches on a pipeline stage.

An order rule maps (stage, stages, micro_batches) to the stage's passes in the order it runs them. Which
pass waits for which other stage is the same for all rules (``program.pipeline``).
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from moesim.errors import MoesimError


class Pass(NamedTuple):
    """A micro-batch going through a stage."""

    forward: bool
    micro_batch: int


Order = Callable[[int, int, int], list[Pass]]


def gpipe(stage: int, stages: int, micro_batches: int) -> list[Pass]:
    """All forward passes, then all backward passes (Huang et al. 2019, arXiv:1811.06965)."""
    forwards = [Pass(True, j) for j in range(micro_batches)]
    return forwards + [Pass(False, j) for j in range(micro_batches)]


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> list[Pass]:
    """Forwards until the pipeline is full, then one backward for each forward (arXiv:2104.04473, fig. 4)."""
    ahead = min(stages - stage - 1, micro_batches)
    order = [Pass(True, j) for j in range(ahead)]
    for j in range(micro_batches - ahead):
        order += [Pass(True, ahead + j), Pass(False, j)]
    return order + [Pass(False, j) for j in range(micro_batches - ahead, micro_batches)]


SCHEDULES: Final[dict[str, Order]] = {"gpipe": gpipe, "1f1b": one_forward_one_backward}


def forward_only(stage: int, stages: int, micro_batches: int) -> list[Pass]:
    """Inference: micro-batches follow one another."""
    return [Pass(True, j) for j in range(micro_batches)]


def in_flight(schedule: str, stage: int, stages: int, micro_batches: int) -> int:
    """Micro-batches whose activations a stage holds at its worst moment."""
    return micro_batches if schedule == "gpipe" else min(micro_batches, stages - stage)


def weave(orders: Sequence[Sequence[Pass]]) -> list[tuple[int, Pass]]:
    """One list of (stage, pass) in which nothing comes before what it waits for.

    A forward waits for the stage before; a backward for the stage after, or on the last stage for its
    own forward. Raises MoesimError when the orders block each other.
    """
    last, total = len(orders) - 1, sum(len(order) for order in orders)
    position = [0] * len(orders)
    seen: set[tuple[int, Pass]] = set()
    woven: list[tuple[int, Pass]] = []
    while len(woven) < total:
        before = len(woven)
        for stage, order in enumerate(orders):
            while position[stage] < len(order) and _ready(stage, order[position[stage]], last, seen):
                seen.add((stage, order[position[stage]]))
                woven.append((stage, order[position[stage]]))
                position[stage] += 1
        if len(woven) == before:
            raise MoesimError(f"the schedule blocks after {before} of {total} passes: its orders wait in a ring")
    return woven


def _ready(stage: int, step: Pass, last: int, seen: set[tuple[int, Pass]]) -> bool:
    if step.forward:
        return stage == 0 or (stage - 1, step) in seen
    if stage == last:
        return (stage, Pass(True, step.micro_batch)) in seen
    return (stage + 1, step) in seen
