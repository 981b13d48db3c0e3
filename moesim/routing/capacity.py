"""What a capacity factor does to the drawn tokens: some copies are dropped, empty slots are padded.

tokens in = kept + dropped, and the padded exchange carries capacity = kept + padding for every expert.
"""

from dataclasses import dataclass
from math import ceil, isfinite

import numpy as np

from moesim.cost import FloatArray
from moesim.errors import MoesimError
from moesim.routing.gate import IntArray


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Dispatch:
    """Token copies by [draw, source rank, expert] after the capacity rule; ``capacity`` None is dropless."""

    tokens: IntArray  # kept: these reach the expert
    dropped: IntArray
    padding: IntArray  # slots sent empty
    capacity: int | None  # slots per expert and source rank, of the draw that has the most

    @property
    def dropped_share(self) -> float:
        """Share of the token copies that no expert sees."""
        return float(self.dropped.sum() / max(1, self.dropped.sum() + self.tokens.sum()))

    @property
    def padding_share(self) -> float:
        """Share of the exchanged slots that carry nothing."""
        return float(self.padding.sum() / max(1, self.padding.sum() + self.tokens.sum()))


def dispatch(tokens: IntArray, top_k: int, capacity_factor: float | None, multiple: int = 1) -> Dispatch:
    """Apply a capacity factor to tokens[draw, rank, expert]; None keeps everything and pads nothing.

    c > 0   on every source rank with T tokens an expert takes ceil(c T k / experts), never more than T (GShard,
            Lepikhin et al. 2020, section 2.2; Switch Transformer, Fedus et al. 2021, section 2.2)
    c = 0   the least that drops nothing, draw by draw (Tutel's capacity_setting, arXiv:2206.03382 section 4.1)
    c < 0   the same, at most that of -c

    What is over is dropped, what is under is padded: the exchange has a fixed shape. Slots come in ``multiple``s.
    """
    nothing = np.broadcast_to(np.int64(0), tokens.shape)
    if capacity_factor is None:
        return Dispatch(tokens=tokens, dropped=nothing, padding=nothing, capacity=None)
    if not isfinite(capacity_factor):
        raise MoesimError(f"capacity factor {capacity_factor} is no number: give 1.25 or so, 0 for automatic, or none")
    copies = int(tokens.sum(axis=-1).max(initial=0))
    fair = abs(capacity_factor) * copies / tokens.shape[-1]
    most = min(ceil(fair * (1 - 1e-12)), copies // top_k) if capacity_factor else copies
    needed = tokens.max(axis=(-2, -1), keepdims=True, initial=0)  # [draw, 1, 1]
    capacity = np.full_like(needed, most) if capacity_factor > 0 else np.minimum(needed, most)
    capacity = -(-capacity // multiple) * multiple
    kept = np.minimum(tokens, capacity)
    return Dispatch(tokens=kept, dropped=tokens - kept, padding=capacity - kept, capacity=int(capacity.max(initial=0)))


def imbalance(load: IntArray | FloatArray) -> FloatArray:
    """Largest over mean along the last axis, load[..., rank] -> [...]; 1 where nobody has any load."""
    mean = np.asarray(load.mean(axis=-1))
    return np.asarray(np.where(mean > 0, load.max(axis=-1) / np.where(mean > 0, mean, 1.0), 1.0))
