"""How often, and how much of the message, a rank sends in each algorithm; n ranks, S bytes.

    all-reduce       ring   2 (n-1) steps          2 (n-1)/n S    reduce-scatter, then all-gather
                     tree   2 ceil(log2 n) steps   2 S            to the root and back
                     nvls   2 steps                (n+1)/n S      the switch sums: n ranks read S/n each through it
    all-gather, reduce-scatter      n-1 steps      (n-1)/n S      a ring once around

Sources: NCCL src/graph/tuning.cc and src/device/all_reduce.h (2026-06-11); nccl-tests doc/PERFORMANCE.md. On H200 with
NCCL 2.27.7 all-reduce of 8 GiB moves (n+1)/n S at 304-310 GB/s on 5 to 8 GPUs, and 2 (n-1)/n S at 364 GB/s with NVLS
switched off (stas00/ml-engineering 744d01e): so NVLS pays from 5 GPUs on.
"""

from collections.abc import Callable
from math import ceil, log2
from typing import Final, NamedTuple

import numpy as np

from moesim.cluster import Cluster
from moesim.cost import FloatArray

NVLS: Final = ("hopper", "blackwell")  # their NVSwitch sums


class Moves(NamedTuple):
    """Steps one after another, and what a rank sends in all of them as a share of the message."""

    steps: int
    share: float


def ring(ranks: int) -> Moves:
    """All-reduce around a ring, twice."""
    return Moves(2 * (ranks - 1), 2.0 * (ranks - 1) / ranks)


def tree(ranks: int) -> Moves:
    """All-reduce up a binary tree and down again; NCCL's second tree takes the idle half of the links."""
    return Moves(2 * ceil(log2(ranks)), 2.0)


def nvls(ranks: int) -> Moves:
    """All-reduce by the switch: everybody's share of the buffer is read through it and written back to all."""
    return Moves(2, (ranks + 1) / ranks)


def once_around(ranks: int) -> Moves:
    """All-gather and reduce-scatter."""
    return Moves(ranks - 1, (ranks - 1) / ranks)


ALL_REDUCE: Final[dict[str, Callable[[int], Moves]]] = {"ring": ring, "tree": tree, "nvls": nvls}
_LINKS: Final = {"all_reduce": (ring, tree)}  # without a switch that sums


def fastest(
    op: str, ranks: int, size_bytes: FloatArray, step_s: float, s_per_byte: float
) -> tuple[FloatArray, FloatArray]:
    """Seconds of steps and of moving of the algorithm that is done first, for each size."""
    moves = [algorithm(ranks) for algorithm in _LINKS.get(op, (once_around,))]
    latency_s = np.array([each.steps * step_s for each in moves]).reshape(-1, *(1,) * size_bytes.ndim)
    moving_s = np.stack([each.share * size_bytes * s_per_byte for each in moves])
    best = np.argmin(latency_s + moving_s, axis=0)
    return (
        np.asarray(np.choose(best, np.broadcast_to(latency_s, moving_s.shape))),
        np.asarray(np.choose(best, moving_s)),
    )


def floor_share(cluster: Cluster, op: str, ranks: int) -> float:
    """What a rank of a node must send at least, by the best algorithm that its links can carry."""
    if op != "all_reduce":
        return once_around(ranks).share
    up = cluster.scale_up
    sums = up.kind == "nvlink" and cluster.fabric.inside == "switch" and cluster.gpu.architecture in NVLS
    return min(ALL_REDUCE[name](ranks).share for name in (("ring", "nvls") if sums else ("ring",)))
