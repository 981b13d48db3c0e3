"""Interleaved 1F1B: each stage holds v parts of the model, which shortens the ramps v times.

Part c p + s is chunk c of stage s. Micro-batches go in groups of p: a group passes chunk 0, then chunk 1, …;
backward passes go through the chunks the other way. Stage s runs 2 (p - s - 1) + (v - 1) p forwards ahead.
Idle for (p - 1)(F + B) / v a step; activations are sent v times as often.
Narayanan et al. 2021, arXiv:2104.04473, section 2.2 and figure 4 bottom; the order is Megatron-LM's.
"""

from typing import Final

from moesim.schedule.passes import Pass, Pipe, Rule, alternate


def order(stage: int, pipe: Pipe) -> list[Pass]:
    """Two stages of two chunks, on the last one: ``F0.1 F1.1 F0.3 B0.3 F1.3 B1.3 B0.1 B1.1`` (micro-batch.part)."""
    p, v = pipe.stages, pipe.virtual
    forwards, backwards = turns(stage, pipe)
    return alternate(forwards, backwards, min(2 * (p - stage - 1) + (v - 1) * p, len(forwards)))


def turns(stage: int, pipe: Pipe) -> tuple[list[Pass], list[Pass]]:
    """All forwards of a stage in their order, and all backwards in theirs."""
    p, v = pipe.stages, pipe.virtual
    groups = [range(first, min(first + p, pipe.micro_batches)) for first in range(0, pipe.micro_batches, p)]
    places = [(j, chunk) for group in groups for chunk in range(v) for j in group]
    return (
        [Pass("forward", j, chunk * p + stage) for j, chunk in places],
        [Pass("backward", j, (v - 1 - chunk) * p + stage) for j, chunk in places],
    )


def holds(stage: int, pipe: Pipe) -> tuple[int, ...]:
    """Every p-th part."""
    return tuple(range(stage, pipe.stages * pipe.virtual, pipe.stages))


def parts(pipe: Pipe) -> int:
    """Of the whole model."""
    return pipe.stages * pipe.virtual


def why_not(pipe: Pipe) -> str | None:
    """Megatron-LM refuses the same."""
    if pipe.stages < 2:
        return "virtual stages need more than one pipeline stage"
    if pipe.virtual < 2:
        return "the interleaved schedule needs at least two virtual stages"
    if pipe.micro_batches % pipe.stages:
        return "the interleaved schedule needs micro-batches in multiples of pp"
    return None


RULE: Final = Rule(order, holds, parts, why_not)
