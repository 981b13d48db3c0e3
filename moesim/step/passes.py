"""A layer pass: which ops it has under a strategy, and the price of each."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from moesim.alltoall import Direction
from moesim.cluster import Group
from moesim.memory import GRADIENT_BYTES, TRAINING_WEIGHT_BYTES, layer_on_gpu
from moesim.model import Layer
from moesim.program import LayerShape, Program, backward_layer, forward_layer
from moesim.step import blocks, experts
from moesim.step.experts import Spread
from moesim.step.price import NOTHING, Price, both, scaled
from moesim.step.scenario import Scenario
from moesim.strategy import Strategy, groups

Prices = dict[str, Price]


class LayerPass(NamedTuple):
    """One direction through one layer. Passes that exchange tokens alike share ``moved``, the others ``fixed``."""

    program: Program
    fixed: Prices  # everything but the routed experts and their all-to-all
    moved: Prices

    def price(self, name: str) -> Price:
        """The price of an op by its key."""
        return self.moved[name] if name in self.moved else self.fixed[name]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Key:
    """What a layer pass depends on: strategies that agree on it share its price.

    Made by ``pass_key`` and ``variant_key`` only, which return the same object for the same fields: keys
    are compared by identity, because caches look them up a hundred thousand times per plan.
    """

    tp: int
    cp: int
    micro_batch: int
    ep: int
    etp: int
    zero: int  # 0 where weights and gradients stay whole (stages 0 and 1), else 2 or 3
    capacity_factor: float | None
    tp_group: Group
    cp_group: Group
    ep_group: Group
    etp_group: Group
    splits: bool  # tensor-parallel ranks split the tokens between blocks: see ``splits_tokens``
    dp_group: Group
    expert_group: Group
    all_to_all: str  # "none": nothing is dispatched
    chunks: int
    overlap: str
    placement: str


@lru_cache(maxsize=131072)
def _key(*fields: Any) -> Key:
    return Key(**dict(zip(Key.__slots__, fields, strict=True)))


@lru_cache(maxsize=131072)
def variant_key(key: Key, all_to_all: str, chunks: int, overlap: str, placement: str) -> Key:
    """The same key with another way to communicate; where nothing is dispatched, nothing is."""
    fixed = [getattr(key, name) for name in Key.__slots__[:-4]]
    return _key(*fixed, "none" if key.all_to_all == "none" else all_to_all, chunks, overlap, placement)


def pass_key(scenario: Scenario, strategy: Strategy) -> Key:
    """The part of a strategy that its layer passes depend on."""
    g = groups(strategy, scenario.cluster)
    alone = Group(size=1, per_node=1)
    shards = scenario.workload.trains and strategy.zero > 1
    splits = splits_tokens(scenario, strategy.tp, strategy.ep * strategy.etp)
    return _key(
        strategy.tp, strategy.cp, strategy.micro_batch, strategy.ep, strategy.etp,
        strategy.zero if shards else 0, strategy.capacity_factor,
        g["tp"], g["cp"], g["ep"], g["etp"], splits,
        g["dp"] if shards else alone, g["expert_dp"] if shards else alone,
        strategy.all_to_all if strategy.ep > 1 and splits else "none",
        strategy.chunks, strategy.overlap, strategy.placement,
    )  # fmt: skip


def splits_tokens(scenario: Scenario, tp: int, expert_gpus: int) -> bool:
    """Whether tensor-parallel ranks split the tokens between blocks (sequence parallelism).

    Training always does. Serving keeps all tokens on every rank where there are no experts, or where the
    ``expert_gpus`` = ep x etp over which they are spread are exactly these ranks: then nothing is
    dispatched and one all-reduce ends each part.
    """
    replicates = expert_gpus == tp or scenario.model.moe is None
    return scenario.workload.trains or tp == 1 or not replicates


@lru_cache(maxsize=131072)
def forward_pass(scenario: Scenario, layer: Layer, key: Key) -> LayerPass:
    """Ops and prices of the forward pass."""
    key = _relevant(layer, key)
    fixed = _fixed(scenario, layer, _without_variant(key), "forward")
    return LayerPass(forward_layer(_shape(layer, key)), fixed, _moved_by(scenario, layer, key, False))


@lru_cache(maxsize=131072)
def backward_pass(scenario: Scenario, layer: Layer, key: Key, recompute: str) -> LayerPass:
    """Ops and prices of the backward pass, recomputation included."""
    key = _relevant(layer, key)
    fixed = _fixed(scenario, layer, _without_variant(key), recompute)
    program = backward_layer(_shape(layer, key), recompute=recompute)
    return LayerPass(program, fixed, _moved_by(scenario, layer, key, True))


@lru_cache(maxsize=16384)
def _fixed(scenario: Scenario, layer: Layer, key: Key, what: str) -> Prices:
    """Prices that do not depend on how tokens are exchanged; ``what`` is "forward" or a way to recompute."""
    if what == "forward":
        return _fixed_prices(scenario, layer, key, False)
    prices = _fixed_prices(scenario, layer, key, True)
    if what == "full":
        return _fixed_prices(scenario, layer, key, False) | prices
    return prices | {"recompute": _selective(scenario, layer, key)} if what == "selective" else prices


def _relevant(layer: Layer, key: Key) -> Key:
    """A dense layer exchanges no tokens: its passes are alike for all variants of one overlap."""
    return key if layer.is_moe else variant_key(key, "linear", 1, key.overlap, "contiguous")


def _shape(layer: Layer, key: Key) -> LayerShape:
    ffn = layer.ffn
    return LayerShape(
        moe=layer.is_moe,
        chunks=key.chunks if layer.is_moe else 1,
        overlap=key.overlap != "none",
        tp=key.tp > 1,
        cp=key.cp > 1,
        ep=layer.is_moe and key.all_to_all != "none",
        etp=layer.is_moe and key.etp > 1 and key.splits,
        shared=bool(getattr(ffn, "shared_width", 0)),
        replicated=not key.splits,
        gathers_weights=key.zero == 3,
        reduces_gradients=key.zero >= 2,
    )


@lru_cache(maxsize=8192)
def spread(scenario: Scenario, key: Key) -> Spread:
    """Where the tokens of the experts come from."""
    per_tp_group = blocks.tokens_per_tp_group(scenario, key.micro_batch, key.cp)
    return Spread(
        ep=key.ep,
        etp=key.etp,
        sources=key.ep if key.splits else 1,
        tokens=per_tp_group / key.tp * key.etp if key.splits else per_tp_group,
        placement=key.placement,
        capacity_factor=key.capacity_factor,
    )


def _without_variant(key: Key) -> Key:
    """What is left of a key for ops that do not depend on how tokens are exchanged."""
    return variant_key(key, "linear", 1, "none", "contiguous")


@lru_cache(maxsize=8192)
def _fixed_prices(scenario: Scenario, layer: Layer, key: Key, backward: bool) -> Prices:
    """Everything but the routed experts and their all-to-all."""
    suffix = " grad" if backward else ""
    block = blocks.attention_block(scenario, layer, key.tp, key.cp, key.micro_batch, key.splits, backward)
    prices = _around(scenario, layer, key) | {f"attention{suffix}": block}
    if not layer.is_moe:
        return prices | {f"ffn{suffix}": _feed_forward(scenario, layer, "dense", key, backward)}
    own, dispatches = _own_tokens(scenario, key), key.all_to_all != "none"
    prices |= {
        f"route{suffix}": blocks.router(scenario, layer, own, dispatches, backward),
        # tokens that stay are put back in order by the expert kernel itself: compute.COVERS
        f"merge{suffix}": blocks.permute(scenario, layer, own) if dispatches else NOTHING,
    }
    if getattr(layer.ffn, "shared_width", 0):
        prices[f"shared{suffix}"] = _feed_forward(scenario, layer, "shared", key, backward)
    return prices


def _own_tokens(scenario: Scenario, key: Key) -> float:
    """Tokens one GPU routes."""
    tokens = blocks.tokens_per_tp_group(scenario, key.micro_batch, key.cp)
    return tokens / key.tp if key.splits else tokens


def _around(scenario: Scenario, layer: Layer, key: Key) -> Prices:
    """Collectives of tensor, context and data parallelism around the blocks."""
    tokens = blocks.tokens_per_tp_group(scenario, key.micro_batch, key.cp)
    prices: Prices = {}
    if key.tp > 1:
        prices["tp scatter"] = blocks.tp_scatter(scenario, key.tp_group, tokens, splits_tokens=key.splits)
        if key.splits:
            prices["tp gather"] = blocks.tp_gather(scenario, key.tp_group, tokens)
    if key.cp > 1:
        exchange = blocks.kv_exchange(scenario, layer, key.cp_group, key.tp, key.micro_batch)
        prices |= {"kv exchange": exchange, "kv exchange grad": scaled(exchange, 2.0)}
    return prices | _sharded(scenario, layer, key)


def _sharded(scenario: Scenario, layer: Layer, key: Key) -> Prices:
    """ZeRO 2 and 3: this layer's gradients leave, and its weights come, in every pass."""
    if key.zero < 2:
        return {}
    held = layer_on_gpu(scenario.model, layer, key.tp, key.ep, key.etp)
    sizes = ((key.dp_group, held.dense), (key.expert_group, held.expert))

    def over_both(op: str, bytes_each: float) -> Price:
        return both(*(blocks.collective(scenario, "dp", op, g, float(n) * bytes_each) for g, n in sizes))

    return {
        "weight gather": over_both("all_gather", TRAINING_WEIGHT_BYTES),
        "gradient scatter": over_both("reduce_scatter", GRADIENT_BYTES),
    }


def _moved_by(scenario: Scenario, layer: Layer, key: Key, backward: bool) -> Prices:
    """Prices of the routed experts and of the exchange that feeds them."""
    if not layer.is_moe:
        return {}
    etp = key.etp_group if key.etp > 1 and key.splits else None
    return _moved(scenario, layer, spread(scenario, key), key.all_to_all, key.chunks, key.ep_group, etp, backward)


@lru_cache(maxsize=16384)
def _moved(
    scenario: Scenario, layer: Layer, spread_: Spread, algorithm: str, chunks: int, ep: Group, etp: Group | None,
    backward: bool,
) -> Prices:  # fmt: skip
    """A gradient goes to the experts as a dispatch does, and home as a combine. The backward pass may
    recompute the forward one: it has the prices of both."""
    forward = experts.experts(scenario, layer, spread_, chunks)
    prices: Prices = {"experts": forward}
    ways: list[tuple[str, Direction, bool]] = [("dispatch", "dispatch", False), ("combine", "combine", False)]
    if backward:
        prices["experts grad"] = experts.backward_of(scenario, forward, "data")
        prices["experts weight grad"] = experts.backward_of(scenario, forward, "weights")
        ways += [("combine grad", "dispatch", True), ("dispatch grad", "combine", True)]
    if algorithm != "none":
        for name, way, is_gradient in ways:
            size = experts.row_bytes(scenario, way, is_gradient)
            prices[name] = experts.exchange(scenario, spread_, ep, algorithm, chunks, way, size)
    if etp is not None:
        prices["etp gather"] = experts.etp_exchange(scenario, spread_, etp, chunks, True)
        prices["etp scatter"] = experts.etp_exchange(scenario, spread_, etp, chunks, False)
    return prices


def _feed_forward(scenario: Scenario, layer: Layer, part: str, key: Key, backward: bool) -> Price:
    return blocks.feed_forward(scenario, layer, part, key.tp, key.cp, key.micro_batch, backward)


def _selective(scenario: Scenario, layer: Layer, key: Key) -> Price:
    own = _own_tokens(scenario, key)
    copies = 0.0
    if layer.is_moe:
        rows = experts.load(scenario, spread(scenario, key)).by_expert.sum(axis=-1)
        copies = float(rows.max(axis=-1).mean()) / key.etp  # each expert-TP rank has a part of the width
    return blocks.recompute_selective(scenario, layer, own, copies)
