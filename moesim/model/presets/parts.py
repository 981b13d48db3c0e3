"""Parts that several publishers share."""

from moesim.model.layers import DenseFfn, Experts, Layer
from moesim.model.mixers import Attention


def gqa(heads: int, kv_heads: int, head_dim: int) -> Attention:
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, v_head_dim=head_dim)


def mla(heads: int, q_lora_rank: int | None) -> Attention:
    """DeepSeek's latent attention: these four sizes are the same in every model here that uses it."""
    return Attention(
        kind="mla",
        heads=heads,
        kv_heads=heads,
        head_dim=128 + 64,
        v_head_dim=128,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=512,
        rope_head_dim=64,
    )


def behind_dense(dense: int, dense_width: int, moe: int, attention: Attention, experts: Experts) -> tuple[Layer, ...]:
    """A few dense layers in front, then MoE layers (DeepSeek and those who follow)."""
    front = Layer(attention=attention, ffn=DenseFfn(width=dense_width))
    return (front,) * dense + (Layer(attention=attention, ffn=experts),) * moe
