"""Who sends how many token copies to whom, and what that loads on links."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.cost import FloatArray
from moesim.errors import MoesimError
from moesim.network import Pairs

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Traffic:
    """Token copies between the ranks of a group, in one all-to-all or in a batch of them.

    pairs                   copies of src's tokens for experts on dst, drawn (Dense) or expected (Product); what
                            stays on its rank is free
    tokens                  tokens per source rank before copying (all-gather moves these)
    token_bytes             bytes of one copy: hidden x dtype, scales included
    share[..., expert]      popularity of each expert, in the order of their ranks; it sums to one
    top_k                   experts of a token
    groups                  groups of experts that lie together in that order, and how many of them a token may use;
                            (1, 1) as well where a placement scatters them
    kept[..., expert]       share of an expert's copies that its capacity takes: nobody sends the others
    chunks                  token_bytes is one of so many parts of a row: it stands for whole rows of fewer tokens.
                            Both may be [size, 1]: then costs have the shape [size, ...]
    """

    pairs: Pairs
    tokens: float
    token_bytes: FloatArray | float
    share: FloatArray | None = None
    top_k: int = 1
    groups: tuple[int, int] = (1, 1)
    kept: FloatArray | None = None
    chunks: NDArray[np.integer] | int = 1
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)  # loads that follow from copies alone

    def __post_init__(self) -> None:
        if np.any(np.asarray(self.token_bytes) <= 0) or self.tokens < 0:
            raise MoesimError(f"{self.tokens} tokens of {self.token_bytes} bytes: at least 0 of more than 0 bytes")


def copies_by_rank(tokens: NDArray[np.integer] | FloatArray, owner: NDArray[np.integer], ranks: int) -> FloatArray:
    """``tokens[..., src, expert]``, ``owner[expert]`` -> ``copies[..., src, dst]``, one copy per choice."""
    order = np.argsort(owner, kind="stable")
    in_place = np.array_equal(order, np.arange(len(owner)))
    in_order = np.asarray(tokens if in_place else np.take(tokens, order, axis=-1), dtype=np.float64)
    edges = np.searchsorted(owner[order], np.arange(ranks + 1))  # first expert of each rank
    if np.all(np.diff(edges) == len(owner) // ranks):
        return np.asarray(in_order.reshape(*tokens.shape[:-1], ranks, -1).sum(axis=-1))
    before = np.zeros((*tokens.shape[:-1], tokens.shape[-1] + 1))
    np.cumsum(in_order, axis=-1, out=before[..., 1:])  # [..., src, expert + 1]
    return np.diff(before[..., edges], axis=-1)


def sent_and_received(traffic: Traffic) -> tuple[FloatArray, FloatArray]:
    """Bytes that each rank sends to and receives from others: ``[..., rank]`` twice, with equal sums."""
    sent, received = traffic.pairs.totals()
    return sent * traffic.token_bytes, received * traffic.token_bytes


def turned(traffic: Traffic) -> Traffic:
    """The way home: source and destination exchanged."""
    found = remembered(traffic, "turned", lambda: _transposed(traffic))
    return resized(found, traffic.token_bytes, traffic.chunks)


def _transposed(traffic: Traffic) -> Traffic:
    return replace(traffic, pairs=traffic.pairs.turned(), memo={})


def resized(traffic: Traffic, token_bytes: FloatArray | float, chunks: NDArray[np.integer] | int = 1) -> Traffic:
    """The same copies with other bytes: what was found out about their loads stays known."""
    return replace(traffic, token_bytes=token_bytes, chunks=chunks)


def remembered(traffic: Traffic, key: Any, find: Callable[[], Found]) -> Found:
    """``find()``, once for these copies."""
    if key not in traffic.memo:
        traffic.memo[key] = find()
    found: Found = traffic.memo[key]
    return found
