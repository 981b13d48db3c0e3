"""Micro-batches whose activations a stage holds: found by walking through its order.

An activation is kept from the forward pass until the backward pass. Where gradients of weights come later than
the gradient of the input, the time in between counts apart: only what the weights' own GEMMs read is there then.
While a backward pass runs, what recompute had dropped of it is there again, layer by layer.
"""

from functools import lru_cache
from typing import Final

import numpy as np

from moesim.cost import FloatArray
from moesim.schedule.passes import Pass, Pipe, Rule

WAITS, OWES, RUNS = 0, 1, 2  # for its backward pass | its gradients of weights | its backward pass


def held(rule: Rule, pipe: Pipe) -> FloatArray:
    """Counts at every moment that could be a stage's worst: [stage, moment, part of the stage, WAITS, OWES or RUNS]."""
    return _held(rule, _shortened(pipe))


ROUNDS: Final = 4  # of the stages; after those every rule is in its steady phase


def _shortened(pipe: Pipe) -> Pipe:
    """Rules that bound what they hold reach it in the first rounds of micro-batches."""
    most = ROUNDS * pipe.stages
    return pipe if pipe.micro_batches <= most else pipe._replace(micro_batches=most)


@lru_cache(maxsize=4096)
def _held(rule: Rule, pipe: Pipe) -> FloatArray:
    moments = [_moments(rule.order(stage, pipe), rule.holds(stage, pipe)) for stage in range(pipe.stages)]
    most = max(len(one) for one in moments)
    padded = [np.concatenate([one, np.repeat(one[-1:], most - len(one), axis=0)]) for one in moments]
    return np.array(padded)


def _moments(order: list[Pass], parts: tuple[int, ...]) -> FloatArray:
    """Counts of one stage just before something is freed, without those that another moment exceeds."""
    slot = {part: place for place, part in enumerate(parts)}
    now = np.zeros((len(parts), 3))
    found: dict[bytes, FloatArray] = {}
    for one in order:
        if one.kind in ("forward", "pair"):
            now[slot[one.part], WAITS] += 1
        if one.kind != "forward":
            here = slot[one.back[1] if one.back else one.part]
            now[here, RUNS] = one.kind != "weights"
            found.setdefault(now.tobytes(), now.copy())
            now[here, RUNS] = 0
            now[here, OWES if one.kind == "weights" else WAITS] -= 1
        if one.kind == "data":
            now[slot[one.part], OWES] += 1
    return _undominated(np.array(list(found.values())))


def _undominated(moments: FloatArray) -> FloatArray:
    flat = moments.reshape(len(moments), -1)
    no_less = (flat[:, None] >= flat[None]).all(axis=-1)  # [one, other]: no two are equal, but each to itself
    return np.asarray(moments[no_less.sum(axis=0) == 1])
