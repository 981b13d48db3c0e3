"""The models that moesim knows by name: every field stated, with its source.

Totals are the sums of the checkpoints' tensor shapes; ``published`` is what the publisher prints, and
whether its active figure counts the input embedding. Configs: the config.json of the named repository
on huggingface.co.
"""

from moesim.model.layers import Attention, DenseFfn, Experts, Layer, Model, Published


def _gqa(heads: int, kv_heads: int, head_dim: int) -> Attention:
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, v_head_dim=head_dim)


def _mla(heads: int, q_lora_rank: int | None) -> Attention:
    """DeepSeek's latent attention; these four sizes are the same in all models that use it here."""
    return Attention(
        kind="mla",
        heads=heads,
        kv_heads=heads,
        head_dim=192,
        v_head_dim=128,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=512,
        rope_head_dim=64,
    )


# Jiang et al. 2024, arXiv:2401.04088 table 1; 46.7B and 12.9B: mistral.ai/news/mixtral-of-experts
_MIXTRAL_8X7B = Model(
    name="mixtral-8x7b",
    hidden=4096,
    vocab=32000,
    layers=(Layer(attention=_gqa(32, 8, 128), ffn=Experts(experts=8, top_k=2, width=14336)),) * 32,
    source="huggingface.co/mistralai/Mixtral-8x7B-v0.1; arXiv:2401.04088",
    published=Published(total="46.7B", active="12.9B", active_embedding=True),
)

# DeepSeek-AI 2024, arXiv:2412.19437 section 4.2
_DEEPSEEK_V3 = Model(
    name="deepseek-v3",
    hidden=7168,
    vocab=129280,
    layers=(Layer(attention=_mla(128, 1536), ffn=DenseFfn(width=18432)),) * 3
    + (
        Layer(
            attention=_mla(128, 1536),
            ffn=Experts(
                experts=256,
                top_k=8,
                width=2048,
                shared_width=2048,
                score_correction=True,
                groups=8,
                top_groups=4,
            ),
        ),
    )
    * 58,
    mtp_layers=1,
    dtype="fp8_block",
    expert_dtype="fp8_block",
    source="huggingface.co/deepseek-ai/DeepSeek-V3; arXiv:2412.19437",
    published=Published(total="671B", active="37B", active_embedding=False),
)

MODELS: dict[str, Model] = {model.name: model for model in (_MIXTRAL_8X7B, _DEEPSEEK_V3)}
