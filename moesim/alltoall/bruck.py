"""Bruck: log2 R steps; in step j a rank sends all blocks whose way still holds 2^j to the rank 2^j places on.

    seconds = sum over the ceil(log2 R) steps of [ alpha + S/2 / B ] + (2 + log2 R) S / B_m      shifts

Every block travels log2(R)/2 times, so it is for small messages only. All blocks of a step have one size: with skew
they are padded to the largest, S = R x the largest block. B_m is the achieved copy bandwidth of memory (2dh): a step
reads and writes the half of the buffer that it packs, a last rotation reads and writes all of it; the first rotation
is part of the first packing. Source: Bruck et al., IEEE TPDS 8(11), 1997; as in MPICH (Thakur et al. 2005).
"""

from functools import lru_cache
from math import ceil, log2
from typing import cast

import numpy as np

from moesim.alltoall.hierarchical import COPY_SHARE
from moesim.alltoall.ports import BAND, busiest
from moesim.alltoall.shifts import step_start_s, step_waits
from moesim.alltoall.traffic import Traffic, remembered
from moesim.cluster import Cluster, Group
from moesim.cost import ESTIMATED, Cost, FloatArray, cost
from moesim.network import Dense, Pairs, Product
from moesim.units import US


def bruck(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds of all steps and of the packing between them."""
    block_bytes = remembered(traffic, "block", lambda: largest_block(traffic.pairs)) * traffic.token_bytes
    steps = busiest(
        cluster, group.per_node,
        {kind: block_bytes[..., None] * each for kind, each in blocks_on_links(cluster, group).items()},
    )  # fmt: skip
    moving_s, start_s = steps.seconds.sum(axis=-1), steps_of(group) * step_start_s(cluster, group)
    touched_bytes = (2 + log2(group.size)) * group.size * block_bytes
    peak_copies_s = touched_bytes / cluster.gpu.memory_bytes_per_s
    phases = {"launch": start_s, "memory": np.mean(peak_copies_s / COPY_SHARE), steps.waits_for: np.mean(moving_s)}
    return cost(
        start_s + moving_s + peak_copies_s / COPY_SHARE,
        BAND,
        steps.peak_s.sum(axis=-1) + peak_copies_s,
        max(phases, key=lambda name: float(phases[name])),
        ESTIMATED,
        f"bruck {direction} model: {steps_of(group)} steps of {step_start_s(cluster, group) / US:.1f} us, blocks "
        f"padded to the largest; {cluster.scale_up.source}",
    )


def steps_of(group: Group) -> int:
    """Doublings until all ranks are reached."""
    return ceil(log2(group.size))


@lru_cache(maxsize=64)
def blocks_on_links(cluster: Cluster, group: Group) -> dict[str, FloatArray]:
    """``[step]`` blocks on the busiest link, by kind."""
    shifts = 2 ** np.arange(steps_of(group))
    blocks = (np.arange(group.size) & shifts[:, None] != 0).sum(axis=-1)
    sent = np.broadcast_to(blocks[:, None].astype(float), (len(shifts), group.size))
    return step_waits(cluster, group, sent, shifts)


def largest_block(pairs: Pairs) -> FloatArray:
    """``[...]`` copies of the pair of ranks that sends most."""
    if isinstance(pairs, Dense):
        return np.asarray(np.where(np.eye(pairs.ranks, dtype=bool), 0.0, pairs.copies).max(axis=(-2, -1)))
    product = cast(Product, pairs)
    sent, share = (np.broadcast_to(each, (*pairs.shape, pairs.ranks)) for each in (product.sent, product.share))
    busiest_source, best_share = sent.argmax(axis=-1)[..., None], share.argmax(axis=-1)[..., None]
    one = _most_but(sent, best_share) * share.max(axis=-1)
    return np.asarray(np.maximum(one, _most_but(share, busiest_source) * sent.max(axis=-1)))


def _most_but(values: FloatArray, index: np.ndarray) -> FloatArray:
    """The largest value of each row that does not stand at ``index``."""
    rest = values.copy()
    np.put_along_axis(rest, index, 0.0, axis=-1)
    return np.asarray(rest.max(axis=-1))
