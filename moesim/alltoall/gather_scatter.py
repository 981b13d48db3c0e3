"""AG/RS: every rank gets every token (all-gather), and outputs are summed on the way home (reduce-scatter).

    dispatch = all_gather(R x T x token_bytes)        combine = reduce_scatter(R x T x token_bytes)

Routing does not change it: no skew, but R/h times the bytes of an exchange that sends each token once to
each of its h ranks (1.5x at 8 ranks, 8.3x at 64 with top-8 of 256). vLLM's default for expert parallelism.
"""

import numpy as np

from moesim.alltoall.traffic import Traffic
from moesim.cluster import Cluster, Group
from moesim.collectives import all_gather, reduce_scatter
from moesim.cost import Cost


def gather_scatter(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Seconds of the collective; equal for every draw of the routing."""
    everything_bytes = np.ones(traffic.pairs.shape) * group.size * traffic.tokens * traffic.token_bytes
    collective = all_gather if direction == "dispatch" else reduce_scatter
    return collective(cluster, group, everything_bytes)
