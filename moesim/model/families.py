"""What the checkpoints of a family hold that their config.json does not say.

Read off the tensors of the family's checkpoints and its code in Hugging Face transformers.
"""

from typing import Final, Literal, NamedTuple


class Family(NamedTuple):
    """What the checkpoints of a model_type hold beyond their config; None: as the config says."""

    qkv_bias: bool | None = None
    output_bias: bool | None = None
    qk_norm: Literal["none", "head", "full"] | None = None
    sinks: bool = False
    expert_bias: bool = False  # on experts and router
    shared_gate: bool = False
    score_correction: bool | None = None
    norm_bias: bool = False
    hybrid: bool = False  # a pattern says which block each layer is
    # As many as feed-forward ones; a token's queries are top_k times its key-value heads.
    attention_experts: bool = False
    tied: bool = False  # unless the config says otherwise
    unused: tuple[str, ...] = ()  # keys that its code never reads


FAMILIES: Final = {
    "deepseek_v2": Family(score_correction=False),
    "deepseek_v3": Family(),
    "glm4_moe": Family(output_bias=False, score_correction=True),
    "gpt_oss": Family(sinks=True, expert_bias=True, unused=("initial_context_length",)),
    "jetmoe": Family(attention_experts=True, tied=True, unused=("num_attention_heads",)),
    "kimi_k2": Family(),
    "llama": Family(),
    "llama4_text": Family(qk_norm="none"),  # its norm on queries and keys has no weights
    "minimax_m2": Family(unused=("mlp_intermediate_size", "shared_moe_mode")),
    "mistral": Family(),
    "mixtral": Family(),
    "mobilellm": Family(),
    "nemotron_h": Family(
        score_correction=True,
        hybrid=True,
        unused=("rescale_prenorm_residual", "use_mamba_kernels", "moe_shared_expert_overlap", "num_logits_to_keep"),
    ),
    "olmoe": Family(qk_norm="full"),
    "olmo2": Family(qk_norm="full"),
    "phimoe": Family(norm_bias=True),
    "qwen2": Family(qkv_bias=True, output_bias=False),
    "qwen2_moe": Family(qkv_bias=True, output_bias=False, shared_gate=True),
    "qwen3": Family(qk_norm="head"),
    "qwen3_moe": Family(qk_norm="head"),
}
