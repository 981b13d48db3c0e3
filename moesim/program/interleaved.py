"""Two micro-batches through one layer at once: one computes while the other communicates.

Overlap "dual_batch" cuts a micro-batch in halves a, b (SGLang's two-batch overlap). In the steady state of
a layer, b's combine of the layer before runs beside a's attention:

    comm      combine b  |  dispatch a  |  dispatch b  |  combine a
    compute   attention a, route a | merge b, attention b, route b | experts a | experts b | merge a

    comm      dispatch grad b  |  combine grad a  |  combine grad b  |  dispatch grad a
    compute   route a, attention a, merge a | route b, attention b, merge b | experts a | experts b | weights

A pair is a forward pass f and a backward pass b of two micro-batches (DualPipe, arXiv:2412.19437 figure 4;
the order is that of DeepSeek's published H800 trace):

    comm      combine grad b        |  dispatch f  |  dispatch grad b          |  combine f
    compute   attention weights b, attention f | experts b | weights b | experts f | route b, attention b | merge f

A pass begins and ends where both streams of the steady state meet; the first and the last layer of a stage,
where one half has no partner, are taken to be like the others.
"""

from moesim.program import routed
from moesim.program.ops import Builder
from moesim.program.parts import (
    Chunk,
    LayerShape,
    attended,
    attention,
    attention_data,
    attention_grads,
    attention_weights,
    dense,
    dense_data,
    dense_weights,
    entered,
    from_experts,
    merged,
    to_experts,
)

A, B = Chunk(0), Chunk(1)


def forward(build: Builder, shape: LayerShape) -> None:
    """Both halves through one layer."""
    if not shape.moe:
        for _ in (A, B):
            routed.forward(build, shape)
        return
    ready = entered(build, shape, (), A)
    combined = from_experts_of_before(build, shape, "combine", B)
    first = attended(build, shape, ready, A)
    sent = [build.add("route", "compute", first)]
    arrived = [to_experts(build, shape, "dispatch", sent[0], 0)]
    second = attention(build, shape, merged(build, shape, *combined, chunk=1), part=B)
    sent.append(build.add("route", "compute", second, chunk=1))
    arrived.append(to_experts(build, shape, "dispatch", sent[1], 1))
    computed = [_experts(build, shape, half, sent, arrived) for half in (A, B)]
    merged(build, shape, from_experts(build, shape, "combine", computed[0], 0))


def backward(build: Builder, shape: LayerShape, part: str) -> None:
    """Both halves back through one layer."""
    if part == "weights" or not shape.moe:
        for _ in (A, B):
            routed.backward(build, shape._replace(chunks=1), part)
        return
    everything = part == "all"
    ready = [entered(build, shape, (build.add("route grad", "compute"),), A)]
    home = from_experts_of_before(build, shape, "dispatch grad", B)
    arrived, merging = list[int](), list[int]()
    for half in (A, B):
        if half is B:
            ready.append(entered(build, shape, (build.add("route grad", "compute", *home, chunk=1),), B))
        passed, held = attention_grads(build, shape, ready[half.number], half)
        merging.append(build.add("merge grad", "compute", passed, chunk=half.number))
        arrived.append(to_experts(build, shape, "combine grad", merging[-1], half.number))
        if everything:
            attention_weights(build, shape, held, half)
    late = [_experts_data(build, shape, half, merging, arrived) for half in (A, B)]
    from_experts(build, shape, "dispatch grad", late[0][0], 0)
    if everything:
        for half, (computed, held) in zip((A, B), late, strict=True):
            _experts_weights(build, shape, half, computed, held)


def pair(build: Builder, shape: LayerShape) -> None:
    """The forward pass of micro-batch 0 and the backward pass of micro-batch 1 through layers of one kind."""
    if not shape.moe:
        first, into = attention(build, shape, part=A), tuple[int, ...]()
        if shape.ffn:
            done, held = dense_data(build, shape, "ffn", (), B)
            dense_weights(build, shape, "ffn", held, B)
            dense(build, shape, "ffn", (first,), A)
            into = (done,)
        _, held = attention_data(build, shape, *into, part=B)
        attention_weights(build, shape, held, B)
        return
    ready = entered(build, shape, (), A)
    merging = build.add("merge grad", "compute", chunk=1)
    gone = to_experts(build, shape, "combine grad", merging, 1)
    attention_weights(build, shape, (), B)  # of the layer after, whose data gradients are done
    sent = build.add("route", "compute", attended(build, shape, ready, A))
    arrived = to_experts(build, shape, "dispatch", sent, 0)
    computed, held = _experts_data(build, shape, B, [merging, merging], [gone, gone])
    home = from_experts(build, shape, "dispatch grad", computed, 1)
    _experts_weights(build, shape, B, computed, held)
    done = _experts(build, shape, A, [sent], [arrived])
    combined = from_experts(build, shape, "combine", done, 0)
    back = build.add("route grad", "compute", home, chunk=1)
    attention_data(build, shape, back, part=B)
    merged(build, shape, combined)


def from_experts_of_before(build: Builder, shape: LayerShape, name: str, half: Chunk) -> tuple[int, ...]:
    """What the experts of the neighbouring layer sent comes home at the start of this pass."""
    if not (shape.ep or shape.etp):
        return ()
    if shape.etp:
        scattered = build.add("etp scatter", "comm", chunk=half.number)
        return (build.add(name, "comm", scattered, chunk=half.number),) if shape.ep else (scattered,)
    return (build.add(name, "comm", chunk=half.number),)


def _experts(build: Builder, shape: LayerShape, half: Chunk, sent: list[int], arrived: list[int]) -> int:
    if shape.shared:
        dense(build, shape, "shared", (sent[half.number],), half)
    return build.add("experts", "compute", arrived[half.number], chunk=half.number)


def _experts_data(
    build: Builder, shape: LayerShape, half: Chunk, merging: list[int], arrived: list[int]
) -> tuple[int, tuple[int, ...]]:
    held: tuple[int, ...] = ()
    if shape.shared:
        _, held = dense_data(build, shape, "shared", (merging[half.number],), half)
    return build.add("experts grad", "compute", arrived[half.number], chunk=half.number), held


def _experts_weights(build: Builder, shape: LayerShape, half: Chunk, computed: int, held: tuple[int, ...]) -> None:
    build.add("experts weight grad", "compute", computed, chunk=half.number)
    if shape.shared:
        dense_weights(build, shape, "shared", held, half)
