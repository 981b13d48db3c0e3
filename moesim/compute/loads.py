"""Tokens per local expert of the heaviest rank, for the loads that published tables were measured under.

    balanced       every expert gets tokens x top_k / experts copies; fewer copies than experts: one each
    power-law:a    popularity drawn from a truncated power law (1 to 0.8 x tokens), normalised to
                   tokens x top_k copies; experts placed contiguously; the heaviest rank is the one measured

No expert gets a token twice: what exceeds the number of tokens goes to the other experts. With no more copies
than experts the law runs from 0.01 to 2, so that some experts stay empty, and a single token is spread as a
balanced load (both as the published tables behave).
"""

import numpy as np

from moesim.cost import FloatArray
from moesim.errors import MoesimError


def balanced_load(tokens: float, experts: int, top_k: int, ep: int) -> FloatArray:
    """tokens[local expert] of one of ``ep`` equal ranks, the first of the active ones."""
    _check(experts, ep)
    copies, local = tokens * top_k, experts // ep
    if copies >= experts:
        return np.full(local, copies / experts)
    load = np.zeros(local)
    load[: max(1, round(copies / ep))] = 1.0
    return load


def power_law_load(
    tokens: int, experts: int, top_k: int, ep: int, exponent: float, rng: np.random.Generator
) -> FloatArray:
    """tokens[local expert] of the heaviest of ``ep`` ranks, one draw."""
    return np.asarray(power_law_loads(tokens, (experts, top_k, ep), exponent, 1, rng)[0])


def power_law_loads(
    tokens: int, shape: tuple[int, int, int], exponent: float, draws: int, rng: np.random.Generator
) -> FloatArray:
    """tokens[draw, local expert] of the heaviest rank; ``shape`` is (experts, top_k, ep)."""
    experts, top_k, ep = shape
    _check(experts, ep)
    if exponent <= 0.0:
        raise MoesimError(f"power-law:{exponent}: give an exponent above zero")
    if tokens == 1:
        return np.tile(balanced_load(1, experts, top_k, ep), (draws, 1))
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > experts else (0.01, 2.0)
    popularity = _truncated_power_law(low, high, exponent, (draws, experts), rng)
    load = _once(_whole(popularity, tokens * top_k), float(tokens))
    ranks = load.reshape(draws, ep, experts // ep)
    heaviest = ranks.sum(axis=2).argmax(axis=1)
    return np.asarray(ranks[np.arange(draws), heaviest])


def _check(experts: int, ep: int) -> None:
    if ep < 1 or experts % ep:
        raise MoesimError(f"{experts} experts do not divide over ep={ep}: choose a divisor")


def _truncated_power_law(
    low: float, high: float, exponent: float, shape: tuple[int, int], rng: np.random.Generator
) -> FloatArray:
    u = rng.random(shape)
    if abs(exponent - 1.0) < 1e-9:
        return np.asarray(low * (high / low) ** u)
    power = 1.0 - exponent
    return np.asarray((low**power + u * (high**power - low**power)) ** (1.0 / power))


def _whole(popularity: FloatArray, copies: int) -> FloatArray:
    """Whole copies in proportion to popularity[draw, expert]; the heaviest experts take the remainder."""
    load = np.round(popularity / popularity.sum(axis=1, keepdims=True) * copies)
    missing = copies - load.sum(axis=1)
    order = np.argsort(-load, axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(load.shape[1]), order.shape), axis=1)
    step = np.sign(missing)[:, None] * (rank < np.abs(missing)[:, None])
    return np.asarray(np.maximum(load + step, 0.0))


def _once(load: FloatArray, most: float) -> FloatArray:
    """Move what exceeds ``most`` to the other experts, in proportion to what they have."""
    for _ in range(load.shape[1]):
        over = np.maximum(load - most, 0.0).sum(axis=1, keepdims=True)
        if not over.any():
            break
        load = np.minimum(load, most)
        room = np.where(load < most, load + 1e-9, 0.0)
        load = load + over * room / np.maximum(room.sum(axis=1, keepdims=True), 1e-30)
    return np.minimum(load, most)
