"""Bytes per GPU: weights, gradients, optimizer, activations, buffers, KV cache, of the fullest stage.

Training keeps bf16 weights, fp32 gradients and three fp32 Adam states (master weight, two moments): 2, 4
and 12 bytes per parameter, as Megatron-LM does. fp8_block is DeepSeek-V3's recipe, whose two moments are bf16: 8
bytes (arXiv:2412.19437 section 3.3.2). The last part holds MTP modules (each a layer and a projection) and, on
another stage than the first, a copy of the embedding that they or a tied head read. ZeRO divides over data
parallelism: stage 1 the optimizer, stage 2 the gradients too, stage 3 the weights too (arXiv:1910.02054). Experts
are divided over their own data parallelism, dp x cp x tp / (ep x etp).

Activations are those of the stage's worst moment in the order of its schedule (``schedule.in_flight``): what
every part keeps for its backward pass (``recompute.kept_values``), times the micro-batches that wait for theirs;
where gradients of weights come later, what these read (``recompute.owed_values``), times those that owe them;
while a backward pass runs, what was dropped of one layer and its gradients (``recompute.alive_values``). DualPipe
holds the parameters of two parts, over twice as many replicas.

Not counted: what an all-to-all of NCCL connects inside a node (3.3 GB on 8 H100, NVIDIA/nccl issue 1685).
"""

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from moesim.compute import building_bytes
from moesim.cost import FloatArray
from moesim.kv_slices import KV_BYTES, together_bytes
from moesim.model import (
    Layer,
    Model,
    cache_bytes,
    embedding_parameters,
    head_parameters,
    layer_parameters,
    mtp_joints,
    projections,
    shared_parameters,
    with_mtp,
)
from moesim.recompute import Keeping, alive_values, kept_values, owed_values
from moesim.schedule import SCHEDULES, Pipe, in_flight
from moesim.stages import Split, kinds_by_part, part_layers, parts_on_stages, split_of, stored_again
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
TRAINING_WEIGHT_BYTES: Final = 2.0
GRADIENT_BYTES: Final = 4.0
MASTER_BYTES: Final = 4.0
MOMENT_BYTES: Final = {"fp8_block": 2.0}  # of each of two; fp32 in all other recipes
# Serving: CUDA context, NCCL buffers, workspaces. Estimated: 1.5-3 GiB are usual on an 8-GPU node.
FRAMEWORK_BYTES: Final = 2.0 * GIB
# Training: context and libraries before ranks are connected, and each communicator's buffers after one all-reduce.
# Published: 8 x H100, NVIDIA/nccl issue 1685; 4 x A100 with NVLink, of two ranks and of more, NVIDIA/nccl issue 964.
CONTEXT_BYTES: Final = 1.06e9
PAIR_BYTES: Final = 544e6
COMMUNICATOR_BYTES: Final = 688e6


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

    dense: FloatArray  # by stage, or of one layer
    expert: FloatArray


def memory(model: Model, workload: Workload, strategy: Strategy, imbalance: float = 1.0) -> Memory:
    """Bytes on the fullest GPU. ``imbalance`` is the rows of the busiest expert-parallel rank, padding among
    them, over an equal share of all copies."""
    if workload.trains:
        stages = _training(model, workload, strategy, imbalance)
    else:
        stages = _serving(with_mtp(model, 0), workload, strategy, imbalance)
    fullest = int(np.argmax(sum(stages)))
    return Memory(*(float(np.broadcast_to(part, strategy.pp)[fullest]) for part in stages))


@lru_cache(maxsize=64)
def optimizer_bytes(dtype: str) -> float:
    """Per parameter: master weight and two moments."""
    return MASTER_BYTES + 2.0 * MOMENT_BYTES.get(dtype, 4.0)


def _states(dtype: str) -> tuple[tuple[float, int], ...]:
    """Weights, gradients and optimizer: bytes per parameter, and the ZeRO stage from which on they are sharded."""
    return (TRAINING_WEIGHT_BYTES, 3), (GRADIENT_BYTES, 2), (optimizer_bytes(dtype), 1)


@lru_cache(maxsize=16384)
def state_bytes(model: Model, workload: Workload, strategy: Strategy) -> float:
    """Bytes on the fullest GPU of what training keeps whatever its micro-batches: no activations."""
    held = _held(model, workload, strategy)
    kept = sum(_kept(held, strategy, each, from_zero_stage=zero) for each, zero in _states(workload.dtype))
    return float(np.max(kept)) + _buffers(model, strategy)


def _held(model: Model, workload: Workload, strategy: Strategy) -> Held:
    split, schedule = split_of(model, workload, strategy), strategy.schedule if workload.trains else "1f1b"
    return held_by_stage(model, strategy.tp, strategy.ep, strategy.etp, strategy.pp, split, schedule)


def _training(model: Model, workload: Workload, strategy: Strategy, imbalance: float) -> tuple[FloatArray | float, ...]:
    """The fields of Memory for every stage."""
    held, split = _held(model, workload, strategy), split_of(model, workload, strategy)
    tokens = tokens_on_gpu(workload, strategy)
    masked = tokens * (strategy.permute == "einsum")
    keeping = Keeping(strategy.etp, strategy.recompute, imbalance, workload.dtype, masked)
    pipe = Pipe(strategy.pp, strategy.micro_batches(workload.sequences), strategy.virtual)
    values, last = _activation_values(model, strategy.schedule, pipe, split, keeping)
    # bf16 and their fp32 softmax, one micro-batch through the head and every MTP module
    logits = last * model.vocab * (ACTIVATION_BYTES + 4.0) * (1 + model.mtp_layers)
    return (
        *(_kept(held, strategy, each, from_zero_stage=zero) for each, zero in _states(workload.dtype)),
        tokens * (values * ACTIVATION_BYTES + logits),
        0.0,
        _buffers(model, strategy)
        + together_bytes(model, workload, strategy)
        + building_bytes(model, tokens * keeping.masked * imbalance),
    )


def _serving(model: Model, workload: Workload, strategy: Strategy, imbalance: float) -> tuple[FloatArray | float, ...]:
    """The fields of Memory for every stage; embedding and head stay in bf16."""
    held = _held(model, workload, strategy)
    ends = ends_by_stage(model, strategy.pp, 1, "1f1b") / strategy.tp
    matrices = WEIGHT_BYTES[workload.dtype]
    tokens = tokens_on_gpu(workload, strategy)
    keeping = Keeping(strategy.etp, "none", imbalance, "bf16", tokens * (strategy.permute == "einsum"))
    widest = max(kept_values(model, kind.layer, keeping) for kind in model.layer_kinds())
    whole = 4.0 * model.hidden * strategy.tp  # residual, norm, input and output of a block, not split over tp
    return (
        (held.dense - ends + held.expert) * matrices + ends * WEIGHT_BYTES["bf16"],
        0.0,
        0.0,
        tokens * (widest + whole) * ACTIVATION_BYTES,
        _kv_cache(model, workload, strategy),
        FRAMEWORK_BYTES
        + together_bytes(model, workload, strategy)
        + building_bytes(model, tokens * keeping.masked * imbalance),
    )


def _kept(held: Held, strategy: Strategy, bytes_each: float, from_zero_stage: int) -> FloatArray:
    """Bytes of one training state by stage, divided over data parallelism from a ZeRO stage on."""
    if strategy.zero < from_zero_stage:
        return np.asarray((held.dense + held.expert) * bytes_each)
    copies = SCHEDULES[strategy.schedule].copies
    dp = strategy.dp * strategy.cp
    return np.asarray(held.dense / dp + held.expert / strategy.expert_dp) / copies * bytes_each


@lru_cache(maxsize=4096)
def held_by_stage(model: Model, tp: int, ep: int, etp: int, pp: int, split: Split, schedule: str = "1f1b") -> Held:
    """Parameters on one GPU of each stage: its layers, the embedding with the first, the head with the last."""
    holds = parts_on_stages(schedule, pp, len(split) // pp)
    kinds, counts = kinds_by_part(model, split)
    each = np.array([layer_on_gpu(model, layer, tp, ep, etp) for layer in kinds])  # [kind, dense and expert]
    dense, expert = each.T @ counts
    dense[-1] += model.hidden * (2 if model.norm_bias else 1)  # the final norm
    dense, expert = holds @ dense + ends_by_stage(model, pp, len(split) // pp, schedule) / tp, holds @ expert
    for layer, times in stored_again(model, split, pp, schedule).items():
        again = times * np.array(layer_on_gpu(model, layer, tp, ep, etp, shared=True))[:, None]
        dense, expert = dense - again[0], expert - again[1]
    return Held(dense, expert)


@lru_cache(maxsize=1024)
def ends_by_stage(model: Model, pp: int, virtual: int, schedule: str) -> FloatArray:
    """Parameters of embedding, head and what joins MTP modules to them; a stage that holds the last part without the
    first has a copy of the embedding where a tied head or MTP modules read it."""
    first, last = parts_on_stages(schedule, pp, virtual)[:, [0, -1]].T
    embeddings = (first + embedding_copies(model, pp, virtual, schedule)) * embedding_parameters(model)
    return np.asarray(embeddings + last * (head_parameters(model) + mtp_joints(model)))


@lru_cache(maxsize=1024)
def embedding_copies(model: Model, pp: int, virtual: int, schedule: str) -> FloatArray:
    """1 on a stage with a copy of the first part's embedding, whose gradients they sum."""
    first, last = parts_on_stages(schedule, pp, virtual)[:, [0, -1]].T
    return np.asarray(last * (1.0 - first) * (model.tied_embeddings or model.mtp_layers > 0))


@lru_cache(maxsize=4096)
def layer_on_gpu(model: Model, layer: Layer, tp: int, ep: int, etp: int, *, shared: bool = False) -> Held:
    """Matrices divided over tp; norms, router, mla's down parts whole. ``shared``: what a group stores once."""
    counts = (shared_parameters if shared else layer_parameters)(model, layer)
    split = sum(p.parameters for p in projections(model, layer) if p.shard != "none")
    whole = counts.total - counts.experts - split
    return Held(np.asarray(whole + split / tp), np.asarray(counts.experts / (ep * etp)))


@lru_cache(maxsize=4096)
def _largest_layer(model: Model, tp: int, ep: int, etp: int, dense: bool, expert: bool) -> float:
    """Parameters of it on one GPU, unsharded: of its dense part, of its experts, or of both."""
    here = (layer_on_gpu(model, kind.layer, tp, ep, etp) for kind in model.layer_kinds())
    return float(max(dense * held.dense + expert * held.expert for held in here))


def _buffers(model: Model, strategy: Strategy) -> float:
    """Bytes that training needs beside its state: CUDA's and NCCL's own, and layers that are not sharded for a time.

    ZeRO 2 and 3 hold the gradients of one layer whole while they are made and those of the layer before while they
    are reduced; ZeRO 3 a layer's weights and the next one's, which are on their way.
    """
    s = strategy
    ranks = (s.tp, s.cp, s.dp * s.cp, s.pp, s.ep, s.etp, s.expert_dp)
    buffers = CONTEXT_BYTES + sum(COMMUNICATOR_BYTES if each > 2 else PAIR_BYTES for each in ranks if each > 1)
    if s.zero < 2:
        return buffers
    whole = _largest_layer(model, s.tp, s.ep, s.etp, s.dp * s.cp > 1, s.expert_dp > 1)
    return buffers + 2.0 * whole * (GRADIENT_BYTES + (TRAINING_WEIGHT_BYTES if s.zero == 3 else 0.0))


def tokens_on_gpu(workload: Workload, strategy: Strategy) -> float:
    """New tokens of one micro-batch on one GPU, split over context and tensor parallelism."""
    return strategy.micro_batch * workload.queries / (strategy.cp * strategy.tp)


@lru_cache(maxsize=4096)
def _activation_values(
    model: Model, schedule: str, pipe: Pipe, split: Split, keeping: Keeping
) -> tuple[FloatArray, FloatArray]:
    """By stage, values per token at the worst moment, and 1 where the head is."""
    holds = parts_on_stages(schedule, pipe.stages, pipe.virtual)
    kept, owed, alive = _part_values(model, split, keeping)
    here = np.array([np.flatnonzero(row) for row in holds])  # [stage, part of the stage]
    each = np.stack([kept[here], owed[here], alive[here]], axis=-1)  # WAITS, OWES, RUNS
    counts = in_flight(schedule, pipe)  # [stage, moment, part of the stage, what]
    worst = (counts * each[:, None]).sum(axis=(-2, -1)).max(axis=-1)
    return np.asarray(worst), holds[:, -1]


@lru_cache(maxsize=4096)
def _part_values(model: Model, split: Split, keeping: Keeping) -> tuple[FloatArray, FloatArray, FloatArray]:
    """By part, values per token: kept for the backward pass; read by the gradients of weights; alive beside while
    one layer's backward pass runs."""
    kinds, counts = kinds_by_part(model, split)
    kept = np.array([kept_values(model, layer, keeping) for layer in kinds])
    owed = np.array([owed_values(model, layer, keeping) for layer in kinds])
    alive = np.array([alive_values(model, layer, keeping) for layer in kinds])
    joints = np.zeros(len(split))
    joints[-1] = 4.0 * model.hidden * model.mtp_layers  # hidden states and embedding, before and after their norms
    return kept @ counts + joints, owed @ counts + joints, np.where(counts > 0, alive[:, None], 0.0).max(axis=0)


def _kv_cache(model: Model, workload: Workload, strategy: Strategy) -> FloatArray:
    """Cached bytes on one GPU by stage: heads divided over tp as far as there are key-value heads."""
    split = split_of(model, workload, strategy)
    values = _kv_bytes_by_stage(model, split, strategy.tp, workload.past + workload.queries)
    return values * (workload.sequences / strategy.dp / strategy.cp)


@lru_cache(maxsize=1024)
def _kv_bytes_by_stage(model: Model, split: Split, tp: int, context: int) -> FloatArray:
    """KV-cache bytes of one sequence on one GPU of each stage."""
    found = np.zeros(len(split))
    for stage, numbers in enumerate(part_layers(split)):
        found[stage] = sum(cache_bytes(model, model.layers[number], context, KV_BYTES, tp) for number in numbers)
    return found
