"""Prices of the ops of a layer pass, by the keys of its program.

fixed   attention or Mamba, dense parts, router, collectives of TP, CP and ZeRO: alike for every way to exchange tokens
moved   the routed experts and their all-to-all
"""

from functools import lru_cache
from typing import Final

from moesim.alltoall import Direction
from moesim.cluster import Group
from moesim.memory import GRADIENT_BYTES, TRAINING_WEIGHT_BYTES, layer_on_gpu
from moesim.model import Attention, Layer
from moesim.recompute import INSIDE, parts
from moesim.step import blocks, experts, ring, sharing
from moesim.step.experts import Spread
from moesim.step.gemms import Part
from moesim.step.keys import Key, spread, variant_key
from moesim.step.launches import with_gaps
from moesim.step.price import NOTHING, Price, Prices, both, scaled
from moesim.step.scenario import Scenario

AGAIN: Final = ("recompute", "latent gather")
BOTH_WAYS: Final[tuple[tuple[str, Part], ...]] = (("", "forward"), (" grad", "data"))


@lru_cache(maxsize=16384)
def fixed(scenario: Scenario, layer: Layer, key: Key, what: str, halves: bool, before: Layer | None) -> Prices:
    """Prices that do not depend on how tokens are exchanged. ``what`` is "forward" or a way to recompute;
    ``halves``: those of the shared experts' halves among them; ``before``: those of that layer among them."""
    prices = _both_ways(scenario, layer, key, what)
    if halves:
        prices = prices | _halves(scenario, layer, key, what != "forward")
    if before is not None:
        found = _both_ways(scenario, before, key, what)
        blocks_ = ("attention", "core", "ffn")
        prices = prices | {f"{name} before": one for name, one in found.items() if name.split()[0] in blocks_}
        for again in AGAIN:
            if again in found:
                prices[again] = both(prices[again], found[again])
    return with_gaps(scenario, key.capacity_factor, prices)


def _both_ways(scenario: Scenario, layer: Layer, key: Key, what: str) -> Prices:
    """A backward pass may recompute the forward one, and a pair has both."""
    prices = _forward(scenario, layer, key)
    if what == "forward":
        return prices
    return prices | _backward(scenario, layer, key) | _again(scenario, layer, key, parts(what))


@lru_cache(maxsize=8192)
def without_variant(key: Key) -> Key:
    """What is left of a key for ops that do not depend on how tokens are exchanged."""
    return variant_key(key, "linear", 1, "none", "contiguous")


@lru_cache(maxsize=16384)
def _forward(scenario: Scenario, layer: Layer, key: Key) -> Prices:
    prices = _around(scenario, layer, key) | {layer.mixer: _mixer(scenario, layer, key, "forward")}
    if not layer.is_moe:
        dense = {"ffn": _feed_forward(scenario, layer, "dense", key, "forward")} if layer.ffn else {}
        return prices | dense | {"nothing": NOTHING}
    own = own_tokens(scenario, key)
    route = both(blocks.router(scenario, layer, own, False), _in_order(scenario, layer, key, "dispatch", False))
    merge = _in_order(scenario, layer, key, "combine", False)
    prices |= {
        "route": _and_resized(scenario, layer, route, "descend", own),
        "merge": _and_resized(scenario, layer, merge, "ascend", own),
    }
    if getattr(layer.ffn, "shared_width", 0):
        prices["shared"] = _feed_forward(scenario, layer, "shared", key, "forward")
    return prices


def _backward(scenario: Scenario, layer: Layer, key: Key) -> Prices:
    prices: Prices = {
        f"{layer.mixer} grad": _mixer(scenario, layer, key, "data"),
        f"{layer.mixer} weight grad": _mixer(scenario, layer, key, "weights"),
    }
    parts = [("shared", "shared")] if getattr(layer.ffn, "shared_width", 0) else []
    if layer.ffn and not layer.is_moe:
        parts = [("ffn", "dense")]
    for name, part in parts:
        prices[f"{name} grad"] = _feed_forward(scenario, layer, part, key, "data")
        prices[f"{name} weight grad"] = _feed_forward(scenario, layer, part, key, "weights")
    if layer.is_moe:
        own, order = own_tokens(scenario, key), (scenario, layer, key)
        around = {
            "route": both(blocks.router(scenario, layer, own, True), _in_order(*order, "dispatch", True)),
            "merge": _in_order(*order, "combine", True),
        }
        for (name, one), matrix in zip(around.items(), ("descend", "ascend"), strict=True):
            prices[f"{name} grad"] = _and_resized(scenario, layer, one, matrix, own, ("data", "weights"))
    return prices


def _in_order(scenario: Scenario, layer: Layer, key: Key, way: str, backward: bool) -> Price:
    """Tokens into send order ("dispatch"), or back ("combine"), and their gradients. Those that stay are put in order
    by the expert kernel itself (compute.COVERS), unless dense einsums do it."""
    own = own_tokens(scenario, key)
    if key.permute == "einsum":
        slots = own * experts.slots_per_token(scenario, spread(scenario, key))
        return blocks.in_einsums(scenario, layer, own, slots, way, backward)
    return NOTHING if key.all_to_all == "none" else blocks.permute(scenario, layer, own)


def _and_resized(
    scenario: Scenario, layer: Layer, one: Price, matrix: str, tokens: float, parts: tuple[Part, ...] = ("forward",)
) -> Price:
    """``one`` and, where tokens travel narrower than they are, the matrix that makes them so."""
    if not getattr(layer.ffn, "travels_at", 0):
        return one
    for part in parts:
        one = both(one, blocks.resized(scenario, layer, matrix, tokens, part))
    return one._replace(family="gate")


def _halves(scenario: Scenario, layer: Layer, key: Key, backward: bool) -> Prices:
    """The shared experts' matrices up to the activation, and the last one."""
    sizes = key.tp, key.cp, key.micro_batch
    return {
        f"shared {half}{suffix}": blocks.feed_forward(scenario, layer, "shared", *sizes, part, half)
        for half in ("up", "down")
        for suffix, part in BOTH_WAYS[: 1 + backward]
    }


def _mixer(scenario: Scenario, layer: Layer, key: Key, part: Part) -> Price:
    return blocks.mixer_block(scenario, layer, key.tp, key.cp, key.micro_batch, key.splits, part, key.ring)


def own_tokens(scenario: Scenario, key: Key) -> float:
    """Tokens one GPU routes."""
    tokens = sharing.tokens_per_tp_group(scenario, key.micro_batch, key.cp)
    return tokens / key.tp if key.splits else tokens


def _around(scenario: Scenario, layer: Layer, key: Key) -> Prices:
    """Collectives of tensor, context and data parallelism around the blocks."""
    tokens = sharing.tokens_per_tp_group(scenario, key.micro_batch, key.cp)
    prices: Prices = {}
    if key.tp > 1:
        prices["tp scatter"] = sharing.tp_scatter(scenario, key.tp_group, tokens, splits_tokens=key.splits)
        if key.splits:
            prices["tp gather"] = sharing.tp_gather(scenario, key.tp_group, tokens)
    if key.ring and layer.attention:
        prices |= _ring(scenario, layer.attention, key)
    elif key.cp > 1 and layer.attention:
        exchange = sharing.kv_exchange(scenario, layer.attention, key.cp_group, key.tp, key.micro_batch)
        prices |= {"kv exchange": exchange, "kv exchange grad": scaled(exchange, 2.0)}
    return prices | _sharded(scenario, layer, key)


def _ring(scenario: Scenario, a: Attention, key: Key) -> Prices:
    """Context parallelism by ring: steps of the core, and what travels meanwhile."""
    sizes, sent = (key.tp, key.cp, key.micro_batch), (key.cp_group, key.tp, key.micro_batch)
    return {
        "core": ring.core_step(scenario, a, *sizes, "forward"),
        "core grad": ring.core_step(scenario, a, *sizes, "data"),
        "kv send": ring.send(scenario, a, *sent, slices=1),
        "kv send grad": ring.send(scenario, a, *sent, slices=2),
    }


def _sharded(scenario: Scenario, layer: Layer, key: Key) -> Prices:
    """ZeRO 2 and 3: this layer's gradients leave, and its weights come, in every pass."""
    if key.zero < 2:
        return {}
    held = layer_on_gpu(scenario.model, layer, key.tp, key.ep, key.etp)
    sizes = ((key.dp_group, held.dense), (key.expert_group, held.expert))

    def over_both(op: str, bytes_each: float) -> Price:
        return both(*(sharing.collective(scenario, "dp", op, g, float(n) * bytes_each) for g, n in sizes))

    return {
        "weight gather": over_both("all_gather", TRAINING_WEIGHT_BYTES),
        "gradient scatter": over_both("reduce_scatter", GRADIENT_BYTES),
    }


def moved(scenario: Scenario, layer: Layer, key: Key, backward: bool) -> Prices:
    """Prices of the routed experts and of the exchange that feeds them."""
    if not layer.is_moe:
        return {}
    if key.overlap == "tiles":
        return _in_tiles(scenario, layer, spread(scenario, key), key.all_to_all, key.ep_group)
    etp = key.etp_group if key.etp > 1 and key.splits else None
    return _moved(scenario, layer, spread(scenario, key), key.all_to_all, key.chunks, key.ep_group, etp, backward)


@lru_cache(maxsize=16384)
def _moved(
    scenario: Scenario, layer: Layer, spread_: Spread, algorithm: str, chunks: int, ep: Group, etp: Group | None,
    backward: bool,
) -> Prices:  # fmt: skip
    """A gradient goes to the experts as a dispatch does, and home as a combine. The backward pass may
    recompute the forward one: it has the prices of both."""
    prices: Prices = {"experts": experts.experts(scenario, layer, spread_, chunks)}
    ways: list[tuple[str, Direction]] = [("dispatch", "dispatch"), ("combine", "combine")]
    if backward:
        prices["experts grad"] = experts.backward(scenario, layer, spread_, chunks, "data")
        prices["experts weight grad"] = experts.backward(scenario, layer, spread_, chunks, "weights")
        ways += [("combine grad", "dispatch"), ("dispatch grad", "combine")]
    if algorithm != "none":
        for name, way in ways:
            size = experts.row_bytes(scenario.workload.dtype, way)
            prices[name] = experts.exchange(scenario, spread_, ep, algorithm, chunks, way, size)
    if etp is not None:
        prices["etp gather"] = experts.etp_exchange(scenario, spread_, etp, chunks, True)
        prices["etp scatter"] = experts.etp_exchange(scenario, spread_, etp, chunks, False)
    return with_gaps(scenario, spread_.capacity_factor, prices)


@lru_cache(maxsize=4096)
def _in_tiles(scenario: Scenario, layer: Layer, spread_: Spread, algorithm: str, ep: Group) -> Prices:
    """One kernel computes, sends and receives."""
    return {"experts": experts.in_tiles(scenario, layer, spread_, ep, algorithm)}


def _feed_forward(scenario: Scenario, layer: Layer, name: str, key: Key, part: Part) -> Price:
    return blocks.feed_forward(scenario, layer, name, key.tp, key.cp, key.micro_batch, part)


def _again(scenario: Scenario, layer: Layer, key: Key, dropped: frozenset[str]) -> Prices:
    """What the forward pass has no op for: parts inside its blocks, and what they wait for."""
    if not dropped & INSIDE:
        return {}
    copies = 0.0
    if layer.is_moe and "activations" in dropped and "moe" not in dropped:
        rows = experts.load(scenario, spread(scenario, key)).by_expert.sum(axis=-1)
        copies = float(rows.max(axis=-1).mean()) / key.etp  # each expert-TP rank has a part of the width
    here = dropped - {"core"} if key.ring else dropped  # a ring's core has ops of its own
    prices = {"recompute": blocks.recomputed(scenario, layer, key.tp, key.cp, key.micro_batch, here, copies)}
    if "mla_up" in dropped and key.tp > 1 and layer.attention and layer.latent:
        tokens = sharing.tokens_per_tp_group(scenario, key.micro_batch, key.cp)
        prices["latent gather"] = sharing.latent_gather(scenario, layer.attention, key.tp_group, tokens)
    return prices
