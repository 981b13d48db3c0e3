"""Layer passes played: seconds of each pass for every draw, many passes at once.

Passes of one program differ only in their durations, so they are stacked and played together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from moesim.cost import FloatArray
from moesim.program import RANK_STREAMS, Program
from moesim.simulate import Played, lower_bound, play_batched, play_events
from moesim.step.passes import LayerPass

Play = Callable[[Program, Mapping[str, FloatArray]], FloatArray]
LayerPlayer = Callable[[LayerPass], FloatArray]  # -> [draw] seconds


def seconds_of(layer_pass: LayerPass) -> dict[str, FloatArray]:
    """Durations by op name: [draw, rank class]."""
    return {name: one.seconds for name, one in layer_pass.prices.items()}


def draws_of(layer_pass: LayerPass) -> int:
    """Draws that the pass distinguishes; 1 where routing does not matter."""
    return max(len(one.seconds) for one in layer_pass.prices.values())


def batched(layer_pass: LayerPass) -> FloatArray:
    """[draw] seconds by the batched list schedule."""
    return _all_draws(play_batched, layer_pass)


def bounded(layer_pass: LayerPass) -> FloatArray:
    """[draw] seconds that no order of the ops can beat."""
    return _all_draws(lower_bound, layer_pass)


def by_events(layer_pass: LayerPass) -> FloatArray:
    """[draw] seconds by SimPy, one play per draw."""
    return np.array([play_draw(layer_pass, draw).end_s for draw in range(draws_of(layer_pass))])


def play_draw(layer_pass: LayerPass, draw: int) -> Played:
    """One draw played by SimPy, with its spans."""
    names = {op.key: op.stream for op in layer_pass.program}
    rows = {name: layer_pass.prices[name].seconds for name in names}
    ranks = max(row.shape[1] for row in rows.values())
    durations = {}
    for name, row in rows.items():
        one = row[draw if len(row) > 1 else 0].tolist()
        durations[name] = one * ranks if names[name] in RANK_STREAMS and len(one) == 1 else one
    return play_events(layer_pass.program, durations)


def _all_draws(play: Play, layer_pass: LayerPass) -> FloatArray:
    ends = play(layer_pass.program, seconds_of(layer_pass))
    return np.broadcast_to(np.atleast_1d(ends), (draws_of(layer_pass),))


def play_many(layer_passes: Iterable[LayerPass], play: Play) -> dict[int, FloatArray]:
    """[draw] seconds of many passes, by the identity of the pass; programs played once each."""
    by_program: dict[tuple[int, int], list[LayerPass]] = {}
    for one in {id(p): p for p in layer_passes}.values():
        by_program.setdefault((id(one.program), draws_of(one)), []).append(one)
    played: dict[int, FloatArray] = {}
    for same in by_program.values():
        ends = play(same[0].program, _stack(same))
        for one, end in zip(same, np.broadcast_to(ends, (len(same), draws_of(same[0]))), strict=True):
            played[id(one)] = end
    return played


def _stack(same: Sequence[LayerPass]) -> dict[str, FloatArray]:
    """Durations [pass, draw, 1] of passes that share a program.

    The slowest rank stands for all: it is the same rank in every chunk, and every collective waits for it.
    """
    draws = draws_of(same[0])
    stacked = {}
    for name in dict.fromkeys(op.key for op in same[0].program):
        prices = [one.prices[name] for one in same]
        rows = {id(one): one for one in prices}  # most passes share their prices
        place = {identity: row for row, identity in enumerate(rows)}
        slowest = [np.broadcast_to(one.seconds.max(axis=1), draws) for one in rows.values()]
        stacked[name] = np.stack(slowest)[[place[id(one)] for one in prices], :, None]
    return stacked
