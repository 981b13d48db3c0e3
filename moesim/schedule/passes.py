"""A pass of a micro-batch through a part of the model, and what an order rule is.

The model's layers are cut into *parts* that follow one another, 0 to the last; a stage holds one part, or
several (virtual stages, or both directions of DualPipe). A pass works on one micro-batch in one part:

    forward    activations in, activations out
    backward   gradients of the input and of the weights
    data       gradient of the input alone; ``weights`` follows some time later
    weights    gradients of the weights
    pair       the forward of one micro-batch interleaved with the backward of another one

Which pass waits for which is the same for all rules: ``Works``.
"""

from collections.abc import Callable
from typing import NamedTuple


class Pipe(NamedTuple):
    """What an order rule is asked about."""

    stages: int
    micro_batches: int
    virtual: int = 1  # parts of the model that each stage holds


class Pass(NamedTuple):
    """What a stage does in one go."""

    kind: str  # forward, backward, data, weights or pair
    micro_batch: int
    part: int
    back: tuple[int, int] | None = None  # pair: micro-batch and part of its backward


class Works(NamedTuple):
    """Numbers for what has to be done once for every micro-batch and part, and what each of them waits for.

    First the forwards, part by part; then as many gradients of data; then as many of weights.
    """

    parts: int
    micro_batches: int

    @property
    def total(self) -> int:
        return 3 * self.parts * self.micro_batches

    def done_by(self, one: Pass) -> tuple[int, ...]:
        """What is done when a pass has ended."""
        every = self.parts * self.micro_batches
        here = one.part * self.micro_batches + one.micro_batch
        if one.back is not None:
            back = one.back[1] * self.micro_batches + one.back[0]
            return here, back + every, back + 2 * every
        if one.kind == "backward":
            return here + every, here + 2 * every
        return (here + every * ("forward", "data", "weights").index(one.kind),)

    def needed_by(self, one: Pass) -> tuple[int, ...]:
        """What must be done before a pass begins.

        A forward needs the activations of the part before; a gradient of data the forward of its own part and
        the gradient from the part after; gradients of weights that of the same part's data.
        """
        every, here = self.parts * self.micro_batches, one.part * self.micro_batches + one.micro_batch
        if one.kind == "forward":
            return (here - self.micro_batches,) if one.part else ()
        if one.kind == "weights":
            return (here + every,)
        if one.back is not None:
            ahead = self.needed_by(Pass("forward", one.micro_batch, one.part))
            return (*ahead, *self.needed_by(Pass("backward", *one.back)))
        return (here, here + every + self.micro_batches) if one.part < self.parts - 1 else (here,)


def alternate(forwards: list[Pass], backwards: list[Pass], ahead: int) -> list[Pass]:
    """``ahead`` forwards, then one backward for each further forward, then the backwards that are left."""
    order = forwards[:ahead]
    for forward, backward in zip(forwards[ahead:], backwards, strict=False):
        order += [forward, backward]
    return order + backwards[len(forwards) - ahead :]


Order = Callable[[int, Pipe], list[Pass]]
Partners = Callable[[int, Pipe], tuple[int, ...]]  # of a part: those whose backward may run beside its forward


class Rule(NamedTuple):
    """One way to order passes. ``holds`` are the parts of a stage, in model order."""

    order: Order
    holds: Callable[[int, Pipe], tuple[int, ...]]
    parts: Callable[[Pipe], int]  # of the whole model
    why_not: Callable[[Pipe], str | None]
    splits: bool = False  # some backward passes are taken apart into data and weights
    partners: Partners | None = None  # some forwards run interleaved with a backward: in which parts
    copies: int = 1  # how often all stages together hold the model

    @property
    def pairs(self) -> bool:
        """Whether some forwards run interleaved with a backward."""
        return self.partners is not None

    def meetings(self, pipe: Pipe) -> tuple[tuple[int, ...], ...]:
        """For each part, those whose backward may run beside its forward."""
        return tuple(self.partners(part, pipe) for part in range(self.parts(pipe))) if self.partners else ()


def own_part(stage: int, pipe: Pipe) -> tuple[int, ...]:
    """One part per stage."""
    return (stage,)


def one_each(pipe: Pipe) -> int:
    """As many parts as stages."""
    return pipe.stages


def not_virtual(pipe: Pipe) -> str | None:
    """The reason why a rule of one part per stage cannot run."""
    return None if pipe.virtual == 1 else "virtual stages need the interleaved schedule"
