"""Nemotron 3."""

from typing import Final

from moesim.model.layers import Experts, Layer, Model, Published
from moesim.model.mixers import Mamba
from moesim.model.presets.parts import gqa

NANO: Final = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"  # M Mamba-2, E experts, * attention


def nemotron() -> list[Model]:
    """Nemotron 3 Nano, arXiv:2512.20848 table 1; squared ReLU, so experts have no gate."""
    experts = Experts(experts=128, top_k=6, width=1856, gated=False, shared_width=3712, score_correction=True)
    mamba = Mamba(heads=64, head_dim=64, state=128, groups=8, conv=4, chunk=128)
    kinds = {"M": Layer(mamba=mamba), "E": Layer(ffn=experts), "*": Layer(attention=gqa(32, 2, 128))}
    return [
        Model(
            name="nemotron-3-nano",
            hidden=2688,
            vocab=131072,
            layers=tuple(kinds[letter] for letter in NANO),
            source="hf:nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16; arXiv:2512.20848",
            published=Published(total="31.6B", active="3.6B", active_embedding=True),
        )
    ]
