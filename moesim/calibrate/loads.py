"""Who gets the tokens: copies per expert of a named load, and the choices of each token that give them.

    balanced       tokens x top_k copies spread evenly; fewer copies than experts: one each, evenly spaced
    uniform        every token draws top_k different experts, all alike
    zipf:a         popularity rank^-a in a random order of the experts
    lognormal:s    popularity exp(s x normal)
    hot            one expert gets every token, the others share the rest evenly

No token goes to an expert twice, so no expert gets more than ``tokens`` copies.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.errors import MoesimError

IntArray = NDArray[np.int64]
LOADS = ("balanced", "uniform", "zipf:1.2", "lognormal:1.0", "hot")


class RankLoad(NamedTuple):
    """What one expert-parallel rank is given."""

    choices_TK: IntArray  # local expert of each choice; -1: on another rank
    tokens_E: IntArray  # copies per local expert


def tokens_per_expert(load: str, tokens: int, experts: int, top_k: int, rng: np.random.Generator) -> IntArray:
    """Copies of each expert [experts]; they sum to ``tokens * top_k`` and none is above ``tokens``."""
    name, _, text = load.partition(":")
    if name == "balanced":
        return _evenly(tokens * top_k, experts)
    if name == "uniform":
        return _uniform(tokens, experts, top_k, rng)
    if name == "hot":
        rest = _evenly(tokens * (top_k - 1), experts - 1) if experts > 1 else np.zeros(0, dtype=np.int64)
        return np.insert(rest, rng.integers(experts), tokens)
    if name == "zipf":
        popularity = rng.permutation((1.0 + np.arange(experts)) ** -float(text))
    elif name == "lognormal":
        popularity = np.exp(float(text) * rng.standard_normal(experts))
    else:
        raise MoesimError(f"unknown load {load!r}: choose from {', '.join(LOADS)}")
    return _shared(popularity, tokens, top_k)


def choices(tokens_E: IntArray, tokens: int, top_k: int, rng: np.random.Generator) -> IntArray:
    """Experts of each token [tokens, top_k], all different, with exactly these copies per expert.

    Copies sorted by expert are dealt to the tokens in turn: a run of at most ``tokens`` never deals a token twice.
    """
    dealt_KT = np.repeat(np.arange(len(tokens_E)), tokens_E).reshape(top_k, tokens)
    return np.ascontiguousarray(dealt_KT.T[rng.permutation(tokens)])


def rank_load(choices_TK: IntArray, experts: int, ep: int) -> RankLoad:
    """The heaviest of ``ep`` ranks: the tokens that choose an expert of it, and which."""
    local = experts // ep
    copies = np.bincount(choices_TK.ravel(), minlength=experts).reshape(ep, local)
    rank = int(copies.sum(axis=1).argmax())
    here_TK = choices_TK // local == rank
    kept = np.where(here_TK, choices_TK - rank * local, -1)[here_TK.any(axis=1)]
    return RankLoad(choices_TK=kept, tokens_E=copies[rank])


def _evenly(copies: int, experts: int) -> IntArray:
    """Whole shares; what is left over goes to evenly spaced experts."""
    load = np.full(experts, copies // experts, dtype=np.int64)
    left = copies % experts
    load[np.arange(left) * experts // max(left, 1)] += 1
    return load


def _uniform(tokens: int, experts: int, top_k: int, rng: np.random.Generator) -> IntArray:
    drawn = [
        np.argpartition(rng.random((min(4096, tokens - first), experts)), top_k - 1, axis=1)[:, :top_k]
        for first in range(0, tokens, 4096)
    ]
    return np.bincount(np.concatenate(drawn).ravel(), minlength=experts).astype(np.int64)


def _shared(popularity: NDArray[np.float64], tokens: int, top_k: int) -> IntArray:
    """Whole copies in proportion to popularity, at most ``tokens`` each; the overflow goes to the others."""
    copies = tokens * top_k
    exact = np.zeros_like(popularity)
    for _ in range(len(popularity)):
        room = exact < tokens
        left = copies - exact.sum()
        if left < 1e-9:
            break
        exact = np.where(room, np.minimum(exact + left * popularity / popularity[room].sum(), tokens), exact)
    load = np.floor(exact + 1e-9).astype(np.int64)
    short = copies - int(load.sum())
    order = np.argsort(np.where(load < tokens, load - exact, 1.0), kind="stable")  # largest remainder first
    load[order[:short]] += 1
    return load
