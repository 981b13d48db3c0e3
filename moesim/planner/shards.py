"""What a worker is asked: bounds of some layouts, list schedules of some candidates, one play.

Functions of (scenario, item), so that ``workers`` can send them to another process; items are frames and
numbers, never arrays of candidates.
"""

from collections import Counter
from typing import Final, NamedTuple

import numpy as np

from moesim.cost import FloatArray
from moesim.metrics import Play, play, unfolded
from moesim.planner.screen import Screen, bounds, list_schedule, screen
from moesim.planner.space import Space, layouts, space
from moesim.step.scenario import Scenario
from moesim.strategy import Strategy

LAYOUTS_PER_WORKER: Final = 100  # fewer are done sooner than a process starts

Named = list[tuple[Strategy, list[int]]]  # a frame and the numbers of its variants


class Shard(NamedTuple):
    """A part of the layouts, searched: its frames and the bounds of their candidates."""

    space: Space
    bound_s: FloatArray
    frames: tuple[int, ...]  # how many of the frames came from each part


def shards(scenario: Scenario, count: int) -> list[list[Strategy]]:
    """Layouts in ``count`` parts; those that share prices (all but pp and dp alike) stay together."""
    everything = list(layouts(scenario))
    count = max(1, min(count, len(everything) // LAYOUTS_PER_WORKER))
    alike: dict[tuple[int, ...], list[Strategy]] = {}
    for layout in everything:
        alike.setdefault((layout.tp, layout.cp, layout.ep, layout.etp), []).append(layout)
    parts: list[list[Strategy]] = [[] for _ in range(count)]
    for number, together in enumerate(alike.values()):
        parts[number % count] += together
    return parts


def joined(parts: list[Shard]) -> Shard:
    return Shard(
        Space(
            frames=[frame for part in parts for frame in part.space.frames],
            options=[options for part in parts for options in part.space.options],
            infeasible=sum((part.space.infeasible for part in parts), Counter()),
            dominated=sum(part.space.dominated for part in parts),
        ),
        np.concatenate([part.bound_s for part in parts]),
        tuple(n for part in parts for n in part.frames),
    )


def bound_steps(scenario: Scenario, part: list[Strategy]) -> Shard:
    """What fits among some layouts, and the bound of each candidate's step."""
    return _bound(scenario, part, steady=False)


def bound_steady(scenario: Scenario, part: list[Strategy]) -> Shard:
    """The same of the time between steps that follow one another."""
    return _bound(scenario, part, steady=True)


def _bound(scenario: Scenario, part: list[Strategy], *, steady: bool) -> Shard:
    found = space(scenario, part)
    numbered = screen(scenario, found.frames, found.options, steady=steady)
    return Shard(found, bounds(numbered) if len(numbered) else np.zeros(0), (len(found.frames),))


def named_part(numbered: Screen, candidates: np.ndarray) -> Named:
    """Candidates as (frame, numbers of its variants): what another process understands."""
    frames = numbered.frame_of(candidates)
    return [
        (numbered.frames[frame], (candidates[frames == frame] - numbered.first[frame]).tolist())
        for frame in np.unique(frames).tolist()
    ]


def list_steps(scenario: Scenario, named: Named) -> FloatArray:
    """List-scheduled seconds of the steps of some variants of some frames."""
    return _list(scenario, named, steady=False)


def list_steady(scenario: Scenario, named: Named) -> FloatArray:
    """The same of the time between steps that follow one another."""
    return _list(scenario, named, steady=True)


def _list(scenario: Scenario, named: Named, *, steady: bool) -> FloatArray:
    if not named:
        return np.zeros(0)
    numbered = screen(scenario, [frame for frame, _ in named], steady=steady)
    chosen = [int(numbered.first[i]) + option for i, (_, options) in enumerate(named) for option in options]
    return list_schedule(numbered, np.array(chosen))


def play_finalist(scenario: Scenario, strategy: Strategy) -> Play:
    """One SimPy play, its steady phase cut short."""
    return play(scenario, strategy, events=True, fold=True)


def play_in_full(scenario: Scenario, one: Play) -> Play:
    """The same play with all of its micro-batches."""
    return unfolded(one)
