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
    done = {index: env.event() for index in program.awaited}
    left = {index: len(durations[program[index].key]) for index in program.awaited}
    spans: list[Span] = []
    lanes = [
        (rank, ops)
        for stream, ops in program.streams.items()
        for rank in range(len(durations[ops[0][1].key]) if stream in RANK_STREAMS else 1)
    ]
    for rank, ops in lanes:
        env.process(_stream(env, rank, ops, durations, done, left, spans))
    env.run()
    events = 2 * len(lanes) + len(done) + sum(1 for span in spans if span.end_s > span.start_s)
    return Played(float(env.now), spans, events)


def _stream(
    env: simpy.Environment,
    rank: int,
    ops: Sequence[tuple[int, Op]],
    durations: Mapping[str, Sequence[float]],
    done: Mapping[int, Any],
    left: dict[int, int],
    spans: list[Span],
) -> Generator[Any, Any, None]:
    """One rank's share of one stream: wait for the others, work, tell those who wait."""
    for index, op in ops:
        for other in op.across:
            if not done[other].processed:
                yield done[other]
        start_s = env.now
        duration_s = durations[op.key][rank]
        if duration_s > 0:
            yield env.timeout(duration_s)
        spans.append(Span(rank, op.stream, op.name, op.chunk, start_s, env.now))
        if index in done:
            left[index] -= 1
            if not left[index]:
                done[index].succeed()
