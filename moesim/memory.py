"""Bytes per GPU: weights, gradients, optimizer, activations, buffers, KV cache, of the fullest stage.

Training keeps bf16 weights, fp32 gradients and three fp32 Adam states (master weight, two moments): 2, 4
and 12 bytes per parameter, as Megatron-LM does (arXiv:2205.05198, section 4.1 for the activations, whose
per-layer terms are listed in ``_kept_values``). ZeRO divides over data parallelism: stage 1 the
optimizer, stage 2 the gradients too, stage 3 the weights too (arXiv:1910.02054). Experts are divided over
their own data parallelism, dp x cp x tp / (ep x etp).
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from moesim.model import (
    Experts,
    Layer,
    Model,
    embedding_parameters,
    head_parameters,
    kv_bytes_per_token,
    layer_parameters,
    projections,
    stored_tokens,
)
from moesim.schedule import in_flight
from moesim.stages import stage_layers
from moesim.strategy import Strategy
from moesim.units import GIB
from moesim.workload import Workload

WEIGHT_BYTES: Final = {
    "bf16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4.0 / 128**2,  # one fp32 scale per 128 x 128 block
    "int4": 0.5 + 2.0 / 32,  # one bf16 scale per 32 weights
    "ternary": 1.6 / 8,  # five ternary weights in a byte
}
ACTIVATION_BYTES: Final = 2.0
KV_BYTES: Final = 2.0
TRAINING_WEIGHT_BYTES: Final = 2.0
GRADIENT_BYTES: Final = 4.0
OPTIMIZER_BYTES: Final = 12.0
# CUDA context, NCCL buffers, allocator fragmentation. Estimated: 1.5-3 GiB are usual on an 8-GPU node.
FRAMEWORK_BYTES: Final = 2.0 * GIB


class Memory(NamedTuple):
    """Bytes on one GPU of the fullest pipeline stage."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    kv_cache: float
    buffers: float

    @property
    def total(self) -> float:
        return sum(self)


class Held(NamedTuple):
    """Parameters on one GPU; dense and expert apart, because they are sharded over different data parallelism."""

    dense: float
    expert: float


def memory(model: Model, workload: Workload, strategy: Strategy, imbalance: float = 1.0) -> Memory:
    """Bytes on the fullest GPU. ``imbalance`` is max/mean of the tokens that ranks receive."""
    stages = range(strategy.pp)
    return max((_stage_memory(model, workload, strategy, s, imbalance) for s in stages), key=lambda m: m.total)


def _stage_memory(model: Model, workload: Workload, strategy: Strategy, stage: int, imbalance: float) -> Memory:
    held = held_by_stage(model, strategy.tp, strategy.ep, strategy.etp, strategy.pp, stage)
    if workload.trains:
        return Memory(
            *_training_state(held, strategy),
            activations=_training_activations(model, workload, strategy, stage, imbalance),
            kv_cache=0.0,
            buffers=FRAMEWORK_BYTES + _gathered_layer(model, strategy),
        )
    matrices = WEIGHT_BYTES[workload.dtype]
    tokens = _tokens(workload, strategy)
    widest = max(_working_values(model, kind.layer, strategy, imbalance) for kind in model.layer_kinds())
    return Memory(
        weights=held.dense * matrices + held.expert * matrices,
        gradients=0.0,
        optimizer=0.0,
        activations=tokens * widest * ACTIVATION_BYTES,
        kv_cache=_kv_cache(model, workload, strategy, stage),
        buffers=FRAMEWORK_BYTES,
    )


def _training_state(held: Held, strategy: Strategy) -> tuple[float, float, float]:
    """Weights, gradients, optimizer in bytes."""
    shards = Held(strategy.dp * strategy.cp, strategy.expert_dp)

    def kept(bytes_each: float, from_zero_stage: int) -> float:
        sharded = strategy.zero >= from_zero_stage
        return sum(n * bytes_each / (over if sharded else 1) for n, over in zip(held, shards, strict=True))

    return kept(TRAINING_WEIGHT_BYTES, 3), kept(GRADIENT_BYTES, 2), kept(OPTIMIZER_BYTES, 1)


@lru_cache(maxsize=65536)
def held_by_stage(model: Model, tp: int, ep: int, etp: int, pp: int, stage: int) -> Held:
    """Parameters on one GPU of a stage: its layers, the embedding on the first, the head on the last."""
    dense = expert = 0.0
    for index in stage_layers(model, pp)[stage]:
        here = layer_on_gpu(model, model.layers[index], tp, ep, etp)
        dense, expert = dense + here.dense, expert + here.expert
    if stage == 0:
        dense += embedding_parameters(model) / tp
    if stage == pp - 1:
        tied_elsewhere = model.tied_embeddings and pp > 1
        dense += (embedding_parameters(model) if tied_elsewhere else head_parameters(model)) / tp + model.hidden
    return Held(dense, expert)


@lru_cache(maxsize=4096)
def layer_on_gpu(model: Model, layer: Layer, tp: int, ep: int, etp: int) -> Held:
    """Matrices divided where tensor parallelism divides them; norms, router and mla's down parts whole."""
    counts = layer_parameters(model, layer)
    split = sum(p.parameters for p in projections(model, layer) if p.shard != "none")
    whole = counts.total - counts.experts - split
    return Held(whole + split / tp, counts.experts / (ep * etp))


def _gathered_layer(model: Model, strategy: Strategy) -> float:
    """ZeRO 3 holds one layer's weights whole, and the next one's on their way."""
    if strategy.zero < 3:
        return 0.0
    kinds = model.layer_kinds()
    largest = max(sum(layer_on_gpu(model, k.layer, strategy.tp, strategy.ep, strategy.etp)) for k in kinds)
    return 2.0 * largest * TRAINING_WEIGHT_BYTES


def _tokens(workload: Workload, strategy: Strategy) -> float:
    """New tokens of one micro-batch on one GPU, split over context and tensor parallelism."""
    return strategy.micro_batch * workload.queries / (strategy.cp * strategy.tp)


def _training_activations(
    model: Model, workload: Workload, strategy: Strategy, stage: int, imbalance: float
) -> float:
    tokens = _tokens(workload, strategy)
    layers = [model.layers[index] for index in stage_layers(model, strategy.pp)[stage]]
    kept = _kept_by(model, tuple(layers), strategy.recompute, imbalance)
    pending = in_flight(
        strategy.schedule, stage, strategy.pp, strategy.micro_batches(workload.sequences)
    )
    widest = max((_working_values(model, layer, strategy, imbalance) for layer in set(layers)), default=0.0)
    working = widest if strategy.recompute == "full" else 0.0
    logits = 0.0
    if stage == strategy.pp - 1:  # bf16 logits, their fp32 softmax; one micro-batch at a time
        logits = tokens * model.vocab * (ACTIVATION_BYTES + 4.0)
    return tokens * (pending * kept + working) * ACTIVATION_BYTES + logits


@lru_cache(maxsize=8192)
def _kept_by(model: Model, layers: tuple[Layer, ...], recompute: str, imbalance: float) -> float:
    """Values kept per token for the backward pass by a run of layers."""
    return sum(_kept_values(model, layer, recompute, imbalance) for layer in layers)


@lru_cache(maxsize=4096)
def _kept_values(model: Model, layer: Layer, recompute: str, imbalance: float) -> float:
    """Values per token that one layer keeps for its backward pass (2 bytes each).

    full recompute    the layer's input
    attention         input, norm, queries, keys, values, output of the core
    feed-forward      input, norm, gate, up, activation; per routed copy also its expert input and output
    selective drops   norms, activations and expert outputs: cheap to recompute
    """
    hidden, a, ffn = model.hidden, layer.attention, layer.ffn
    if recompute == "full":
        return float(hidden)
    every = recompute == "none"
    core = a.heads * (a.head_dim + a.v_head_dim) + a.kv_heads * (a.head_dim + a.v_head_dim)
    attention = hidden + core + every * hidden
    if not isinstance(ffn, Experts):
        return attention + hidden + every * hidden + _ffn_values(ffn.width, ffn.gated, every)
    copy = hidden + _ffn_values(ffn.width, ffn.gated, every) + every * hidden
    shared = _ffn_values(ffn.shared_width, ffn.gated, every)
    return attention + hidden + every * hidden + shared + ffn.top_k * copy * imbalance


def _ffn_values(width: int, gated: bool, every: bool) -> int:
    return width * (1 + gated + every)


@lru_cache(maxsize=8192)
def _working(model: Model, layer: Layer, imbalance: float) -> float:
    """Values per token alive while one layer runs: all that it would keep."""
    return _kept_values(model, layer, "none", imbalance)


def _working_values(model: Model, layer: Layer, strategy: Strategy, imbalance: float) -> float:
    return _working(model, layer, imbalance)


def _kv_cache(model: Model, workload: Workload, strategy: Strategy, stage: int) -> float:
    """Cached bytes on one GPU: heads divided over tp as far as there are key-value heads."""
    sequences = workload.sequences / strategy.dp
    context = workload.past + workload.queries
    return sequences * sum(_kv_values(model, _stage(model, strategy, stage), strategy.tp, context)) / strategy.cp


def _stage(model: Model, strategy: Strategy, stage: int) -> Iterable[Layer]:
    return (model.layers[index] for index in stage_layers(model, strategy.pp)[stage])


def _kv_values(model: Model, layers: Iterable[Layer], tp: int, context: float) -> Iterable[float]:
    for layer in layers:
        per_token = kv_bytes_per_token(model, layer, KV_BYTES)
        split = 1 if layer.attention.kind == "mla" else min(tp, layer.attention.kv_heads)
        yield stored_tokens(layer.attention, context) * per_token / split
