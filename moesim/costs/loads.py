"""Tokens of each local expert on the most loaded rank, drawn as often as the expectation needs.

balanced         every expert gets the same number, exactly
power-law:A      every expert's popularity from a truncated power law (compute.loads)
uniform, zipf:S, lognormal:SIGMA
                 every token picks top_k different experts in proportion to their popularity
"""

from functools import lru_cache
from typing import Final

import numpy as np

from moesim.compute import balanced_load, power_law_loads
from moesim.cost import FloatArray
from moesim.errors import MoesimError, choice
from moesim.routing import draw_tokens, parse_routing, popularity

DRAWS: Final = 32
LARGEST_EXPONENT: Final = 10.0
_EXAMPLES: Final = ["balanced", "uniform", "zipf:1", "lognormal:0.5", "power-law:1.2"]


@lru_cache(maxsize=256)
def heaviest_rank(load: str, tokens: int, shape: tuple[int, int, int], seed: int) -> FloatArray:
    """tokens[draw, local expert] of the rank with most token copies; ``shape`` is (experts, top_k, ep).

    ``tokens`` counts those of all ranks together. Experts are placed contiguously.
    """
    experts, top_k, ep = shape
    if load == "balanced":
        return balanced_load(tokens, experts, top_k, ep)[None]
    rng = np.random.default_rng(seed)
    kind, _, parameter = load.partition(":")
    if kind == "power-law":
        return power_law_loads(tokens, shape, _exponent(load, parameter), DRAWS, rng)
    if kind not in ("uniform", "zipf", "lognormal"):
        raise choice("load", load, _EXAMPLES)
    shares = popularity(parse_routing(load), DRAWS, experts, rng)  # [draw, expert]
    drawn = draw_tokens(shares, top_k, tokens, 1, rng)[:, 0].astype(np.float64)
    ranks = drawn.reshape(DRAWS, ep, experts // ep)
    return np.asarray(ranks[np.arange(DRAWS), ranks.sum(axis=2).argmax(axis=1)])


def _exponent(load: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value <= LARGEST_EXPONENT:
        raise MoesimError(f"load {load!r}: give an exponent above 0, up to {LARGEST_EXPONENT:g}: power-law:1.2")
    return value
