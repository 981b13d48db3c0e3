"""One attention call: its shape, the (query, key) pairs it scores and the cached bytes it reads."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moesim.compute.common import WEIGHT_BYTES
from moesim.cost import FloatArray
from moesim.errors import MoesimError, choice


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionShape:
    """One attention call, or many: ``batch``, ``queries`` and ``context`` broadcast."""

    kind: Literal["gqa", "mla"]
    phase: Literal["prefill", "decode"]
    heads: int  # on this rank
    kv_heads: int  # on this rank; MLA: 1
    head_dim: int  # of a query with a key; MLA: nope + rope
    v_head_dim: int
    latent_dim: int = 0  # MLA: cached values of a token, kv_lora_rank + rope
    batch: FloatArray | float = 1.0  # sequences
    queries: FloatArray | float = 1.0  # new tokens of a sequence
    context: FloatArray | float = 1.0  # keys of a sequence, the new tokens among them
    window: int | None = None  # sliding: a query sees at most this many keys, its own among them
    chunk: int | None = None  # chunked-local: a query sees its own chunk only

    def __post_init__(self) -> None:
        if self.kind not in ("gqa", "mla"):
            raise choice("attention kind", self.kind, ["gqa", "mla"])
        if self.phase not in ("prefill", "decode"):
            raise choice("attention phase", self.phase, ["prefill", "decode"])
        for name in ("heads", "kv_heads", "head_dim", "v_head_dim"):
            if getattr(self, name) < 1:
                raise MoesimError(f"attention {name} {getattr(self, name)}: give at least 1")
        if self.kind == "mla" and self.latent_dim < 1:
            raise MoesimError(f"mla latent_dim {self.latent_dim}: give kv_lora_rank + the rope dimensions")
        batch, queries, context = spread(self)
        if not ((batch > 0).all() and (queries > 0).all() and (queries <= context).all()):
            raise MoesimError("attention needs batch > 0 and 0 < queries <= context: context counts the new tokens")


def spread(shape: AttentionShape) -> tuple[FloatArray, FloatArray, FloatArray]:
    """batch, queries, context, broadcast against each other."""
    batch, queries, context = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.float64) for x in (shape.batch, shape.queries, shape.context))
    )
    return batch, queries, context


def attended_pairs(shape: AttentionShape) -> FloatArray:
    """(query, key) pairs of one head and one sequence under the causal, window and chunk masks."""
    _, queries, context = spread(shape)
    return np.asarray(_pairs(context, shape) - _pairs(context - queries, shape))


def _pairs(length: FloatArray, shape: AttentionShape) -> FloatArray:
    """Pairs of a whole sequence of that length."""
    if shape.chunk is not None:
        whole = np.floor(length / shape.chunk)
        return np.asarray(whole * _triangle(shape.chunk) + _triangle(length - whole * shape.chunk))
    if shape.window is not None:
        inside = np.minimum(length, float(shape.window))
        return np.asarray(_triangle(inside) + (length - inside) * shape.window)
    return _triangle(length)


def _triangle(side: FloatArray | float) -> FloatArray:
    return np.asarray(side * (np.asarray(side) + 1.0) / 2.0)


def widths(shape: AttentionShape) -> tuple[int, int]:
    """Dimensions of a score and of a value; decode of MLA works on the latent (absorbed) form."""
    if shape.kind == "mla" and shape.phase == "decode":
        rope = shape.head_dim - shape.v_head_dim
        return shape.latent_dim, shape.latent_dim - rope
    return shape.head_dim, shape.v_head_dim


def cached_bytes(shape: AttentionShape, kv_dtype: str) -> FloatArray:
    """Keys and values that one sequence's call reads."""
    _, queries, context = spread(shape)
    local = shape.window or shape.chunk
    keys = context if local is None else np.minimum(context, queries + local - 1.0)
    if shape.kind == "gqa":
        values = shape.kv_heads * (shape.head_dim + shape.v_head_dim)
    elif shape.phase == "decode":
        values = shape.latent_dim
    else:  # keys and values are expanded to every head first
        values = shape.heads * (shape.head_dim + shape.v_head_dim)
    return np.asarray(keys * values * WEIGHT_BYTES[kv_dtype])
