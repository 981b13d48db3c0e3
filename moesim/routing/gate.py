"""Drawing tokens: every token picks k different experts, every source rank has T tokens.

    popularity[draw, expert] --inclusion--> pi[draw, expert], the chance that a token picks the expert
                             --draw_tokens--> tokens[draw, source rank, expert], each row sums to T k

Popularity is the *share of the token copies* an expert gets, as a load histogram records it, so the
expected load is the measured one: pi = k p, except that no expert gets a token twice (pi <= 1).

One token is drawn by systematic sampling in a random order of the experts (Madow 1949): lay the pi end
to end on a line of length k, and pick where u, u + 1, ..., u + k - 1 fall. This picks k different experts
with chance exactly pi each. Tokens that share an order fall into the cells between borders by one
multinomial draw, whatever their number. Means, variances and covariances of the counts are those of
independent tokens; the tokens of one source rank share a few orders, so their largest count is a little low
when all experts are equally popular. Large arrays of large counts use a rounded normal instead.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.cost import FloatArray
from moesim.errors import MoesimError

IntArray = NDArray[np.int64]

_UNITS: Final = 1 << 32
"""Chances are whole numbers of 1/2^32, so that every sum below is exact."""

_EXACT_SIZE: Final = 1 << 16
"""Up to this many counts are always drawn exactly, in about 5 ms."""

_ORDERS: Final = 16
"""Tokens of one draw are spread over at least so many random orders, over all source ranks."""

_NORMAL_VARIANCE: Final = 25.0
"""Counts with a smaller variance are never drawn from a normal."""


def inclusion(popularity: FloatArray, top_k: int) -> FloatArray:
    """Chance that a token picks each expert: popularity[..., expert] -> [..., expert], sums to ``top_k``.

    min(1, c p) with c such that the sum is k: an expert that would be picked more than once per token is
    picked by every token, and the others share what is left in proportion.
    """
    shares = np.asarray(popularity, dtype=np.float64)
    used = int((shares > 0).sum(axis=-1).min())
    if not 1 <= top_k <= used:
        raise MoesimError(
            f"a token cannot pick {top_k} different experts: only {used} experts have any load; "
            f"choose a top-k from 1 to {used} or a less skewed routing"
        )
    full = np.zeros(shares.shape, dtype=bool)
    for _ in range(top_k + 1):
        rest = np.where(full, 0.0, shares)
        total = rest.sum(axis=-1, keepdims=True)
        left = top_k - full.sum(axis=-1, keepdims=True)
        chance = np.where(full, 1.0, rest * (left / np.where(total > 0, total, 1.0)))
        over = (chance >= 1.0) & ~full
        if not over.any():
            break
        full |= over
    return np.asarray(np.minimum(chance, 1.0))


def draw_tokens(
    popularity: FloatArray, top_k: int, tokens_per_rank: int, ranks: int, rng: np.random.Generator
) -> IntArray:
    """Token copies by source and expert: popularity[draw, expert] -> [draw, rank, expert].

    Each [draw, rank] row sums to ``tokens_per_rank * top_k``; no count exceeds ``tokens_per_rank``.
    """
    if tokens_per_rank < 0 or ranks < 1:
        raise MoesimError(f"cannot draw {tokens_per_rank} tokens on {ranks} ranks: give at least 0 tokens and 1 rank")
    chance = inclusion(np.atleast_2d(popularity), top_k)
    draws, experts = chance.shape
    variance = tokens_per_rank * chance * (1.0 - chance)
    big = variance > _NORMAL_VARIANCE
    mostly_big = (variance * big).sum(axis=-1) > 0.5 * variance.sum(axis=-1)
    if draws * ranks * experts > _EXACT_SIZE and mostly_big.all():
        return _rounded_normal(chance, big, tokens_per_rank, ranks, rng)
    units = _in_units(chance)[:, None]
    step = max(1, _EXACT_SIZE // (ranks * experts))  # draws at a time, to bound the memory
    parts = [
        _systematic(np.repeat(units[first : first + step], ranks, axis=1), tokens_per_rank, rng)
        for first in range(0, draws, step)
    ]
    return np.concatenate(parts)


def _in_units(chance: FloatArray) -> IntArray:
    """Chances as whole units that sum exactly, by largest remainder: [draw, expert]."""
    exact = chance * _UNITS
    units = np.floor(exact).astype(np.int64)
    missing = np.rint(chance.sum(axis=-1)).astype(np.int64) * _UNITS - units.sum(axis=-1)
    place = np.argsort(np.argsort(units - exact, axis=-1, kind="stable"), axis=-1)
    return np.asarray(units + (place < missing[:, None]))


def _systematic(units: IntArray, tokens: int, rng: np.random.Generator) -> IntArray:
    """Exact counts: units[..., rank, expert] -> tokens[..., rank, expert]."""
    ranks = units.shape[-2]
    orders = max(_EXACT_SIZE // units.size, -(-_ORDERS // ranks))
    orders = max(1, min(orders, 2 * _ORDERS, tokens))
    share = np.full(orders, tokens // orders) + (np.arange(orders) < tokens % orders)  # tokens of each order
    units = np.repeat(units[..., None, :], orders, axis=-2)  # [..., rank, order, expert]
    order = np.argsort(rng.random(units.shape, dtype=np.float32), axis=-1)
    ends = np.cumsum(np.take_along_axis(units, order, axis=-1), axis=-1)  # borders on the line [0, k)
    border = ends & (_UNITS - 1)  # the same within one unit; the last is 0
    by_border = np.argsort(border, axis=-1)
    ascending = np.take_along_axis(border, by_border, axis=-1)
    cells = np.diff(ascending, axis=-1, append=_UNITS) / _UNITS
    in_cell = rng.multinomial(share, cells)
    below_sorted = np.cumsum(in_cell, axis=-1) - in_cell  # tokens whose u lies below the border
    below = np.empty_like(below_sorted)
    np.put_along_axis(below, by_border, below_sorted, axis=-1)
    passed = (ends >> 32) * share[:, None] + below  # picks that fall before the border
    counts = np.empty_like(passed)
    np.put_along_axis(counts, order, np.diff(passed, axis=-1, prepend=0), axis=-1)
    return np.asarray(counts.sum(axis=-2))


def _rounded_normal(
    chance: FloatArray, big: NDArray[np.bool_], tokens: int, ranks: int, rng: np.random.Generator
) -> IntArray:
    """Counts of large arrays: normal where the variance is big, binomial where not; rows sum exactly.

    The big counts absorb the surplus of the row in proportion to their spread.
    """
    mean = tokens * chance
    variance = mean * (1.0 - chance)
    spread = _spread(np.where(big, variance, 0.0), np.where(big, 0.0, variance))
    share = spread / spread.sum(axis=-1, keepdims=True)
    shape = (len(chance), ranks, chance.shape[-1])
    off = rng.standard_normal(shape) * np.sqrt(spread)[:, None]  # [draw, rank, expert]
    draw, expert = np.nonzero(~big)
    few = rng.binomial(tokens, chance[draw, expert][:, None], size=(len(draw), ranks))
    off[draw, :, expert] = few - mean[draw, expert][:, None]
    off -= off.sum(axis=-1, keepdims=True) * share[:, None]
    off += mean[:, None]
    borders = np.rint(np.cumsum(off, axis=-1, out=off)).astype(np.int64)  # the last is T k
    counts = np.diff(borders, axis=-1, prepend=0)
    wrong = ((counts < 0) | (counts > tokens)).any(axis=-1)
    if wrong.any():
        units = _in_units(chance)[np.nonzero(wrong)[0]]
        counts[wrong] = _systematic(units, tokens, rng)
    return np.asarray(counts)


def _spread(variance: FloatArray, others: FloatArray) -> FloatArray:
    """Variance to draw with, so that ``variance`` is left after each row is made to sum to its mean.

    Solves s - s^2 / S + (s / S)^2 V = variance, S = sum of s, V = sum of the ``others``, by iteration.
    """
    noise = others.sum(axis=-1, keepdims=True)
    spread = variance
    for _ in range(20):
        total = spread.sum(axis=-1, keepdims=True)
        spread = variance + (spread / total) ** 2 * (total - noise)
    return spread
