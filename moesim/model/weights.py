"""Which weight matrices a layer has; parameter counts, GEMM shapes and FLOPs all derive from this list.

projections(model, layer)         attention or mamba, dense or shared feed-forward, router
expert_projections(model, layer)  one routed expert
"""

from typing import Literal, NamedTuple

from moesim.model.layers import DenseFfn, Experts, Layer, Model
from moesim.model.mixers import Attention, Mamba
from moesim.model.sharing import groups_among, repeats

Shard = Literal["out", "in", "none"]
Part = Literal["attention", "mamba", "dense", "shared", "router", "expert"]


class Projection(NamedTuple):
    """One weight matrix [inputs, outputs]; ``shard`` is the side that tensor parallelism splits.

    Or one matrix for each of ``experts``, of which a token meets ``top_k``; they have one bias together.
    """

    name: str
    part: Part
    inputs: int
    outputs: int
    shard: Shard
    bias: bool = False
    experts: int = 1
    top_k: int = 1

    @property
    def parameters(self) -> int:
        return self.experts * self.inputs * self.outputs + (self.outputs if self.bias else 0)

    @property
    def met(self) -> int:
        """Weights that one token is multiplied with."""
        return self.top_k * self.inputs * self.outputs


class LayerParameters(NamedTuple):
    """Parameters of one layer by part; ``experts`` counts all routed experts."""

    attention: int
    mamba: int
    dense: int
    shared: int
    router: int
    experts: int
    norms: int

    @property
    def total(self) -> int:
        return sum(self)


def projections(model: Model, layer: Layer) -> tuple[Projection, ...]:
    """Every weight matrix of the layer except its routed experts, in the order they are applied."""
    attention = attention_projections(layer.attention, model.hidden) if layer.attention else ()
    mamba = mamba_projections(layer.mamba, model.hidden) if layer.mamba else ()
    return attention + mamba + (_ffn_projections(layer.ffn, model.hidden) if layer.ffn else ())


def _ffn_projections(ffn: DenseFfn | Experts, hidden: int) -> tuple[Projection, ...]:
    if isinstance(ffn, DenseFfn):
        return _feed_forward("dense", hidden, ffn.width, gated=ffn.gated, bias=ffn.bias)
    router: tuple[Projection, ...] = (Projection("router", "router", hidden, ffn.experts, "none", ffn.router_bias),)
    if ffn.travels_at:
        router += (
            Projection("descend", "router", hidden, ffn.travels_at, "none"),
            Projection("ascend", "router", ffn.travels_at, hidden, "none"),
        )
    shared: tuple[Projection, ...] = ()
    if ffn.shared_width:
        shared = _feed_forward("shared", hidden, ffn.shared_width, gated=ffn.gated, bias=False)
    if ffn.shared_gate:
        shared += (Projection("shared_gate", "shared", hidden, 1, "none"),)
    return router + shared


def attention_projections(attention: Attention, hidden: int) -> tuple[Projection, ...]:
    """Queries, keys, values, output; tensor parallelism replicates the down projections of mla."""
    a = attention
    part: Part = "attention"
    heads, chosen = a.heads // a.top_k, (a.experts, a.top_k)
    output = Projection("o", part, heads * a.v_head_dim, hidden, "in", a.output_bias, *chosen)
    if a.kind == "gqa":
        return (
            Projection("q", part, hidden, heads * a.head_dim, "out", a.qkv_bias, *chosen),
            Projection("k", part, hidden, a.kv_heads * a.head_dim, "out", a.qkv_bias),
            Projection("v", part, hidden, a.kv_heads * a.v_head_dim, "out", a.qkv_bias),
            output,
            *([Projection("attention_router", "router", hidden, a.experts, "none")] if a.experts > 1 else []),
        )
    queries: tuple[Projection, ...] = (Projection("q", part, hidden, a.heads * a.head_dim, "out"),)
    if a.q_lora_rank is not None:
        queries = (
            Projection("q_a", part, hidden, a.q_lora_rank, "none", a.qkv_bias),
            Projection("q_b", part, a.q_lora_rank, a.heads * a.head_dim, "out"),
        )
    return (
        *queries,
        Projection("kv_a", part, hidden, a.kv_lora_rank + a.rope_head_dim, "none", a.qkv_bias),
        Projection("kv_b", part, a.kv_lora_rank, a.heads * (a.nope_head_dim + a.v_head_dim), "out"),
        output,
    )


def mamba_projections(mamba: Mamba, hidden: int) -> tuple[Projection, ...]:
    """Into z, x, B, C and dt, and out of the heads: tensor parallelism splits heads and groups."""
    return (
        Projection("in", "mamba", hidden, mamba.projected, "out", mamba.bias),
        Projection("out", "mamba", mamba.inner, hidden, "in", mamba.bias),
    )


def expert_projections(model: Model, layer: Layer) -> tuple[Projection, ...]:
    """The matrices of one routed expert; none in a dense layer."""
    ffn = layer.ffn
    if not isinstance(ffn, Experts):
        return ()
    return _feed_forward("expert", row_width(model, layer), ffn.width, gated=ffn.gated, bias=ffn.bias)


def row_width(model: Model, layer: Layer) -> int:
    """Values of a token that goes to an expert; BigMac (arXiv:2502.16927) projects it down before and up after."""
    return getattr(layer.ffn, "travels_at", 0) or model.hidden


def expert_parameters(model: Model, layer: Layer) -> int:
    """Parameters of one routed expert; 0 in a dense layer."""
    return sum(p.parameters for p in expert_projections(model, layer))


def layer_parameters(model: Model, layer: Layer) -> LayerParameters:
    """Parameters of one layer by part: matrices, biases, sinks, convolutions, router corrections, norms."""
    of = {"attention": 0, "mamba": 0, "dense": 0, "shared": 0, "router": 0}
    for p in projections(model, layer):
        of[p.part] += p.parameters
    if layer.attention and layer.attention.sinks:
        of["attention"] += layer.attention.heads
    if layer.mamba:
        m = layer.mamba
        of["mamba"] += (m.conv + m.conv_bias) * m.channels + 3 * m.heads  # A, D and the bias of dt
    experts = 0
    if isinstance(layer.ffn, Experts):
        experts = layer.ffn.experts * expert_parameters(model, layer)
        of["router"] += layer.ffn.experts if layer.ffn.score_correction else 0
        of["router"] += model.hidden if layer.ffn.output_bias else 0
    norms = layer.blocks * _norm(model) + _inner_norms(layer)
    return LayerParameters(**of, experts=experts, norms=norms)


def shared_parameters(model: Model, layer: Layer) -> LayerParameters:
    """What the layers of a group that shares weights store once."""
    return layer_parameters(model, layer)._replace(router=0, norms=0)


def active_layer_parameters(model: Model, layer: Layer) -> int:
    """Parameters of the layer that one token uses: all but the experts it is not routed to."""
    everything = layer_parameters(model, layer)
    idle = sum((p.experts - p.top_k) * p.inputs * p.outputs for p in projections(model, layer))
    if not isinstance(layer.ffn, Experts):
        return everything.total - idle
    return everything.total - idle - everything.experts + layer.ffn.top_k * expert_parameters(model, layer)


def embedding_parameters(model: Model) -> int:
    """The input embedding."""
    return model.vocab * model.hidden


def head_parameters(model: Model) -> int:
    """The output head as stored: 0 when it is the embedding (tied)."""
    bias = model.vocab if model.head_bias else 0
    return bias if model.tied_embeddings else bias + embedding_parameters(model)


def parameters(model: Model) -> int:
    """All parameters of the main model: the sum of the checkpoint's tensors (text part, without MTP)."""
    layers = sum(count * layer_parameters(model, layer).total for layer, count in model.layer_kinds())
    again = repeats(model, tuple(range(len(model.layers))))
    layers -= sum(count * shared_parameters(model, layer).total for layer, count in again.items())
    return layers + embedding_parameters(model) + head_parameters(model) + _norm(model)


def active_parameters(model: Model, *, embedding: bool) -> int:
    """Parameters that one token uses, the output head always among them.

    ``embedding`` says whether the input embedding counts too (of which a token reads one row). With
    tied embeddings that matrix is the head as well: it counts once either way. Weights that layers share
    count once; of their experts, a token's are different ones in every layer as far as there are any.
    """
    layers = sum(count * active_layer_parameters(model, layer) for layer, count in model.layer_kinds())
    for layer, count in groups_among(model, tuple(range(len(model.layers)))).values():
        own = layer_parameters(model, layer)
        layers -= (count - 1) * (active_layer_parameters(model, layer) - own.router - own.norms)
        if isinstance(layer.ffn, Experts):
            used = min(layer.ffn.experts, count * layer.ffn.top_k)
            layers += (used - layer.ffn.top_k) * expert_parameters(model, layer)
    head = embedding_parameters(model) + (model.vocab if model.head_bias else 0)
    looked_up = embedding_parameters(model) if embedding and not model.tied_embeddings else 0
    return layers + head + looked_up + _norm(model)


def mtp_parameters(model: Model) -> int:
    """Parameters of the multi-token-prediction modules, apart from embedding and head, which they share.

    A module is the model's last layer, a projection [2 hidden, hidden] and three norms (DeepSeek-V3,
    arXiv:2412.19437 section 2.2).
    """
    return model.mtp_layers * layer_parameters(model, model.layers[-1]).total + mtp_joints(model)


def mtp_joints(model: Model) -> int:
    """Of these parameters those outside layers: projections and norms."""
    return model.mtp_layers * (2 * model.hidden**2 + 3 * _norm(model))


def _feed_forward(part: Part, hidden: int, width: int, *, gated: bool, bias: bool) -> tuple[Projection, ...]:
    up = tuple(Projection(name, part, hidden, width, "out", bias) for name in ("gate", "up")[not gated :])
    return (*up, Projection("down", part, width, hidden, "in", bias))


def _norm(model: Model) -> int:
    return model.hidden * (2 if model.norm_bias else 1)


def _inner_norms(layer: Layer) -> int:
    """Norm weights inside attention, on queries and keys or on the two latents of mla; before Mamba's gate."""
    a = layer.attention
    if a is None:
        return layer.mamba.inner if layer.mamba else 0
    if a.kind == "mla":
        return a.kv_lora_rank + (a.q_lora_rank or 0)
    if a.qk_norm == "full":
        return (a.heads + a.kv_heads) * a.head_dim
    return 2 * a.head_dim if a.qk_norm == "head" else 0
