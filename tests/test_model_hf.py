"""Reading config.json: real families by their fields, layer patterns by their keys."""

import json

import pytest

from moesim.model import MODELS, load_model, mtp_parameters, parameters

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
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
QWEN3 = {
    "model_type": "qwen3_moe",
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "attention_bias": True,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "quantization_config": {"quant_method": "mxfp4"},
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "vocab_size": 201088,
}
LLAMA4_MAVERICK = {
    "model_type": "llama4",
    "vision_config": {"hidden_size": 1408},
    "text_config": {
        "model_type": "llama4_text",
        "attention_chunk_size": 8192,
        "head_dim": 128,
        "hidden_size": 5120,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "use_qk_norm": True,
        "vocab_size": 202048,
    },
}
MINIMAX = {
    "model_type": "minimax_m2",
    "head_dim": 128,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "mtp_transformer_layers": 1,
    "num_attention_heads": 48,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
    "num_local_experts": 256,
    "num_mtp_modules": 3,
    "qk_norm_type": "per_layer",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "shared_intermediate_size": 0,
    "use_mtp": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": 200064,
}
QWEN15 = {
    "model_type": "qwen2_moe",
    "decoder_sparse_step": 1,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "shared_expert_intermediate_size": 5632,
    "vocab_size": 151936,
}
PHI = {
    "model_type": "phimoe",
    "attention_bias": True,
    "hidden_size": 4096,
    "intermediate_size": 6400,
    "lm_head_bias": True,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 16,
    "sliding_window": 131072,
    "vocab_size": 32064,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
CONFIGS = {
    "mixtral-8x7b": MIXTRAL,
    "deepseek-v3": DEEPSEEK_V3,
    "kimi-k2": DEEPSEEK_V3
    | {
        "model_type": "kimi_k2",
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "n_routed_experts": 384,
        "num_attention_heads": 64,
        "num_nextn_predict_layers": 0,
        "vocab_size": 163840,
    },
    "deepseek-v2-lite": DEEPSEEK_V3
    | {
        "model_type": "deepseek_v2",
        "first_k_dense_replace": 1,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 27,
        "num_nextn_predict_layers": None,
        "q_lora_rank": None,
        "quantization_config": None,
        "vocab_size": 102400,
    },
    "qwen3-30b-a3b": QWEN3,
    "gpt-oss-20b": GPT_OSS,
    "llama-4-maverick": LLAMA4_MAVERICK,
    "minimax-m2": MINIMAX,
    "qwen1.5-moe-a2.7b": QWEN15,
    "phi-3.5-moe": PHI,
    "llama-3.1-8b": LLAMA,
}


def written(folder, config):
    path = folder / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return str(path)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_reads_like_its_preset(name, tmp_path):
    model, preset = load_model(written(tmp_path, CONFIGS[name])), MODELS[name]
    assert model.layers == preset.layers
    assert parameters(model) == parameters(preset)
    assert mtp_parameters(model) == mtp_parameters(preset)
    assert (model.dtype, model.expert_dtype) == (preset.dtype, preset.expert_dtype)


def test_a_folder_is_its_config_and_gives_its_name(tmp_path):
    folder = tmp_path / "my-moe"
    folder.mkdir()
    written(folder, MIXTRAL)
    assert load_model(str(folder)).name == "my-moe"
    assert load_model(str(folder / "config.json")).name == "my-moe"


def test_a_new_family_with_the_usual_keys_reads_like_llama_and_says_so(tmp_path):
    model = load_model(written(tmp_path, MIXTRAL | {"model_type": "newmoe", "num_shared_experts": 1}))
    assert model.moe.shared_width == 14336
    assert "model_type 'newmoe' read like llama" in model.source


def test_layer_patterns_follow_their_keys(tmp_path):
    def sparse(**keys):
        config = DEEPSEEK_V3 | {"num_hidden_layers": 6, "first_k_dense_replace": 0} | keys
        return "".join("E" if layer.is_moe else "d" for layer in load_model(written(tmp_path, config)).layers)

    assert sparse(first_k_dense_replace=2) == "ddEEEE"
    assert sparse(moe_layer_freq=2) == "EdEdEd"
    assert sparse(decoder_sparse_step=2) == "dEdEdE"
    assert sparse(mlp_only_layers=[0, 5]) == "dEEEEd"
    assert sparse(moe_layers=[1]) == "dEdddd"
    assert sparse(moe_layer_freq=[0, 1, 1, 1, 1, 0]) == "dEEEEd"
    assert sparse(n_routed_experts=0) == "dddddd"


def test_windows_follow_their_keys(tmp_path):
    def windows(**keys):
        config = LLAMA | {"num_hidden_layers": 3, "max_position_embeddings": 64} | keys
        return [layer.attention.window for layer in load_model(written(tmp_path, config)).layers]

    assert windows(sliding_window=8) == [8, 8, 8]
    assert windows(sliding_window=64) == [None] * 3
    assert windows(sliding_window=8, use_sliding_window=False) == [None] * 3
    assert windows(sliding_window=8, use_sliding_window=True, max_window_layers=2) == [None, None, 8]
    assert windows(sliding_window=8, layer_types=["full_attention"] + 2 * ["sliding_attention"]) == [
        None,
        8,
        8,
    ]


def test_positions_say_where_llama_4_sees_everything(tmp_path):
    text = LLAMA4_MAVERICK["text_config"] | {"num_hidden_layers": 2, "no_rope_layers": [0, 1]}
    model = load_model(written(tmp_path, {"text_config": text}))
    assert [layer.attention.chunk for layer in model.layers] == [None, 8192]


def test_quantised_checkpoints_keep_their_dtype_and_their_logical_weights(tmp_path):
    for quantisation, dtype in (
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
    ):
        model = load_model(written(tmp_path, MIXTRAL | {"quantization_config": quantisation}))
        assert (model.dtype, model.expert_dtype) == (dtype, dtype)
        assert parameters(model) == 46_702_792_704
