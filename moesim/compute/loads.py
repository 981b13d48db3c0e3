"""Tokens per local expert of the heaviest rank, for the loads that published tables were measured under.

balanced       every expert gets tokens x top_k / experts
power-law:a    popularity drawn from a truncated power law (1 to 0.8 x tokens), normalised to
               tokens x top_k copies; experts placed contiguously; the heaviest rank is the one measured
"""

import numpy as np

from moesim.cost import FloatArray
from moesim.errors import MoesimError


def balanced_load(tokens: float, experts: int, top_k: int, ep: int) -> FloatArray:
    """tokens[local expert]; with fewer copies than experts only as many are active as there are copies."""
    copies = tokens * top_k
    local = experts // ep
    load = np.full(local, max(copies / experts, 1.0))
    load[int(np.ceil(min(copies / ep, local))) :] = 0.0
    return load * min(1.0, max(copies, 1.0) / max(load.sum() * ep, 1.0)) if copies >= experts else load


def power_law_load(
    tokens: int, experts: int, top_k: int, ep: int, exponent: float, rng: np.random.Generator
) -> FloatArray:
    """tokens[local expert] of the heaviest of ``ep`` ranks, one draw."""
    return power_law_loads(tokens, experts, top_k, ep, exponent, rng, 1)[0]


def power_law_loads(
    tokens: int, experts: int, top_k: int, ep: int, exponent: float, rng: np.random.Generator, draws: int
) -> FloatArray:
    """tokens[draw, local expert] of the heaviest of ``ep`` ranks."""
    if experts % ep:
        raise MoesimError(f"{experts} experts do not divide over ep={ep}: choose a divisor")
    if exponent <= 0.0:
        raise MoesimError(f"power-law:{exponent}: give an exponent above zero")
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > experts else (0.01, 2.0)
    drawn = np.zeros((draws, experts))
    todo = np.arange(draws)
    for _ in range(50):
        drawn[todo] = _rounded(
            _truncated_power_law(low, high, exponent, (todo.size, experts), rng), tokens * top_k
        )
        todo = np.flatnonzero(drawn.max(axis=1) > tokens)  # no expert sees a token twice
        if not todo.size:
            break
    drawn = np.minimum(drawn, tokens)
    ranks = drawn.reshape(draws, ep, experts // ep)
    heaviest = ranks.sum(axis=2).argmax(axis=1)
    return np.asarray(ranks[np.arange(draws), heaviest])


def _truncated_power_law(
    low: float, high: float, exponent: float, shape: tuple[int, int], rng: np.random.Generator
) -> FloatArray:
    u = rng.random(shape)
    if abs(exponent - 1.0) < 1e-9:
        return np.asarray(low * (high / low) ** u)
    power = 1.0 - exponent
    return np.asarray((low**power + u * (high**power - low**power)) ** (1.0 / power))


def _rounded(popularity: FloatArray, copies: int) -> FloatArray:
    """Whole tokens in proportion to popularity[draw, expert]; the heaviest experts take the remainder."""
    load = np.round(popularity / popularity.sum(axis=1, keepdims=True) * copies)
    missing = copies - load.sum(axis=1)
    order = np.argsort(-load, axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(load.shape[1]), order.shape), axis=1)
    step = np.sign(missing)[:, None] * (rank < np.abs(missing)[:, None])
    return np.maximum(load + step, 0.0)
