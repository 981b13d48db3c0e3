"""How far the layers of a model divide over GPUs: heads over tp, experts over ep, their width over etp."""

from moesim.model.layers import Experts, Layer, Model


def indivisible(model: Model, tp: int, cp: int, ep: int, etp: int) -> str | None:
    """The first reason why these degrees cannot divide a layer, or None."""
    if model.moe is None and ep * etp > 1:
        return "the model has no experts to spread"
    for kind in model.layer_kinds():
        found = _mixer(kind.layer, tp, cp) or _feed_forward(kind.layer, tp, ep, etp)
        if found:
            return found
    return None


def _mixer(layer: Layer, tp: int, cp: int) -> str | None:
    if layer.attention and layer.attention.heads // layer.attention.top_k % tp:
        return "tp does not divide the attention heads"
    if layer.mamba and (layer.mamba.heads % tp or layer.mamba.groups % tp):
        return "tp does not divide the heads and groups of Mamba"
    return "context parallelism of Mamba layers is not modelled" if layer.mamba and cp > 1 else None


def _feed_forward(layer: Layer, tp: int, ep: int, etp: int) -> str | None:
    ffn = layer.ffn
    if isinstance(ffn, Experts):
        if ffn.experts % ep:
            return "ep does not divide the experts"
        return "etp does not divide the expert width" if ffn.width % etp else None
    return "tp does not divide the dense width" if ffn and ffn.width % tp else None
