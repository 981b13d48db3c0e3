"""Qwen."""

from moesim.model.layers import Experts, Layer, Model, Published
from moesim.model.mixers import Attention


def qwen3() -> list[Model]:
    """Qwen3 arXiv:2505.09388 table 2, with one norm weight per head_dim on queries and keys."""
    small = Layer(attention=_qk_normed(32), ffn=Experts(experts=128, top_k=8, width=768))
    large = Layer(attention=_qk_normed(64), ffn=Experts(experts=128, top_k=8, width=1536))
    return [
        Model(
            name="qwen3-30b-a3b",
            hidden=2048,
            vocab=151936,
            layers=(small,) * 48,
            source="hf:Qwen/Qwen3-30B-A3B; arXiv:2505.09388 table 2",
            published=Published(total="30.5B", active="3.3B", active_embedding=True),
        ),
        Model(
            name="qwen3-235b-a22b",
            hidden=4096,
            vocab=151936,
            layers=(large,) * 94,
            source="hf:Qwen/Qwen3-235B-A22B; arXiv:2505.09388 table 2",
            published=Published(total="235B", active="22B", active_embedding=True),
        ),
    ]


def _qk_normed(heads: int) -> Attention:
    return Attention(heads=heads, kv_heads=4, head_dim=128, v_head_dim=128, qk_norm="head")


def qwen2_moe() -> list[Model]:
    """Qwen1.5-MoE (qwenlm.github.io/blog/qwen-moe) and Qwen2-57B (arXiv:2407.10671): biases on q, k, v."""
    small = Experts(experts=60, top_k=4, width=1408, shared_width=5632, shared_gate=True)
    large = Experts(experts=64, top_k=8, width=2560, shared_width=20480, shared_gate=True)
    mha = Attention(heads=16, kv_heads=16, head_dim=128, v_head_dim=128, qkv_bias=True)
    gqa = Attention(heads=28, kv_heads=4, head_dim=128, v_head_dim=128, qkv_bias=True)
    return [
        Model(
            name="qwen1.5-moe-a2.7b",
            hidden=2048,
            vocab=151936,
            layers=(Layer(attention=mha, ffn=small),) * 24,
            source="hf:Qwen/Qwen1.5-MoE-A2.7B; qwenlm.github.io/blog/qwen-moe",
            published=Published(total="14.3B", active="2.7B", active_embedding=True),
        ),
        Model(
            name="qwen2-57b-a14b",
            hidden=3584,
            vocab=151936,
            layers=(Layer(attention=gqa, ffn=large),) * 28,
            source="hf:Qwen/Qwen2-57B-A14B; arXiv:2407.10671 table 1",
            published=Published(total="57.4B", active="14B", active_embedding=True),
        ),
    ]
