"""1F1B in which a forward runs interleaved with the backward that it took turns with.

The communication of either hides behind the computation of the other, as in DualPipe, but every stage holds the
model once: with one stage, the next micro-batch's forward runs beside this one's backward. What meets in a pair
must be ready at the same time, so that stage s runs one forward further ahead than interleaved 1F1B does,
2 (p - s - 1) + (v - 1) p + 1, and holds one more still. Idle as interleaved 1F1B, (p - 1)(F + B) / v; of the last
stage's v m forwards all but (v - 1) p + 1 run in a pair.
Megatron-Core's ``combined_1f1b``, its option ``overlap_moe_expert_parallel_comm`` (arXiv:2603.07685).
"""

from typing import Final

from moesim.schedule.interleaved import holds, parts, turns
from moesim.schedule.passes import Pass, Pipe, Rule


def order(stage: int, pipe: Pipe) -> list[Pass]:
    """On the last of its stages ``F0 F1B0 F2B1 B2``."""
    forwards, backwards = turns(stage, pipe)
    ahead = min(2 * (pipe.stages - stage - 1) + (pipe.virtual - 1) * pipe.stages + 1, len(forwards))
    pairs = [
        Pass("pair", there.micro_batch, there.part, (back.micro_batch, back.part))
        for there, back in zip(forwards[ahead:], backwards, strict=False)
    ]
    return forwards[:ahead] + pairs + backwards[len(pairs) :]


def why_not(pipe: Pipe) -> str | None:
    """Virtual stages take micro-batches in groups."""
    if pipe.virtual > 1 and pipe.stages < 2:
        return "virtual stages need more than one pipeline stage"
    if pipe.virtual > 1 and pipe.micro_batches % pipe.stages:
        return "virtual stages need micro-batches in multiples of pp"
    return None


def partners(part: int, pipe: Pipe) -> tuple[int, ...]:
    """All parts of the same stage."""
    return holds(part % pipe.stages, pipe)


RULE: Final = Rule(order, holds, parts, why_not, partners=partners)
