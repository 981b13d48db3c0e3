"""OLMoE, Phi-3.5-MoE, DBRX, MiniMax-M2, JetMoE."""

from moesim.model.layers import Experts, Layer, Model, Published
from moesim.model.mixers import Attention
from moesim.model.presets.parts import gqa


def olmoe() -> list[Model]:
    """OLMoE, arXiv:2409.02060 table 1 and appendix; norms over the whole query and key projections."""
    attention = Attention(heads=16, kv_heads=16, head_dim=128, v_head_dim=128, qk_norm="full")
    return [
        Model(
            name="olmoe-1b-7b",
            hidden=2048,
            vocab=50304,
            layers=(Layer(attention=attention, ffn=Experts(experts=64, top_k=8, width=1024)),) * 16,
            source="hf:allenai/OLMoE-1B-7B-0924; arXiv:2409.02060",
            published=Published(total="6.9B", active="1.3B", active_embedding=True),
        )
    ]


def phi() -> list[Model]:
    """Phi-3.5-MoE, arXiv:2404.14219: LayerNorm with bias, biases on attention and head."""
    attention = Attention(heads=32, kv_heads=8, head_dim=128, v_head_dim=128, qkv_bias=True, output_bias=True)
    return [
        Model(
            name="phi-3.5-moe",
            hidden=4096,
            vocab=32064,
            layers=(Layer(attention=attention, ffn=Experts(experts=16, top_k=2, width=6400)),) * 32,
            norm_bias=True,
            head_bias=True,
            source="hf:microsoft/Phi-3.5-MoE-instruct; arXiv:2404.14219",
            published=Published(total="42B", active="6.6B", active_embedding=True),
        )
    ]


def dbrx() -> list[Model]:
    """DBRX: LayerNorm without bias, which counts like RMSNorm."""
    experts = Experts(experts=16, top_k=4, width=10752)
    return [
        Model(
            name="dbrx",
            hidden=6144,
            vocab=100352,
            layers=(Layer(attention=gqa(48, 8, 128), ffn=experts),) * 40,
            source="hf:databricks/dbrx-base; github.com/databricks/dbrx",
            published=Published(total="132B", active="36B", active_embedding=True),
        )
    ]


def minimax() -> list[Model]:
    """MiniMax-M2: norms over the whole query and key projections; the checkpoint holds no MTP module."""
    attention = Attention(heads=48, kv_heads=8, head_dim=128, v_head_dim=128, qk_norm="full")
    experts = Experts(experts=256, top_k=8, width=1536, score_correction=True)
    return [
        Model(
            name="minimax-m2",
            hidden=3072,
            vocab=200064,
            layers=(Layer(attention=attention, ffn=experts),) * 62,
            dtype="fp8_block",
            expert_dtype="fp8_block",
            source="hf:MiniMaxAI/MiniMax-M2; github.com/MiniMax-AI/MiniMax-M2",
            published=Published(total="230B", active="10B", active_embedding=False),
        )
    ]


def jetmoe() -> list[Model]:
    """JetMoE-8B, arXiv:2404.07413 table 1: experts of attention heads (16 query heads in each) and of the
    feed-forward part, one bias on the output of each, keys and values common to all."""
    attention = Attention(heads=2 * 16, kv_heads=16, head_dim=128, v_head_dim=128, output_bias=True, experts=8, top_k=2)
    layer = Layer(attention=attention, ffn=Experts(experts=8, top_k=2, width=5632, output_bias=True))
    return [
        Model(
            name="jetmoe-8b",
            hidden=2048,
            vocab=32000,
            layers=(layer,) * 24,
            tied_embeddings=True,
            source="hf:jetmoe/jetmoe-8b; arXiv:2404.07413 table 1",
            published=Published(total="8B", active="2B", active_embedding=True),
        )
    ]
