"""Prices of what every token meets: attention or Mamba, dense and shared feed-forward parts, head, TP and CP traffic.

A block has three prices (``Part``): "forward", the gradients of its activations ("data") and of its weights
("weights"). Gradients are priced as GEMMs of their own at the forward kernel's efficiency (*estimated* until
measured): the data gradient [m, n] x [n, k] and the weight gradient [k, m] x [m, n] of a forward
[m, k] x [k, n], the latter added to gradients kept in fp32. The attention core's backward is five matrix
products where the forward has two, at less of the peak: ``CORE_BACKWARD``.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from typing import Final, Literal

from moesim.compute import AttentionShape, Einsum, attention, einsum_costs, gemm, memory_bound
from moesim.cost import ESTIMATED
from moesim.model import Attention, Layer, Projection, projections, row_width
from moesim.profile import sustained_share
from moesim.step.links import BF16_BYTES, tp_gather, tp_scatter
from moesim.step.mamba import inside
from moesim.step.price import NOTHING, Price, both, price, scaled
from moesim.step.scenario import Scenario
from moesim.strategy import Strategy, groups

# 2.5 x the FLOPs (FlashAttention-2, arXiv:2307.08691 section 3.1.2). Seconds, with its two helpers, over those of the
# forward kernel in DeepSeek's H800 trace: (267 + 3,583 + 215) / 1,248 us and (269 + 3,863 + 216) / 1,199 us.
CORE_BACKWARD: Final = 3.44
GRADIENT_TRAFFIC_BYTES: Final = 8.0 - 2.0  # reads and writes an fp32 gradient where the forward GEMM wrote bf16
BACKWARD_ERROR: Final = 0.30  # estimated: forward efficiency carried over to other GEMM shapes
KV_DTYPE: Final = "bf16"
UPWARD: Final = ("q_b", "kv_b")  # from the latent vectors of mla
TRAFFIC: Final = {"forward": 1, "data": 2, "weights": 0}  # of a memory-bound kernel: reads two tensors backward
Part = Literal["forward", "data", "weights"]


def tokens_per_tp_group(scenario: Scenario, micro_batch: float, cp: int) -> float:
    """New tokens of a micro-batch that one tensor-parallel group works on."""
    return micro_batch * scenario.workload.queries / cp


@lru_cache(maxsize=8192)
def mixer_block(
    scenario: Scenario, layer: Layer, tp: int, cp: int, micro_batch: float, splits: bool, part: Part
) -> Price:
    """Norm, projections, attention core or Mamba's scan, output projection; of a layer without either its norm. The
    weights' gradients are those of projections."""
    tokens = tokens_per_tp_group(scenario, micro_batch, cp)
    family = "dense" if layer.mixer == "norm" else layer.mixer
    matrices = [_on_gpu(p, layer, tp) for p in projections(scenario.model, layer) if p.part == layer.mixer]
    around = _gemms(scenario, matrices, tokens, tp, part)
    if part == "weights":
        return around._replace(family=family)
    if layer.mamba:
        around = both(around, inside(scenario, layer.mamba, tp, tokens, part == "data"))
    if layer.attention:
        core = _core(scenario, layer.attention, tp, cp, micro_batch)
        if part == "data":
            core = scaled(core, CORE_BACKWARD, basis=ESTIMATED, error=BACKWARD_ERROR)
        around = both(around, core)
    own = tokens / tp if splits else tokens
    rows = _elementwise(scenario, own, _row_values(scenario, layer) * TRAFFIC[part])
    if layer.attention and layer.attention.experts > 1:
        rows = both(rows, _choosing(scenario, layer.attention, tokens, tp, part))
    if scenario.workload.trains and layer.attention:
        rows = both(rows, _elementwise(scenario, tokens, _head_values(layer.attention) / tp))
    return both(around, rows)._replace(family=family)


def _row_values(scenario: Scenario, layer: Layer) -> float:
    """Values per token that a layer's norms and residual sums move, one of each for a block: a norm reads and writes
    a row, a sum reads one more and writes one. Serving engines keep the sum inside the norm's kernel."""
    return (4.0 if scenario.workload.trains else 2.0) * layer.blocks * scenario.model.hidden


def _head_values(a: Attention) -> float:
    """Values per token that rotary positions, norms of queries and keys, and mla's assembly of heads move in
    training. mla writes each head's key from its two parts and copies the values out of their projection."""
    if a.kind == "mla":
        rotated = 2.0 * a.heads * a.rope_head_dim
        return rotated + a.heads * (2.0 * a.nope_head_dim + a.rope_head_dim + 2.0 * a.v_head_dim)
    passes = 2.0 if a.qk_norm == "none" else 4.0
    return passes * (a.heads + a.kv_heads) * a.head_dim


def _choosing(scenario: Scenario, a: Attention, tokens: float, tp: int, part: Part) -> Price:
    """Mixture of attention heads: router and top-k; a token's row to its experts and their sum back; queries into the
    order of tokens for the core and its output out of it (``map`` and ``reduce`` of JetMoE's code). A gradient goes the
    same ways. Every rank has all experts: none of it crosses a link."""
    hidden = scenario.model.hidden
    gate = TRAFFIC[part] * (hidden + 2.0 * a.experts) + 4.0 * a.experts
    copies = 2.0 * (1.0 + a.top_k) * hidden + 2.0 * a.heads * (a.head_dim + a.v_head_dim) / tp
    return _elementwise(scenario, tokens, gate + copies)


def _on_gpu(matrix: Projection, layer: Layer, tp: int) -> Projection:
    """With fewer key-value heads than tensor-parallel ranks, each rank has a whole head: 1/tp of more outputs."""
    heads = layer.attention.kv_heads if layer.attention else tp
    if matrix.name not in ("k", "v") or tp <= heads:
        return matrix
    return matrix._replace(outputs=matrix.outputs * tp // heads)


def _core(scenario: Scenario, a: Attention, tp: int, cp: int, micro_batch: float) -> Price:
    """Scores and values. With context parallelism each rank holds two mirrored slices of the queries, so
    that all ranks attend equally many pairs: 1/cp of the whole core."""
    work = scenario.workload
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
    core = price("attention", attention(scenario.profile, shape, "bf16", KV_DTYPE), times=1.0 / cp)
    return under_load(scenario, core)


@lru_cache(maxsize=8192)
def feed_forward(
    scenario: Scenario, layer: Layer, name: str, tp: int, cp: int, micro_batch: float, part: Part, half: str = "both"
) -> Price:
    """The dense part of a layer, or its shared experts: GEMMs and the activation between them.

    ``half`` is "up" for all before the last matrix, "down" for this one, or "both".
    """
    tokens = tokens_per_tp_group(scenario, micro_batch, cp)
    matrices = [p for p in projections(scenario.model, layer) if p.part == name and p.outputs > 1]
    width = next(p.inputs for p in matrices if p.name == "down")
    here = [p for p in matrices if half in ("both", "down" if p.name == "down" else "up")]
    activation = _elementwise(scenario, tokens, 3.0 * width / tp * TRAFFIC[part] if half != "down" else 0.0)
    return both(_gemms(scenario, here, tokens, tp, part), activation)._replace(family="dense")


@lru_cache(maxsize=8192)
def router(scenario: Scenario, layer: Layer, tokens: float, backward: bool) -> Price:
    """Router GEMM, scores and top-k, all of which read more than they compute."""
    experts = getattr(layer.ffn, "experts", 0)
    passes = 2 if backward else 1
    return both(
        _elementwise(scenario, tokens, passes * (scenario.model.hidden + 2.0 * experts)),
        _elementwise(scenario, tokens, 4.0 * experts),
    )._replace(family="gate")


@lru_cache(maxsize=8192)
def permute(scenario: Scenario, layer: Layer, tokens: float) -> Price:
    """Copy tokens into or out of send order: one row on one side, top_k rows on the other."""
    rows = 1.0 + getattr(layer.ffn, "top_k", 0)
    return _elementwise(scenario, tokens, rows * row_width(scenario.model, layer))._replace(family="gate")


@lru_cache(maxsize=4096)
def in_einsums(scenario: Scenario, layer: Layer, tokens: float, slots: float, way: str, backward: bool) -> Price:
    """The same by dense einsums over a mask of ``tokens`` x ``slots``."""
    sizes = Einsum(tokens, slots, row_width(scenario.model, layer), getattr(layer.ffn, "top_k", 0))
    gemms, moves = einsum_costs(scenario.profile, sizes, way, backward=backward)
    one = both(under_load(scenario, price("gate", *gemms)), price("gate", *moves))
    return scaled(one, 1.0, basis=ESTIMATED, error=BACKWARD_ERROR) if backward else one


@lru_cache(maxsize=8192)
def resized(scenario: Scenario, layer: Layer, name: str, tokens: float, part: Part) -> Price:
    """Tokens projected to the width at which they travel ("descend"), or back ("ascend"): BigMac's two matrices."""
    matrices = [p for p in projections(scenario.model, layer) if p.name == name]
    return _gemms(scenario, matrices, tokens, 1, part)._replace(family="gate") if matrices else NOTHING


@lru_cache(maxsize=4096)
def head(scenario: Scenario, tp: int, cp: int, micro_batch: int, backward: bool, part: str = "all") -> Price:
    """Output GEMM and softmax: every position in training, one per sequence in serving.

    In training, sequence-parallel tokens are gathered before it; backward their gradients leave, and the
    second gather is hidden behind the data gradients (arXiv:2205.05198 section 4.2.2).
    """
    work, model = scenario.workload, scenario.model
    positions = tokens_per_tp_group(scenario, micro_batch, cp) if work.trains else float(micro_batch)
    matrix = Projection("head", "dense", model.hidden, model.vocab, "out")
    loss = _elementwise(scenario, positions, 4.0 * model.vocab / tp)
    chosen: dict[str, tuple[Part, ...]] = {"all": ("data", "weights"), "data": ("data",), "weights": ("weights",)}
    found = NOTHING
    for each in chosen[part] if backward else ("forward",):
        found = both(_gemms(scenario, [matrix], positions, tp, each, dtype="bf16"), found)
    if part != "weights":
        found = both(found, loss)
        if work.trains and tp > 1:
            group = groups(Strategy(tp=tp), scenario.cluster)["tp"]
            found = both(found, tp_scatter(scenario, group, positions, splits_tokens=True) if backward
                         else tp_gather(scenario, group, positions))  # fmt: skip
    return found._replace(family="dense")


def recomputed(
    scenario: Scenario, layer: Layer, tp: int, cp: int, micro_batch: float, dropped: frozenset[str], copies: float
) -> Price:
    """The parts inside blocks that were dropped (``recompute.INSIDE``), again: norms and activations, which are
    memory-bound; what mla projects up from its latent vectors and how that becomes heads; the attention core.

    ``copies`` are rows of this rank's experts. Blocks that are computed again as a whole bring their activation.
    """
    ffn, tokens = layer.ffn, tokens_per_tp_group(scenario, micro_batch, cp)
    values = tokens / tp * 2.0 * layer.blocks * scenario.model.hidden * ("norms" in dropped)
    if "activations" in dropped and not layer.is_moe:
        values += 3.0 * tokens / tp * (ffn.width if ffn else 0) * ("mlp" not in dropped)
    elif "activations" in dropped and "moe" not in dropped:
        shared = getattr(ffn, "shared_width", 0) * ("shared_experts" not in dropped)
        values += 3.0 * (tokens / tp * shared + copies * (ffn.width if ffn else 0))
    found, a = NOTHING, layer.attention
    if a and "mla_up" in dropped and a.kind == "mla":
        upward = [p for p in projections(scenario.model, layer) if p.part == "attention" and p.name in UPWARD]
        found, values = _gemms(scenario, upward, tokens, tp, "forward"), values + tokens / tp * _head_values(a)
    if a and "core" in dropped:
        found = both(found, _core(scenario, a, tp, cp, micro_batch))
    return both(_elementwise(scenario, 1.0, values), found)


def _gemms(
    scenario: Scenario, matrices: Iterable[Projection], tokens: float, tp: int, part: Part, dtype: str = ""
) -> Price:
    """One GEMM for each run of projections that share their input (q, k, v; gate, up).

    Those of attention's experts are one grouped GEMM. A group of E [m, k] x [k, n] is priced as one [m, k] x [k, E n]:
    as many FLOPs, weights, results and tiles; the load is taken as even, which costs nothing where a rank has them all.
    """
    total = NOTHING
    for (inputs, shard, experts, top_k), run in groupby(
        matrices, key=lambda p: (p.inputs, p.shard, p.experts, p.top_k)
    ):
        outputs = sum(p.outputs for p in run)
        k = inputs / (tp if shard == "in" else 1)
        n = outputs / (tp if shard == "out" else 1)
        met = min(float(experts), max(1.0, tokens * top_k))
        one = _gemm(scenario, tokens * top_k / met, n, k, dtype or scenario.workload.dtype, part, met)
        total = both(total, one)
    return total


def _gemm(scenario: Scenario, m: float, n: float, k: float, dtype: str, part: Part, group: float = 1.0) -> Price:
    if part == "forward":
        return under_load(scenario, price("dense", gemm(scenario.profile, m, n * group, k, dtype)))
    shape = (m, k * group, n) if part == "data" else (k, n * group, m)
    one = under_load(scenario, price("dense", gemm(scenario.profile, *shape, dtype)))
    one = both(one, accumulated(scenario, k * n * group)) if part == "weights" else one
    return scaled(one, 1.0, basis=ESTIMATED, error=BACKWARD_ERROR)


def accumulated(scenario: Scenario, parameters: float) -> Price:
    """What a weight gradient takes longer because it is added to a gradient kept in fp32, after its last product."""
    return price("dense", memory_bound(scenario.profile, parameters * GRADIENT_TRAFFIC_BYTES))


def under_load(scenario: Scenario, one: Price) -> Price:
    """A kernel that computes, at the clocks of a training step: published tables were measured at locked ones."""
    if not scenario.workload.trains or one.basis.measured > 0.5:
        return one
    return scaled(one, 1.0 / sustained_share(scenario.profile.gpu.name))


def _elementwise(scenario: Scenario, tokens: float, values: float) -> Price:
    """A kernel that reads and writes ``values`` bf16 values per token."""
    return price("dense", memory_bound(scenario.profile, tokens * values * BF16_BYTES))
