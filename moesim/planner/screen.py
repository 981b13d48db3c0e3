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
from moesim.program import Passes
from moesim.step.layers import play_many
from moesim.step.parts import kinds, layer_pass, summed
from moesim.step.passes import Key, LayerPass, pass_key, variant_key
from moesim.step.play import passes_of, step_seconds, times_of
from moesim.step.scenario import BATCH_CLASSES, Scenario, layer_classes
from moesim.step.times import StepTimes, stage_work, step_bound
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
    """Seconds that no order of its passes can beat, layer passes as they are played: [candidate]."""
    result = np.empty(len(found))
    everything = np.arange(len(found))
    for passes, members, times in _stacks(found, everything, fold=False):
        many = np.array([passes_of(found.scenario, found.frames[f]).micro_batches for f in found.frame_of(members)])
        result[members] = _busiest(passes, times, many) if found.steady else step_bound(passes, times, many)
    return result


def _busiest(passes: Passes, times: StepTimes, micro_batches: FloatArray | int) -> FloatArray:
    return np.asarray(stage_work(passes, times, micro_batches).max(axis=-1))


def list_schedule(found: Screen, candidates: np.ndarray) -> FloatArray:
    """Seconds by the batched list schedule of some candidates: [candidate]."""
    result = np.empty(len(candidates))
    place = {int(c): i for i, c in enumerate(candidates)}
    for passes, members, times in _stacks(found, candidates, fold=True):
        steady = found.steady
        seconds = _busiest(passes, times, passes.micro_batches) if steady else step_seconds(passes, times, events=False)
        result[[place[int(c)] for c in members]] = seconds
    return result


class _Stack(NamedTuple):
    passes: Passes
    members: np.ndarray  # candidates
    times: StepTimes


def _stacks(found: Screen, candidates: np.ndarray, *, fold: bool) -> list[_Stack]:
    """Candidates whose pipelines have the same ops, with their durations stacked."""
    table = _Table(found, candidates)
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
    """Bounds of pipelines that differ in micro-batches are one formula, those of GPipe and 1F1B too."""
    return replace(passes, micro_batches=0, schedule="1f1b" if passes.schedule == "gpipe" else passes.schedule)


class _Table:
    """Layer passes of the candidates, played; and their sums over the parts of a frame."""

    def __init__(self, found: Screen, candidates: np.ndarray) -> None:
        self.found = found
        self.layers: list[Layer] = [kind.layer for kind in found.scenario.model.layer_kinds()]
        self.passes: dict[tuple[str, int], list[LayerPass]] = {}  # by column: kind of pass, layer; [row]
        self.rows: dict[tuple[str, Key, str], int] = {}  # of the columns of one kind of pass
        for candidate, frame in zip(candidates.tolist(), found.frame_of(candidates).tolist(), strict=True):
            for kind in kinds(found.scenario, found.frames[frame]):
                self._row(kind, frame, candidate - int(found.first[frame]))
        classes = max(1, len(layer_classes(found.scenario)[1]))
        self.seconds = {
            column: _by_class(play_many(passes), classes) for column, passes in self.passes.items()
        }  # by column, [row, layer class, micro-batch class]

    def _row(self, kind: str, frame: int, option: int) -> int:
        """The row of a candidate's layer passes."""
        scenario, recompute = self.found.scenario, self.found.frames[frame].recompute if kind != "forward" else ""
        key = variant_key(self.found.keys[frame], *self.found.options[frame][option])
        name = kind, key, recompute
        if name not in self.rows:
            for number, layer in enumerate(self.layers):
                column = self.passes.setdefault((kind, number), [])
                self.rows[name] = len(column)
                column.append(layer_pass(scenario, layer, key, recompute, kind))
        return self.rows[name]

    def times(self, frame: int, chosen: np.ndarray) -> StepTimes:
        """Durations of the pipeline for some variants of a frame: [variant, part or stage, …]."""
        scenario, strategy = self.found.scenario, self.found.frames[frame]
        by_layer = {}
        for kind in kinds(scenario, strategy):
            rows = [self._row(kind, frame, option) for option in chosen.tolist()]
            by_layer[kind] = [self.seconds[kind, number][rows] for number in range(len(self.layers))]
        parts = summed(scenario, strategy, by_layer)
        once = times_of(scenario, strategy, parts)[len(parts) :]
        return StepTimes(*parts, *(np.broadcast_to(column, (len(chosen), strategy.pp)) for column in once))


def _by_class(seconds: FloatArray, classes: int) -> FloatArray:
    """[row, draw] -> [row, layer class, micro-batch class]; a dense layer has one draw for all."""
    if seconds.shape[1] == 1:
        return np.broadcast_to(seconds[..., None], (len(seconds), classes, BATCH_CLASSES))
    return seconds.reshape(len(seconds), classes, BATCH_CLASSES)
