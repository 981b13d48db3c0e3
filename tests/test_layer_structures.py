"""Layers that are built otherwise: mixture of attention heads, weights shared across layers."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import load_cluster
from moesim.errors import MoesimError
from moesim.memory import held_by_stage, memory
from moesim.metrics import play
from moesim.model import (
    MODELS,
    Attention,
    DenseFfn,
    Experts,
    Layer,
    Model,
    active_parameters,
    forward_flops,
    kv_bytes,
    layer_parameters,
    load_model,
    parameters,
    shared_parameters,
)
from moesim.routing import parse_routing
from moesim.step import blocks
from moesim.step.ends import ends
from moesim.step.scenario import make_scenario
from moesim.strategy import load_strategy, why_not
from moesim.workload import make_workload


def scenario(model, kind="train", nodes=1, **sizes):
    cluster = load_cluster("dgx-h100", nodes)
    return make_scenario(model, cluster, make_workload(kind, cluster.gpus, **sizes), parse_routing("uniform"))


def read(tmp_path, **keys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(keys))
    return load_model(str(path))


# --- mixture of attention heads (JetMoE, arXiv:2404.07413) ----------------------------------------------------------

JETMOE = {
    "activation_function": "silu", "bias": True, "ffn_hidden_size": 5632, "glu": True, "hidden_size": 2048,
    "kv_channels": 128, "layer_norm_epsilon": 1e-05, "model_type": "jetmoe", "moe_num_experts": 8, "moe_top_k": 2,
    "n_positions": 4096, "num_attention_heads": 32, "num_hidden_layers": 24, "num_key_value_heads": 16,
    "num_layers": 24, "rotary_percent": 1.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}  # fmt: skip


def plain(model):
    """The same layers with two query heads for each key-value head and no experts among them."""
    attention = replace(model.layers[0].attention, experts=1, top_k=1)
    return replace(model, layers=(replace(model.layers[0], attention=attention),) * len(model.layers))


def test_jetmoe_has_the_tensors_of_its_checkpoint():
    attention = 8 * 2048 * (16 * 128) * 2 + 2048 * (2 * 16 * 128) + 2048  # queries, output, keys and values, a bias
    experts = 8 * 3 * 2048 * 5632 + 2048
    layer = attention + experts + 2 * 8 * 2048 + 2 * 2048  # two routers, two norms
    model = MODELS["jetmoe-8b"]
    assert parameters(model) == 24 * layer + 32000 * 2048 + 2048 == 8_522_237_952
    assert active_parameters(model, embedding=True) == parameters(model) - 24 * 6 * 2048 * (2 * 2048 + 3 * 5632)


def test_the_config_of_jetmoe_reads_like_its_preset(tmp_path):
    assert read(tmp_path, **JETMOE).layers == MODELS["jetmoe-8b"].layers
    renamed = {
        "moe_num_experts": "num_local_experts",
        "moe_top_k": "num_experts_per_tok",
        "ffn_hidden_size": "intermediate_size",
    }
    assert read(tmp_path, **{renamed.get(key, key): value for key, value in JETMOE.items()}).tied_embeddings


def test_keys_and_values_of_attention_experts_are_common_so_the_cache_is_not_multiplied():
    model = MODELS["jetmoe-8b"]
    assert model.layers[0].attention.heads == 32
    assert kv_bytes(model, 1, 2.0) == 24 * 2 * 16 * 128 * 2 == kv_bytes(plain(model), 1, 2.0)


def test_a_token_pays_for_the_heads_it_uses():
    model = MODELS["jetmoe-8b"]
    routers = 24 * 2 * 8 * 2048
    assert forward_flops(model, 100) - forward_flops(plain(model), 100) == 100 * routers


def test_tensor_parallelism_divides_the_heads_of_one_attention_expert():
    found = [
        why_not(
            MODELS["jetmoe-8b"], load_cluster("dgx-h100", 4), make_workload("train", 32), load_strategy(f"tp={tp}", 32)
        )
        for tp in (16, 32)
    ]
    assert found[1] == "tp does not divide the attention heads"
    assert found[0] != found[1]


def test_attention_experts_are_a_grouped_gemm_of_as_many_flops_and_more_weights():
    """Training: as long as plain attention but for routing. Decode reads the weights of more experts."""
    model = MODELS["jetmoe-8b"]

    def seconds(which, kind, part="forward", **sizes):
        given_ = scenario(which, kind, **sizes)
        return float(blocks.mixer_block(given_, which.layers[0], 1, 1, 8, True, part).seconds.sum())

    for part in ("forward", "data", "weights"):
        assert 1.0 < seconds(model, "train", part) / seconds(plain(model), "train", part) < 1.4
    assert seconds(model, "decode", batch=8) > seconds(plain(model), "decode", batch=8)


def test_jetmoes_pipeline_without_expert_parallelism_beats_experts_spread_over_a_node():
    """arXiv:2404.07413: pipeline instead of expert parallelism, on 12 x 8 H100."""
    found = {}
    for text in ("pp=3", "ep=8"):
        cluster = load_cluster("dgx-h100", 12)
        work = make_workload("train", 96, global_batch=1152)
        given_ = make_scenario(MODELS["jetmoe-8b"], cluster, work, parse_routing("lognormal:0.5"))
        found[text] = play(given_, load_strategy(f"{text} micro_batch=2", 96), events=False).step_s
    assert found["pp=3"] < 0.8 * found["ep=8"]


@pytest.mark.parametrize("wrong", [{"experts": 2, "top_k": 3}, {"experts": 8, "top_k": 5}, {"top_k": 0}])
def test_impossible_attention_experts_are_refused(wrong):
    with pytest.raises(MoesimError, match="attention"):
        Attention(heads=32, kv_heads=16, head_dim=128, v_head_dim=128, **wrong)


# --- weights shared across layers (arXiv:2209.08326, 2402.14905) ----------------------------------------------------


def stack(layers, groups=(), experts=4, top_k=2):
    attention = Attention(heads=8, kv_heads=8, head_dim=128, v_head_dim=128)
    layer = Layer(attention=attention, ffn=Experts(experts=experts, top_k=top_k, width=2048))
    return Model(name="stack", hidden=1024, vocab=512, layers=(layer,) * layers, weight_groups=groups, source="a test")


THIRD = (0, 1, 2, 3) * 3


def test_twelve_layers_in_four_groups_keep_a_third_of_the_weights_and_all_of_the_flops():
    whole, shared = stack(12), stack(12, THIRD)
    assert forward_flops(shared, 64) == forward_flops(whole, 64)
    layer = whole.layers[0]
    once = shared_parameters(whole, layer).total
    assert once == layer_parameters(whole, layer).total - 4 * 1024 - 2 * 1024  # but its router and norms
    assert parameters(whole) - parameters(shared) == 8 * once
    assert active_parameters(shared, embedding=True) <= parameters(shared)


def test_a_stage_stores_shared_weights_once_with_their_gradients_and_optimizer():
    given_, strategy = scenario(stack(12)), load_strategy("ep=4", 8)
    whole, shared = (memory(model, given_.workload, strategy) for model in (stack(12), stack(12, (0,) * 12)))
    for state in ("weights", "gradients", "optimizer"):
        assert getattr(shared, state) / getattr(whole, state) == pytest.approx(1 / 12, rel=0.1)
    assert shared.activations == whole.activations


def test_gradients_are_reduced_once_for_a_group_and_among_the_stages_that_have_it():
    """Neighbours share: each group on one stage. Layers four apart share: every stage has them all."""
    near, far = tuple(i // 3 for i in range(12)), THIRD
    strategy = load_strategy("pp=4 zero=0", 8)
    alone, together, apart = (ends(scenario(stack(12, groups)), strategy) for groups in ((), near, far))
    reduce = [sum(float(one.seconds.sum()) for one in found.reduce) for found in (alone, together, apart)]
    assert reduce[1] < 0.5 * reduce[0]
    assert reduce[2] > reduce[0]  # as many copies as before, and these are summed too
    held = [held_by_stage(stack(12, groups), 1, 1, 1, 4, (3,) * 4).expert.tolist() for groups in ((), near, far)]
    assert np.allclose(held[1], np.array(held[0]) / 3)
    assert held[2] == held[0]


def test_virtual_stages_of_a_gpu_share_too():
    models = stack(12), stack(12, (0, 1, 2) * 4)
    held = [held_by_stage(model, 1, 1, 1, 2, (3,) * 4, "interleaved").expert for model in models]
    assert np.allclose(held[1], held[0] / 2)


def test_an_mtp_layer_has_weights_of_its_own():
    two = replace(stack(4, (0,) * 4), mtp_layers=1)
    main, behind = held_by_stage(two, 1, 1, 1, 2, (2, 3)).expert
    assert behind == 2 * main  # the group once, and the module's layer


def test_a_step_with_shared_weights_takes_no_longer():
    strategy = load_strategy("ep=4 micro_batch=2", 8)
    whole, shared = (play(scenario(stack(6, groups), global_batch=64), strategy) for groups in ((), (0,) * 6))
    assert shared.step_s < whole.step_s


def test_what_reduces_layer_by_layer_is_refused_with_shared_weights():
    model, cluster, work = stack(8, (0, 0, 1, 1, 2, 2, 3, 3)), load_cluster("dgx-h100"), make_workload("train", 8)
    for text in ("zero=2", "zero=3", "pp=4 schedule=dualpipe"):
        assert "layers share" in why_not(model, cluster, work, load_strategy(text, 8))
    assert why_not(model, cluster, work, load_strategy("pp=4", 8)) is None


@pytest.mark.parametrize(("groups", "said"), [((0, 1), "2 weight_groups for 3 layers"), ((0, 0, 0), "unlike layers")])
def test_groups_that_cannot_share_are_refused(groups, said):
    model = stack(2)
    other = replace(model.layers[0], ffn=DenseFfn(width=64))
    with pytest.raises(MoesimError, match=said):
        replace(model, layers=(*model.layers, other), weight_groups=groups)


@given(st.integers(1, 4), st.integers(1, 4), st.data())
@settings(max_examples=25, deadline=None)
def test_stages_together_hold_a_copy_for_each_stage_that_a_group_is_on(pp, each, data):
    layers = pp * each
    groups = tuple(data.draw(st.lists(st.integers(0, 3), min_size=layers, max_size=layers)))
    model = stack(layers, groups)
    copies = sum(len({groups[i] for i in range(stage * each, (stage + 1) * each)}) for stage in range(pp))
    once = shared_parameters(model, model.layers[0]).experts
    assert held_by_stage(model, 1, 1, 1, pp, (each,) * pp).expert.sum() == copies * once
    assert (
        parameters(stack(layers)) - parameters(model)
        == (layers - len(set(groups))) * shared_parameters(model, model.layers[0]).total
    )


MOBILELLM = {
    "model_type": "mobilellm", "attention_bias": False, "head_dim": 64, "hidden_act": "silu", "hidden_size": 576,
    "intermediate_size": 1536, "layer_sharing": True, "mlp_bias": False, "num_attention_heads": 9,
    "num_hidden_layers": 30, "num_key_value_heads": 3, "share_embedding": True, "tie_word_embeddings": False,
    "vocab_size": 32000,
}  # fmt: skip


def test_mobilellm_runs_every_layer_twice_on_124_6_million_parameters(tmp_path):
    """hf:facebook/MobileLLM-350M-layer-share, table of models; norms are each run's own here: 35 thousand more."""
    once, twice = (read(tmp_path, **(MOBILELLM | {"layer_sharing": sharing})) for sharing in (False, True))
    assert (len(once.layers), len(twice.layers)) == (30, 60)
    assert parameters(once) / 1e6 == pytest.approx(124.6, abs=0.05)
    assert parameters(twice) == parameters(once) + 30 * 2 * 576
    head = 2.0 * 576 * 32000
    assert forward_flops(twice, 1) - head == 2 * (forward_flops(once, 1) - head)


def test_groups_of_neighbours_are_read_in_alberts_form(tmp_path):
    keys = MOBILELLM | {"layer_sharing": False, "num_hidden_layers": 12}
    assert read(tmp_path, **keys, num_hidden_groups=3).weight_groups == (0,) * 4 + (1,) * 4 + (2,) * 4
    assert read(tmp_path, **keys, num_hidden_groups=12).weight_groups == ()
    with pytest.raises(MoesimError, match="num_hidden_groups"):
        read(tmp_path, **keys, num_hidden_groups=5)
