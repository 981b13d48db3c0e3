"""Price every candidate: a bound for all, the list schedule for the promising, both over arrays.

Layer passes are priced once per distinct pass, played in stacks, and gathered per candidate:

    seconds[pass, layer class, micro-batch class]  --layers of each stage-->  forward[candidate, stage, class]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moesim.cost import FloatArray
from moesim.model import Layer
from moesim.planner.space import Variant, variants, with_variant
from moesim.program import Passes
from moesim.simulate import lower_bound, play_batched
from moesim.step.layers import Play, play_many
from moesim.step.passes import Key, LayerPass, backward_pass, forward_pass, pass_key
from moesim.step.play import (
    StagePasses,
    StepTimes,
    by_class,
    ends,
    folded,
    head,
    layer_counts,
    passes_of,
    step_bound,
    step_seconds,
    step_times,
)
from moesim.step.scenario import BATCH_CLASSES, Scenario
from moesim.strategy import Strategy


class Candidate(NamedTuple):
    """A frame and a variant of it."""

    frame: int
    variant: Variant


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Screen:
    """All candidates; index arrays into ``frames`` keep them small."""

    scenario: Scenario
    frames: list[Strategy]
    keys: list[Key]
    options: list[tuple[Variant, ...]]  # by frame
    first: np.ndarray  # number of the first candidate of each frame; its last entry is the total

    def __len__(self) -> int:
        return int(self.first[-1])

    def strategy(self, candidate: int) -> Strategy:
        """The strategy with this number."""
        frame = int(np.searchsorted(self.first, candidate, side="right")) - 1
        return with_variant(self.frames[frame], self.options[frame][candidate - int(self.first[frame])])

    def frame_of(self, candidates: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.first, candidates, side="right") - 1


def screen(scenario: Scenario, frames: list[Strategy]) -> Screen:
    """Number the candidates of ``frames``."""
    options = [variants(scenario, frame) for frame in frames]
    return Screen(
        scenario=scenario,
        frames=frames,
        keys=[pass_key(scenario, frame) for frame in frames],
        options=options,
        first=np.concatenate([[0], np.cumsum([len(o) for o in options])]).astype(int),
    )


def bounds(found: Screen) -> FloatArray:
    """Seconds that no order of its ops can beat, for every candidate: [candidate]."""
    result = np.empty(len(found))
    everything = np.arange(len(found))
    for passes, members, times in _stacks(found, everything, lower_bound, fold=False):
        work = np.array([passes_of(found.scenario, found.frames[f]).micro_batches for f in found.frame_of(members)])
        result[members] = step_bound(passes, times, work)
    return result


def list_schedule(found: Screen, candidates: np.ndarray) -> FloatArray:
    """Seconds by the batched list schedule of some candidates: [candidate]."""
    result = np.empty(len(candidates))
    place = {int(c): i for i, c in enumerate(candidates)}
    for passes, members, times in _stacks(found, candidates, play_batched, fold=True):
        seconds = step_seconds(passes, times, events=False)
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
    return [
        _Stack(shape, np.concatenate(members[shape]), StepTimes(*(np.concatenate(c) for c in zip(*times[shape], strict=True))))
        for shape in members
    ]


def _without_count(passes: Passes) -> Passes:
    return Passes(stages=passes.stages, micro_batches=0, backward=passes.backward, rounds=passes.rounds, reduces=passes.reduces)


class _Table:
    """Played layer passes of the candidates, and the sums over a frame's stages."""

    def __init__(self, found: Screen, candidates: np.ndarray, play: Play) -> None:
        self.found = found
        self.layers: list[Layer] = [kind.layer for kind in found.scenario.model.layer_kinds()]
        self.passes: dict[tuple[Key, str], list[list[LayerPass]]] = {}
        frame_of = found.frame_of(candidates)
        for candidate, frame in zip(candidates, frame_of, strict=True):
            self._passes(int(frame), int(candidate - found.first[frame]))
        everything = (p for group in self.passes.values() for one in group for p in one)
        self.played = play_many(everything, play)

    def _passes(self, frame: int, option: int) -> list[list[LayerPass]]:
        """[forward, backward], each by layer kind."""
        scenario, strategy = self.found.scenario, self.found.frames[frame]
        variant = self.found.options[frame][option]
        key = _keyed(self.found.keys[frame], variant)
        name = key, strategy.recompute
        if name not in self.passes:
            group = [[forward_pass(scenario, layer, key) for layer in self.layers]]
            if scenario.workload.trains:
                group.append([backward_pass(scenario, layer, key, strategy.recompute) for layer in self.layers])
            self.passes[name] = group
        return self.passes[name]

    def times(self, frame: int, chosen: np.ndarray) -> StepTimes:
        """Durations of the pipeline for some variants of a frame: [variant, stage, …]."""
        scenario, strategy = self.found.scenario, self.found.frames[frame]
        counts = [layer_counts(scenario, strategy.pp)[layer] for layer in self.layers]
        end = step_times(
            StagePasses(np.zeros((strategy.pp, BATCH_CLASSES)), np.zeros((strategy.pp, BATCH_CLASSES)),
                        tuple(int(n) for n in sum(c.sum(axis=1) for c in counts))),
            ends(scenario, strategy),
        )  # fmt: skip
        groups = [self._passes(frame, int(option)) for option in chosen]
        forward = self._summed([g[0] for g in groups], counts)
        forward[:, -1] += float(head(scenario, strategy, backward=False).seconds.sum())
        backward = np.zeros_like(forward)
        if scenario.workload.trains:
            backward = self._summed([g[1] for g in groups], counts)
            backward[:, -1] += float(head(scenario, strategy, backward=True).seconds.sum())
        rest = (np.broadcast_to(column, (len(chosen), strategy.pp)) for column in end[2:])
        return StepTimes(forward, backward, *rest)

    def _summed(self, groups: Sequence[Sequence[LayerPass]], counts: Sequence[FloatArray]) -> FloatArray:
        """Layer passes [variant][layer kind] -> seconds [variant, stage, micro-batch class]."""
        total = np.zeros((len(groups), len(counts[0]), BATCH_CLASSES))
        for kind, count in enumerate(counts):
            rows = [by_class(self.played[id(group[kind])], count.shape[1]) for group in groups]
            total += count @ np.stack(rows)
        return total


def _keyed(key: Key, variant: Variant) -> Key:
    dispatches = key.all_to_all != "none"
    return key._replace(
        all_to_all=variant.all_to_all if dispatches else "none",
        chunks=variant.chunks,
        overlap=variant.overlap,
        placement=variant.placement,
    )


__all__ = ["Candidate", "Screen", "bounds", "folded", "list_schedule", "screen"]
