"""DualPipe: micro-batches enter at both ends, and a forward runs interleaved with a backward.

Stage i holds parts i and p - 1 - i, twice the parameters: the first half of the micro-batches goes from stage 0
up, the second half from stage p - 1 down. While one direction goes forward the other one goes backward, so that
the communication of either hides behind the computation of the other. Idle for (p/2 - 1)(F&B + B - 3W) a step,
F&B the pair, B the whole backward pass, W its weights; at most p + 1 micro-batches are held.
DeepSeek-V3, arXiv:2412.19437, section 3.2.1 and table 2; the order is that of github.com/deepseek-ai/DualPipe.
"""

from collections import deque
from typing import Final

from moesim.schedule.passes import Pass, Pipe, Rule


class _Half:
    """One stage's passes so far: *near* is the direction that reaches the stage early, *far* the other one."""

    def __init__(self, stage: int, pipe: Pipe) -> None:
        p, each = pipe.stages, pipe.micro_batches // 2
        self.depth = min(stage, p - 1 - stage)  # 0 at both ends
        down = stage >= p // 2
        self.first = {"near": each if down else 0, "far": 0 if down else each}
        self.part = {"near": self.depth, "far": p - 1 - self.depth}
        self.forwards = dict.fromkeys(self.first, 0)
        self.backwards = dict.fromkeys(self.first, 0)
        self.owed: deque[tuple[int, int]] = deque()  # gradients of weights
        self.passes: list[Pass] = []

    def forward(self, way: str) -> None:
        self.passes.append(Pass("forward", *self._next(self.forwards, way)))

    def backward(self, way: str, *, splits: bool = False) -> None:
        here = self._next(self.backwards, way)
        self.passes.append(Pass("data" if splits else "backward", *here))
        if splits:
            self.owed.append(here)

    def weights(self) -> None:
        self.passes.append(Pass("weights", *self.owed.popleft()))

    def pair(self, way: str, back: str) -> None:
        self.passes.append(Pass("pair", *self._next(self.forwards, way), self._next(self.backwards, back)))

    def _next(self, counts: dict[str, int], way: str) -> tuple[int, int]:
        counts[way] += 1
        return self.first[way] + counts[way] - 1, self.part[way]


def order(stage: int, pipe: Pipe) -> list[Pass]:
    """Fill, pair, drain."""
    one = _Half(stage, pipe)
    inner = pipe.stages // 2 - one.depth - 1  # stages between this one and the middle
    _fill(one, inner)
    for turn in range(pipe.micro_batches // 2 - pipe.stages + one.depth + 1):
        if turn == 0 and inner == 0:  # the middle does not wait to have something to interleave
            one.forward("near")
            one.backward("far")
        else:
            one.pair("near", "far")
        one.pair("far", "near")
    _drain(one, inner)
    return one.passes


def _fill(one: _Half, inner: int) -> None:
    for _ in range(2 * inner):
        one.forward("near")
    for _ in range(one.depth + 1):
        one.forward("near")
        one.forward("far")
    for _ in range(inner):
        one.backward("far", splits=True)
        one.weights()
        one.forward("far")


def _drain(one: _Half, inner: int) -> None:
    for _ in range(inner):
        one.backward("far")
        one.pair("far", "near")
    for turn in range(2 * (one.depth + 1)):
        splits = turn > one.depth  # the second half
        one.backward("near" if turn % 2 else "far", splits=splits)
    for _ in range(inner):
        one.weights()
        one.backward("near", splits=True)
    while one.owed:
        one.weights()


def holds(stage: int, pipe: Pipe) -> tuple[int, ...]:
    """One part for each direction."""
    mirrored = pipe.stages - 1 - stage
    return min(stage, mirrored), max(stage, mirrored)


def parts(pipe: Pipe) -> int:
    """Of the whole model."""
    return pipe.stages


def why_not(pipe: Pipe) -> str | None:
    """What the order takes for granted."""
    if pipe.virtual > 1:
        return "virtual stages need the interleaved schedule"
    if pipe.stages % 2:
        return "dualpipe needs an even number of pipeline stages"
    if pipe.micro_batches % 2 or pipe.micro_batches < 2 * pipe.stages:
        return "dualpipe needs an even number of micro-batches, at least two for each stage"
    return None


def partners(part: int, pipe: Pipe) -> tuple[int, ...]:
    """The mirrored part."""
    return (pipe.stages - 1 - part,)


RULE: Final = Rule(order, holds, parts, why_not, splits=True, partners=partners, copies=2)
