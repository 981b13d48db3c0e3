"""A layer pass: which ops it has under a strategy, the price of each, and how they slow each other down."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from moesim.model import Layer, dense_before
from moesim.player import play_batched
from moesim.program import LayerShape, Program, backward_layer, forward_layer, pair_layer, slots
from moesim.step import prices
from moesim.step.contention import NONE, Slower, slower
from moesim.step.keys import Key, pass_key, priced_key, splits_tokens, spread, variant_key
from moesim.step.launches import eager, host, operations
from moesim.step.price import Price, Prices
from moesim.step.scenario import Scenario

__all__ = [
    "Key", "LayerPass", "Prices", "backward_pass", "forward_pass", "pair_pass", "pass_key", "priced_key",
    "splits_tokens", "spread", "variant_key",
]  # fmt: skip

PAIRED = ("shortcut2", "shortcut3")  # overlaps in which a pass holds the dense layer before too


class LayerPass(NamedTuple):
    """One direction through one layer. Passes that exchange tokens alike share ``moved``, the others ``fixed``."""

    program: Program
    fixed: Prices  # everything but the routed experts and their all-to-all
    moved: Prices
    slower: Slower = NONE  # of ops that overlap
    host_s: float = 0.0  # CPU time of its launches: it ends no sooner

    def price(self, name: str) -> Price:
        """The price of an op by its key."""
        return self.moved[name] if name in self.moved else self.fixed[name]


@lru_cache(maxsize=131072)
def forward_pass(scenario: Scenario, layer: Layer, key: Key) -> LayerPass:
    """Ops and prices of the forward pass."""
    return _pass(scenario, layer, key, "forward", "")


@lru_cache(maxsize=131072)
def backward_pass(scenario: Scenario, layer: Layer, key: Key, recompute: str, part: str = "all") -> LayerPass:
    """Ops and prices of the backward pass, recomputation included; of its ``part`` "data" or "weights" only."""
    return _pass(scenario, layer, key, part, recompute)


@lru_cache(maxsize=16384)
def pair_pass(scenario: Scenario, layer: Layer, key: Key, recompute: str) -> LayerPass:
    """Ops and prices of the forward pass of one micro-batch and the backward pass of another, interleaved."""
    return _pass(scenario, layer, variant_key(key, key.all_to_all, 1, "chunked", key.placement), "pair", recompute)


def _pass(scenario: Scenario, layer: Layer, key: Key, what: str, recompute: str) -> LayerPass:
    """``what``: "forward", "pair", or the part of a backward pass."""
    key = _relevant(layer, key)
    backward = what != "forward"
    before = dense_before(scenario.model, layer) if key.overlap in PAIRED else None
    fixed = prices.fixed(
        scenario, layer, prices.without_variant(key), recompute if backward else "forward", _halves(layer, key), before
    )
    moved = prices.moved(scenario, layer, key, backward)
    factors = slower(scenario, key.all_to_all, layer.is_moe and (what == "pair" or key.overlap == "dual_batch"))
    made = [LayerPass(_program(shape, what, recompute), fixed, moved, factors) for shape in _shapes(layer, key, before)]
    best = made[0] if len(made) == 1 else min(made, key=_mean_s)
    if not eager(scenario, key.capacity_factor):
        return best
    launched = operations(best.program, fixed | moved, getattr(layer.ffn, "experts", 0) / key.ep)
    return best._replace(host_s=launched * float(host(scenario).slowest[0]))


def _program(shape: LayerShape, what: str, recompute: str) -> Program:
    if what == "forward":
        return forward_layer(shape)
    if what == "pair":
        return pair_layer(shape, recompute=recompute)
    return backward_layer(shape, recompute=recompute, part=what)


def _mean_s(one: LayerPass) -> float:
    """Seconds of a pass, averaged over its draws."""
    return float(np.mean(play_batched(one.program, {k: one.price(k).slowest[:, None] for k in one.program.keys})))


def _relevant(layer: Layer, key: Key) -> Key:
    """A dense layer exchanges no tokens: its passes are alike for all variants of one overlap."""
    return priced_key(key if layer.is_moe else variant_key(key, "linear", 1, key.overlap, "contiguous"))


def _halves(layer: Layer, key: Key) -> bool:
    return key.overlap == "shared" and key.all_to_all != "none" and bool(getattr(layer.ffn, "shared_width", 0))


def _shapes(layer: Layer, key: Key, before: Layer | None) -> list[LayerShape]:
    """The ways to order the pass: one, or with a shortcut one for each slot of the experts."""
    shape = LayerShape(
        moe=layer.is_moe,
        mixer=layer.mixer,
        ffn=layer.ffn is not None,
        chunks=key.chunks if layer.is_moe else 1,
        overlap=key.overlap,
        tp=key.tp > 1,
        cp=key.cp > 1 and not key.ring and layer.attention is not None,
        ring=key.cp if key.ring and layer.attention else 0,
        ep=layer.is_moe and key.all_to_all != "none" and key.overlap != "tiles",
        etp=layer.is_moe and key.etp > 1 and key.splits and key.overlap != "tiles",
        shared=bool(getattr(layer.ffn, "shared_width", 0)),
        latent=layer.latent,
        replicated=not key.splits,
        gathers_weights=key.zero == 3,
        reduces_gradients=key.zero >= 2,
        before=before is not None,
        empty=key.overlap in PAIRED and not layer.is_moe,
    )
    if not layer.is_moe or not key.overlap.startswith("shortcut"):
        return [shape]
    return [shape._replace(slot=slot) for slot in range(slots(shape))]
