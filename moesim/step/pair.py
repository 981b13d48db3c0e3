"""Seconds of a forward and a backward pass that run at the same time on one GPU (DualPipe, arXiv:2412.19437).

pair        one layer: forward of one micro-batch, backward of another, interleaved (``program.interleaved``)
hidden      share of communication during which compute is busy too
"""

from typing import NamedTuple

import numpy as np

from moesim.cost import FloatArray
from moesim.model import Layer
from moesim.program import RANK_STREAMS
from moesim.step.layers import LayerPlayer, batched, slowed
from moesim.step.passes import Key, pair_pass
from moesim.step.scenario import Scenario


class Pair(NamedTuple):
    """One layer's pair, for every draw; ``compute_s`` and ``comm_s`` are busy seconds, contention among them."""

    seconds: FloatArray  # [draw]
    compute_s: FloatArray
    comm_s: FloatArray

    @property
    def hidden(self) -> FloatArray:
        """Share of the communication that runs beside compute: [draw]."""
        exposed = np.maximum(self.seconds - self.compute_s, 0.0)
        return np.asarray(1.0 - exposed / np.where(self.comm_s > 0, self.comm_s, 1.0))


def pair_seconds(scenario: Scenario, layer: Layer, key: Key, recompute: str, play: LayerPlayer = batched) -> FloatArray:
    """[draw] seconds of a layer's pair."""
    return play(pair_pass(scenario, layer, key, recompute))


def pair(scenario: Scenario, layer: Layer, key: Key, recompute: str) -> Pair:
    """A layer's pair with the work of its streams, on the slowest rank."""
    one = pair_pass(scenario, layer, key, recompute)
    durations = slowed(one)
    busy = {True: np.zeros(1), False: np.zeros(1)}
    for op in one.program:
        computes = op.stream in RANK_STREAMS
        busy[computes] = busy[computes] + durations[op.key].max(axis=-1)
    return Pair(batched(one), busy[True], busy[False])
