"""Bytes per GPU: weights, gradients, optimizer, activations, buffers, KV cache, of the fullest stage.

Training keeps bf16 weights, fp32 gradients and three fp32 Adam states (master weight, two moments): 2, 4
and 12 bytes per parameter, as Megatron-LM does (arXiv:2205.05198, section 4.1 for the activations, whose
per-layer terms are listed in ``_kept_values``). ZeRO divides over data parallelism: stage 1 the
optimizer, stage 2 the gradients too, stage 3 the weights too (arXiv:1910.02054). Experts are divided over
their own data parallelism, dp x cp x tp / (ep x etp).

Activations are those of the stage's worst moment in the order of its schedule (``schedule.in_flight``): what
every part keeps for its backward pass, times the micro-batches that wait for theirs. DualPipe holds the
parameters of two parts, over twice as many replicas.
"""

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from moesim.compute import KEPT_MASKS, building_bytes
from moesim.cost import FloatArray
from moesim.model import (
    Experts,
    Layer,
    Model,
    cache_bytes,
    embedding_parameters,
    head_parameters,
    layer_parameters,
    projections,
    row_width,
    shared_parameters,
)
from moesim.schedule import SCHEDULES, Pipe, in_flight
from moesim.stages import part_layers, parts_on_stages, stored_again
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
FP8_INPUT: Final = 0.5  # of them, in block-scaled fp8 training (DeepSeek-V3)
KV_BYTES: Final = 2.0
TRAINING_WEIGHT_BYTES: Final = 2.0
GRADIENT_BYTES: Final = 4.0
OPTIMIZER_BYTES: Final = 12.0
STATES: Final = ((TRAINING_WEIGHT_BYTES, 3), (GRADIENT_BYTES, 2), (OPTIMIZER_BYTES, 1))  # sharded from a ZeRO stage on
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


class Keeping(NamedTuple):
    """What decides how much of a layer is kept for its backward pass."""

    etp: int
    recompute: str
    imbalance: float
    input_share: float  # of ACTIVATION_BYTES, that an input of a GEMM takes
    masked: float  # tokens whose slots a token's row of a dense einsum's masks has; 0: no masks


class Held(NamedTuple):
    """Parameters on one GPU; dense and expert apart, because they are sharded over different data parallelism."""

    dense: FloatArray  # by stage, or of one layer
    expert: FloatArray


def memory(model: Model, workload: Workload, strategy: Strategy, imbalance: float = 1.0) -> Memory:
    """Bytes on the fullest GPU. ``imbalance`` is the rows of the busiest expert-parallel rank, padding among
    them, over an equal share of all copies."""
    stages = (_training if workload.trains else _serving)(model, workload, strategy, imbalance)
    fullest = int(np.argmax(sum(stages)))
    return Memory(*(float(np.broadcast_to(part, strategy.pp)[fullest]) for part in stages))


@lru_cache(maxsize=16384)
def state_bytes(model: Model, strategy: Strategy) -> float:
    """Bytes on the fullest GPU of what training keeps whatever its micro-batches: no activations."""
    held = _held(model, strategy)
    kept = sum(_kept(held, strategy, each, from_zero_stage=zero) for each, zero in STATES)
    return float(np.max(kept)) + FRAMEWORK_BYTES + _gathered_layer(model, strategy)


def _held(model: Model, s: Strategy) -> Held:
    return held_by_stage(model, s.tp, s.ep, s.etp, s.pp, s.schedule, s.virtual)


def _training(model: Model, workload: Workload, strategy: Strategy, imbalance: float) -> tuple[FloatArray | float, ...]:
    """The fields of Memory for every stage."""
    held = _held(model, strategy)
    tokens = tokens_on_gpu(workload, strategy)
    share = FP8_INPUT if workload.dtype == "fp8_block" else 1.0
    keeping = Keeping(strategy.etp, strategy.recompute, imbalance, share, tokens * (strategy.permute == "einsum"))
    pipe = Pipe(strategy.pp, strategy.micro_batches(workload.sequences), strategy.virtual)
    values, last = _activation_values(model, strategy.schedule, pipe, keeping)
    logits = last * model.vocab * (ACTIVATION_BYTES + 4.0)  # bf16 and their fp32 softmax, one micro-batch
    return (
        *(_kept(held, strategy, each, from_zero_stage=zero) for each, zero in STATES),
        tokens * (values * ACTIVATION_BYTES + logits),
        0.0,
        FRAMEWORK_BYTES + _gathered_layer(model, strategy) + building_bytes(model, tokens * keeping.masked * imbalance),
    )


def _serving(model: Model, workload: Workload, strategy: Strategy, imbalance: float) -> tuple[FloatArray | float, ...]:
    """The fields of Memory for every stage; embedding and head stay in bf16."""
    held = held_by_stage(model, strategy.tp, strategy.ep, strategy.etp, strategy.pp)
    ends = ends_by_stage(model, strategy.pp) / strategy.tp
    matrices = WEIGHT_BYTES[workload.dtype]
    tokens = tokens_on_gpu(workload, strategy)
    keeping = Keeping(strategy.etp, "none", imbalance, 1.0, tokens * (strategy.permute == "einsum"))
    widest = max(_kept_values(model, kind.layer, keeping) for kind in model.layer_kinds())
    whole = 4.0 * model.hidden * strategy.tp  # residual, norm, input and output of a block, not split over tp
    return (
        (held.dense - ends + held.expert) * matrices + ends * WEIGHT_BYTES["bf16"],
        0.0,
        0.0,
        tokens * (widest + whole) * ACTIVATION_BYTES,
        _kv_cache(model, workload, strategy),
        FRAMEWORK_BYTES + building_bytes(model, tokens * keeping.masked * imbalance),
    )


def _kept(held: Held, strategy: Strategy, bytes_each: float, from_zero_stage: int) -> FloatArray:
    """Bytes of one training state by stage, divided over data parallelism from a ZeRO stage on."""
    if strategy.zero < from_zero_stage:
        return np.asarray((held.dense + held.expert) * bytes_each)
    copies = SCHEDULES[strategy.schedule].copies
    dp = strategy.dp * strategy.cp
    return np.asarray(held.dense / dp + held.expert / strategy.expert_dp) / copies * bytes_each


@lru_cache(maxsize=4096)
def held_by_stage(model: Model, tp: int, ep: int, etp: int, pp: int, schedule: str = "1f1b", virtual: int = 1) -> Held:
    """Parameters on one GPU of each stage: its layers, the embedding with the first, the head with the last."""
    holds = parts_on_stages(schedule, pp, virtual)
    kinds, counts = _kinds_by_part(model, pp * virtual)
    each = np.array([layer_on_gpu(model, layer, tp, ep, etp) for layer in kinds])  # [kind, dense and expert]
    dense, expert = each.T @ counts
    dense = dense + _ends(model, pp * virtual, pp) / tp
    dense[-1] += model.hidden * (2 if model.norm_bias else 1)  # the final norm
    dense, expert = holds @ dense, holds @ expert
    for layer, times in stored_again(model, pp, schedule, virtual).items():
        again = times * np.array(layer_on_gpu(model, layer, tp, ep, etp, shared=True))[:, None]
        dense, expert = dense - again[0], expert - again[1]
    return Held(dense, expert)


def ends_by_stage(model: Model, pp: int, schedule: str = "1f1b", virtual: int = 1) -> FloatArray:
    """Parameters of embedding and head; tied, they are stored twice when they are on two stages."""
    return np.asarray(parts_on_stages(schedule, pp, virtual) @ _ends(model, pp * virtual, pp))


@lru_cache(maxsize=1024)
def _ends(model: Model, parts: int, pp: int) -> FloatArray:
    ends = np.zeros(parts)
    ends[0] += embedding_parameters(model)
    ends[-1] += embedding_parameters(model) if model.tied_embeddings and pp > 1 else head_parameters(model)
    return ends


@lru_cache(maxsize=4096)
def layer_on_gpu(model: Model, layer: Layer, tp: int, ep: int, etp: int, *, shared: bool = False) -> Held:
    """Matrices divided over tp; norms, router, mla's down parts whole. ``shared``: what a group stores once."""
    counts = (shared_parameters if shared else layer_parameters)(model, layer)
    split = sum(p.parameters for p in projections(model, layer) if p.shard != "none")
    whole = counts.total - counts.experts - split
    return Held(np.asarray(whole + split / tp), np.asarray(counts.experts / (ep * etp)))


@lru_cache(maxsize=4096)
def _largest_layer(model: Model, tp: int, ep: int, etp: int) -> float:
    """Parameters of it on one GPU, unsharded."""
    return float(max(sum(layer_on_gpu(model, k.layer, tp, ep, etp)) for k in model.layer_kinds()))


def _gathered_layer(model: Model, strategy: Strategy) -> float:
    """ZeRO 3 holds one layer's weights whole, the next one's on their way, and a layer's gradients until they are
    reduced."""
    if strategy.zero < 3:
        return 0.0
    largest = _largest_layer(model, strategy.tp, strategy.ep, strategy.etp)
    return largest * (2.0 * TRAINING_WEIGHT_BYTES + GRADIENT_BYTES)


def tokens_on_gpu(workload: Workload, strategy: Strategy) -> float:
    """New tokens of one micro-batch on one GPU, split over context and tensor parallelism."""
    return strategy.micro_batch * workload.queries / (strategy.cp * strategy.tp)


@lru_cache(maxsize=4096)
def _activation_values(model: Model, schedule: str, pipe: Pipe, keeping: Keeping) -> tuple[FloatArray, FloatArray]:
    """By stage, values per token at the worst moment, and 1 where the head is."""
    holds = parts_on_stages(schedule, pipe.stages, pipe.virtual)
    kept, whole, widest = _part_values(model, pipe.stages * pipe.virtual, keeping)
    here = np.array([np.flatnonzero(row) for row in holds])  # [stage, part of the stage]
    each = np.stack([kept[here], whole[here]], axis=-1)  # WAITS, OWES
    counts = in_flight(schedule, pipe)  # [stage, moment, part of the stage, what]
    worst = (counts * each[:, None]).sum(axis=(-2, -1)).max(axis=-1)
    rule = SCHEDULES[schedule]
    frees = rule.pairs or not rule.splits  # a whole backward pass: each layer is there for its own turn alone
    return np.asarray(worst + frees * widest[here].max(axis=-1)), holds[:, -1]


@lru_cache(maxsize=4096)
def _part_values(model: Model, parts: int, keeping: Keeping) -> tuple[FloatArray, FloatArray, FloatArray]:
    """By part, values per token: kept for the backward pass; there until the gradients of the weights are done;
    alive while one layer is recomputed."""
    kinds, counts = _kinds_by_part(model, parts)
    kept = np.array([_kept_values(model, layer, keeping) for layer in kinds])
    whole = np.array([_kept_values(model, layer, keeping._replace(recompute="none")) for layer in kinds])
    widest = np.where(counts > 0, whole[:, None], 0.0).max(axis=0)
    return kept @ counts, whole @ counts, widest * (keeping.recompute == "full")


@lru_cache(maxsize=1024)
def _kinds_by_part(model: Model, parts: int) -> tuple[list[Layer], FloatArray]:
    """The kinds of layers, and how many of each a part holds: [kind, part]."""
    kinds = [kind.layer for kind in model.layer_kinds()]
    counts = np.zeros((len(kinds), parts))
    for part, indices in enumerate(part_layers(model, parts)):
        for index in indices:
            counts[kinds.index(model.layers[index]), part] += 1
    return kinds, counts


@lru_cache(maxsize=4096)
def _kept_values(model: Model, layer: Layer, keeping: Keeping) -> float:
    """Values per token that one layer keeps for its backward pass (2 bytes each).

    full recompute    the layer's input
    attention         input, norm, queries, keys, values, output of the core; of its experts as below
    mamba             input, norm, what is projected, outputs of scan and gated norm (mamba_ssm ssd_combined.py)
    feed-forward      input, norm, gate, up, activation; per routed copy also its expert input and output,
                      which each of the etp ranks holds for all of them
    selective drops   norms, activations and expert outputs: cheap to recompute; of mla also what is projected up from
                      the latent vectors (DeepSeek-V3, arXiv:2412.19437 section 3.2.3)
    fp8_block         what only the GEMM of a weight's gradient reads again is kept as it was read, ``input_share`` of
                      2 bytes: norms, core output, activation, expert input; with selective, gate and up of experts too
                      (there, section 3.3.3)
    """
    hidden, ffn = model.hidden, layer.ffn
    if keeping.recompute == "full":
        return float(hidden)
    every, input_share = keeping.recompute == "none", keeping.input_share
    around = layer.blocks * hidden * (1.0 + every * input_share) + _mixer_values(layer, hidden, every, input_share)
    if ffn is None:
        return around
    if not isinstance(ffn, Experts):
        return around + _ffn_values(ffn.width, ffn.gated, every * input_share)
    row = row_width(model, layer)
    copy = keeping.etp * (input_share * row + every * row)
    copy += _ffn_values(ffn.width, ffn.gated, every * input_share) * (1.0 if every else input_share)
    shared = _ffn_values(ffn.shared_width, ffn.gated, every * input_share)
    copy += KEPT_MASKS * keeping.masked
    return around + shared + ffn.top_k * copy * keeping.imbalance


def _mixer_values(layer: Layer, hidden: int, every: bool, input_share: float) -> float:
    """Of them, what attention or Mamba keeps between its norm and the next one."""
    a, m = layer.attention, layer.mamba
    if not a:
        return m.projected + m.inner * (1.0 + input_share) if m else 0.0
    core = float(a.heads * a.head_dim + a.kv_heads * (a.head_dim + a.v_head_dim))
    if a.kind == "mla" and not every:
        core = input_share * ((a.q_lora_rank or a.heads * a.head_dim) + a.cached_values)
    copies = a.top_k * (a.experts > 1) * (input_share + every) * hidden
    return core + input_share * a.heads * a.v_head_dim + copies


def _ffn_values(width: int, gated: bool, activation: float) -> float:
    return width * (1 + gated + activation)


def _kv_cache(model: Model, workload: Workload, strategy: Strategy) -> FloatArray:
    """Cached bytes on one GPU by stage: heads divided over tp as far as there are key-value heads."""
    values = _kv_bytes_by_stage(model, strategy.pp, strategy.tp, workload.past + workload.queries)
    return values * (workload.sequences / strategy.dp / strategy.cp)


@lru_cache(maxsize=1024)
def _kv_bytes_by_stage(model: Model, pp: int, tp: int, context: int) -> FloatArray:
    """KV-cache bytes of one sequence on one GPU of each stage."""
    found = np.zeros(pp)
    for stage, indices in enumerate(part_layers(model, pp)):
        found[stage] = sum(cache_bytes(model, model.layers[index], context, KV_BYTES, tp) for index in indices)
    return found
