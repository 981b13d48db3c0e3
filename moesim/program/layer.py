"""One layer as ops on streams: ``compute`` (per rank), ``comm`` (all-to-all, TP, CP), ``dp`` (weights, gradients).

Forward of an MoE layer in two chunks, overlap "chunked" (D dispatch, E experts, C combine):

    comm     tp gather |           | tp scatter |       | D0 | D1 | C0 | C1 |
    compute            | attention |            | route | shared | E0 | E1 |    | merge

With overlap "none" every op waits for the one before it.
"""

from functools import lru_cache
from typing import NamedTuple

from moesim.program.ops import Builder, Program


class LayerShape(NamedTuple):
    """Which ops a layer pass has; durations come later."""

    moe: bool
    chunks: int = 1
    overlap: bool = False  # compute and communication may run at the same time
    tp: bool = False
    cp: bool = False
    ep: bool = False
    etp: bool = False
    shared: bool = False
    replicated: bool = False  # all tensor-parallel ranks hold all tokens; their expert outputs are summed
    gathers_weights: bool = False  # ZeRO 3
    reduces_gradients: bool = False  # ZeRO 2 and 3: in every backward pass


@lru_cache(maxsize=256)
def forward_layer(shape: LayerShape) -> Program:
    """Attention, then the feed-forward part or the experts."""
    build = Builder(serial=not shape.overlap)
    _forward(build, shape)
    return build.program()


@lru_cache(maxsize=256)
def backward_layer(shape: LayerShape, *, recompute: str) -> Program:
    """The forward pass in reverse, after what ``recompute`` says was not kept.

    Data gradients stand in the chain; the experts' weight gradients wait for nothing and fill the gaps.
    """
    build = Builder(serial=not shape.overlap)
    if recompute == "full":
        _forward(build, shape)
    elif shape.gathers_weights:
        build.add("weight gather", "dp")
    if recompute == "selective":
        build.add("recompute", "compute")
    last = _experts_backward(build, shape) if shape.moe else _dense(build, shape, "ffn grad", ())
    last = _attention(build, shape, " grad", last)
    if shape.reduces_gradients:
        build.add("gradient scatter", "dp", last)
    return build.program()


def _forward(build: Builder, shape: LayerShape) -> None:
    gathered = (build.add("weight gather", "dp"),) if shape.gathers_weights else ()
    attended = _attention(build, shape, "", *gathered)
    if not shape.moe:
        _dense(build, shape, "ffn", (attended,))
        return
    routed = build.add("route", "compute", attended)
    arrived = [_to_experts(build, shape, "dispatch", routed, j) for j in range(shape.chunks)]
    shared = [_dense(build, shape, "shared", (routed,))] if shape.shared else []
    computed = [build.add("experts", "compute", arrived[j], chunk=j) for j in range(shape.chunks)]
    home = [_from_experts(build, shape, "combine", computed[j], j) for j in range(shape.chunks)]
    merged = build.add("merge", "compute", *home, *shared)
    if shape.replicated:
        build.add("tp scatter", "comm", merged)


def _experts_backward(build: Builder, shape: LayerShape) -> int:
    """The gradient of the output goes to the experts, the gradient of the input comes home."""
    merged = build.add("merge grad", "compute")
    arrived = [_to_experts(build, shape, "combine grad", merged, j) for j in range(shape.chunks)]
    shared = [_dense(build, shape, "shared grad", (merged,))] if shape.shared else []
    computed = [build.add("experts grad", "compute", arrived[j], chunk=j) for j in range(shape.chunks)]
    home = [_from_experts(build, shape, "dispatch grad", computed[j], j) for j in range(shape.chunks)]
    for j in range(shape.chunks):
        build.add("experts weight grad", "compute", computed[j], chunk=j)
    return build.add("route grad", "compute", *home, *shared)


def _attention(build: Builder, shape: LayerShape, suffix: str, *after: int) -> int:
    """Attention between its tensor-parallel collectives; context parallelism gathers keys and values first
    (Llama 3, arXiv:2407.21783 section 3.3.2)."""
    ready = _gathered(build, shape, after)
    if shape.cp:
        ready = (build.add(f"kv exchange{suffix}", "comm", *ready),)
    done = build.add(f"attention{suffix}", "compute", *ready)
    return build.add("tp scatter", "comm", done) if shape.tp else done


def _dense(build: Builder, shape: LayerShape, name: str, after: tuple[int, ...]) -> int:
    done = build.add(name, "compute", *_gathered(build, shape, after))
    if shape.tp and not (shape.replicated and shape.moe):
        return build.add("tp scatter", "comm", done)
    return done


def _gathered(build: Builder, shape: LayerShape, after: tuple[int, ...]) -> tuple[int, ...]:
    """Sequence-parallel tokens come together; replicated tokens are together already."""
    return (build.add("tp gather", "comm", *after),) if shape.tp and not shape.replicated else after


def _to_experts(build: Builder, shape: LayerShape, name: str, after: int, chunk: int) -> int:
    if shape.ep:
        after = build.add(name, "comm", after, chunk=chunk)
    return build.add("etp gather", "comm", after, chunk=chunk) if shape.etp else after


def _from_experts(build: Builder, shape: LayerShape, name: str, after: int, chunk: int) -> int:
    if shape.etp:
        after = build.add("etp scatter", "comm", after, chunk=chunk)
    return build.add(name, "comm", after, chunk=chunk) if shape.ep else after
