"""Rows of attention.csv: scores, softmax and values of one layer through torch, without its projections.

prefill      scaled_dot_product_attention, causal
decode, gqa  one new query a sequence: the query heads that share a key become rows, so its cache is read once
decode, mla  the absorbed form: all heads attend to one latent of 576 values, whose first 512 are the values

On a GPU scaled_dot_product_attention would choose between kernels by itself, differently from shape to shape: here
each is asked for, and the fastest counts. The row says ``torch`` all the same: its name is the point's.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from moesim.calibrate.bench import Bench, SkipError, check_finite
from moesim.calibrate.points import Point
from moesim.calibrate.timing import Call, Timing

_FAST: Final = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
_ELSE: Final = (SDPBackend.EFFICIENT_ATTENTION,)  # values narrower than keys, as MLA's, where neither runs


def measure(bench: Bench, point: Point) -> dict[str, str]:
    """One row; as many caches in turn as exceed the last-level cache."""
    make = _mla_decode if (point.text["kind"], point.text["phase"]) == ("mla", "decode") else _heads
    n = point.number
    latent = make is _mla_decode
    kept = n["latent_dim"] if latent else _key_heads(point) * (n["head_dim"] + n["v_head_dim"])
    cache = 2.0 * n["batch"] * n["context"] * kept
    rest = 2.0 * n["batch"] * n["queries"] * n["heads"] * (n["head_dim"] + 2.0 * n["v_head_dim"])
    scores = 8.0 * n["batch"] * n["heads"] * n["context"] if latent else 0.0
    copies = bench.copies(cache + rest)
    bench.require(copies * (cache + rest) + scores)
    calls = [make(bench, point) for _ in range(copies)]
    if latent or bench.device == "cpu":
        check_finite(calls[0]())
        return bench.timer(calls).columns()
    return fastest(bench, calls).columns()


def fastest(bench: Bench, calls: Sequence[Call]) -> Timing:
    """The least time of the attention kernels that take these shapes; the last one's error where none does."""
    found: list[Timing] = []
    error: Exception = SkipError("no attention kernel takes this shape")
    for backend in (*_FAST, *_ELSE):
        if found and backend in _ELSE:
            break
        chosen = [partial(_with, backend, call) for call in calls]
        try:
            with warnings.catch_warnings():  # that a kernel does not take these shapes is an error as well
                warnings.simplefilter("ignore")
                check_finite(chosen[0]())
                found.append(bench.timer(chosen))
        except (RuntimeError, SkipError) as why:
            error = why
        if bench.timer.lost:
            raise error
    if not found:
        raise error
    return min(found)


def _with(backend: SDPBackend, call: Call) -> object:
    with sdpa_kernel(backend):
        return call()


def _key_heads(point: Point) -> int:
    """Heads of keys in memory: prefill of MLA expands them to every query head."""
    return point.number["heads"] if point.text["kind"] == "mla" else point.number["kv_heads"]


def _heads(bench: Bench, point: Point) -> Call:
    n, key_heads = point.number, _key_heads(point)
    batch, heads, queries, width = n["batch"], n["heads"], n["queries"], n["head_dim"]
    keys = bench.randn(batch, key_heads, n["context"], width)
    values = bench.randn(batch, key_heads, n["context"], n["v_head_dim"])
    if point.text["phase"] == "decode":
        folded = bench.randn(batch, key_heads, heads // key_heads, width)
        return lambda: scaled_dot_product_attention(folded, keys, values)
    query = bench.randn(batch, heads, queries, width)
    shared = heads != key_heads
    return lambda: scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=shared)


def _mla_decode(bench: Bench, point: Point) -> Call:
    n = point.number
    query = bench.randn(n["batch"], n["heads"], n["latent_dim"])
    latent = bench.randn(n["batch"], n["context"], n["latent_dim"])
    values = latent[..., : n["latent_dim"] - (n["head_dim"] - n["v_head_dim"])]
    scale = n["head_dim"] ** -0.5
    return lambda: torch.softmax(query @ latent.transpose(1, 2) * scale, dim=-1) @ values
