"""Llama 3.1 and Llama 4."""

from moesim.model.layers import DenseFfn, Experts, Layer, Model, Published
from moesim.model.mixers import Attention
from moesim.model.presets.parts import gqa


def llama3() -> list[Model]:
    """Llama 3.1, arXiv:2407.21783 table 3; totals and active (all of them) are the names' figures."""
    models = []
    for name, count, hidden, heads, width, total in (
        ("llama-3.1-8b", 32, 4096, 32, 14336, "8.03B"),
        ("llama-3.1-70b", 80, 8192, 64, 28672, "70.6B"),
        ("llama-3.1-405b", 126, 16384, 128, 53248, "405B"),
    ):
        layer = Layer(attention=gqa(heads, 8, 128), ffn=DenseFfn(width=width))
        models.append(
            Model(
                name=name,
                hidden=hidden,
                vocab=128256,
                layers=(layer,) * count,
                source=f"hf:meta-llama/Llama-{name[6:].upper()}; arXiv:2407.21783 table 3",
                published=Published(total=total, active=total, active_embedding=True),
            )
        )
    return models


def llama4() -> list[Model]:
    """Llama 4 model card (github.com/meta-llama/llama-models); its totals count the vision encoder.

    Three layers of four attend within chunks of 8,192; every fourth has no positions and sees everything.
    Maverick alternates dense and MoE layers.
    """
    chunked = Attention(heads=40, kv_heads=8, head_dim=128, v_head_dim=128, chunk=8192)
    four = (chunked,) * 3 + (gqa(40, 8, 128),)
    scout = Experts(experts=16, top_k=1, width=8192, shared_width=8192)
    maverick = Experts(experts=128, top_k=1, width=8192, shared_width=8192)
    layouts: dict[str, tuple[str, tuple[DenseFfn | Experts, ...], str]] = {
        "llama-4-scout": ("Llama-4-Scout-17B-16E", (scout,) * 4, "109B"),
        "llama-4-maverick": ("Llama-4-Maverick-17B-128E", (DenseFfn(width=16384), maverick) * 2, "400B"),
    }
    return [
        Model(
            name=name,
            hidden=5120,
            vocab=202048,
            layers=tuple(Layer(attention=a, ffn=f) for a, f in zip(four, ffns, strict=True)) * 12,
            source=f"hf:meta-llama/{repository}; model card of Llama 4",
            published=Published(total=total, active="17B", active_embedding=True, outside_text=_llama4_vision(5120)),
        )
        for name, (repository, ffns, total) in layouts.items()
    ]


def _llama4_vision(text_hidden: int) -> int:
    """Parameters of Llama 4's vision encoder and projector (vision_config of the same repositories)."""
    hidden, width, layers, patches = 1408, 5632, 34, (336 // 14) ** 2 + 1
    layer = 4 * (hidden + 1) * hidden + (hidden + 1) * width + (width + 1) * hidden + 4 * hidden
    patch_embedding = 3 * 14 * 14 * hidden + hidden + patches * hidden + 4 * hidden
    adapter = width * 4096 + 4096 * 4096 + 4096 * text_hidden
    return layers * layer + patch_embedding + adapter
