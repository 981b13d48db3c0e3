"""A cluster as arrays: which node and rail a GPU is on, and what its links carry.

Equal to the graph (a test compares the two). Costs use these; the graph describes and draws.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.cluster.nouns import Cluster
from moesim.cost import FloatArray

FAMILIES = ("scale_up_out", "scale_up_in", "nic_out", "nic_in")


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class LinkArrays:
    """node[gpu], rail[gpu]; capacity_bytes_per_s[family, gpu], latency_s[family]; family as in FAMILIES."""

    node: NDArray[np.int64]
    rail: NDArray[np.int64]
    capacity_bytes_per_s: FloatArray
    latency_s: FloatArray


def link_arrays(cluster: Cluster) -> LinkArrays:
    """Every GPU's own links; a cluster without NICs has zero capacity there."""
    gpu = np.arange(cluster.gpus)
    up, out = cluster.scale_up, cluster.scale_out
    nic_bytes_per_s, nic_latency_s = (out.bandwidth_bytes_per_s, out.latency_s) if out else (0.0, 0.0)
    capacity = np.array([up.bandwidth_bytes_per_s] * 2 + [nic_bytes_per_s] * 2)  # [family]
    return LinkArrays(
        node=gpu // cluster.gpus_per_node,
        rail=gpu % cluster.gpus_per_node * max(cluster.nics_per_node, 1) // cluster.gpus_per_node,
        capacity_bytes_per_s=np.repeat(capacity[:, None], cluster.gpus, axis=1),  # [family, gpu]
        latency_s=np.array([up.latency_s] * 2 + [nic_latency_s] * 2),
    )
