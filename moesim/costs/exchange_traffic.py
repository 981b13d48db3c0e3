"""The traffic of one all-to-all, from what decides it: routing, experts, replicas, placement, capacity.

    drawn      every rank's tokens pick their experts, in several draws; copies of every pair of ranks
    expected   many ranks x experts: what each rank sends and each gets on average, from the popularity alone

A draw is a layer of its own. Expected traffic knows popular experts, but not that equally popular ones get unequal
numbers of tokens by chance: with n copies a rank the busiest of R gets about sqrt(2 ln(R) / n) more.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from moesim.alltoall import Traffic, copies_by_rank
from moesim.cost import FloatArray
from moesim.errors import MoesimError
from moesim.network import Dense, Product
from moesim.placement import PLACEMENTS, IntArray, replicated
from moesim.routing import Dispatch, dispatch, draw_tokens, inclusion, parse_routing, popularity

DRAWS: Final = 8
LARGE_DRAWS: Final = 2  # where one draw holds more than LARGE counts
LARGE: Final = 1 << 20
MOST_DRAWN: Final = 1 << 22  # ranks x experts of one draw: 2,048 x 2,048
MOST_BALANCED: Final = 1 << 14  # experts that are placed one after another


class Layer(NamedTuple):
    """What decides the copies: equal for every size of row, algorithm and direction."""

    routing: str
    stamp: tuple[int, int] | None  # of the routing's file
    placement: str
    seed: int
    experts: int
    redundant: int  # slots for further replicas of popular experts
    groups: tuple[int, int]  # of experts, and how many of them a token may use
    top_k: int
    capacity_factor: float | None
    ranks: int
    tokens: int  # of a rank


class Exchange(NamedTuple):
    """One traffic of one-byte rows for each draw."""

    padded: Traffic  # with the empty slots of a capacity
    real: Traffic  # without: what deduplicating and one-sided algorithms send
    drawn: bool
    dropped_share: float
    padding_share: float


@lru_cache(maxsize=2)
def exchange_traffic(layer: Layer) -> Exchange:
    """Drawn where ranks x experts is small enough, else expected."""
    counts = layer.ranks * (layer.experts + layer.redundant)
    if (layer.experts + layer.redundant) % layer.ranks:
        more = f" and {layer.redundant} redundant ones" if layer.redundant else ""
        raise MoesimError(
            f"{layer.experts} experts{more} do not divide over {layer.ranks} ranks: give a multiple of {layer.ranks}"
        )
    rng = np.random.default_rng(layer.seed)
    if counts <= MOST_DRAWN:
        return _drawn(layer, _shares(layer, DRAWS if counts <= LARGE else LARGE_DRAWS, rng), rng)
    if layer.capacity_factor is not None:
        raise MoesimError(
            f"capacity_factor {layer.capacity_factor:g} with {layer.ranks} ranks x {layer.experts} experts: tokens are "
            f"drawn up to {MOST_DRAWN:,} of the product; give fewer, or no capacity factor"
        )
    return _expected(layer, _shares(layer, DRAWS, rng))


def _shares(layer: Layer, draws: int, rng: np.random.Generator) -> FloatArray:
    """``[draw, expert]`` popularities; a measured routing lends layers spread evenly over its depth."""
    routing = parse_routing(layer.routing)
    layers = draws if routing.load is None else max(draws, len(routing.load))
    depth = np.linspace(0, layers - 1, draws).astype(int)
    return np.asarray(popularity(routing, layers, layer.experts, rng)[depth])


def _drawn(layer: Layer, shares: FloatArray, rng: np.random.Generator) -> Exchange:
    origin, owner = _slots(layer, shares)
    drawn = (draw_tokens(share[None], layer.top_k, layer.tokens, layer.ranks, rng) for share in shares)
    kept = [dispatch(each, layer.top_k, layer.capacity_factor) for each in drawn]
    rows = [_in_slots(each.tokens.sum(axis=1)[0], slots) for each, slots in zip(kept, origin, strict=True)]
    wanted = [
        _in_slots((each.tokens + each.dropped).sum(axis=1)[0], slots) for each, slots in zip(kept, origin, strict=True)
    ]
    order = np.argsort(owner, axis=-1, kind="stable")
    in_order, asked = (np.take_along_axis(np.stack(each), order, axis=-1) for each in (rows, wanted))
    taken = None if layer.capacity_factor is None else in_order / np.maximum(asked, 1e-300)

    def traffic(counts: Sequence[IntArray]) -> Traffic:
        slots = (_in_slots(each[0], of) for each, of in zip(counts, origin, strict=True))  # [source, slot]
        copies = [copies_by_rank(each, owned, layer.ranks) for each, owned in zip(slots, owner, strict=True)]
        return Traffic(
            pairs=Dense(copies=np.stack(copies)), tokens=layer.tokens, token_bytes=1.0,
            share=asked / asked.sum(axis=-1, keepdims=True), top_k=layer.top_k, groups=_together(layer), kept=taken,
        )  # fmt: skip

    real = traffic([each.tokens for each in kept])
    padded = real if layer.capacity_factor is None else traffic([each.tokens + each.padding for each in kept])
    return Exchange(padded, real, True, *(_mean(kept, what) for what in ("dropped_share", "padding_share")))


def _expected(layer: Layer, shares: FloatArray) -> Exchange:
    if np.all(shares == shares[0]):
        shares = shares[:1]
    if layer.placement != "contiguous" and layer.experts + layer.redundant > MOST_BALANCED:
        raise MoesimError(
            f"placement {layer.placement} of {layer.experts + layer.redundant:,} experts: they are placed one after "
            f"another, at most {MOST_BALANCED:,}; give contiguous"
        )
    origin, owner = _slots(layer, shares)
    wanted = inclusion(shares, layer.top_k) / layer.top_k  # no expert gets a token twice
    slots = np.stack([_in_slots(each, of) for each, of in zip(wanted, origin, strict=True)])
    in_order = np.take_along_axis(slots, np.argsort(owner, axis=-1, kind="stable"), axis=-1)
    by_rank = in_order.reshape(len(shares), layer.ranks, -1).sum(axis=-1)
    sent = np.full((len(shares), layer.ranks), float(layer.tokens * layer.top_k))
    traffic = Traffic(
        pairs=Product(sent=sent, share=by_rank), tokens=layer.tokens, token_bytes=1.0, share=in_order,
        top_k=layer.top_k, groups=_together(layer),
    )  # fmt: skip
    return Exchange(traffic, traffic, False, 0.0, 0.0)


def _together(layer: Layer) -> tuple[int, int]:
    """Groups of experts limit where tokens go as long as each lies in one piece: other placements scatter them."""
    return layer.groups if layer.placement == "contiguous" and not layer.redundant else (1, 1)


def _slots(layer: Layer, shares: FloatArray) -> tuple[IntArray, IntArray]:
    """``[draw, slot]`` twice: the expert that it holds, the rank that it is on."""
    origin = replicated(shares, layer.experts + layer.redundant)
    load = np.stack([_in_slots(share, of) for share, of in zip(shares, origin, strict=True)])
    return origin, PLACEMENTS[layer.placement](load, layer.ranks)


def _in_slots(amount: FloatArray | IntArray, origin: IntArray) -> FloatArray:
    """``[..., expert]`` -> ``[..., slot]``: what an expert has spreads evenly over its replicas."""
    return np.asarray(amount[..., origin] / np.bincount(origin)[origin])


def _mean(kept: list[Dispatch], what: str) -> float:
    return float(np.mean([getattr(each, what) for each in kept]))


def stamp(routing: str) -> tuple[int, int] | None:
    """When a routing's file was written: a new one is read anew."""
    try:
        found = Path(routing.partition("#")[0]).stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size
