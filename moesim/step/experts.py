"""Prices of the experts and of the all-to-all that feeds them, for every draw and rank class.

    popularity[class, expert] --draw--> tokens[draw, source, expert] --capacity--> kept
        --placement--> per rank: tokens of its experts -> seconds;  copies[draw, src, dst] -> seconds

Where tokens are held by every tensor-parallel rank and the experts are spread over just these ranks,
nothing is dispatched: each rank computes its experts for all tokens and the outputs are summed.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np

from moesim.alltoall import Direction, Traffic, all_to_all, copies_by_rank, resized
from moesim.cluster import Group
from moesim.collectives import all_gather, reduce_scatter
from moesim.compute import expert_ffn, gradient
from moesim.cost import ESTIMATED, Cost, FloatArray
from moesim.model import Experts, Layer, row_width
from moesim.network import Dense
from moesim.placement import PLACEMENTS
from moesim.routing import dispatch, draw_tokens, imbalance
from moesim.step.expert_training import Work, accumulated_experts, trained, with_biases
from moesim.step.gemms import BACKWARD_ERROR, BF16_BYTES, under_load
from moesim.step.price import Price, both, price, scaled
from moesim.step.scenario import BATCH_CLASSES, Scenario, layer_classes

RANK_CLASSES: Final = 6
WORST_ALONE: Final = 2
TOGETHER: Final = (1, 2, 4, 8)  # numbers of chunks that the planner tries
AVERAGE_TOKENS: Final = 1024  # of each expert in an average-load draw; scaled to the real number
TILE: Final = (128, 64)  # rows and columns of a FlashMoE tile, arXiv:2506.04667 section 3
DIRECTIONS: Final[tuple[Direction, ...]] = ("dispatch", "combine")
KERNELS: Final = 5  # rows copied in, two grouped GEMMs, the activation between them, rows summed out
FP8_ROW: Final = 1.0 + 4.0 / 128  # bytes per value: fp8 and one fp32 scale per 128 values


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How the experts of a layer are spread, and how many tokens reach them from where."""

    ep: int
    etp: int
    sources: int  # ranks that dispatch tokens: ep, or 1 where nothing is dispatched
    tokens: float  # of one source
    placement: str
    capacity_factor: float | None
    pads: bool = True  # with a capacity factor, empty slots travel too
    multiple: int = 1  # of which there is a whole number for each expert


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Load:
    """One draw after another: who sends what, who computes what."""

    tokens: FloatArray  # kept copies [draw, source, expert]
    by_expert: FloatArray  # rows to compute, padding among them [draw, rank, local expert]
    asked: FloatArray  # rows by expert before any was dropped, in the order of their ranks [draw, expert]
    copies: FloatArray  # sent copies, padding among them [draw, source, rank]
    imbalance: float  # max/mean of the ranks' rows, averaged over draws
    fullness: float  # rows of the busiest rank over an equal share of all copies, dropped ones among them
    dropped_share: float
    padding_share: float


@lru_cache(maxsize=1024)
def load(scenario: Scenario, spread: Spread) -> Load:
    """Draw the tokens of every (layer class, micro-batch) pair and place the experts."""
    ffn = scenario.model.moe
    assert ffn is not None  # a model without experts has no spread
    shares = np.repeat(layer_classes(scenario)[1], BATCH_CLASSES, axis=0)  # [draw, expert]
    drawn = _draw(scenario, spread, shares, ffn)
    after = dispatch(drawn, ffn.top_k, spread.capacity_factor, spread.multiple)
    scale = spread.tokens * spread.sources * ffn.top_k / max(1.0, float(drawn[0].sum()))
    sent = (after.tokens + after.padding if spread.pads else after.tokens) * scale
    owner = PLACEMENTS[spread.placement](shares, spread.ep)  # [draw, expert]
    order = np.argsort(owner, axis=-1, kind="stable")
    rows, asked = (np.take_along_axis(one.sum(axis=1), order, axis=-1) for one in (sent, drawn * scale))
    by_expert = rows.reshape(len(rows), spread.ep, -1)
    copies = np.stack([copies_by_rank(s, o, spread.ep) for s, o in zip(sent, owner, strict=True)])
    return Load(
        tokens=np.asarray(after.tokens * scale, dtype=np.float64),
        by_expert=by_expert,
        asked=asked,
        copies=copies,
        imbalance=float(imbalance(by_expert.sum(axis=-1)).mean()),
        fullness=float(by_expert.sum(axis=-1).max(axis=-1).mean())
        * spread.ep
        / (spread.tokens * spread.sources * ffn.top_k),
        dropped_share=after.dropped_share,
        padding_share=after.padding_share,
    )


def slots_per_token(scenario: Scenario, spread: Spread) -> float:
    """Rows that leave a source for each of its tokens, padding among them."""
    return float(load(scenario, spread).copies.sum(axis=-1).mean()) / spread.tokens


def _draw(scenario: Scenario, spread: Spread, shares: FloatArray, ffn: Experts) -> np.ndarray:
    """Whole tokens per source where there are any; else the group's tokens, shared out evenly."""
    rng = np.random.default_rng([scenario.seed, 2, spread.sources, round(spread.tokens * 1024)])
    if scenario.average:
        whole = np.full((len(shares), 1, ffn.experts), AVERAGE_TOKENS)
        return np.repeat(whole, spread.sources, axis=1)
    if spread.tokens == int(spread.tokens):
        return draw_tokens(shares, ffn.top_k, int(spread.tokens), spread.sources, rng)
    together = max(1, round(spread.tokens * spread.sources))
    return draw_tokens(shares, ffn.top_k, together, 1, rng)


@lru_cache(maxsize=4096)
def experts(scenario: Scenario, layer: Layer, spread: Spread, chunks: int) -> Price:
    """One chunk of the expert layer: [draw, rank class]; the worst ranks alone, the rest in classes."""
    kernel, work = _kernel(scenario, layer, spread, chunks)
    return _in_classes(with_biases(scenario, work, kernel, backward=False))


@lru_cache(maxsize=4096)
def backward(scenario: Scenario, layer: Layer, spread: Spread, chunks: int, which: str) -> Price:
    """A gradient of the experts ("data" or "weights") has the forward's FLOPs; as fast as calibrated, if it was."""
    kernel, work = _kernel(scenario, layer, spread, chunks)
    found = gradient(scenario.profile, which, scenario.workload.dtype)
    if found is None:
        one = scaled(kernel, 1.0, basis=ESTIMATED, error=BACKWARD_ERROR)
    else:
        one = scaled(kernel, found.slower, basis=found.measured.basis, error=found.error)
    if which == "weights":
        return _in_classes(both(one, accumulated_experts(scenario, work))._replace(kernels=2))
    return _in_classes(with_biases(scenario, work, one, backward=True))


@lru_cache(maxsize=4096)
def _kernel(scenario: Scenario, layer: Layer, spread: Spread, chunks: int) -> tuple[Price, Work]:
    """The kernels of one chunk, [draw, rank], and the work that they have."""
    ffn = layer.ffn
    assert isinstance(ffn, Experts)
    row = row_width(scenario.model, layer)
    work = Work(ffn, row, ffn.width // spread.etp, load(scenario, spread).by_expert / chunks)
    seconds = expert_ffn(
        scenario.profile, work.rows, work.row, work.width,
        scenario.workload.dtype, top_k=ffn.top_k, gated=ffn.gated,
    )  # fmt: skip
    one = price("experts", seconds, kernels=KERNELS)
    return (under_load(scenario, trained(scenario, work, one)) if scenario.workload.trains else one), work


def _in_classes(one: Price) -> Price:
    classes = _rank_classes(one.seconds)
    return one._replace(seconds=classes, slowest=classes.max(axis=1))


def _rank_classes(seconds: FloatArray) -> FloatArray:
    """[draw, rank] -> [draw, class]: slowest first, the worst alone, the others averaged in equal bins."""
    ranks = seconds.shape[-1]
    ordered = -np.sort(-seconds, axis=-1)
    if ranks <= RANK_CLASSES:
        return ordered
    bins = np.array_split(ordered[:, WORST_ALONE:], RANK_CLASSES - WORST_ALONE, axis=-1)
    rest = np.stack([members.mean(axis=-1) for members in bins], axis=-1)
    return np.concatenate([ordered[:, :WORST_ALONE], rest], axis=-1)


def class_weights(ranks: int, classes: int) -> FloatArray:
    """Share of the ranks that each rank class stands for."""
    if ranks <= RANK_CLASSES:
        return np.full(classes, 1.0 / classes)
    bins = np.array_split(np.arange(WORST_ALONE, ranks), RANK_CLASSES - WORST_ALONE)
    return np.array([1] * WORST_ALONE + [len(members) for members in bins]) / ranks


def exchange(
    scenario: Scenario,
    spread: Spread,
    group: Group,
    algorithm: str,
    chunks: int,
    direction: Direction,
    row_bytes: float,
) -> Price:
    """One chunk of dispatch or combine: every GPU of an expert-TP group moves its share of the copies."""
    together = TOGETHER if chunks in TOGETHER else (chunks,)
    return _exchanges(scenario, spread, group, algorithm, together, direction, row_bytes)[chunks]


@lru_cache(maxsize=8192)
def _exchanges(
    scenario: Scenario, spread: Spread, group: Group, algorithm: str, chunks: tuple[int, ...], direction: Direction,
    row_bytes: float,
) -> dict[int, Price]:  # fmt: skip
    """The same for several numbers of chunks, priced in one call."""
    parts = np.array(chunks)[:, None]
    share = row_bytes / (parts * spread.etp)  # a part of every row is as long as every row of a part
    traffic = resized(_traffic(scenario, spread), share * _travels_at(scenario), parts)
    found = all_to_all(scenario.cluster, group, traffic, algorithm, direction)
    return {number: price("all-to-all", _one_of(found, index)) for index, number in enumerate(chunks)}


def _one_of(many: Cost, index: int) -> Cost:
    """One of the costs along the first axis."""
    return replace(
        many, seconds=many.seconds[index], low=many.low[index], high=many.high[index], bound_s=many.bound_s[index]
    )


def _travels_at(scenario: Scenario) -> int:
    """Values of a token that is exchanged."""
    ffn = scenario.model.moe
    return (ffn.travels_at if ffn else 0) or scenario.model.hidden


@lru_cache(maxsize=1024)
def _traffic(scenario: Scenario, spread: Spread) -> Traffic:
    """What a whole layer sends, of one byte a token."""
    found = load(scenario, spread)
    copies = found.copies
    full = copies if copies.shape[-2] == spread.ep else _shared_out(copies, spread.ep)
    ffn = scenario.model.moe
    assert ffn is not None
    taken = found.by_expert.reshape(found.asked.shape) / np.maximum(found.asked, 1e-300)
    return Traffic(
        pairs=Dense(copies=full), tokens=spread.tokens, token_bytes=1.0,
        share=found.asked / found.asked.sum(axis=-1, keepdims=True), top_k=ffn.top_k,
        groups=(ffn.groups, ffn.top_groups) if spread.placement == "contiguous" else (1, 1),
        kept=None if spread.capacity_factor is None or spread.pads else taken,
    )  # fmt: skip


def _shared_out(copies: FloatArray, ranks: int) -> FloatArray:
    """Tokens drawn for the whole group come evenly from all its ranks: [draw, 1, rank] -> [draw, rank, rank]."""
    return np.broadcast_to(copies / ranks, (len(copies), ranks, ranks))


def row_bytes(dtype: str, direction: str) -> float:
    """Bytes per value of a row: block-scaled fp8 sends tokens and gradients to the experts in fp8, both come
    home in bf16 (DeepSeek-V3, arXiv:2412.19437 section 3.3.3)."""
    return FP8_ROW if dtype == "fp8_block" and direction == "dispatch" else BF16_BYTES


@lru_cache(maxsize=4096)
def in_tiles(scenario: Scenario, layer: Layer, spread: Spread, group: Group, algorithm: str) -> Price:
    """Dispatch, experts and combine as one kernel whose tiles overlap (FlashMoE, arXiv:2506.04667).

    As many rounds as waves of tiles on the SMs. Of them n equal ones end at

        max{ n (d + c),  d + e + n c,  d + n e + c,  n d + e + c }        d, e, c of one round

    with one stream that sends and receives. One of the blocks directs and does not compute.
    """
    compute = experts(scenario, layer, spread, 1)
    if algorithm == "none":
        return compute
    dispatch_, combine = (
        exchange(scenario, spread, group, algorithm, 1, way, row_bytes(scenario.workload.dtype, way))
        for way in DIRECTIONS
    )
    sms = scenario.profile.gpu.sms
    rows = load(scenario, spread).by_expert.sum(axis=-1).mean()
    n = max(1.0, np.ceil(rows / TILE[0]) * np.ceil(_travels_at(scenario) / TILE[1]) / sms)
    d, e, c = dispatch_.seconds / n, compute.seconds * sms / (sms - 1) / n, combine.seconds / n
    seconds = np.maximum.reduce([n * (d + c) + 0 * e, d + e + n * c, d + n * e + c, n * d + e + c])
    return both(compute, both(dispatch_, combine))._replace(
        seconds=seconds, slowest=seconds.max(axis=1), family="experts"
    )


@lru_cache(maxsize=4096)
def etp_exchange(scenario: Scenario, spread: Spread, group: Group, chunks: int, gathers: bool) -> Price:
    """Expert tensor parallelism: rows come together before the experts, partial sums leave after."""
    found = load(scenario, spread)
    rows = found.by_expert.sum(axis=-1).max(axis=-1) / chunks  # busiest rank of each draw
    size = rows * _travels_at(scenario) * BF16_BYTES
    collective = all_gather if gathers else reduce_scatter
    return price("etp", collective(scenario.cluster, group, size))
