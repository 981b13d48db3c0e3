"""Layers played with K slots on the GPU: layer i + K is fetched into the slot of layer i when that has computed.

    host       | f0 | f1 |    f2    | f3 | ...        reads from SSD and copies over PCIe
    nvlink     |g0|g1|  |g2|                          dense shards of the next layers
    compute         | c0 |  c1  |      | c2 |         K = 2: f2 waits for c0

Equal layers give ``fetch.steady_s``; uneven ones (a layer whose experts were on SSD) are evened out by more slots.
"""

from collections.abc import Sequence
from typing import NamedTuple

from moesim.errors import MoesimError
from moesim.player import play_events
from moesim.program import Builder, Program
from moesim.timeline import Span


class RingPlay(NamedTuple):
    """One pass through all layers."""

    end_s: float
    layer_s: float  # of a layer in the second half of the pass, when the ring is full
    spans: list[Span]


def play_ring(
    layer_s: Sequence[float], fetch_s: Sequence[float], slots: int, gather_s: Sequence[float] | None = None
) -> RingPlay:
    """Play the layers in order, each with its own seconds."""
    layers = len(layer_s)
    gathers = gather_s if gather_s is not None else [0.0] * layers
    if slots < 1 or layers < 2 or not layers == len(fetch_s) == len(gathers):
        raise MoesimError(
            f"a ring of {slots} slots for {layers} layers, {len(fetch_s)} fetches and {len(gathers)} gathers: give at "
            "least 1 slot, 2 layers, and as many of each"
        )
    seconds = {
        f"{what} {i}": [value]
        for what, values in (("layer", layer_s), ("fetch", fetch_s), ("gather", gathers))
        for i, value in enumerate(values)
    }
    played = play_events(_program(layers, slots), seconds)
    ends = [span.end_s for span in played.spans if span.what == "layer"]
    half = layers // 2
    return RingPlay(played.end_s, (ends[-1] - ends[half - 1]) / (layers - half), played.spans)


def _program(layers: int, slots: int) -> Program:
    build = Builder()
    done: list[int] = []
    for i in range(layers):
        free = (done[i - slots],) if i >= slots else ()
        fetched = build.add("fetch", "host", *free, chunk=i, key=f"fetch {i}")
        gathered = build.add("gather", "nvlink", *free, chunk=i, key=f"gather {i}")
        done.append(build.add("layer", "compute", fetched, gathered, chunk=i, key=f"layer {i}"))
    return build.program()
