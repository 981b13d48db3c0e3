"""Experts that read an earlier representation: overlap "shortcut", "shortcut2", "shortcut3" (ScMoE, arXiv:2404.05019).

    shortcut    the routed experts read what the layer before left: attention and shared experts are beside
                their dispatch and combine
    shortcut2   layers in pairs, a dense one before: they read what its attention left, and its feed-forward
                part is beside them too
    shortcut3   they read its input: its attention as well

The blocks beside them are the backbone, in its order. One stream computes, so the experts run between two
backbone blocks; ``slot`` blocks come before them (``step.passes`` tries every slot). Backbone of one layer, slot 1:

    comm      |  dispatch  |          |  combine  |
    compute   route | attention | experts | shared | merge

Backward is the same in reverse: merge, shared, attention, and the experts' gradients in a slot of their own.
"""

from moesim.program import routed
from moesim.program.ops import Builder
from moesim.program.parts import (
    Chunk,
    LayerShape,
    attention,
    attention_data,
    attention_weights,
    dense,
    dense_data,
    dense_weights,
    from_experts,
    merged,
    to_experts,
)

BEFORE = Chunk(1, "before")  # the dense layer before
PASSED = {"shortcut": 0, "shortcut2": 1, "shortcut3": 0}  # backbone blocks before the routed experts' input

Waits = tuple[int, ...]
Named = tuple[str, Chunk]  # a backbone block
_Late = tuple[str, Chunk, Waits]  # and what its weight gradients wait for


def slots(shape: LayerShape) -> int:
    """Places for the experts: before, between or after the backbone blocks beside them."""
    return 1 + len(_names(shape)) - PASSED[shape.overlap]


def _names(shape: LayerShape) -> list[Named]:
    """The backbone in forward order."""
    own = [("attention", Chunk()), *([("shared", Chunk())] if shape.shared else [])]
    return [("attention", BEFORE), ("ffn", BEFORE), *own] if shape.before else own


def forward(build: Builder, shape: LayerShape) -> None:
    """The backbone, the experts in their slot."""
    if not shape.moe:
        if not shape.empty:
            routed.forward(build, shape)
        return
    names, passed = _names(shape), PASSED[shape.overlap]
    last: Waits = ()
    for name, part in names[:passed]:
        last = (_block(build, shape, name, part, last),)
    sent = build.add("route", "compute", *last)
    arrived = [to_experts(build, shape, "dispatch", sent, j) for j in range(shape.chunks)]
    home: list[int] = []
    for place, block in enumerate([*names[passed:], None]):
        if place == min(shape.slot, len(names) - passed):
            computed = [build.add("experts", "compute", arrived[j], chunk=j) for j in range(shape.chunks)]
            home = [from_experts(build, shape, "combine", computed[j], j) for j in range(shape.chunks)]
        if block is not None:
            last = (_block(build, shape, *block, last),)
    merged(build, shape, *home, *last)


def backward(build: Builder, shape: LayerShape, part: str) -> None:
    """The gradients of the experts in a slot counted from this end."""
    if not shape.moe:
        if not shape.empty:
            routed.backward(build, shape, part)
        return
    if part == "weights":
        routed.weights(build, shape)
        for name in ("attention", "ffn") if shape.before else ():
            build.add(f"{name} weight grad", "compute", chunk=1, key=f"{name} weight grad before")
        return
    names, passed = _names(shape)[::-1], PASSED[shape.overlap]
    beside, late = names[: len(names) - passed], list[_Late]()
    last, home, computed = _backbone_back(build, shape, beside, late)
    if part == "all":
        for j in range(shape.chunks):
            build.add("experts weight grad", "compute", computed[j], chunk=j)
        _weights_late(build, shape, late)
    last = (build.add("route grad", "compute", *home, *last),)
    late = []
    for name, where in names[len(beside) :]:
        into, held = _block_data(build, shape, name, where, last)
        last = (into,)
        late.append((name, where, held))
    if part == "all":
        _weights_late(build, shape, late)


def _backbone_back(
    build: Builder, shape: LayerShape, beside: list[Named], late: list[_Late]
) -> tuple[Waits, list[int], list[int]]:
    """(end of the backbone, gradients home, experts' data gradients); ``late``: whose weights are due."""
    merging = build.add("merge grad", "compute")
    arrived = [to_experts(build, shape, "combine grad", merging, j) for j in range(shape.chunks)]
    last: Waits = (merging,)
    home, computed = list[int](), list[int]()
    for place, block in enumerate([*beside, None]):
        if place == min(shape.slot, len(beside)):
            computed = [build.add("experts grad", "compute", arrived[j], chunk=j) for j in range(shape.chunks)]
            home = [from_experts(build, shape, "dispatch grad", computed[j], j) for j in range(shape.chunks)]
        if block is not None:
            into, held = _block_data(build, shape, *block, last)
            last = (into,)
            late.append((*block, held))
    return last, home, computed


def _weights_late(build: Builder, shape: LayerShape, late: list[_Late]) -> None:
    for name, where, held in late:
        if name == "attention":
            attention_weights(build, shape, held, where)
        else:
            dense_weights(build, shape, name, held, where)


def _block(build: Builder, shape: LayerShape, name: str, part: Chunk, after: Waits) -> int:
    if name == "attention":
        return attention(build, shape, *after, part=part)
    return dense(build, shape, name, after, part)


def _block_data(build: Builder, shape: LayerShape, name: str, part: Chunk, after: Waits) -> tuple[int, Waits]:
    if name == "attention":
        return attention_data(build, shape, *after, part=part)
    return dense_data(build, shape, name, after, part)
