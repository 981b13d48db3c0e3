"""GPipe: all forward passes, then all backward passes.

Idle for (p - 1)(F + B) a step; a stage holds all micro-batches. Huang et al. 2019, arXiv:1811.06965.
"""

from typing import Final

from moesim.schedule.passes import Pass, Pipe, Rule, not_virtual, one_each, own_part


def order(stage: int, pipe: Pipe) -> list[Pass]:
    """``F0 F1 F2 B0 B1 B2``."""
    return [Pass(kind, j, stage) for kind in ("forward", "backward") for j in range(pipe.micro_batches)]


RULE: Final = Rule(order, own_part, one_each, not_virtual)
