"""Rows of attention.csv: scores, softmax and values of one layer through torch, without its projections.

prefill      scaled_dot_product_attention, causal
decode, gqa  one new query a sequence: the query heads that share a key become rows, so its cache is read once
decode, mla  the absorbed form: all heads attend to one latent of 576 values, whose first 512 are the values
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

from moesim.calibrate.bench import Bench, check_finite
from moesim.calibrate.points import Point
from moesim.calibrate.timing import Call


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
    check_finite(calls[0]())
    return bench.timer(calls).columns()


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
