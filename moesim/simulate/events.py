"""SimPy: every op an event, every wait visible.

A group stream is one process; a rank stream is one process per rank class. No Resource, no process per
op: a stream is its own lock, and an Event exists only where streams meet.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import simpy

from moesim.program import RANK_STREAMS, Op, Program
from moesim.timeline import Span


class Played(NamedTuple):
    """What happened: the end, one span per op and rank class, and how many events it took."""

    end_s: float
    spans: list[Span]
    events: int


def play_events(program: Program, durations: Mapping[str, Sequence[float]]) -> Played:
    """Play once. ``durations[name]`` lists seconds per rank class, one entry on a group stream."""
    env = simpy.Environment()
    waited_for = {index for op in program for index in op.across}
    done = {index: env.event() for index in waited_for}
    lanes = _lanes(program, durations)
    left = {index: len(durations[program[index].key]) for index in waited_for}
    spans: list[Span] = []
    for lane in lanes:
        env.process(_stream(env, lane, durations, done, left, spans))
    env.run()
    events = 2 * len(lanes) + len(done) + sum(1 for span in spans if span.end_s > span.start_s)
    return Played(float(env.now), spans, events)


class _Lane(NamedTuple):
    rank: int
    ops: list[tuple[int, Op]]


def _lanes(program: Program, durations: Mapping[str, Sequence[float]]) -> list[_Lane]:
    streams: dict[str, list[tuple[int, Op]]] = {}
    for index, op in enumerate(program):
        streams.setdefault(op.stream, []).append((index, op))
    lanes = []
    for stream, ops in streams.items():
        ranks = len(durations[ops[0][1].key]) if stream in RANK_STREAMS else 1
        lanes += [_Lane(rank, ops) for rank in range(ranks)]
    return lanes


def _stream(
    env: simpy.Environment,
    lane: _Lane,
    durations: Mapping[str, Sequence[float]],
    done: Mapping[int, Any],
    left: dict[int, int],
    spans: list[Span],
) -> Generator[Any, Any, None]:
    """One rank's share of one stream: wait for the others, work, tell those who wait."""
    for index, op in lane.ops:
        for other in op.across:
            if not done[other].processed:
                yield done[other]
        start_s = env.now
        duration_s = durations[op.key][lane.rank]
        if duration_s > 0:
            yield env.timeout(duration_s)
        spans.append(Span(lane.rank, op.stream, op.name, op.chunk, start_s, env.now))
        if index in done:
            left[index] -= 1
            if not left[index]:
                done[index].succeed()
