"""Layers, weights and work: parts by hand, masks counted one by one."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import MoesimError
from moesim.model import (
    MODELS,
    Attention,
    DenseFfn,
    Experts,
    Layer,
    Model,
    active_matrix_weights,
    active_parameters,
    attended,
    attention_flops,
    expert_parameters,
    flops_per_token,
    forward_flops,
    kv_bytes,
    kv_bytes_per_token,
    layer_flops,
    layer_parameters,
    load_model,
    mtp_parameters,
    parameters,
    projections,
    scan_flops,
    stored_tokens,
    training_flops,
)


def tiny_attention(**changes):
    return Attention(**({"heads": 4, "kv_heads": 2, "head_dim": 2, "v_head_dim": 2} | changes))


def tiny(ffn, attention=None, **changes):
    layer = Layer(attention=attention or tiny_attention(), ffn=ffn)
    return Model(**({"name": "tiny", "hidden": 8, "vocab": 10, "layers": (layer,), "source": "here"} | changes))


def test_multi_token_prediction_is_listed_apart():
    model = MODELS["deepseek-v3"]
    last = layer_parameters(model, model.layers[-1]).total
    assert mtp_parameters(model) == last + 2 * 7168 * 7168 + 3 * 7168
    assert mtp_parameters(MODELS["kimi-k2"]) == 0


def test_a_layer_lists_its_parts():
    # hidden 8; q 8x8, k and v 8x4, o 8x8; 4 experts of 3 x 8 x 5 and a shared one of width 6
    model = tiny(Experts(experts=4, top_k=2, width=5, shared_width=6, shared_gate=True, score_correction=True))
    part = layer_parameters(model, model.layers[0])
    assert part.attention == 64 + 32 + 32 + 64
    assert part.shared == 3 * 8 * 6 + 8
    assert part.router == 4 * 8 + 4
    assert part.experts == 4 * 3 * 8 * 5
    assert part.norms == 16
    assert part.dense == 0
    assert expert_parameters(model, model.layers[0]) == 120
    assert parameters(model) == part.total + 2 * 80 + 8
    assert active_parameters(model, embedding=True) == parameters(model) - 2 * 120
    assert active_parameters(model, embedding=False) == parameters(model) - 2 * 120 - 80


def test_tied_embeddings_count_once():
    model = tiny(DenseFfn(width=5), tied_embeddings=True)
    assert active_parameters(model, embedding=True) == active_parameters(model, embedding=False)
    assert parameters(model) == active_parameters(model, embedding=True)
    assert parameters(tiny(DenseFfn(width=5))) == parameters(model) + 80


def test_tensor_parallelism_splits_the_side_where_heads_and_width_are():
    moe = MODELS["deepseek-v3"]
    sides = {p.name: p.shard for p in projections(moe, moe.layers[-1]) if p.part == "attention"}
    assert sides == {"q_a": "none", "q_b": "out", "kv_a": "none", "kv_b": "out", "o": "in"}
    lite = MODELS["deepseek-v2-lite"]
    assert [p.name for p in projections(lite, lite.layers[0])][:3] == ["q", "kv_a", "kv_b"]
    dense = tiny(DenseFfn(width=5, gated=False))
    assert [(p.name, p.shard) for p in projections(dense, dense.layers[0])][4:] == [
        ("up", "out"),
        ("down", "in"),
    ]


@pytest.mark.parametrize("name", MODELS)
def test_layer_kinds_cover_every_layer_once(name):
    model = MODELS[name]
    kinds = model.layer_kinds()
    assert sum(count for _, count in kinds) == len(model.layers)
    assert kinds[0].layer == model.layers[0]
    assert len(kinds) <= 4
    everything = sum(layer_parameters(model, layer).total for layer in model.layers)
    outside = (1 if model.tied_embeddings else 2) * model.vocab * model.hidden
    rest = parameters(model) - everything - outside
    assert rest == model.hidden * (2 if model.norm_bias else 1) + (model.vocab if model.head_bias else 0)


SEEN = {
    "full": (tiny_attention(), lambda query, key: True),
    "window": (tiny_attention(window=3), lambda query, key: query - key < 3),
    "chunk": (tiny_attention(chunk=4), lambda query, key: query // 4 == key // 4),
}


@given(kind=st.sampled_from(sorted(SEEN)), queries=st.integers(0, 20), past=st.integers(0, 20))
def test_attended_pairs_equal_the_mask_counted_one_by_one(kind, queries, past):
    attention, sees = SEEN[kind]
    pairs = sum(sees(q, k) for q in range(past, past + queries) for k in range(q + 1))
    assert attended(attention, queries, past) == pairs
    both = attended(attention, np.array([queries, 1.0]), np.array([past, 0.0]))
    assert both.tolist() == [pairs, 1]


def test_llama_4_sees_chunks_on_three_layers_of_four():
    kinds = MODELS["llama-4-scout"].layer_kinds()
    assert [(kind.layer.attention.chunk, kind.times) for kind in kinds] == [(8192, 36), (None, 12)]


def test_a_window_or_a_chunk_bounds_what_the_cache_holds():
    assert stored_tokens(tiny_attention(window=3), 10) == 3
    assert stored_tokens(tiny_attention(chunk=4), 10) == 4
    assert stored_tokens(tiny_attention(), 10) == 10
    oss = MODELS["gpt-oss-20b"]  # 12 layers hold 128 tokens, 12 hold all; 2 x 8 x 64 values of 2 bytes
    assert kv_bytes(oss, 1000, 2.0) == 12 * (128 + 1000) * 2048


def test_latent_attention_caches_512_plus_64_values():
    v3 = MODELS["deepseek-v3"]
    assert kv_bytes_per_token(v3, v3.layers[0], 2.0) == 2 * 576
    assert kv_bytes(v3, 1, 2.0) == 61 * 1152
    mixtral = MODELS["mixtral-8x7b"]
    assert kv_bytes(mixtral, 1, 2.0) == 32 * 2 * 8 * 128 * 2


def test_flops_are_two_per_multiply_add():
    # one token: 192 + 3 x 8 x 5 weights; one pair for 4 heads of 2 + 2 dims; head of 8 x 10
    model = tiny(DenseFfn(width=5))
    assert active_matrix_weights(model, model.layers[0]) == 192 + 120
    assert layer_flops(model, model.layers[0], 1) == 2 * 312 + 2 * 4 * 4
    assert forward_flops(model, 1) == 656 + 2 * 80
    assert forward_flops(model, 3, outputs=1) == 3 * 624 + 32 * 6 + 160
    assert training_flops(model, 2) == 3 * forward_flops(model, 2)
    assert flops_per_token(model, 4) == forward_flops(model, 4) / 4
    assert flops_per_token(model, 4, training=True) == 3 * forward_flops(model, 4) / 4


@pytest.mark.parametrize("name", MODELS)
def test_forward_flops_are_twice_the_active_weights_plus_attention(name):
    # biases, norms and sinks are no multiply-adds: they explain the rest, below half a percent
    model = MODELS[name]
    between = sum(attention_flops(layer.attention, 1.0, 0.0) for layer in model.layers if layer.attention)
    between += sum(sum(scan_flops(layer.mamba, 1.0)) for layer in model.layers if layer.mamba)
    matrices = (forward_flops(model, 1) - between) / 2
    assert 0 <= active_parameters(model, embedding=False) - matrices < 0.005 * matrices


def test_absorbed_latent_attention_works_on_the_latents():
    v3 = MODELS["deepseek-v3"].layers[0].attention
    assert attention_flops(v3, 1.0, 9.0) == 10 * 2 * 128 * (192 + 128)
    assert attention_flops(v3, 1.0, 9.0, absorbed=True) == 10 * 2 * 128 * (576 + 512)


@given(
    experts=st.integers(1, 9),
    share=st.floats(0, 1),
    width=st.integers(1, 9),
    shared=st.integers(0, 9),
    layers=st.integers(1, 4),
    bias=st.booleans(),
)
def test_active_parameters_never_exceed_all(experts, share, width, shared, layers, bias):
    top_k = max(1, math.floor(share * experts))
    ffn = Experts(experts=experts, top_k=top_k, width=width, shared_width=shared, bias=bias)
    one = tiny(ffn)
    model = tiny(ffn, layers=one.layers * layers)
    active = active_parameters(model, embedding=True)
    assert active <= parameters(model)
    assert (active == parameters(model)) == (top_k == experts)
    per_layer = layer_parameters(one, one.layers[0]).total
    assert parameters(model) - parameters(one) == (layers - 1) * per_layer


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: tiny_attention(kv_heads=3), "4 attention heads do not divide over 3"),
        (lambda: tiny_attention(heads=0), "heads 0"),
        (lambda: tiny_attention(window=2, chunk=2), "window 2 and chunk 2"),
        (lambda: tiny_attention(kind="mla"), "kv_lora_rank 0"),
        (lambda: Experts(experts=4, top_k=5, width=1), "top_k 5 exceeds the 4 experts"),
        (lambda: Experts(experts=8, top_k=3, width=1, groups=4), "top_k 3 exceeds the 2 experts"),
        (lambda: Experts(experts=4, top_k=1, width=1, groups=3), "groups must divide experts"),
        (lambda: DenseFfn(width=0), "width 0"),
        (lambda: tiny(DenseFfn(width=1), layers=()), "layers 0"),
        (lambda: tiny(DenseFfn(width=1), dtype="fp7"), "dtype 'fp7'"),
        (lambda: load_model("mixtral-8x7"), "did you mean mixtral-8x7b"),
    ],
)
def test_an_impossible_model_is_refused_at_birth(make, what):
    with pytest.raises(MoesimError, match=re.escape(what)):
        make()
