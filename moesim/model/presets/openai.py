"""gpt-oss."""

from moesim.model.layers import Experts, Layer, Model, Published
from moesim.model.mixers import Attention


def gpt_oss() -> list[Model]:
    """OpenAI 2025, arXiv:2508.10925 table 1; its active figures count the unembedding only.

    Every second layer slides over 128 tokens; biases everywhere, one sink per head, experts in mxfp4.
    """
    sliding, full = (
        Attention(
            heads=64,
            kv_heads=8,
            head_dim=64,
            v_head_dim=64,
            window=window,
            qkv_bias=True,
            output_bias=True,
            sinks=True,
        )
        for window in (128, None)
    )
    models = []
    for name, experts, pairs, total, active in (
        ("gpt-oss-20b", 32, 12, "20.91B", "3.61B"),
        ("gpt-oss-120b", 128, 18, "116.83B", "5.13B"),
    ):
        ffn = Experts(experts=experts, top_k=4, width=2880, bias=True, router_bias=True)
        models.append(
            Model(
                name=name,
                hidden=2880,
                vocab=201088,
                layers=(Layer(attention=sliding, ffn=ffn), Layer(attention=full, ffn=ffn)) * pairs,
                expert_dtype="mxfp4",
                source=f"hf:openai/{name}; arXiv:2508.10925 table 1",
                published=Published(total=total, active=active, active_embedding=False),
            )
        )
    return models
