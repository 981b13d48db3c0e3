"""One layer whose experts follow its own attention: overlap "none", "chunked", "shared" and "tiles".

    chunked   comm     | tp gather |           | tp scatter |       | D0 | D1 | C0 | C1 |
              compute              | attention |            | route | shared | E0 | E1 |    | merge

    shared    comm     | D                       | C                           |
              compute  | shared up |   | experts | shared down |               | merge      (Megatron-LM)

    tiles     compute  attention | route | shared | experts, their tiles on the way in and out | merge  (FlashMoE)

D dispatch, E experts, C combine. With overlap "none" every op waits for the one before it; there too, as
frameworks do, tensor-parallel gradients leave beside the weight gradients, and sharded weights come early.
Backward, data gradients stand in the chain; weight gradients wait for nothing else and fill the gaps.
"""

from moesim.program.ops import Builder
from moesim.program.parts import (
    LayerShape,
    attention,
    attention_data,
    attention_weights,
    dense,
    dense_data,
    dense_weights,
    from_experts,
    gathered,
    merged,
    scattered,
    to_experts,
)

Waits = tuple[int, ...]


def forward(build: Builder, shape: LayerShape) -> None:
    """Attention, then the feed-forward part or the experts."""
    feed_forward(build, shape, attention(build, shape))


def feed_forward(build: Builder, shape: LayerShape, *after: int) -> None:
    """The feed-forward part or the experts."""
    if not shape.moe:
        if shape.ffn:
            dense(build, shape, "ffn", after)
        return
    routed = build.add("route", "compute", *after)
    if _splits_shared(shape):
        _beside_shared(build, shape, routed)
        return
    arrived = [to_experts(build, shape, "dispatch", routed, j) for j in range(shape.chunks)]
    shared = [dense(build, shape, "shared", (routed,))] if shape.shared else []
    computed = [build.add("experts", "compute", arrived[j], chunk=j) for j in range(shape.chunks)]
    home = [from_experts(build, shape, "combine", computed[j], j) for j in range(shape.chunks)]
    merged(build, shape, *home, *shared)


def backward(build: Builder, shape: LayerShape, part: str) -> None:
    """``part``: "data" gradients, which the layer before waits for, "weights", which nobody does, or "all"."""
    if part == "weights":
        weights(build, shape)
        return
    everything = part == "all"
    into: Waits = ()
    if shape.moe:
        into = ((_shared_backward if _splits_shared(shape) else _experts_backward)(build, shape, everything),)
    elif shape.ffn:
        done, held = dense_data(build, shape, "ffn", ())
        into = (done,)
        if everything:
            dense_weights(build, shape, "ffn", held)
    _, held = attention_data(build, shape, *into)
    if everything:
        attention_weights(build, shape, held)


def weights(build: Builder, shape: LayerShape) -> None:
    """All weight gradients of the layer; their inputs were kept, sliced ones are gathered."""
    if shape.moe:
        for j in range(shape.chunks):
            build.add("experts weight grad", "compute", chunk=j)
    there = {"shared": shape.moe and shape.shared, "ffn": shape.ffn and not shape.moe, shape.mixer: True, "norm": False}
    for name in (name for name, has in there.items() if has):
        build.add(f"{name} weight grad", "compute", *gathered(build, shape, ()))


def _splits_shared(shape: LayerShape) -> bool:
    return shape.overlap == "shared" and shape.shared and shape.ep


def _experts_backward(build: Builder, shape: LayerShape, everything: bool) -> int:
    """The gradient of the output goes to the experts, the gradient of the input comes home."""
    merging = build.add("merge grad", "compute")
    arrived = [to_experts(build, shape, "combine grad", merging, j) for j in range(shape.chunks)]
    shared, held = list[int](), tuple[int, ...]()
    if shape.shared:
        done, held = dense_data(build, shape, "shared", (merging,))
        shared = [done]
    computed = [build.add("experts grad", "compute", arrived[j], chunk=j) for j in range(shape.chunks)]
    home = [from_experts(build, shape, "dispatch grad", computed[j], j) for j in range(shape.chunks)]
    if everything:
        for j in range(shape.chunks):
            build.add("experts weight grad", "compute", computed[j], chunk=j)
        if shape.shared:
            dense_weights(build, shape, "shared", held)
    return build.add("route grad", "compute", *home, *shared)


def _beside_shared(build: Builder, shape: LayerShape, routed: int) -> None:
    """The shared experts' two halves run beside dispatch and combine, all else in a chain."""
    entered = _gathered_beside(build, shape, routed)
    arrived = to_experts(build, shape, "dispatch", routed, 0)
    up = build.add("shared up", "compute", *entered, beside=True)
    computed = build.add("experts", "compute", arrived)
    home = from_experts(build, shape, "combine", computed, 0)
    down = build.add("shared down", "compute", up, beside=True)
    merged(build, shape, home, _scattered_beside(build, shape, down))


def _shared_backward(build: Builder, shape: LayerShape, everything: bool) -> int:
    """The same backward: the gradient meets the second half first."""
    merging = build.add("merge grad", "compute")
    entered = _gathered_beside(build, shape, merging)
    arrived = to_experts(build, shape, "combine grad", merging, 0)
    down = build.add("shared down grad", "compute", *entered, beside=True)
    computed = build.add("experts grad", "compute", arrived)
    if everything:
        build.add("experts weight grad", "compute", computed)
    home = from_experts(build, shape, "dispatch grad", computed, 0)
    up = build.add("shared up grad", "compute", down, beside=True)
    if everything:
        again = _gathered_beside(build, shape, merging)
        build.add("shared weight grad", "compute", up, *again, beside=True)
    return build.add("route grad", "compute", home, _scattered_beside(build, shape, up))


def _gathered_beside(build: Builder, shape: LayerShape, after: int) -> Waits:
    if not shape.tp or shape.replicated:
        return (after,)
    return (build.add("tp gather", "comm", after, beside=True),)


def _scattered_beside(build: Builder, shape: LayerShape, done: int) -> int:
    return done if not shape.tp or shape.sums_experts else scattered(build, shape, done)
