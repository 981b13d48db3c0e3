"""One layer as ops on streams: ``compute`` (per rank), ``comm`` (all-to-all, TP, CP), ``dp`` (weights, gradients).

    LAYERS    overlap -> the file that draws its forward and backward pass

A pass is closed: it starts with all streams free and ends when the last op has ended.
"""

from functools import lru_cache
from typing import Final, Protocol

from moesim.errors import MoesimError
from moesim.program import interleaved, routed, shortcut
from moesim.program.ops import Builder, Program
from moesim.program.parts import Chunk, LayerShape, around, dense, gradients_leave, weights_come
from moesim.program.shortcut import BEFORE
from moesim.recompute import INSIDE, parts


class _Drawn(Protocol):
    """A file that draws layer passes."""

    def forward(self, build: Builder, shape: LayerShape) -> None: ...
    def backward(self, build: Builder, shape: LayerShape, part: str) -> None: ...


LAYERS: Final[dict[str, _Drawn]] = {
    "none": routed, "chunked": routed, "shared": routed, "tiles": routed,
    "shortcut": shortcut, "shortcut2": shortcut, "shortcut3": shortcut,
    "dual_batch": interleaved,
}  # fmt: skip
SERIAL: Final = ("none", "shared", "tiles")  # what overlaps nevertheless is added beside the chain
PARTS: Final = ("all", "data", "weights")


@lru_cache(maxsize=512)
def forward_layer(shape: LayerShape) -> Program:
    """Attention, then the feed-forward part or the experts."""
    build = Builder(serial=shape.overlap in SERIAL)
    weights_come(build, shape)
    LAYERS[shape.overlap].forward(build, shape)
    return _program(build)


@lru_cache(maxsize=512)
def backward_layer(shape: LayerShape, *, recompute: str, part: str = "all") -> Program:
    """The forward pass in reverse, after what ``recompute`` says was not kept.

    ``part`` "data" leaves the weight gradients out, "weights" is these alone: together they are "all", which
    puts weight gradients where compute would wait.
    """
    if part not in PARTS:
        raise MoesimError(f"backward part {part!r}: give one of {', '.join(PARTS)}")
    build = Builder(serial=shape.overlap in SERIAL)
    if part != "weights":
        weights_come(build, shape)
        _again(build, shape, recompute)
    if part != "data":
        gradients_leave(build, shape)
    LAYERS[shape.overlap].backward(build, shape, part)
    return _program(build)


@lru_cache(maxsize=256)
def pair_layer(shape: LayerShape, *, recompute: str) -> Program:
    """The forward pass of one micro-batch and the backward pass of another, interleaved: each through its own layer."""
    build = Builder()
    for _ in range(2):
        weights_come(build, shape)
    gradients_leave(build, shape)
    _again(build, shape, recompute)
    interleaved.pair(build, shape)
    return _program(build)


def _again(build: Builder, shape: LayerShape, recompute: str) -> None:
    """The whole forward pass, or the parts of it that were dropped."""
    if recompute == "full":
        LAYERS[shape.overlap].forward(build, shape)
    elif not shape.empty:
        for half in range(2 if shape.overlap == "dual_batch" else 1):
            _parts_again(build, shape, parts(recompute), Chunk(half))


def _parts_again(build: Builder, shape: LayerShape, dropped: frozenset[str], half: Chunk) -> None:
    """Parts inside blocks as one op, then blocks as in the forward pass."""
    ready: tuple[int, ...] = ()
    if "mla_up" in dropped and shape.latent and shape.tp:
        ready = (build.add("tp gather", "comm", chunk=half.number, key="latent gather"),)
    if dropped & INSIDE:
        ready = (build.add("recompute", "compute", *ready, chunk=half.number),)
    if "core" in dropped and shape.ring:
        ready = (around(build, shape, ready[0], half),)
    if shape.before and "mlp" in dropped:
        ready = (dense(build, shape, "ffn", ready, BEFORE),)
    if "moe" in dropped and shape.moe:
        routed.feed_forward(build, shape, *ready)
    elif "shared_experts" in dropped and shape.moe and shape.shared:
        dense(build, shape, "shared", ready, half)
    elif "mlp" in dropped and shape.ffn and not shape.moe:
        dense(build, shape, "ffn", ready, half)


def _program(build: Builder) -> Program:
    if not build.ops:  # a layer that is part of the next one's pass
        build.add("nothing", "compute")
    return build.program()
