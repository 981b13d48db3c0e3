"""Seconds of every op of the pipeline, and the least that any order of them can take.

A stage starts when the first micro-batch has come through the parts before its own, works through all of its
passes, and what it sends back last still has to go through the parts before. No order beats the fullest stage.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from moesim.cost import FloatArray
from moesim.program import Passes
from moesim.step.ends import Ends
from moesim.step.parts import PartPasses
from moesim.step.scenario import BATCH_CLASSES
from moesim.step.turns import KINDS, stage_turns


class StepTimes(NamedTuple):
    """For one strategy or a stack of them. Passes that the schedule does not have are empty: no parts."""

    forward: FloatArray  # [..., part, micro-batch class]
    backward: FloatArray
    data: FloatArray
    weights: FloatArray
    pair: FloatArray  # [..., part of the forward, class of the forward, partner of the part, class of the backward]
    send: FloatArray  # [..., stage], to the next stage; also a gradient back from it
    gather_first: FloatArray  # [..., stage]: of the first layer's weights
    gather_rest: FloatArray  # of the other layers of the stage's first part
    gather_chunk: FloatArray  # of each further part
    reduce_chunk: FloatArray  # of each part but the last
    reduce_rest: FloatArray  # of the last part but its last layer
    reduce_last: FloatArray  # of the layer whose backward pass comes last; of a shared embedding
    optimizer: FloatArray

    def by_key(self) -> dict[str, FloatArray]:
        """[..., 1] by the keys of ``program.pipeline``."""
        found: dict[str, FloatArray] = {}
        classes = range(BATCH_CLASSES)
        for kind in ("forward", "backward", "data", "weights"):
            seconds = getattr(self, kind)
            for k in range(seconds.shape[-2]):
                found |= {f"{kind} {k}.{c}": seconds[..., k, c, None] for c in classes}
        for k, c, n, d in np.ndindex(self.pair.shape[-4:]):
            found[f"pair {k}.{c}.{n}.{d}"] = self.pair[..., k, c, n, d, None]
        for s in range(self.send.shape[-1]):
            found[f"send {s}"] = self.send[..., s, None]
            found[f"back {s}"] = self.send[..., s - 1, None]
            for name in StepTimes._fields[6:]:
                found[f"{name.replace('_', ' ')} {s}"] = getattr(self, name)[..., s, None]
        return found


def step_times(parts: PartPasses, layers: tuple[float, ...], end: Ends, parts_of_stage: int) -> StepTimes:
    """Join part passes with what happens once per step. ``layers`` are those of each stage, ``parts_of_stage``
    says in how many parts they are."""
    send, gather, reduce, optimizer, tie = (
        np.array([float(one.seconds.sum()) for one in column]) for column in end[:5]
    )
    one_layer = np.minimum(1.0 / np.maximum(1, np.array(layers)), 1.0 / parts_of_stage)
    # from ZeRO 2 (weights: 3) on the passes use the dp stream for their layers: embedding and head go after or before
    # them, at once
    at_once = np.ones_like(one_layer), 1.0
    first, come = (one_layer, 1.0 / parts_of_stage) if end.zero < 3 else at_once
    last, leave = (one_layer, 1.0 / parts_of_stage) if end.zero < 2 else at_once
    return StepTimes(
        *parts, send,
        gather * first, gather * (come - first), gather * come * (come < 1.0),
        reduce * leave * (leave < 1.0), reduce * (leave - last), reduce * last + tie, optimizer,
    )  # fmt: skip


def turns_of(micro_batches: FloatArray | int) -> FloatArray:
    """How many micro-batches are of each class: [...] -> [..., class]."""
    m = np.asarray(micro_batches)[..., None]
    return np.asarray((m + BATCH_CLASSES - 1 - np.arange(BATCH_CLASSES)) // BATCH_CLASSES, dtype=np.float64)


def stage_work(passes: Passes, times: StepTimes, micro_batches: FloatArray | int) -> FloatArray:
    """Busy seconds of each stage in one step, without optimizer: [..., stage]. ``micro_batches`` may differ along
    the stack."""
    if passes.rule.pairs and passes.backward:
        return _work_in_pairs(passes, times, micro_batches)
    each = sum(one for one in times[:4] if one.size)
    by_part = (each * turns_of(micro_batches)[..., None, :]).sum(axis=-1)
    return np.asarray(by_part.reshape(*by_part.shape[:-1], -1, passes.stages).sum(axis=-2))


def _work_in_pairs(passes: Passes, times: StepTimes, micro_batches: FloatArray | int) -> FloatArray:
    """The same where some passes run alone and some in pairs."""
    numbers, where = np.unique(micro_batches, return_inverse=True)
    turns = [stage_turns(replace(passes, micro_batches=int(m))) for m in numbers]
    held = [passes.rule.holds(stage, passes.pipe) for stage in range(passes.stages)]
    work = np.zeros(passes.stages)
    for kind in KINDS:
        seconds = getattr(times, kind)  # [..., part, class …]
        if not seconds.size:
            continue
        often = np.array([one[kind] for one in turns])[where.reshape(np.shape(micro_batches))]
        last = 4 if kind == "pair" else 2
        spent = often * np.take(seconds, held, axis=-last)  # [..., stage, part of the stage, class …]
        work = work + spent.sum(axis=tuple(range(-last, 0)))
    return np.asarray(work)


def step_bound(passes: Passes, times: StepTimes, micro_batches: FloatArray | int) -> FloatArray:
    """Seconds that no order of the passes can beat; [...]. ``passes`` says which ops the stack has."""
    least, hop = times.forward.min(axis=-1), _hops(passes, times)
    through = _before(least + hop)
    if not passes.backward:
        work = stage_work(passes, times, micro_batches)
        if passes.rounds > 1:  # a token cannot start before the one before it has ended
            lap = least.sum(axis=-1) + hop[..., :-1].sum(axis=-1)
            return np.asarray(np.maximum(work.max(axis=-1), lap))
        still = through[..., -1:] + least[..., -1:] - through - least
        return np.asarray((through + work + still).max(axis=-1))
    finish = times.optimizer + (times.reduce_last if passes.reduces else 0.0)
    start = _outer(passes, times.gather_first) if passes.reduces else 0.0
    came, home = _first_of_stage(passes, through), _first_of_stage(passes, _before(_back(times) + hop))
    ended = came + stage_work(passes, times, micro_batches) + finish
    without = times._replace(weights=np.zeros_like(times.weights))  # gradients of weights delay no other stage
    sent = came + stage_work(passes, without, micro_batches) + home + _outer(passes, finish)[..., None]
    return np.asarray(start + np.maximum(ended.max(axis=-1), sent.max(axis=-1)))


def _back(times: StepTimes) -> FloatArray:
    """The least a gradient needs through each part."""
    found = [one.min(axis=-1) for one in (times.data, times.backward) if one.size]
    return np.asarray(np.minimum.reduce(found))


def _hops(passes: Passes, times: StepTimes) -> FloatArray:
    """Seconds from each part to the next one: [..., part]; with two directions the lesser of both."""
    if passes.rule.copies > 1:
        down = np.concatenate([times.send[..., -2::-1], times.send[..., -1:]], axis=-1)
        return np.asarray(np.minimum(times.send, down))
    return np.concatenate([times.send] * (passes.parts // passes.stages), axis=-1)


def _first_of_stage(passes: Passes, by_part: FloatArray) -> FloatArray:
    """The least over the parts of each stage of what grows from part to part: [..., stage]."""
    first = by_part[..., : passes.stages]
    return np.minimum(first, first[..., ::-1]) if passes.rule.copies > 1 else first


def _outer(passes: Passes, by_stage: FloatArray) -> FloatArray:
    """Of the stage where micro-batches enter and leave; the least of both where they do at two."""
    two = passes.rule.copies > 1
    return np.asarray(np.minimum(by_stage[..., 0], by_stage[..., -1]) if two else by_stage[..., 0])


def _before(seconds: FloatArray) -> FloatArray:
    """Sum over the earlier parts: [..., part]."""
    return np.cumsum(seconds, axis=-1) - seconds
