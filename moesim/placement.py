"""Which rank holds which expert: load[..., expert] -> owner[..., expert], equally many experts a rank.

A placement is a function of the expected load and the number of ranks; ``PLACEMENTS`` names them. ``replicated`` gives
popular experts further slots, which are placed like experts of their own.
"""

from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.cost import FloatArray
from moesim.errors import MoesimError

IntArray = NDArray[np.int64]
Number = TypeVar("Number", np.int64, np.float64)


def contiguous(load: FloatArray, ranks: int) -> IntArray:
    """Experts in order: 0, 0, 1, 1, ... The load does not matter."""
    slots = _slots(load.shape[-1], ranks)
    return np.broadcast_to(np.repeat(np.arange(ranks), slots), load.shape)


def balanced(load: FloatArray, ranks: int) -> IntArray:
    """Heaviest expert first, onto the least loaded rank that has a free slot (Graham's LPT rule).

    Never worse than contiguous on the load given: a layer that the greedy rule would not improve stays.
    """
    layers = np.atleast_2d(np.asarray(load, dtype=np.float64))  # [layer, expert]
    slots = _slots(layers.shape[-1], ranks)
    layer = np.arange(len(layers))
    order = np.argsort(-layers, axis=-1, kind="stable")
    descending = np.take_along_axis(layers, order, axis=-1)
    carried = np.zeros((len(layers), ranks))  # infinite once the rank is full
    free = np.full((len(layers), ranks), slots)
    chosen = np.empty(layers.shape, dtype=np.int64)
    for place in range(layers.shape[-1]):
        rank = carried.argmin(axis=-1)
        chosen[:, place] = rank
        free[layer, rank] -= 1
        carried[layer, rank] += np.where(free[layer, rank] > 0, descending[:, place], np.inf)
    owner = np.empty_like(chosen)
    np.put_along_axis(owner, order, chosen, axis=-1)
    plain = contiguous(layers, ranks)
    worse = by_rank(layers, owner, ranks).max(axis=-1) >= by_rank(layers, plain, ranks).max(axis=-1)
    return np.asarray(np.where(worse[:, None], plain, owner).reshape(load.shape))


PLACEMENTS: Final[dict[str, Callable[[FloatArray, int], IntArray]]] = {
    "contiguous": contiguous,
    "balanced": balanced,
}


def replicated(shares: FloatArray, slots: int) -> IntArray:
    """``shares[..., expert]`` -> the expert that each of ``slots`` holds, ``[..., slot]``.

    The first slots hold the experts themselves; each further one goes to the expert whose replicas have most to do, as
    in EPLB (deepseek-ai/eplb, replicate_experts). Replicas share an expert's tokens evenly.
    """
    loads = np.atleast_2d(np.asarray(shares, dtype=np.float64))
    layers, experts = loads.shape
    if slots < experts:
        raise MoesimError(f"{slots} slots for {experts} experts: give at least one slot an expert")
    origin = np.empty((layers, slots), dtype=np.int64)
    origin[:, :experts] = np.arange(experts)
    each, replicas = loads.copy(), np.ones(loads.shape)
    layer = np.arange(layers)
    for slot in range(experts, slots):
        heaviest = each.argmax(axis=-1)
        origin[:, slot] = heaviest
        replicas[layer, heaviest] += 1
        each[layer, heaviest] = loads[layer, heaviest] / replicas[layer, heaviest]
    return origin.reshape(*np.shape(shares)[:-1], slots)


def by_rank(amount: NDArray[Number], owner: IntArray, ranks: int) -> NDArray[Number]:
    """Sum over each rank's experts: amount[..., expert], owner[expert] or [..., expert] -> [..., rank]."""
    slots = _slots(amount.shape[-1], ranks)
    order = np.argsort(owner, axis=-1, kind="stable")
    if order.ndim == 1:
        grouped = amount[..., order]
    else:
        grouped = np.take_along_axis(amount, np.broadcast_to(order, amount.shape), axis=-1)
    return np.asarray(grouped.reshape(*amount.shape[:-1], ranks, slots).sum(axis=-1))


def _slots(experts: int, ranks: int) -> int:
    if ranks < 1 or experts % ranks:
        raise MoesimError(f"{experts} experts do not divide over {ranks} ranks: choose ranks that divide {experts}")
    return experts // ranks
