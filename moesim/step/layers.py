"""Layer passes played: seconds of each pass for every draw, many passes at once.

Passes of one program differ only in their durations, so they are stacked and played together. Ops that
overlap slow each other down (``contention``); only the bound does not know it. No pass ends before its kernels are
launched (``launches``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from moesim.cost import FloatArray
from moesim.player import Played, lower_bound, play_batched, play_events
from moesim.program import RANK_STREAMS, Program
from moesim.step.contention import NONE, Slower, contended
from moesim.step.passes import LayerPass
from moesim.step.price import Prices
from moesim.timeline import Span

Play = Callable[[Program, Mapping[str, FloatArray]], FloatArray]
LayerPlayer = Callable[[LayerPass], FloatArray]  # -> [draw] seconds


def seconds_of(layer_pass: LayerPass) -> dict[str, FloatArray]:
    """Durations by op name, as priced: [draw, rank class]."""
    return {name: layer_pass.price(name).seconds for name in layer_pass.program.keys}


def slowed(layer_pass: LayerPass) -> dict[str, FloatArray]:
    """The same with what overlapping ops cost each other."""
    durations = seconds_of(layer_pass)
    if layer_pass.slower == NONE or not _overlaps(layer_pass.program):
        return durations
    return contended(layer_pass.program, durations, {k: np.full((1, 1), v) for k, v in _fields(layer_pass.slower)})


@lru_cache(maxsize=1024)
def _overlaps(program: Program) -> bool:
    """Whether it computes and communicates, and an op does not wait for the one before it."""
    both = len({stream in RANK_STREAMS for stream in program.streams}) > 1
    return both and any(index and index - 1 not in op.waits for index, op in enumerate(program))


def _fields(factors: Slower) -> Iterator[tuple[str, float]]:
    return zip(Slower._fields, factors, strict=True)


def draws_of(layer_pass: LayerPass) -> int:
    """Draws that the pass distinguishes; 1 where routing does not matter."""
    return len(layer_pass.moved["experts"].seconds) if layer_pass.moved else 1


def batched(layer_pass: LayerPass) -> FloatArray:
    """[draw] seconds by the batched list schedule."""
    return _all_draws(play_batched, layer_pass, slowed(layer_pass))


def bounded(layer_pass: LayerPass) -> FloatArray:
    """[draw] seconds that no order of the ops can beat."""
    return _all_draws(lower_bound, layer_pass, seconds_of(layer_pass))


def by_events(layer_pass: LayerPass) -> FloatArray:
    """[draw] seconds by SimPy, one play per draw."""
    return np.array([play_draw(layer_pass, draw).end_s for draw in range(draws_of(layer_pass))])


def play_draw(layer_pass: LayerPass, draw: int) -> Played:
    """One draw played by SimPy, with its spans."""
    names = {op.key: op.stream for op in layer_pass.program}
    rows = slowed(layer_pass)
    ranks = max(row.shape[1] for row in rows.values())
    durations = {}
    for name, row in rows.items():
        one = row[draw if len(row) > 1 else 0].tolist()
        durations[name] = one * ranks if names[name] in RANK_STREAMS and len(one) == 1 else one
    played = play_events(layer_pass.program, durations)
    if layer_pass.host_s <= played.end_s:
        return played
    launched = Span(0, "host", "launches", 0, 0.0, layer_pass.host_s)
    return Played(layer_pass.host_s, [*played.spans, launched], played.events)


def _all_draws(play: Play, layer_pass: LayerPass, durations: Mapping[str, FloatArray]) -> FloatArray:
    ends = play(layer_pass.program, durations)
    return np.broadcast_to(np.atleast_1d(np.maximum(ends, layer_pass.host_s)), (draws_of(layer_pass),))


def play_many(layer_passes: Sequence[LayerPass]) -> FloatArray:
    """Seconds of many passes by the batched list schedule, [pass, draw]; those of one program are played together.

    Passes that distinguish fewer draws than the others repeat their first one.
    """
    draws = max(draws_of(one) for one in layer_passes)
    ends = np.empty((len(layer_passes), draws))
    by_program: dict[int, list[int]] = {}
    for number, one in enumerate(layer_passes):
        by_program.setdefault(id(one.program), []).append(number)
    for numbers in by_program.values():
        same = [layer_passes[number] for number in numbers]
        program, durations = same[0].program, _stack(same)
        if _overlaps(program) and any(one.slower != NONE for one in same):
            factors = np.array([one.slower for one in same])[:, None, None, :]
            durations = contended(program, durations, {k: factors[..., i] for i, k in enumerate(Slower._fields)})
        ends[numbers] = np.maximum(play_batched(program, durations), np.array([[one.host_s] for one in same]))
    return ends


def _stack(same: Sequence[LayerPass]) -> dict[str, FloatArray]:
    """Durations [pass, draw, 1] of passes that share a program.

    The slowest rank stands for all: it is the same rank in every chunk, and every collective waits for it.
    Most passes share their prices, which are stacked once each.
    """
    fixed, moved = _numbered([one.fixed for one in same]), _numbered([one.moved for one in same])
    stacked = {}
    for name in same[0].program.keys:
        tables, place = moved if name in same[0].moved else fixed
        stacked[name] = np.array([prices[name].slowest for prices in tables])[place, :, None]
    return stacked


def _numbered(many: Sequence[Prices]) -> tuple[list[Prices], list[int]]:
    """The different price lists, and which of them each pass has."""
    different = {id(one): one for one in many}
    number = {identity: place for place, identity in enumerate(different)}
    return list(different.values()), [number[id(one)] for one in many]
