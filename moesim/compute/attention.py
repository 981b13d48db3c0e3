"""Seconds of attention: scores, softmax and values of one layer, without its projections.

prefill   new queries attend causally to themselves and to the past; arithmetic binds
decode    one new query a sequence attends to its whole context; the bytes of the cache bind
"""

from typing import Final

import numpy as np

from moesim.compute.attention_shape import AttentionShape, attended_pairs, cached_bytes, spread, widths
from moesim.compute.common import (
    OTHER_DTYPE_ERROR,
    Source,
    banded,
    check_dtype,
    joined,
    limit,
    missing,
    outside,
    peak_flops,
)  # fmt: skip
from moesim.cost import Cost, FloatArray
from moesim.profile import DataSheet, Fit, Profile, Table, fit
from moesim.profile.fitting import Kernel

KERNEL: Final = Kernel(scales=(2.0, 2.0, 4.0, 6.0), signal=0.3, noise=0.05)
_REACH: Final = {"context": 8.0, "batch": 64.0, "heads": 8.0}  # times the table's largest
_CARRIED: Final = {"bf16": ("bf16", "fp8")}


def attention(profile: Profile, shape: AttentionShape, dtype: str, kv_dtype: str) -> Cost:
    """Seconds of one layer's attention core; ``dtype`` of the arithmetic, ``kv_dtype`` of the cache."""
    check_dtype(dtype)
    check_dtype(kv_dtype)
    source, fitted = _fitted(profile, shape, kv_dtype)
    batch, _, context = spread(shape)
    for name, asked in (("context", context), ("batch", batch), ("heads", float(shape.heads))):
        high = _REACH[name] * float(source.measured.table.numbers[name].max())
        problem = outside(f"attention {name}", asked, 0.0, high, f"{source.measured.gpu.name} attention")
        if problem is not None:
            raise problem
    compute_s, memory_s = roofline_s(profile.gpu, shape, dtype, kv_dtype)
    correction, half_width = fitted.correction(_features(shape))
    seconds = fitted.base_s(_parts(compute_s, memory_s)) * np.exp(correction)
    bound_s = np.maximum(compute_s, memory_s)
    return banded(seconds, half_width, bound_s, limit(compute_s, memory_s, seconds), source)


def roofline_s(gpu: DataSheet, shape: AttentionShape, dtype: str, kv_dtype: str) -> tuple[FloatArray, FloatArray]:
    """Seconds at the data sheet's peaks: of the arithmetic, of the bytes."""
    batch, queries, _ = spread(shape)
    score, value = widths(shape)
    compute_s = 2.0 * batch * attended_pairs(shape) * shape.heads * (score + value) / peak_flops(gpu, dtype)
    moved = batch * (cached_bytes(shape, kv_dtype) + queries * shape.heads * (score + value) * 2.0)
    return compute_s, np.asarray(moved / gpu.memory_bytes_per_s)


def _parts(compute_s: FloatArray, memory_s: FloatArray) -> FloatArray:
    """[..., part] seconds: joined, arithmetic, bytes, launch."""
    return np.stack([joined(compute_s, memory_s), compute_s, memory_s, np.full_like(compute_s, 1e-6)], axis=-1)


def _features(shape: AttentionShape) -> FloatArray:
    """[..., feature] logs: keys a query sees, queries, heads, query heads that share a key."""
    batch, queries, _ = spread(shape)
    seen = attended_pairs(shape) / queries
    heads = np.full_like(batch, float(shape.heads))
    shared = np.full_like(batch, shape.heads / shape.kv_heads)
    return np.log(np.stack([seen, batch * queries, heads, shared], axis=-1))


def _fitted(profile: Profile, shape: AttentionShape, kv_dtype: str) -> tuple[Source, Fit]:
    key = ("attention", shape.phase, shape.kind, kv_dtype)
    if key not in profile.memo:
        source = _source(profile, shape, kv_dtype)
        rows = source.measured.table.select(phase=shape.phase, kind=shape.kind, kv_dtype=source.dtype)
        parts, features = training(rows, source.measured.gpu)
        groups = rows.numbers["heads"] * 1e3 + rows.numbers["kv_heads"]
        profile.memo[key] = source, fit(parts, features, rows.time_s, groups, KERNEL)
    found: tuple[Source, Fit] = profile.memo[key]
    return found


def training(rows: Table, gpu: DataSheet) -> tuple[FloatArray, FloatArray]:
    """parts[point, part] and features[point, feature] of measured rows."""
    parts, features = [], []
    for i in range(rows.rows):
        shape = row_shape(rows, i)
        parts.append(_parts(*roofline_s(gpu, shape, str(rows.text["dtype"][i]), str(rows.text["kv_dtype"][i]))))
        features.append(_features(shape))
    return np.stack(parts), np.stack(features)


def row_shape(rows: Table, i: int) -> AttentionShape:
    """The call that a measured row describes."""
    n = {name: float(column[i]) for name, column in rows.numbers.items()}
    return AttentionShape(
        kind="mla" if rows.text["kind"][i] == "mla" else "gqa",
        phase="decode" if rows.text["phase"][i] == "decode" else "prefill",
        heads=int(n["heads"]), kv_heads=int(n["kv_heads"]), head_dim=int(n["head_dim"]),
        v_head_dim=int(n["v_head_dim"]), latent_dim=int(n["latent_dim"]),
        batch=n["batch"], queries=n["queries"], context=n["context"],
    )  # fmt: skip


def _source(profile: Profile, shape: AttentionShape, kv_dtype: str) -> Source:
    for number, wanted in enumerate(_CARRIED.get(kv_dtype, (kv_dtype, "fp8", "bf16"))):
        for measured in profile.tables["attention"]:
            rows = measured.table.select(phase=shape.phase, kind=shape.kind, kv_dtype=wanted)
            if rows.rows:
                error = measured.carried_error + (OTHER_DTYPE_ERROR if wanted != kv_dtype and number else 0.0)
                return Source(measured=measured, dtype=wanted, kernel=str(rows.text["kernel"][0]), error=error)
    raise missing(profile, f"attention {shape.phase} {shape.kind}", kv_dtype)
