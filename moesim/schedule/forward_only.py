"""Inference: micro-batches follow one another."""

from typing import Final

from moesim.schedule.passes import Pass, Pipe, Rule, not_virtual, one_each, own_part


def order(stage: int, pipe: Pipe) -> list[Pass]:
    """``F0 F1 F2``."""
    return [Pass("forward", j, stage) for j in range(pipe.micro_batches)]


RULE: Final = Rule(order, own_part, one_each, not_virtual)
