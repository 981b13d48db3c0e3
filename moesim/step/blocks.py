"""Prices of what every token meets: attention, dense and shared feed-forward parts, head, TP and CP traffic.

Backward passes are priced as GEMMs of their own at the forward kernel's efficiency (*estimated* until
measured): the data gradient [m, n] x [n, k] and the weight gradient [k, m] x [m, n] of a forward
[m, k] x [k, n]. The attention core's backward is five matrix products where the forward has two (x 2.5).
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from typing import Final

from moesim.cluster import Group
from moesim.collectives import all_gather, all_reduce, reduce_scatter
from moesim.compute import AttentionShape, attention, gemm, memory_bound
from moesim.cost import ESTIMATED, Cost
from moesim.model import Layer, Projection, projections
from moesim.step.price import NOTHING, Price, both, price, scaled
from moesim.step.scenario import Scenario

BF16_BYTES: Final = 2.0
CORE_BACKWARD: Final = 2.5  # FlashAttention-2, arXiv:2307.08691 section 3.1.2: five products instead of two
BACKWARD_ERROR: Final = 0.30  # estimated: forward efficiency carried over to other GEMM shapes
KV_DTYPE: Final = "bf16"


def tokens_per_tp_group(scenario: Scenario, micro_batch: int, cp: int) -> float:
    """New tokens of a micro-batch that one tensor-parallel group works on."""
    return micro_batch * scenario.workload.queries / cp


@lru_cache(maxsize=8192)
def attention_block(
    scenario: Scenario, layer: Layer, tp: int, cp: int, micro_batch: int, splits: bool, backward: bool
) -> Price:
    """Norm, projections, attention core, output projection."""
    tokens = tokens_per_tp_group(scenario, micro_batch, cp)
    matrices = [_on_gpu(p, layer, tp) for p in projections(scenario.model, layer) if p.part == "attention"]
    around = _gemms(scenario, matrices, tokens, tp, backward)
    core = _core(scenario, layer, tp, cp, micro_batch)
    if backward:
        core = scaled(core, CORE_BACKWARD, basis=ESTIMATED, error=BACKWARD_ERROR)
    norms = _elementwise(
        scenario, tokens / tp if splits else tokens, 4.0 * scenario.model.hidden * (2 if backward else 1)
    )
    return both(both(around, core), norms)._replace(family="attention")


def _on_gpu(matrix: Projection, layer: Layer, tp: int) -> Projection:
    """With fewer key-value heads than tensor-parallel ranks, each rank has a whole head: 1/tp of more outputs."""
    heads = layer.attention.kv_heads
    if matrix.name not in ("k", "v") or tp <= heads:
        return matrix
    return matrix._replace(outputs=matrix.outputs * tp // heads)


def _core(scenario: Scenario, layer: Layer, tp: int, cp: int, micro_batch: int) -> Price:
    """Scores and values. With context parallelism each rank holds two mirrored slices of the queries, so
    that all ranks attend equally many pairs: 1/cp of the whole core."""
    a, work = layer.attention, scenario.workload
    shape = AttentionShape(
        kind=a.kind,
        phase="decode" if work.kind == "decode" else "prefill",
        heads=max(1, a.heads // tp),
        kv_heads=max(1, a.kv_heads // tp) if a.kind == "gqa" else 1,
        head_dim=a.head_dim,
        v_head_dim=a.v_head_dim,
        latent_dim=a.cached_values if a.kind == "mla" else 0,
        batch=float(micro_batch),
        queries=float(work.queries),
        context=float(work.queries + work.past),
        window=a.window,
        chunk=a.chunk,
    )
    return price("attention", attention(scenario.profile, shape, "bf16", KV_DTYPE), times=1.0 / cp)


@lru_cache(maxsize=8192)
def feed_forward(
    scenario: Scenario, layer: Layer, part: str, tp: int, cp: int, micro_batch: int, backward: bool
) -> Price:
    """The dense part of a layer, or its shared experts: GEMMs and the activation between them."""
    tokens = tokens_per_tp_group(scenario, micro_batch, cp)
    matrices = [p for p in projections(scenario.model, layer) if p.part == part and p.outputs > 1]
    width = next(p.inputs for p in matrices if p.name == "down")
    activation = _elementwise(scenario, tokens, 3.0 * width / tp * (2 if backward else 1))
    return both(_gemms(scenario, matrices, tokens, tp, backward), activation)._replace(family="dense")


@lru_cache(maxsize=8192)
def router(scenario: Scenario, layer: Layer, tokens: float, permutes: bool, backward: bool) -> Price:
    """Router GEMM, scores and top-k, all of which read more than they compute; with expert parallelism also
    the copy into send order."""
    experts = getattr(layer.ffn, "experts", 0)
    passes = 2 if backward else 1
    gate = both(
        _elementwise(scenario, tokens, passes * (scenario.model.hidden + 2.0 * experts)),
        _elementwise(scenario, tokens, 4.0 * experts),
    )._replace(family="gate")
    return both(gate, permute(scenario, layer, tokens)) if permutes else gate


@lru_cache(maxsize=8192)
def permute(scenario: Scenario, layer: Layer, tokens: float) -> Price:
    """Copy tokens into or out of send order: one row on one side, top_k rows on the other."""
    rows = 1.0 + getattr(layer.ffn, "top_k", 0)
    return _elementwise(scenario, tokens, rows * scenario.model.hidden)._replace(family="gate")


@lru_cache(maxsize=4096)
def head(scenario: Scenario, tp: int, cp: int, micro_batch: int, backward: bool) -> Price:
    """Output GEMM and softmax: every position in training, one per sequence in serving."""
    work, model = scenario.workload, scenario.model
    positions = tokens_per_tp_group(scenario, micro_batch, cp) if work.trains else float(micro_batch)
    matrix = Projection("head", "dense", model.hidden, model.vocab, "out")
    loss = _elementwise(scenario, positions, 4.0 * model.vocab / tp)
    return both(_gemms(scenario, [matrix], positions, tp, backward, dtype="bf16"), loss)._replace(family="dense")


def recompute_selective(scenario: Scenario, layer: Layer, tokens: float, copies: float) -> Price:
    """Norms and activations again: they are memory-bound."""
    ffn, hidden = layer.ffn, scenario.model.hidden
    shared = getattr(ffn, "shared_width", 0)
    routed = copies * ffn.width if layer.is_moe else tokens * ffn.width
    values = tokens * (4.0 * hidden + 3.0 * shared) + 3.0 * routed
    return _elementwise(scenario, 1.0, values)


COLLECTIVES: Final = {"all_gather": all_gather, "all_reduce": all_reduce, "reduce_scatter": reduce_scatter}


@lru_cache(maxsize=65536)
def collective(scenario: Scenario, family: str, op: str, group: Group, size_bytes: float) -> Price:
    """One of ``COLLECTIVES`` over a group."""
    return price(family, COLLECTIVES[op](scenario.cluster, group, size_bytes))


def tp_gather(scenario: Scenario, group: Group, tokens: float) -> Price:
    """Sequence-parallel tokens come together before a block: all-gather."""
    return collective(scenario, "tp", "all_gather", group, _rows(scenario, tokens))


def tp_scatter(scenario: Scenario, group: Group, tokens: float, *, splits_tokens: bool) -> Price:
    """Partial sums leave a block: reduce-scatter, or all-reduce where every rank keeps all tokens."""
    op = "reduce_scatter" if splits_tokens else "all_reduce"
    return collective(scenario, "tp", op, group, _rows(scenario, tokens))


def kv_exchange(scenario: Scenario, layer: Layer, group: Group, tp: int, micro_batch: int) -> Price:
    """Context parallelism: every rank sees all keys and values (all-gather of them over cp)."""
    a = layer.attention
    mla = a.kind == "mla"
    values = a.heads * (a.head_dim + a.v_head_dim) if mla else a.cached_values
    whole = micro_batch * scenario.workload.queries * values / min(tp, a.heads if mla else a.kv_heads) * BF16_BYTES
    return collective(scenario, "cp", "all_gather", group, whole)


def _rows(scenario: Scenario, tokens: float) -> float:
    return tokens * scenario.model.hidden * BF16_BYTES


def _gemms(
    scenario: Scenario, matrices: Iterable[Projection], tokens: float, tp: int, backward: bool, dtype: str = ""
) -> Price:
    """One GEMM for each run of projections that share their input (q, k, v; gate, up)."""
    total = NOTHING
    for (inputs, shard), run in groupby(matrices, key=lambda p: (p.inputs, p.shard)):
        outputs = sum(p.outputs for p in run)
        k = inputs / (tp if shard == "in" else 1)
        n = outputs / (tp if shard == "out" else 1)
        total = both(total, _gemm(scenario, tokens, n, k, dtype or scenario.workload.dtype, backward))
    return total


def _gemm(scenario: Scenario, m: float, n: float, k: float, dtype: str, backward: bool) -> Price:
    if not backward:
        return price("dense", gemm(scenario.profile, m, n, k, dtype))
    shapes: tuple[Cost, ...] = (
        gemm(scenario.profile, m, k, n, dtype),
        gemm(scenario.profile, k, n, m, dtype),
    )
    return scaled(price("dense", *shapes), 1.0, basis=ESTIMATED, error=BACKWARD_ERROR)


def _elementwise(scenario: Scenario, tokens: float, values: float) -> Price:
    """A kernel that reads and writes ``values`` bf16 values per token."""
    return price("dense", memory_bound(scenario.profile, tokens * values * BF16_BYTES))
