"""Mixtral."""

from moesim.model.layers import Experts, Layer, Model, Published
from moesim.model.presets.parts import gqa


def mixtral() -> list[Model]:
    """8x7B arXiv:2401.04088 table 1; figures: mistral.ai/news/mixtral-of-experts, mixtral-8x22b."""
    small = Layer(attention=gqa(32, 8, 128), ffn=Experts(experts=8, top_k=2, width=14336))
    large = Layer(attention=gqa(48, 8, 128), ffn=Experts(experts=8, top_k=2, width=16384))
    return [
        Model(
            name="mixtral-8x7b",
            hidden=4096,
            vocab=32000,
            layers=(small,) * 32,
            source="hf:mistralai/Mixtral-8x7B-v0.1; arXiv:2401.04088 table 1",
            published=Published(total="46.7B", active="12.9B", active_embedding=True),
        ),
        Model(
            name="mixtral-8x22b",
            hidden=6144,
            vocab=32000,
            layers=(large,) * 56,
            source="hf:mistralai/Mixtral-8x22B-v0.1; mistral.ai/news/mixtral-8x22b",
            published=Published(total="141B", active="39B", active_embedding=True),
        ),
    ]
