"""The layers of a Nemotron-H config.json, one letter each: M Mamba-2, E experts, * attention, - dense.

Its feed-forward parts are a square of ReLU between two matrices: they have no gate.
"""

import dataclasses
from typing import Final

from moesim.errors import MoesimError
from moesim.model.config import Config
from moesim.model.layers import DenseFfn, Experts, Layer
from moesim.model.mixers import Attention, Mamba

PATTERN: Final = "hybrid_override_pattern"


def hybrid_layers(config: Config, attention: Attention, experts: Experts | None) -> tuple[Layer, ...]:
    """Every layer of the pattern, a block alone; ``attention`` and ``experts`` as the other keys say."""
    pattern, count = config.text(PATTERN), config.integer("num_hidden_layers", default=None)
    if count not in (None, len(pattern)):
        raise config.wrong(PATTERN, f"give one letter for each of the {count} layers, not {len(pattern)}")
    if config.text("mlp_hidden_act", "relu2") != "relu2":
        raise config.wrong("mlp_hidden_act", "moesim reads Nemotron-H with relu2, which has no gate")
    width, bias = config.integer("intermediate_size", default=None), config.flag("mlp_bias", False)
    kinds = {"*": Layer(attention=attention)}
    if "M" in pattern:
        kinds["M"] = Layer(mamba=_mamba(config))
    if experts:
        kinds["E"] = Layer(ffn=dataclasses.replace(experts, gated=False, bias=bias))
    if width:
        kinds["-"] = Layer(ffn=DenseFfn(width=width, gated=False, bias=bias))
    for letter in pattern:
        if letter not in kinds:
            raise MoesimError(
                f"{config.where}: key {PATTERN!r} has {letter!r}: moesim reads M, E (with n_routed_experts), * and "
                "- (with intermediate_size)"
            )
    return tuple(kinds[letter] for letter in pattern)


def _mamba(config: Config) -> Mamba:
    if config.text("mamba_hidden_act", "silu") != "silu":
        raise config.wrong("mamba_hidden_act", "moesim reads Mamba-2 with silu")
    return Mamba(
        heads=config.integer("mamba_num_heads"),
        head_dim=config.integer("mamba_head_dim"),
        state=config.integer("ssm_state_size"),
        groups=config.integer("n_groups", default=1),
        conv=config.integer("conv_kernel", default=4),
        chunk=config.integer("chunk_size", default=128),
        conv_bias=config.flag("use_conv_bias", True),
        bias=config.flag("mamba_proj_bias", config.flag("use_bias", False)),
    )
