"""How often a stage runs each kind of pass in one step, counted in its order.

By kind of pass: [part, micro-batch class]; pairs [part and class of the forward, partner of the part, class of the
backward].
"""

from dataclasses import replace
from functools import lru_cache
from math import lcm
from typing import Final

import numpy as np

from moesim.cost import FloatArray
from moesim.program import Passes
from moesim.step.scenario import BATCH_CLASSES

KINDS: Final = ("forward", "backward", "data", "weights", "pair")
Turns = dict[str, FloatArray]  # by kind


def period(passes: Passes) -> int:
    """Micro-batches after which a steady pipeline does the same again."""
    if passes.virtual > 1:
        return lcm(passes.stages, BATCH_CLASSES)
    return passes.rule.copies * BATCH_CLASSES


def turns(passes: Passes, stage: int) -> Turns:
    """Of one stage."""
    classes = BATCH_CLASSES
    found = {kind: np.zeros((passes.parts, classes)) for kind in KINDS[:-1]}
    partners = passes.partners
    found["pair"] = np.zeros((passes.parts, classes, max(map(len, partners), default=0), classes))
    for one in passes.rule.order(stage, passes.pipe):
        turn = one.micro_batch % classes
        if one.back is None:
            found[one.kind][one.part, turn] += 1
        else:
            micro_batch, part = one.back
            found["pair"][one.part, turn, partners[one.part].index(part), micro_batch % classes] += 1
    return found


@lru_cache(maxsize=4096)
def stage_turns(passes: Passes) -> Turns:
    """Of every stage and the parts that it holds: [stage, part of the stage, class …]. In a long step each period of
    micro-batches adds the same."""
    each = period(passes)
    periods = (passes.micro_batches - 2 * passes.stages) // each
    if periods < 2:
        return _counted(passes)
    short = passes.micro_batches - periods * each
    one, two = (_counted(replace(passes, micro_batches=m)) for m in (short, short + each))
    return {kind: one[kind] + periods * (two[kind] - one[kind]) for kind in KINDS}


@lru_cache(maxsize=1024)
def _counted(passes: Passes) -> Turns:
    held = [list(passes.rule.holds(stage, passes.pipe)) for stage in range(passes.stages)]
    found = [turns(passes, stage) for stage in range(passes.stages)]
    return {kind: np.array([one[kind][parts] for one, parts in zip(found, held, strict=True)]) for kind in KINDS}
