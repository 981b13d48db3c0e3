"""Hybrid-EP: DeepEP normal's route with another kernel: an SM takes a token once for its node, whoever needs it there.

    seconds = start + joined(SM load, NVLink load / B_v, NIC load / B_n)                            (deepep)
    SM load   copies for distinct nodes, the own among them, x (copy time + b / SM bandwidth) / s

Bulk copies (TMA) read a token once and write it to each of the node's GPUs, so few SMs fill the links. Between
nodes the GPUs of a rail send to each other over the NIC. Source: DeepEP, branch hybrid-ep (NVIDIA), docs.
"""

from moesim.alltoall.deepep import priced
from moesim.alltoall.libraries import LIBRARIES, find
from moesim.alltoall.traffic import Traffic
from moesim.cluster import Cluster, Group
from moesim.cost import Cost


def hybrid(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """Each token crosses a link once; SMs count nodes."""
    kernel, own = find(*LIBRARIES["hybrid_ep"], direction, cluster)
    return priced(cluster, group, traffic, kernel, own)
