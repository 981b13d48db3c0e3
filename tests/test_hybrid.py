"""Hybrid models: Mamba-2 layers, and layers that are one block alone."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import load_cluster
from moesim.errors import MoesimError
from moesim.memory import memory
from moesim.metrics import measure
from moesim.model import (
    MODELS,
    DenseFfn,
    Layer,
    Mamba,
    Model,
    cache_bytes,
    forward_flops,
    kv_bytes,
    layer_flops,
    layer_parameters,
    load_model,
    parameters,
    projections,
    scan_flops,
    with_mtp,
)
from moesim.routing import parse_routing
from moesim.step.layers import batched
from moesim.step.passes import backward_pass, forward_pass, pass_key
from moesim.step.scenario import make_scenario
from moesim.strategy import load_strategy, why_not
from moesim.workload import make_workload

NANO = {
    "model_type": "nemotron_h",
    "attention_bias": False,
    "chunk_size": 128,
    "conv_kernel": 4,
    "expand": 2,
    "head_dim": 128,
    "hidden_size": 2688,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "intermediate_size": 1856,
    "mamba_head_dim": 64,
    "mamba_hidden_act": "silu",
    "mamba_num_heads": 64,
    "mamba_proj_bias": False,
    "mlp_bias": False,
    "mlp_hidden_act": "relu2",
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "n_group": 1,
    "n_groups": 8,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_attention_heads": 32,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 52,
    "num_key_value_heads": 2,
    "rescale_prenorm_residual": True,
    "ssm_state_size": 128,
    "topk_group": 1,
    "use_conv_bias": True,
    "vocab_size": 131072,
}


def tiny_mamba(**changes):
    return Mamba(**({"heads": 4, "head_dim": 2, "state": 3, "groups": 2, "conv": 2, "chunk": 4} | changes))


def model_of(*layers, hidden=8):
    return Model(name="tiny", hidden=hidden, vocab=10, layers=layers, source="here")


def scenario(model, **work):
    cluster = load_cluster("dgx-h100", 1)
    return make_scenario(model, cluster, make_workload("train", 8, **work), parse_routing("uniform"), seed=0)


def test_a_mamba_layer_lists_its_matrices_and_its_small_parameters():
    # 4 heads of 2, 2 groups of 3: z 8, x 8, B and C 6 each, dt 4; convolution of 2 and a bias over x, B, C
    layer = Layer(mamba=tiny_mamba())
    model = model_of(layer)
    assert [(p.name, p.inputs, p.outputs, p.shard) for p in projections(model, layer)] == [
        ("in", 8, 32, "out"),
        ("out", 8, 8, "in"),
    ]
    part = layer_parameters(model, layer)
    assert part.mamba == 8 * 32 + 8 * 8 + (2 + 1) * 20 + 3 * 4
    assert part.norms == 8 + 8
    assert part.total == part.mamba + part.norms


def test_nemotron_3_nano_adds_up_tensor_by_tensor():
    mamba = 2688 * (2 * 4096 + 2 * 1024 + 64) + 4096 * 2688 + 5 * 6144 + 3 * 64 + 4096
    attention = 2 * 2688 * 4096 + 2 * 2688 * 256
    experts = 128 * 2688 + 128 + 128 * 2 * 2688 * 1856 + 2 * 2688 * 3712
    assert parameters(MODELS["nemotron-3-nano"]) == (
        23 * mamba + 6 * attention + 23 * experts + 52 * 2688 + 2 * 131072 * 2688 + 2688
    )


@given(chunk=st.integers(1, 8), chunks=st.integers(1, 3), heads=st.sampled_from([2, 4]), state=st.integers(1, 3))
def test_the_scans_products_are_those_of_its_masks(chunk, chunks, heads, state):
    mamba = tiny_mamba(heads=heads, state=state, chunk=chunk)
    tokens = chunk * chunks
    pairs = sum(q // chunk == k // chunk for q in range(tokens) for k in range(q + 1))
    found = scan_flops(mamba, tokens)
    assert found.scores * tokens == pytest.approx(2 * 2 * state * pairs)
    assert found.inside * tokens == pytest.approx(2 * mamba.inner * pairs)
    assert found.states == found.carried == 2 * mamba.inner * state


def test_one_token_alone_is_a_step_of_the_recurrence():
    mamba = tiny_mamba()
    assert sum(scan_flops(mamba, 1)) == 2 * 2 * 3 + 2 * 8 + 2 * 2 * 8 * 3
    layer = Layer(mamba=mamba)
    assert layer_flops(model_of(layer), layer, 1) == 2 * (8 * 32 + 8 * 8) + sum(scan_flops(mamba, 1))


def test_mamba_remembers_a_state_however_long_the_sequence():
    layer = Layer(mamba=tiny_mamba())
    model = model_of(layer, Layer(ffn=DenseFfn(width=4)))
    assert kv_bytes(model, 10, 2.0) == kv_bytes(model, 10_000, 2.0) == 2 * (8 * 3 + 20)
    assert cache_bytes(model, layer, 10, 2.0, tp=2) == 8 * 3 + 20
    nano = MODELS["nemotron-3-nano"]
    grows = kv_bytes(nano, 2000, 2.0) - kv_bytes(nano, 1000, 2.0)
    assert grows == 6 * 1000 * 2 * 2 * 128 * 2


def test_a_layer_cut_into_its_two_blocks_is_the_same_model():
    whole = MODELS["llama-3.1-8b"]
    layer = whole.layers[0]
    apart = replace(whole, layers=(replace(layer, ffn=None), replace(layer, attention=None)) * 32)
    assert parameters(apart) == parameters(whole)
    assert forward_flops(apart, 100) == forward_flops(whole, 100)
    strategy, work = load_strategy("dp=8", 8), make_workload("train", 8, global_batch=8, seq=4096)
    assert memory(apart, work, strategy) == pytest.approx(memory(whole, work, strategy))

    def pass_s(model):
        given_ = scenario(model, global_batch=8, seq=4096)
        key = pass_key(given_, strategy)
        made = ((forward_pass(given_, one, key), backward_pass(given_, one, key, "none")) for one in model.layers[:2])
        return [sum(float(batched(way).mean()) for way in ways) for ways in made]

    first, second = pass_s(apart)
    assert first + second == pytest.approx(pass_s(whole)[0], rel=0.002)  # the norms are two kernels instead of one


def test_a_layer_has_the_ops_of_its_block_alone():
    given_ = scenario(MODELS["nemotron-3-nano"], global_batch=8, seq=1024)
    key = pass_key(given_, load_strategy("dp=4 tp=2 ep=4", 8))
    mamba, moe = given_.model.layers[:2]
    assert [op.name for op in forward_pass(given_, mamba, key).program] == ["tp gather", "mamba", "tp scatter"]
    assert [op.name for op in forward_pass(given_, moe, key).program] == [
        "norm", "route", "dispatch", "tp gather", "shared", "tp scatter", "experts", "combine", "merge",
    ]  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(
    tp=st.sampled_from([1, 2]), pp=st.sampled_from([1, 2]), zero=st.sampled_from([1, 3]),
    overlap=st.sampled_from(["none", "shared", "chunked", "dual_batch"]),
    recompute=st.sampled_from(["none", "selective", "full"]),
)  # fmt: skip
def test_a_hybrid_step_is_no_shorter_than_its_bound(tp, pp, zero, overlap, recompute):
    nano = MODELS["nemotron-3-nano"]
    small = replace(nano, layers=nano.layers[:7])
    text = f"tp={tp} pp={pp} ep=2 zero={zero} overlap={overlap} recompute={recompute}"
    found = measure(scenario(small, global_batch=16, seq=512), load_strategy(text, 8), events=False)
    assert 0 < found.bound_s <= found.step_s * (1 + 1e-9)
    assert found.breakdown.seconds["mamba"] > 0


def test_decoding_reads_and_writes_states_not_keys():
    nano = MODELS["nemotron-3-nano"]
    strategy = load_strategy("dp=8 ep=8", 8)
    short, long = (
        memory(nano, make_workload("decode", 8, batch=8, isl=n, osl=2), strategy).kv_cache for n in (1000, 100_000)
    )
    state = 23 * (4096 * 128 + 3 * 6144) * 2 * 8
    assert short == pytest.approx(state + 6 * 512 * 2 * 8 * 1000, rel=0.01)
    assert long - short == pytest.approx(6 * 512 * 2 * 8 * 99_000)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tp=16", "tp does not divide the heads and groups of Mamba"),
        ("cp=2", "context parallelism of Mamba layers is not modelled"),
        ("ep=2 overlap=shortcut", "a shortcut needs attention and a feed-forward part in every layer"),
        ("tp=8 ep=2", None),
    ],
)
def test_what_a_hybrid_model_cannot_do_is_said(text, why):
    nano, cluster = MODELS["nemotron-3-nano"], load_cluster("dgx-h100", 2)
    work = make_workload("train", 16, global_batch=16, seq=1024)
    assert why_not(nano, cluster, work, load_strategy(text, 16)) == why


def written(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(NANO | changes))
    return str(path)


def test_a_nemotron_h_config_reads_like_its_preset(tmp_path):
    assert load_model(written(tmp_path)).layers == MODELS["nemotron-3-nano"].layers
    dense = load_model(
        written(tmp_path, hybrid_override_pattern="M-*-", num_hidden_layers=4, n_routed_experts=0, intermediate_size=9)
    )
    assert [(layer.mixer, layer.ffn and layer.ffn.width) for layer in dense.layers] == [
        ("mamba", None), ("norm", 9), ("attention", None), ("norm", 9),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"hybrid_override_pattern": "MX", "num_hidden_layers": 2}, "'X'"),
        ({"num_hidden_layers": 51}, "each of the 51 layers, not 52"),
        ({"mlp_hidden_act": "silu"}, "relu2"),
        ({"mamba_hidden_act": "gelu"}, "silu"),
        ({"moe_latent_size": 1024}, "moe_latent_size"),
        ({"n_groups": 7}, "64 mamba heads do not divide over 7 groups"),
    ],
)
def test_a_pattern_that_cannot_be_read_is_refused(tmp_path, changes, what):
    with pytest.raises(MoesimError, match=what):
        load_model(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Layer(), "a layer is empty"),
        (lambda: Layer(attention=MODELS["mixtral-8x7b"].layers[0].attention, mamba=tiny_mamba()), "both"),
        (lambda: tiny_mamba(state=0), "state 0"),
        (lambda: with_mtp(MODELS["nemotron-3-nano"], 1), "mtp_layers 1 after a layer of one block"),
    ],
)
def test_an_impossible_layer_is_refused(make, what):
    with pytest.raises(MoesimError, match=what):
        make()
