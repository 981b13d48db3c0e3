"""Layers in pairs: a dense layer before every MoE layer, as in GShard (arXiv:2006.16668) and ScMoE's models."""

from functools import lru_cache

from moesim.model.layers import Layer, Model


@lru_cache(maxsize=256)
def dense_before(model: Model, layer: Layer) -> Layer | None:
    """The dense layer that stands before each MoE layer of this kind; None where it does not always."""
    before = {model.layers[i - 1] if i else None for i, here in enumerate(model.layers) if here == layer}
    found = before.pop() if len(before) == 1 else None
    return None if found is None or found.is_moe or not layer.is_moe else found


@lru_cache(maxsize=64)
def in_pairs(model: Model) -> bool:
    """Whether dense and MoE layers take turns, a dense one first; those of MTP modules among them."""
    turns = [model.layer(number).is_moe for number in range(len(model.layers) + model.mtp_layers)]
    alternates = turns == [False, True] * (len(turns) // 2)
    return alternates and all(dense_before(model, kind.layer) for kind in model.layer_kinds() if kind.layer.is_moe)
