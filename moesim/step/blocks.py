"""Prices of what every token meets in a layer: attention or Mamba, dense and shared feed-forward parts, router.

A block has the three prices of its GEMMs (``gemms.Part``). The attention core's backward is five matrix products
where the forward has two, at less of the peak: ``CORE_BACKWARD``.
"""

from functools import lru_cache
from typing import Final

from moesim.compute import AttentionShape, Einsum, attention, einsum_costs
from moesim.cost import ESTIMATED
from moesim.model import Attention, Layer, Projection, projections, row_width
from moesim.step.gemms import BACKWARD_ERROR, Part, elementwise, gemms, under_load
from moesim.step.mamba import inside
from moesim.step.price import NOTHING, Price, both, price, scaled
from moesim.step.scenario import Scenario
from moesim.step.sharing import tokens_per_tp_group

# 2.5 x the FLOPs (FlashAttention-2, arXiv:2307.08691 section 3.1.2). Seconds, with its two helpers, over those of the
# forward kernel in DeepSeek's H800 trace: (267 + 3,583 + 215) / 1,248 us and (269 + 3,863 + 216) / 1,199 us.
CORE_BACKWARD: Final = 3.44
KV_DTYPE: Final = "bf16"
UPWARD: Final = ("q_b", "kv_b")  # from the latent vectors of mla
TRAFFIC: Final = {"forward": 1, "data": 2, "weights": 0}  # of a memory-bound kernel: reads two tensors backward


@lru_cache(maxsize=8192)
def mixer_block(
    scenario: Scenario, layer: Layer, tp: int, cp: int, micro_batch: float, splits: bool, part: Part, ring: bool = False
) -> Price:
    """Norm, projections, attention core or Mamba's scan, output projection; of a layer without either its norm. The
    weights' gradients are those of projections. With a ``ring`` the core has ops of its own."""
    tokens = tokens_per_tp_group(scenario, micro_batch, cp)
    family = "dense" if layer.mixer == "norm" else layer.mixer
    matrices = [_on_gpu(p, layer, tp) for p in projections(scenario.model, layer) if p.part == layer.mixer]
    found = gemms(scenario, matrices, tokens, tp, part)
    if part == "weights":
        return found._replace(family=family)
    if layer.mamba:
        found = both(found, inside(scenario, layer.mamba, tp, tokens, part == "data"))
    if layer.attention and not ring:
        found = both(found, core(scenario, layer.attention, tp, cp, micro_batch, part))
    own, trains = tokens / tp if splits else tokens, scenario.workload.trains
    kernels = 2 * layer.blocks if trains else 1
    rows = elementwise(scenario, own, _row_values(scenario, layer) * TRAFFIC[part], kernels)
    if layer.attention and layer.attention.experts > 1:
        rows = both(rows, _choosing(scenario, layer.attention, tokens, tp, part))
    if trains and layer.attention:
        plain = layer.attention.kind != "mla" and layer.attention.qk_norm == "none"
        rows = both(rows, elementwise(scenario, tokens, _head_values(layer.attention) / tp, 2 if plain else 4))
    return both(found, rows)._replace(family=family)


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
    return elementwise(scenario, tokens, gate + copies)


def _on_gpu(matrix: Projection, layer: Layer, tp: int) -> Projection:
    """With fewer key-value heads than tensor-parallel ranks, each rank has a whole head: 1/tp of more outputs."""
    heads = layer.attention.kv_heads if layer.attention else tp
    if matrix.name not in ("k", "v") or tp <= heads:
        return matrix
    return matrix._replace(outputs=matrix.outputs * tp // heads)


def core(scenario: Scenario, a: Attention, tp: int, cp: int, micro_batch: float, part: Part) -> Price:
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
    found = price("attention", attention(scenario.profile, shape, "bf16", KV_DTYPE), times=1.0 / cp)
    found = under_load(scenario, found)
    if part == "forward":
        return found
    return scaled(found, CORE_BACKWARD, basis=ESTIMATED, error=BACKWARD_ERROR)._replace(
        kernels=3
    )  # with its two helpers


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
    activation = elementwise(scenario, tokens, 3.0 * width / tp * TRAFFIC[part] if half != "down" else 0.0)
    return both(gemms(scenario, here, tokens, tp, part), activation)._replace(family="dense")


@lru_cache(maxsize=8192)
def router(scenario: Scenario, layer: Layer, tokens: float, backward: bool) -> Price:
    """Router GEMM, scores and top-k, all of which read more than they compute."""
    experts = getattr(layer.ffn, "experts", 0)
    passes = 2 if backward else 1
    return both(
        elementwise(scenario, tokens, passes * (scenario.model.hidden + 2.0 * experts)),
        elementwise(scenario, tokens, 4.0 * experts),
    )._replace(family="gate")


@lru_cache(maxsize=8192)
def permute(scenario: Scenario, layer: Layer, tokens: float) -> Price:
    """Copy tokens into or out of send order: one row on one side, top_k rows on the other."""
    rows = 1.0 + getattr(layer.ffn, "top_k", 0)
    return elementwise(scenario, tokens, rows * row_width(scenario.model, layer))._replace(family="gate")


@lru_cache(maxsize=4096)
def in_einsums(scenario: Scenario, layer: Layer, tokens: float, slots: float, way: str, backward: bool) -> Price:
    """The same by dense einsums over a mask of ``tokens`` x ``slots``."""
    sizes = Einsum(tokens, slots, row_width(scenario.model, layer), getattr(layer.ffn, "top_k", 0))
    products, moves = einsum_costs(scenario.profile, sizes, way, backward=backward)
    multiplied = under_load(scenario, price("gate", *products, kernels=len(products)))
    one = both(multiplied, price("gate", *moves, kernels=len(moves)))
    return scaled(one, 1.0, basis=ESTIMATED, error=BACKWARD_ERROR) if backward else one


@lru_cache(maxsize=8192)
def resized(scenario: Scenario, layer: Layer, name: str, tokens: float, part: Part) -> Price:
    """Tokens projected to the width at which they travel ("descend"), or back ("ascend"): BigMac's two matrices."""
    matrices = [p for p in projections(scenario.model, layer) if p.name == name]
    return gemms(scenario, matrices, tokens, 1, part)._replace(family="gate") if matrices else NOTHING


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
        found, values = gemms(scenario, upward, tokens, tp, "forward"), values + tokens / tp * _head_values(a)
    if a and "core" in dropped:
        found = both(found, core(scenario, a, tp, cp, micro_batch, "forward"))
    return both(elementwise(scenario, 1.0, values), found)._replace(family="recompute")
