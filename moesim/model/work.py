"""How much work a layer does: attended pairs, FLOPs (2 per multiply-add) and cached bytes.

    forward FLOPs of q tokens after p cached ones, per layer
        = 2 q (weights of attention and its top_k experts or mamba, dense or shared part, router, top_k experts)
        + 2 heads (head_dim + v_head_dim) attended(q, p), or q times the products of mamba's scan

Causal attention over what each query really sees: everything, its window, or its chunk. Biases, norms,
softmax, rotary positions, mamba's convolution and the embedding look-up are not counted.
"""

from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.model.layers import Experts, Layer, Model
from moesim.model.mixers import Attention, Mamba
from moesim.model.weights import expert_projections, projections

TRAINING_PASSES: Final = 3  # forward, gradient of the activations, gradient of the weights

Count = TypeVar("Count", float, NDArray[np.float64])  # tokens: a number or an array of them


def attended(attention: Attention, queries: Count, past: Count) -> Count:
    """(query, key) pairs per head of ``queries`` new tokens after ``past`` cached ones; exact.

    The token at position n (from 0) sees n + 1 keys; min(n + 1, window) with a sliding window;
    n mod chunk + 1 with chunks.
    """
    return _pairs(attention, past + queries) - _pairs(attention, past)


def _pairs(attention: Attention, tokens: Count) -> Count:
    """Pairs of a sequence of ``tokens`` from its start."""
    if attention.window is not None:
        ramp = _least(tokens, attention.window)
        return ramp * (ramp + 1.0) / 2.0 + (tokens - ramp) * attention.window
    if attention.chunk is not None:
        chunk = attention.chunk
        whole, rest = tokens // chunk, tokens % chunk
        return whole * (chunk * (chunk + 1) / 2) + rest * (rest + 1.0) / 2.0
    return tokens * (tokens + 1.0) / 2.0


def stored_tokens(attention: Attention, tokens: Count) -> Count:
    """Tokens of a sequence that the KV cache of this layer must hold: the window or chunk bounds them."""
    limit = attention.window or attention.chunk
    return tokens if limit is None else _least(tokens, limit)


def _least(tokens: Count, limit: int) -> Count:
    return np.minimum(tokens, limit) if isinstance(tokens, np.ndarray) else min(tokens, limit)


def kv_bytes_per_token(model: Model, layer: Layer, dtype_bytes: float) -> float:
    """KV-cache bytes that one stored token takes in one layer.

    gqa: kv_heads (head_dim + v_head_dim) values; mla: kv_lora_rank + rope_head_dim values.
    """
    return layer.attention.cached_values * dtype_bytes if layer.attention else 0.0


def cache_bytes(model: Model, layer: Layer, tokens: float, dtype_bytes: float, tp: int = 1) -> float:
    """Bytes that one layer remembers of a sequence of ``tokens`` on each of ``tp`` GPUs: keys and values of those that
    it must hold, divided by key-value heads (mla's latents are on each GPU); of Mamba its state, however long the
    sequence is, divided by heads."""
    a = layer.attention
    if a is None:
        return (layer.mamba.carried if layer.mamba else 0) * dtype_bytes / tp
    split = 1 if a.kind == "mla" else min(tp, a.kv_heads)
    return stored_tokens(a, tokens) * kv_bytes_per_token(model, layer, dtype_bytes) / split


def kv_values(attention: Attention, tp: int) -> float:
    """Keys and values of a token on one of ``tp`` GPUs, as the core reads them after all projections: mla's are
    projected up from the latent vector, and a GPU has at least one whole key-value head."""
    if attention.kind == "mla":
        return attention.heads * (attention.head_dim + attention.v_head_dim) / min(tp, attention.heads)
    return attention.cached_values / min(tp, attention.kv_heads)


def kv_bytes(model: Model, tokens: float, dtype_bytes: float) -> float:
    """Cached bytes of one sequence of ``tokens`` over all layers, windows and chunks respected."""
    return sum(count * cache_bytes(model, layer, tokens, dtype_bytes) for layer, count in model.layer_kinds())


def active_matrix_weights(model: Model, layer: Layer) -> int:
    """Weights that one token is multiplied with in this layer (no biases, no norms)."""
    weights = sum(p.met for p in projections(model, layer))
    if isinstance(layer.ffn, Experts):
        weights += layer.ffn.top_k * sum(p.inputs * p.outputs for p in expert_projections(model, layer))
    return weights


def attention_flops(attention: Attention, queries: Count, past: Count, *, absorbed: bool = False) -> Count:
    """FLOPs of scores and weighted values: 2 heads (head_dim + v_head_dim) attended.

    ``absorbed`` is mla's decode form: queries meet the cached latents themselves, so a pair costs
    (kv_lora_rank + rope_head_dim) + kv_lora_rank multiply-adds instead.
    """
    pair = attention.head_dim + attention.v_head_dim
    if absorbed and attention.kind == "mla":
        pair = 2 * attention.kv_lora_rank + attention.rope_head_dim
    return attended(attention, queries, past) * (2.0 * attention.heads * pair)


class ScanFlops(NamedTuple):
    """Matrix products of Mamba-2's scan, FLOPs per token (arXiv:2405.21060 section 6). Inside a chunk of Q tokens

        Y = (L o C B^T) X        and across chunks        H' = decay H + B^T X,   Y += C H

    With the causal mask L a token meets (Q + 1) / 2 others on average; B and C are shared by a group's heads.
    """

    scores: float  # C B^T
    inside: float  # (L o C B^T) X
    states: float  # B^T X
    carried: float  # C H


def scan_flops(mamba: Mamba, queries: float) -> ScanFlops:
    """FLOPs per token of sequences of ``queries`` new tokens: one token alone is a step of the recurrence."""
    met = (min(mamba.chunk, queries) + 1.0) / 2.0
    each = 2.0 * mamba.inner * mamba.state
    return ScanFlops(2.0 * met * mamba.groups * mamba.state, 2.0 * met * mamba.inner, each, each)


def layer_flops(model: Model, layer: Layer, queries: float, past: float = 0.0) -> float:
    """Forward FLOPs of one layer for one sequence: ``queries`` new tokens after ``past`` cached ones.

    2 queries (matrix weights a token meets) + 2 heads (head_dim + v_head_dim) attended, or the scan's products.
    """
    found = 2.0 * queries * active_matrix_weights(model, layer)
    if layer.attention:
        found += attention_flops(layer.attention, queries, past)
    return found + (queries * sum(scan_flops(layer.mamba, queries)) if layer.mamba else 0.0)


def forward_flops(model: Model, queries: float, past: float = 0.0, *, outputs: float | None = None) -> float:
    """Forward FLOPs of one sequence: its layers + 2 outputs hidden vocab for the head.

    ``outputs`` is the number of positions whose logits are computed: all of ``queries`` by default
    (training), 1 in a serving prefill.
    """
    layers = sum(count * layer_flops(model, layer, queries, past) for layer, count in model.layer_kinds())
    return layers + 2.0 * (queries if outputs is None else outputs) * model.hidden * model.vocab


def mtp_flops(model: Model, queries: float) -> float:
    """Forward FLOPs of the multi-token-prediction modules on one sequence: of each a layer of the last one's kind, a
    projection [2 hidden, hidden] and a pass through the head (DeepSeek-V3, arXiv:2412.19437 section 2.2)."""
    matrices = 2.0 * queries * model.hidden * (2.0 * model.hidden + model.vocab)
    return model.mtp_layers * (layer_flops(model, model.layers[-1], queries) + matrices)


def training_flops(model: Model, sequence: float) -> float:
    """Model FLOPs of training on one sequence of that length, MTP modules included: 3 x forward, no recompute
    counted."""
    return TRAINING_PASSES * (forward_flops(model, sequence) + mtp_flops(model, sequence))


def flops_per_token(model: Model, context: float, *, training: bool = False) -> float:
    """Forward (or training) FLOPs per token, averaged over a sequence of ``context`` tokens."""
    return (training_flops if training else forward_flops)(model, context) / context
