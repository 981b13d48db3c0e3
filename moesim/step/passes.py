"""A layer pass: which ops it has under a strategy, and the price of each."""

from functools import lru_cache
from typing import NamedTuple

from moesim.cluster import Group
from moesim.collectives import all_gather, reduce_scatter
from moesim.memory import GRADIENT_BYTES, TRAINING_WEIGHT_BYTES, layer_on_gpu
from moesim.model import Layer
from moesim.program import LayerShape, Program, backward_layer, forward_layer
from moesim.step import blocks, experts
from moesim.step.experts import Spread
from moesim.step.price import Price, price, scaled
from moesim.step.scenario import Scenario
from moesim.strategy import Strategy, groups

Prices = dict[str, Price]


class LayerPass(NamedTuple):
    """One direction through one layer."""

    program: Program
    prices: Prices


class Key(NamedTuple):
    """What a layer pass depends on: strategies that agree on it share its price."""

    tp: int
    cp: int
    micro_batch: int
    ep: int
    etp: int
    all_to_all: str
    chunks: int
    overlap: str
    placement: str
    capacity_factor: float | None
    zero: int  # 0 where weights and gradients stay whole (stages 0 and 1), else 2 or 3
    dp_group: Group
    expert_group: Group
    group: tuple[Group, Group, Group, Group]  # tp, cp, ep, etp


def pass_key(scenario: Scenario, strategy: Strategy) -> Key:
    """The part of a strategy that its layer passes depend on."""
    g = groups(strategy, scenario.cluster)
    alone = Group(size=1, per_node=1)
    shards = scenario.workload.trains and strategy.zero > 1
    replicated = not splits_tokens(scenario, strategy.tp, strategy.ep * strategy.etp)
    return Key(
        strategy.tp, strategy.cp, strategy.micro_batch, strategy.ep, strategy.etp,
        "none" if strategy.ep == 1 or replicated else strategy.all_to_all,
        strategy.chunks, strategy.overlap, strategy.placement, strategy.capacity_factor,
        strategy.zero if shards else 0,
        g["dp"] if shards else alone,
        g["expert_dp"] if shards else alone,
        (g["tp"], g["cp"], g["ep"], g["etp"]),
    )  # fmt: skip


def splits_tokens(scenario: Scenario, tp: int, expert_gpus: int) -> bool:
    """Whether tensor-parallel ranks split the tokens between blocks (sequence parallelism).

    Training always does. Serving keeps all tokens on every rank where there are no experts, or where the
    ``expert_gpus`` = ep x etp over which they are spread are exactly these ranks: then nothing is
    dispatched and one all-reduce ends each part.
    """
    replicates = expert_gpus == tp or scenario.model.moe is None
    return scenario.workload.trains or tp == 1 or not replicates


@lru_cache(maxsize=65536)
def forward_pass(scenario: Scenario, layer: Layer, key: Key) -> LayerPass:
    """Ops and prices of the forward pass."""
    return LayerPass(forward_layer(_shape(scenario, layer, key)), _forward_prices(scenario, layer, key))


@lru_cache(maxsize=65536)
def backward_pass(scenario: Scenario, layer: Layer, key: Key, recompute: str) -> LayerPass:
    """Ops and prices of the backward pass, recomputation included."""
    prices = _backward_prices(scenario, layer, key)
    if recompute == "full":
        prices = prices | _forward_prices(scenario, layer, key)
    elif recompute == "selective":
        prices = prices | {"recompute": _selective(scenario, layer, key)}
    return LayerPass(backward_layer(_shape(scenario, layer, key), recompute=recompute), prices)


def _shape(scenario: Scenario, layer: Layer, key: Key) -> LayerShape:
    ffn = layer.ffn
    return LayerShape(
        moe=layer.is_moe,
        chunks=key.chunks if layer.is_moe else 1,
        overlap=key.overlap != "none",
        tp=key.tp > 1,
        cp=key.cp > 1,
        ep=layer.is_moe and key.all_to_all != "none",
        etp=layer.is_moe and key.etp > 1 and _splits(scenario, key),
        shared=bool(getattr(ffn, "shared_width", 0)),
        replicated=not _splits(scenario, key),
        gathers_weights=key.zero == 3,
        reduces_gradients=key.zero >= 2,
    )


def _splits(scenario: Scenario, key: Key) -> bool:
    return splits_tokens(scenario, key.tp, key.ep * key.etp)


def spread(scenario: Scenario, key: Key) -> Spread:
    """Where the tokens of the experts come from."""
    per_tp_group = blocks.tokens_per_tp_group(scenario, key.micro_batch, key.cp)
    splits = _splits(scenario, key)
    return Spread(
        ep=key.ep,
        etp=key.etp,
        sources=key.ep if splits else 1,
        tokens=per_tp_group / key.tp * key.etp if splits else per_tp_group,
        placement=key.placement,
        capacity_factor=key.capacity_factor,
    )


def _forward_prices(scenario: Scenario, layer: Layer, key: Key) -> Prices:
    prices = _around(scenario, layer, key) | {
        "attention": blocks.attention_block(scenario, layer, key.tp, key.cp, key.micro_batch, False),
    }
    if not layer.is_moe:
        return prices | {"ffn": _feed_forward(scenario, layer, "dense", key, False)}
    own = _own_tokens(scenario, key)
    spread_ = spread(scenario, key)
    return prices | _moved(scenario, layer, key, "dispatch", "combine", False) | {
        "route": blocks.router(scenario, layer, own, key.all_to_all != "none", False),
        "experts": experts.experts(scenario, layer, spread_, key.chunks),
        "merge": blocks.permute(scenario, layer, own),
    } | _shared(scenario, layer, key, "shared", False)  # fmt: skip


def _backward_prices(scenario: Scenario, layer: Layer, key: Key) -> Prices:
    prices = _around(scenario, layer, key) | {
        "attention grad": blocks.attention_block(scenario, layer, key.tp, key.cp, key.micro_batch, True),
    }
    if not layer.is_moe:
        return prices | {"ffn grad": _feed_forward(scenario, layer, "dense", key, True)}
    own = _own_tokens(scenario, key)
    gradient = experts.backward_of(experts.experts(scenario, layer, spread(scenario, key), key.chunks))
    return prices | _moved(scenario, layer, key, "combine grad", "dispatch grad", True) | {
        "merge grad": blocks.permute(scenario, layer, own),
        "experts grad": gradient,
        "experts weight grad": gradient,
        "route grad": blocks.router(scenario, layer, own, key.all_to_all != "none", True),
    } | _shared(scenario, layer, key, "shared grad", True)  # fmt: skip


def _own_tokens(scenario: Scenario, key: Key) -> float:
    """Tokens one GPU routes."""
    tokens = blocks.tokens_per_tp_group(scenario, key.micro_batch, key.cp)
    return tokens / key.tp if _splits(scenario, key) else tokens


def _around(scenario: Scenario, layer: Layer, key: Key) -> Prices:
    """Collectives of tensor, context and data parallelism around the blocks."""
    tp, cp, _, _ = key.group
    tokens = blocks.tokens_per_tp_group(scenario, key.micro_batch, key.cp)
    prices: Prices = {}
    if key.tp > 1:
        splits = _splits(scenario, key)
        prices["tp scatter"] = blocks.tp_scatter(scenario, tp, tokens, splits_tokens=splits)
        if splits:
            prices["tp gather"] = blocks.tp_gather(scenario, tp, tokens)
    if key.cp > 1:
        exchange = blocks.kv_exchange(scenario, layer, cp, key.tp, key.micro_batch)
        prices |= {"kv exchange": exchange, "kv exchange grad": scaled(exchange, 2.0)}
    return prices | _sharded(scenario, layer, key)


def _sharded(scenario: Scenario, layer: Layer, key: Key) -> Prices:
    """ZeRO 2 and 3: this layer's gradients leave, and its weights come, in every pass."""
    if key.zero < 2:
        return {}
    held = layer_on_gpu(scenario.model, layer, key.tp, key.ep, key.etp)
    sizes = ((key.dp_group, held.dense), (key.expert_group, held.expert))
    gathered = [all_gather(scenario.cluster, g, n * TRAINING_WEIGHT_BYTES) for g, n in sizes]
    scattered = [reduce_scatter(scenario.cluster, g, n * GRADIENT_BYTES) for g, n in sizes]
    return {"weight gather": price("dp", *gathered), "gradient scatter": price("dp", *scattered)}


def _moved(scenario: Scenario, layer: Layer, key: Key, there: str, home: str, backward: bool) -> Prices:
    """All-to-all there and home; a gradient goes there as a dispatch does, and home as a combine."""
    _, _, ep, etp = key.group
    spread_ = spread(scenario, key)
    prices: Prices = {}
    if key.all_to_all != "none":
        for name, way in ((there, "dispatch"), (home, "combine")):
            prices[name] = experts.exchange(
                scenario, spread_, ep, key.all_to_all, key.chunks, way,
                experts.row_bytes(scenario, way, backward),
            )  # fmt: skip
    if key.etp > 1 and _splits(scenario, key):
        prices["etp gather"] = experts.etp_exchange(scenario, spread_, etp, key.chunks, True)
        prices["etp scatter"] = experts.etp_exchange(scenario, spread_, etp, key.chunks, False)
    return prices


def _shared(scenario: Scenario, layer: Layer, key: Key, name: str, backward: bool) -> Prices:
    if not getattr(layer.ffn, "shared_width", 0):
        return {}
    return {name: _feed_forward(scenario, layer, "shared", key, backward)}


def _feed_forward(scenario: Scenario, layer: Layer, part: str, key: Key, backward: bool) -> Price:
    return blocks.feed_forward(scenario, layer, part, key.tp, key.cp, key.micro_batch, backward)


def _selective(scenario: Scenario, layer: Layer, key: Key) -> Price:
    own = _own_tokens(scenario, key)
    copies = 0.0
    if layer.is_moe:
        copies = float(experts.load(scenario, spread(scenario, key)).by_expert.sum(axis=-1).max(axis=-1).mean())
    return blocks.recompute_selective(scenario, layer, own, copies)
