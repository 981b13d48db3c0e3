"""Pieces that layer passes are built of: attention or Mamba, dense parts, the way to the experts and home."""

from typing import NamedTuple

from moesim.program.ops import Builder


class LayerShape(NamedTuple):
    """Which ops a layer pass has; durations come later."""

    moe: bool
    mixer: str = "attention"  # or "mamba"; "norm": the layer is a feed-forward part alone
    ffn: bool = True  # False: it has none
    chunks: int = 1
    overlap: str = "none"  # a key of ``layer.LAYERS``
    tp: bool = False
    cp: bool = False  # all keys and values are gathered before the core
    ring: int = 0  # or they come in so many slices, one while another is attended to
    ep: bool = False
    etp: bool = False
    shared: bool = False
    latent: bool = False  # queries, keys and values are projected up from latent vectors
    replicated: bool = False  # all tensor-parallel ranks hold all tokens; their expert outputs are summed
    gathers_weights: bool = False  # ZeRO 3
    reduces_gradients: bool = False  # ZeRO 2 and 3: in every backward pass
    slot: int = 0  # shortcut: backbone blocks before the experts
    before: bool = False  # shortcut: the dense layer before is part of this pass
    empty: bool = False  # shortcut: this dense layer is part of the next one's pass

    @property
    def sums_experts(self) -> bool:
        """Whether tensor-parallel ranks sum their expert outputs instead of exchanging tokens."""
        return self.replicated and self.moe


class Chunk(NamedTuple):
    """Which part of the work an op is: a chunk, or one of two micro-batches; ``key`` ends its price's name."""

    number: int = 0
    key: str = ""


ONLY = Chunk()


def attention(build: Builder, shape: LayerShape, *after: int, part: Chunk = ONLY) -> int:
    """Attention, or what the layer has in its place, between its tensor-parallel collectives."""
    return attended(build, shape, entered(build, shape, after, part), part)


def entered(build: Builder, shape: LayerShape, after: tuple[int, ...], part: Chunk = ONLY) -> tuple[int, ...]:
    """Tokens come together before attention; a norm alone needs none but its own."""
    return after if shape.mixer == "norm" else gathered(build, shape, after, part)


def attended(build: Builder, shape: LayerShape, ready: tuple[int, ...], part: Chunk = ONLY) -> int:
    """The same once its input is gathered; context parallelism gathers keys and values first
    (Llama 3, arXiv:2407.21783 section 3.3.2), or sends them around a ring."""
    if shape.cp:
        ready = (build.add("kv exchange", "comm", *ready, chunk=part.number),)
    done = _add(build, shape.mixer, ready, part)
    return done if shape.mixer == "norm" else scattered(build, shape, around(build, shape, done, part), part)


def around(build: Builder, shape: LayerShape, projected: int, part: Chunk) -> int:
    """While a slice of keys and values is attended to, the next one comes from the neighbour."""
    done = here = projected
    for left in reversed(range(shape.ring)):
        comes = build.add("kv send", "comm", here, chunk=part.number, beside=True) if left else here
        done = _add(build, "core", (done, here), part)
        here = comes
    return done


def _back_around(build: Builder, shape: LayerShape, ready: tuple[int, ...], part: Chunk) -> tuple[int, ...]:
    """The same backward: a slice's gradients, summed so far, follow it one step later. The first send has no gradients
    yet, the last one brings them home alone (Transformer Engine, AttnFuncWithCPAndKVP2P)."""
    came: tuple[int, ...] = ready
    for step in range(shape.ring):
        key = "kv send" if step in (0, shape.ring - 1) else "kv send grad"
        sent = build.add("kv send grad", "comm", *ready, *came, chunk=part.number, key=key, beside=True)
        ready, came = (_add(build, "core grad", (*ready, *came), part),), (sent,)
    return (*ready, *came) if shape.ring else ready


def attention_data(build: Builder, shape: LayerShape, *after: int, part: Chunk = ONLY) -> tuple[int, tuple[int, ...]]:
    """Gradients of attention's activations: (what carries them on, what its weight gradients wait for)."""
    return attention_grads(build, shape, entered(build, shape, after, part), part)


def attention_grads(
    build: Builder, shape: LayerShape, ready: tuple[int, ...], part: Chunk = ONLY
) -> tuple[int, tuple[int, ...]]:
    """The same once the gradient of its output is gathered.

    With sequence parallelism the input was kept in slices: it is gathered once more for the weight
    gradients, beside the data gradients, and these leave beside the weight gradients (arXiv:2205.05198
    section 4.2.2).
    """
    if shape.mixer == "norm":
        return _add(build, "norm grad", ready, part), ()
    again = regathered(build, shape, ready, part)
    if shape.cp:
        ready = (build.add("kv exchange grad", "comm", *ready, chunk=part.number),)
    done = _add(build, f"{shape.mixer} grad", _back_around(build, shape, ready, part), part)
    return scattered(build, shape, done, part), (done, *again)


def attention_weights(build: Builder, shape: LayerShape, after: tuple[int, ...], part: Chunk = ONLY) -> None:
    """Weight gradients of the projections."""
    if shape.mixer != "norm":
        _add(build, f"{shape.mixer} weight grad", after, part, beside=shape.tp)


def dense(build: Builder, shape: LayerShape, name: str, after: tuple[int, ...], part: Chunk = ONLY) -> int:
    """A dense feed-forward part, or the shared experts."""
    done = _add(build, name, gathered(build, shape, after, part), part)
    return done if shape.sums_experts else scattered(build, shape, done, part)


def dense_data(
    build: Builder, shape: LayerShape, name: str, after: tuple[int, ...], part: Chunk = ONLY
) -> tuple[int, tuple[int, ...]]:
    """The gradients of a dense part's activations, as ``attention_data``."""
    ready = gathered(build, shape, after, part)
    again = regathered(build, shape, ready, part)
    done = _add(build, f"{name} grad", ready, part)
    return (done if shape.sums_experts else scattered(build, shape, done, part)), (done, *again)


def dense_weights(build: Builder, shape: LayerShape, name: str, after: tuple[int, ...], part: Chunk = ONLY) -> int:
    """Weight gradients of a dense part."""
    return _add(build, f"{name} weight grad", after, part, beside=shape.tp)


def gathered(build: Builder, shape: LayerShape, after: tuple[int, ...], part: Chunk = ONLY) -> tuple[int, ...]:
    """Sequence-parallel tokens come together; replicated tokens are together already."""
    if not shape.tp or shape.replicated:
        return after
    return (build.add("tp gather", "comm", *after, chunk=part.number),)


def regathered(build: Builder, shape: LayerShape, ready: tuple[int, ...], part: Chunk = ONLY) -> tuple[int, ...]:
    """The slices of the input come together once more, for weight gradients alone: nothing else waits."""
    if not shape.tp or shape.replicated:
        return ()
    return (build.add("tp gather again", "comm", *ready, chunk=part.number, key="tp gather", beside=True),)


def scattered(build: Builder, shape: LayerShape, done: int, part: Chunk = ONLY) -> int:
    """Partial sums leave a tensor-parallel block."""
    return build.add("tp scatter", "comm", done, chunk=part.number) if shape.tp else done


def to_experts(build: Builder, shape: LayerShape, name: str, after: int, chunk: int) -> int:
    """Tokens, or gradients, go to the experts."""
    if shape.ep:
        after = build.add(name, "comm", after, chunk=chunk)
    return build.add("etp gather", "comm", after, chunk=chunk) if shape.etp else after


def from_experts(build: Builder, shape: LayerShape, name: str, after: int, chunk: int) -> int:
    """And what the experts made of them comes home."""
    if shape.etp:
        after = build.add("etp scatter", "comm", after, chunk=chunk)
    return build.add(name, "comm", after, chunk=chunk) if shape.ep else after


def merged(build: Builder, shape: LayerShape, *after: int, chunk: int = 0) -> int:
    """Tokens put back in order; where every tensor-parallel rank has all tokens, summed."""
    done = build.add("merge", "compute", *after, chunk=chunk)
    return build.add("tp scatter", "comm", done, chunk=chunk) if shape.replicated else done


def weights_come(build: Builder, shape: LayerShape) -> None:
    """ZeRO 3 gathers the next layer's weights behind this one's compute (prefetch): nothing here waits for
    them, the pass ends when they are there. Layers that follow one another are taken to be alike."""
    if shape.gathers_weights:
        build.add("weight gather", "dp")


def gradients_leave(build: Builder, shape: LayerShape) -> None:
    """ZeRO 2 and 3: the gradients of the layer before leave behind this one's compute."""
    if shape.reduces_gradients:
        build.add("gradient scatter", "dp")


def _add(build: Builder, name: str, after: tuple[int, ...], part: Chunk, *, beside: bool = False) -> int:
    key = f"{name} {part.key}" if part.key else name
    return build.add(name, "compute", *after, chunk=part.number, key=key, beside=beside)
