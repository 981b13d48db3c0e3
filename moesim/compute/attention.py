"""Seconds of attention: scores, softmax and values of one layer, without its projections.

prefill   new queries attend causally to themselves and to the past
decode    one new query a sequence attends to its whole context; bytes of the cache bind
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from moesim.compute.common import (
    OTHER_DTYPE_ERROR,
    WEIGHT_BYTES,
    Source,
    banded,
    check_dtype,
    check_range,
    limit,
    missing,
    peak_flops,
)  # fmt: skip
from moesim.cost import Cost, FloatArray
from moesim.errors import MoesimError
from moesim.profile import DataSheet, Fit, Measured, Profile, Table, fit
from moesim.profile.fit import Kernel

KERNEL: Final = Kernel(scales=(2.5, 2.0, 2.0, 3.0), signal=0.5, noise=0.05, band=1.64)
FLOOR_S: Final = 8e-6
_REACH: Final = {"context": 8.0, "batch": 64.0, "heads": 8.0}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionShape:
    """One attention call, or a batch of calls: ``batch``, ``queries``, ``context`` broadcast."""

    kind: Literal["gqa", "mla"]
    phase: Literal["prefill", "decode"]
    heads: int  # on this rank
    kv_heads: int  # on this rank; MLA: 1
    head_dim: int  # of a query with a key; MLA: nope + rope
    v_head_dim: int
    latent_dim: int = 0  # MLA: cached values a token, kv_lora_rank + rope
    batch: FloatArray | float = 1.0  # sequences
    queries: FloatArray | float = 1.0  # new tokens a sequence
    context: FloatArray | float = 1.0  # keys a sequence, the new tokens among them
    window: int | None = None  # sliding: a query sees at most this many keys, itself among them
    chunk: int | None = None  # chunked-local: a query sees its own chunk only

    def __post_init__(self) -> None:
        if self.kind == "mla" and not self.latent_dim:
            raise MoesimError("attention kind mla with latent_dim 0: give kv_lora_rank + rope dimensions")
        for name in ("heads", "kv_heads", "head_dim", "v_head_dim"):
            if getattr(self, name) < 1:
                raise MoesimError(f"attention {name} {getattr(self, name)}: give at least 1")


def attention(profile: Profile, shape: AttentionShape, dtype: str, kv_dtype: str) -> Cost:
    """Seconds of one layer's attention core; ``dtype`` of queries and arithmetic, ``kv_dtype`` of the cache."""
    check_dtype(dtype)
    check_dtype(kv_dtype)
    batch, queries, context = _arrays(shape)
    if (queries > context).any():
        raise MoesimError("attention: more queries than context; context counts the new tokens too")
    source, fitted = _fitted(profile, shape, kv_dtype)
    rows = source.measured.table
    for name, asked in (("context", context), ("batch", batch), ("heads", float(shape.heads))):
        high = _REACH[name] * float(rows.numbers[name].max())
        check_range(f"attention {name}", asked, 0.0, high, source.measured.source)
    compute_s, memory_s = roofline_s(profile.gpu, shape, dtype, kv_dtype)
    mean, deviation = fitted.at(_features(shape))
    seconds = (_join(compute_s, memory_s) + FLOOR_S) * np.exp(mean)
    return banded(
        seconds, KERNEL.band * deviation, np.maximum(compute_s, memory_s),
        limit(compute_s, memory_s, FLOOR_S), source,
    )  # fmt: skip


def attended_pairs(shape: AttentionShape) -> FloatArray:
    """(query, key) pairs of one head and one sequence under the causal, window and chunk masks."""
    _, queries, context = _arrays(shape)
    if shape.chunk is not None:
        return _chunked(context, shape.chunk) - _chunked(context - queries, shape.chunk)
    if shape.window is not None:
        return _windowed(context, shape.window) - _windowed(context - queries, shape.window)
    return np.asarray(queries * (context - queries) + queries * (queries + 1.0) / 2.0)


def roofline_s(
    gpu: DataSheet, shape: AttentionShape, dtype: str, kv_dtype: str
) -> tuple[FloatArray, FloatArray]:
    """Seconds at the data sheet's peaks: of the arithmetic, of the bytes."""
    batch, queries, _ = _arrays(shape)
    width, value = _widths(shape)
    pairs = attended_pairs(shape)
    compute_s = 2.0 * batch * pairs * shape.heads * (width + value) / peak_flops(gpu, dtype)
    cached = shape.latent_dim if shape.kind == "mla" else shape.kv_heads * (shape.head_dim + shape.v_head_dim)
    if shape.kind == "mla" and shape.phase == "prefill":
        cached = shape.heads * (shape.head_dim + shape.v_head_dim)  # keys and values are expanded first
    moved = batch * (
        _keys(shape) * cached * WEIGHT_BYTES[kv_dtype] + queries * shape.heads * (width + value) * 2.0
    )
    return compute_s, np.asarray(moved / gpu.memory_bytes_per_s)


def _widths(shape: AttentionShape) -> tuple[int, int]:
    """Dimensions of a score and of a value; decode MLA works on the latent (absorbed) form."""
    if shape.kind == "mla" and shape.phase == "decode":
        return shape.latent_dim, shape.latent_dim - (shape.head_dim - shape.v_head_dim)
    return shape.head_dim, shape.v_head_dim


def _keys(shape: AttentionShape) -> FloatArray:
    _, queries, context = _arrays(shape)
    if shape.window is not None:
        return np.minimum(context, queries + shape.window - 1.0)
    if shape.chunk is not None:
        return np.minimum(context, queries + shape.chunk - 1.0)
    return context


def _arrays(shape: AttentionShape) -> tuple[FloatArray, FloatArray, FloatArray]:
    batch, queries, context = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.float64) for x in (shape.batch, shape.queries, shape.context))
    )
    return batch, queries, context


def _windowed(length: FloatArray, window: int) -> FloatArray:
    inside = np.minimum(length, float(window))
    return np.asarray(inside * (inside + 1.0) / 2.0 + (length - inside) * window)


def _chunked(length: FloatArray, chunk: int) -> FloatArray:
    whole = np.floor(length / chunk)
    rest = length - whole * chunk
    return np.asarray(whole * chunk * (chunk + 1.0) / 2.0 + rest * (rest + 1.0) / 2.0)


def _join(compute_s: FloatArray, memory_s: FloatArray) -> FloatArray:
    return np.asarray((compute_s**4 + memory_s**4) ** 0.25)


def _features(shape: AttentionShape) -> FloatArray:
    """Logs of: keys a query sees, batch, queries, heads that share a key."""
    batch, queries, _ = _arrays(shape)
    seen = attended_pairs(shape) / queries
    heads = np.full_like(batch, float(shape.heads))
    return np.log(np.stack([seen * shape.kv_heads, batch * queries, heads, batch], axis=-1))


def _fitted(profile: Profile, shape: AttentionShape, kv_dtype: str) -> tuple[Source, Fit]:
    key = ("attention", shape.phase, shape.kind, kv_dtype)
    if key not in profile.memo:
        source = _source(profile, shape, kv_dtype)
        rows = source.measured.table.select(phase=shape.phase, kind=shape.kind, kv_dtype=source.dtype)
        features, ratio = _training(rows, source.measured)
        profile.memo[key] = source, fit(features, ratio, KERNEL)
    found: tuple[Source, Fit] = profile.memo[key]
    return found


def _training(rows: Table, measured: Measured) -> tuple[FloatArray, FloatArray]:
    features, base = [], []
    for i in range(rows.rows):
        n = {name: column[i] for name, column in rows.numbers.items()}
        shape = AttentionShape(
            kind="mla" if rows.text["kind"][i] == "mla" else "gqa",
            phase="decode" if rows.text["phase"][i] == "decode" else "prefill",
            heads=int(n["heads"]), kv_heads=int(n["kv_heads"]), head_dim=int(n["head_dim"]),
            v_head_dim=int(n["v_head_dim"]), latent_dim=int(n["latent_dim"]),
            batch=n["batch"], queries=n["queries"], context=n["context"],
        )  # fmt: skip
        features.append(_features(shape))
        base.append(_join(*roofline_s(measured.gpu, shape, rows.text["dtype"][i], rows.text["kv_dtype"][i])))
    return np.stack(features), np.log(rows.time_s / (np.stack(base) + FLOOR_S))


def _source(profile: Profile, shape: AttentionShape, kv_dtype: str) -> Source:
    order = (kv_dtype, "fp8", "bf16") if kv_dtype != "bf16" else ("bf16", "fp8")
    for number, wanted in enumerate(order):
        for measured in profile.tables["attention"]:
            rows = measured.table.select(phase=shape.phase, kind=shape.kind, kv_dtype=wanted)
            if rows.rows:
                extra = OTHER_DTYPE_ERROR if number else 0.0
                kernel = str(rows.text["kernel"][0])
                return Source(
                    measured=measured, dtype=wanted, kernel=kernel, error=measured.carried_error + extra
                )
    raise missing(profile, f"attention {shape.phase} {shape.kind}", kv_dtype)
