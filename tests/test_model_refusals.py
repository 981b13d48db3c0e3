"""A config.json that cannot be read, or not truthfully: one line that names the key."""

import json

import pytest

from moesim.errors import MoesimError
from moesim.model import load_model

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}


def written(folder, config):
    path = folder / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return str(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("index_topk", 2048),
        ("linear_num_key_heads", 16),
        ("mamba_d_state", 128),
        ("moe_latent_size", 1024),
        ("cross_attention_layers", [3, 8]),
        ("num_hash_layers", 3),
        ("is_encoder_decoder", True),
        ("zero_expert_num", 128),
        ("hybrid_override_pattern", "M-M*"),
        ("some_new_layer_thing", 7),
    ],
)
def test_unknown_structure_is_refused_by_the_name_of_its_key(key, value, tmp_path):
    with pytest.raises(MoesimError, match=f"key '{key}' is .*does not model"):
        load_model(written(tmp_path, MIXTRAL | {key: value}))
    load_model(written(tmp_path, MIXTRAL | {key: None}))  # off


def without(key):
    return {name: value for name, value in MIXTRAL.items() if name != key}


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (json.dumps(MIXTRAL)[:200], "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ([1], "holds a JSON list"),
        (without("hidden_size"), "missing key 'hidden_size'"),
        (without("num_experts_per_tok"), "missing key 'num_experts_per_tok' or 'experts_per_token'"),
        (without("model_type"), "missing key 'model_type'"),
        (without("intermediate_size"), "missing key 'moe_intermediate_size'"),
        (without("tie_word_embeddings") | {"model_type": "new"}, "missing key 'tie_word_embeddings'"),
        (MIXTRAL | {"hidden_size": "4096"}, "key 'hidden_size' is \"4096\": give a whole number"),
        (MIXTRAL | {"num_hidden_layers": True}, "key 'num_hidden_layers' is true: give a whole number"),
        (MIXTRAL | {"num_hidden_layers": 0}, "give 1 or more"),
        (MIXTRAL | {"hidden_size": 4097}, "add head_dim, or divide hidden_size 4097"),
        (MIXTRAL | {"n_routed_experts": 9}, "num_local_experts = 8, n_routed_experts = 9 disagree"),
        (MIXTRAL | {"layer_types": ["full_attention"]}, "one entry for each of the 32 layers, not 1"),
        (MIXTRAL | {"layer_types": ["linear_attention"] * 32}, "'linear_attention': moesim models"),
        (MIXTRAL | {"layer_types": ["sliding_attention"] * 32}, "missing key 'sliding_window'"),
        (MIXTRAL | {"layer_types": [1] * 32}, "give a list of str"),
        (MIXTRAL | {"attn_type_list": [0] * 32}, "linear attention"),
        (MIXTRAL | {"hidden_act": "relu2"}, "gated feed-forward parts with silu"),
        (MIXTRAL | {"torch_dtype": "int8"}, "key 'torch_dtype' is \"int8\""),
        (MIXTRAL | {"quantization_config": {"quant_method": "hqq"}}, "moesim reads fp8, mxfp4"),
        (MIXTRAL | {"decoder_sparse_step": 0}, "give 1 or more"),
        (MIXTRAL | {"num_key_value_heads": 5}, "32 attention heads do not divide over 5"),
        ({"text_config": 3}, "key 'text_config' is 3"),
    ],
)
def test_a_broken_config_is_one_line(config, what, tmp_path):
    with pytest.raises(MoesimError) as error:
        load_model(written(tmp_path, config))
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_an_empty_folder_are_one_line(tmp_path):
    for path in (str(tmp_path), str(tmp_path / "gone.json"), "mistralai/Mixtral-8x7B-v0.1"):
        with pytest.raises(MoesimError, match=r"cannot read .*: No such file"):
            load_model(path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(MoesimError, match="not valid JSON"):
        load_model(str(tmp_path))
