"""Price every candidate: a bound for all, the list schedule for the promising, both over arrays.

Layer passes are priced once per distinct pass, played in stacks, and gathered per candidate:

    seconds[pass, layer class, micro-batch class]  --layers of each stage-->  forward[candidate, stage, class]
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from moesim.cost import FloatArray
from moesim.model import Layer
from moesim.planner.space import Options, Variant, variants, with_variant
from moesim.player import lower_bound, play_batched
from moesim.program import Passes
from moesim.stages import layers_per_stage
from moesim.step.layers import Play, play_many
from moesim.step.passes import Key, LayerPass, backward_pass, forward_pass, pass_key, variant_key
from moesim.step.play import (
    StagePasses,
    StepTimes,
    ends,
    head,
    layer_counts,
    passes_of,
    stage_work,
    step_bound,
    step_seconds,
    step_times,
)
from moesim.step.scenario import BATCH_CLASSES, Scenario, layer_classes
from moesim.strategy import Strategy


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Screen:
    """All candidates; index arrays into ``frames`` keep them small."""

    scenario: Scenario
    steady: bool  # steps follow one another: what counts is the fullest stage's work
    frames: list[Strategy]
    keys: list[Key]
    options: list[tuple[Variant, ...]]  # by frame
    slower: int  # variants left out: another all-to-all is faster both ways
    first: np.ndarray  # number of the first candidate of each frame; its last entry is the total

    def __len__(self) -> int:
        return int(self.first[-1])

    def strategy(self, candidate: int) -> Strategy:
        """The strategy with this number."""
        frame = int(np.searchsorted(self.first, candidate, side="right")) - 1
        return with_variant(self.frames[frame], self.options[frame][candidate - int(self.first[frame])])

    def frame_of(self, candidates: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.first, candidates, side="right") - 1


def screen(
    scenario: Scenario, frames: list[Strategy], options: list[Options] | None = None, *, steady: bool = False
) -> Screen:
    """Number the candidates of ``frames``. Seconds are those of a step, or with ``steady`` those between steps."""
    found = [variants(scenario, frame) for frame in frames] if options is None else options
    return Screen(
        scenario=scenario,
        steady=steady,
        frames=frames,
        keys=[pass_key(scenario, frame) for frame in frames],
        options=[one.variants for one in found],
        slower=sum(one.slower for one in found),
        first=np.concatenate([[0], np.cumsum([len(one.variants) for one in found])]).astype(int),
    )


def bounds(found: Screen) -> FloatArray:
    """Seconds that no order of its ops can beat, for every candidate: [candidate]."""
    result = np.empty(len(found))
    everything = np.arange(len(found))
    for passes, members, times in _stacks(found, everything, lower_bound, fold=False):
        many = np.array([passes_of(found.scenario, found.frames[f]).micro_batches for f in found.frame_of(members)])
        result[members] = _busiest(times, many) if found.steady else step_bound(passes, times, many)
    return result


def _busiest(times: StepTimes, micro_batches: FloatArray | int) -> FloatArray:
    return np.asarray(stage_work(times, micro_batches).max(axis=-1))


def list_schedule(found: Screen, candidates: np.ndarray) -> FloatArray:
    """Seconds by the batched list schedule of some candidates: [candidate]."""
    result = np.empty(len(candidates))
    place = {int(c): i for i, c in enumerate(candidates)}
    for passes, members, times in _stacks(found, candidates, play_batched, fold=True):
        steady = found.steady
        seconds = _busiest(times, passes.micro_batches) if steady else step_seconds(passes, times, events=False)
        result[[place[int(c)] for c in members]] = seconds
    return result


class _Stack(NamedTuple):
    passes: Passes
    members: np.ndarray  # candidates
    times: StepTimes


def _stacks(found: Screen, candidates: np.ndarray, play: Play, *, fold: bool) -> list[_Stack]:
    """Candidates whose pipelines have the same ops, with their durations stacked."""
    table = _Table(found, candidates, play)
    members: dict[Passes, list[np.ndarray]] = {}
    times: dict[Passes, list[StepTimes]] = {}
    frame_of = found.frame_of(candidates)
    for frame in np.unique(frame_of):
        mine = candidates[frame_of == frame]
        passes = passes_of(found.scenario, found.frames[frame])
        shape = passes if fold else _without_count(passes)
        members.setdefault(shape, []).append(mine)
        times.setdefault(shape, []).append(table.times(int(frame), mine - found.first[frame]))
    return [_Stack(shape, np.concatenate(members[shape]), _concatenated(times[shape])) for shape in members]


def _concatenated(many: list[StepTimes]) -> StepTimes:
    return StepTimes(*(np.concatenate(column) for column in zip(*many, strict=True)))


def _without_count(passes: Passes) -> Passes:
    """Bounds of pipelines that differ in micro-batches and schedule are one formula."""
    return replace(passes, micro_batches=0, schedule="1f1b")


class _Table:
    """Layer passes of the candidates, played; and their sums over the stages of a frame."""

    def __init__(self, found: Screen, candidates: np.ndarray, play: Play) -> None:
        self.found = found
        self.trains = found.scenario.workload.trains
        self.layers: list[Layer] = [kind.layer for kind in found.scenario.model.layer_kinds()]
        self.passes: list[list[LayerPass]] = [[] for _ in self._columns()]  # [column][row]
        self.rows: dict[tuple[Key, str], int] = {}
        for candidate, frame in zip(candidates.tolist(), found.frame_of(candidates).tolist(), strict=True):
            self._row(frame, candidate - int(found.first[frame]))
        classes = max(1, len(layer_classes(found.scenario)[1]))
        self.seconds = [
            _by_class(play_many(column, play), classes) for column in self.passes
        ]  # [column][row, layer class, micro-batch class]

    def _columns(self) -> list[tuple[Layer, bool]]:
        """(layer kind, backward)."""
        return [(layer, backward) for backward in (False, True)[: 1 + self.trains] for layer in self.layers]

    def _row(self, frame: int, option: int) -> int:
        """The row of a candidate's layer passes."""
        scenario, recompute = self.found.scenario, self.found.frames[frame].recompute
        key = variant_key(self.found.keys[frame], *self.found.options[frame][option])
        name = key, recompute
        if name not in self.rows:
            self.rows[name] = len(self.rows)
            for column, (layer, backward) in zip(self.passes, self._columns(), strict=True):
                one = backward_pass(scenario, layer, key, recompute) if backward else forward_pass(scenario, layer, key)
                column.append(one)
        return self.rows[name]

    def times(self, frame: int, chosen: np.ndarray) -> StepTimes:
        """Durations of the pipeline for some variants of a frame: [variant, stage, …]."""
        scenario, strategy = self.found.scenario, self.found.frames[frame]
        counts = layer_counts(scenario, strategy.pp)
        rows = [self._row(frame, option) for option in chosen.tolist()]
        forward = np.zeros((len(rows), strategy.pp, BATCH_CLASSES))
        backward = np.zeros_like(forward)
        for seconds, (layer, is_backward) in zip(self.seconds, self._columns(), strict=True):
            (backward if is_backward else forward)[:] += counts[layer] @ seconds[rows]
        forward[:, -1] += float(head(scenario, strategy, backward=False).seconds.sum())
        if self.trains:
            backward[:, -1] += float(head(scenario, strategy, backward=True).seconds.sum())
        stages = StagePasses(forward, backward, layers_per_stage(len(scenario.model.layers), strategy.pp))
        once = step_times(stages, ends(scenario, strategy))[2:]
        return StepTimes(forward, backward, *(np.broadcast_to(c, (len(rows), strategy.pp)) for c in once))


def _by_class(seconds: FloatArray, classes: int) -> FloatArray:
    """[row, draw] -> [row, layer class, micro-batch class]; a dense layer has one draw for all."""
    if seconds.shape[1] == 1:
        return np.broadcast_to(seconds[..., None], (len(seconds), classes, BATCH_CLASSES))
    return seconds.reshape(len(seconds), classes, BATCH_CLASSES)
