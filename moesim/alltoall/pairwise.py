"""Pairwise, or spread-out: R - 1 steps with a barrier each; in step s rank i sends to rank i + s (MPI's classic).

    seconds = sum over s = 1 .. R-1 of [ alpha + max over links of load of step s / bandwidth ]      shifts

Equal to (R - 1) alpha + S (R - 1) / (R B) when all pairs send alike. Every step waits for its heaviest pair, so
barriers and skew do not mix: 1.1 to 1.3 times the busiest link with a spread of 0.5 among sources and destinations,
several times with sparse traffic. Source: the pairwise exchange of MPICH (Thakur, Rabenseifner and Gropp 2005). The
barrier itself is taken to cost nothing beyond alpha, the start of a send. Priced pair by pair, so up to 256 ranks.
"""

from typing import Final

import numpy as np

from moesim.alltoall.ports import BAND, busiest
from moesim.alltoall.shifts import step_start_s, step_waits, written
from moesim.alltoall.traffic import Traffic, remembered
from moesim.cluster import Cluster, Group
from moesim.cost import ESTIMATED, Cost, FloatArray, cost
from moesim.units import US

MOST_RANKS: Final = 256


def pairwise(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds of all steps, each by its busiest link."""
    copies = remembered(traffic, ("pairwise", cluster, group), lambda: _steps(cluster, group, traffic))
    token_bytes = np.asarray(traffic.token_bytes)[..., None]  # the same in every step
    size_bytes = {kind: each * token_bytes for kind, each in copies.items()}
    steps = busiest(cluster, group.per_node, size_bytes)
    moving_s, start_s = steps.seconds.sum(axis=-1), (group.size - 1) * step_start_s(cluster, group)
    return cost(
        start_s + moving_s,
        BAND,
        steps.peak_s.sum(axis=-1),
        steps.waits_for if np.mean(moving_s) > start_s else "launch",
        ESTIMATED,
        f"pairwise {direction} model: {group.size - 1} steps of {step_start_s(cluster, group) / US:.1f} us and their "
        f"busiest link; {cluster.scale_up.source}",
    )


def _steps(cluster: Cluster, group: Group, traffic: Traffic) -> dict[str, FloatArray]:
    """``[..., step]`` copies on the busiest link."""
    copies, shifts = written(traffic.pairs), np.arange(1, group.size)
    rank = np.arange(group.size)
    sent = copies[..., rank, (rank + shifts[:, None]) % group.size]
    return step_waits(cluster, group, sent, shifts)
