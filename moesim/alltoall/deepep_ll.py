"""DeepEP low latency: a copy for each expert of a token, from the source's NIC straight to its rank: for decode.

    seconds = start + joined(SM load, NVLink load / B_v, NIC load / B_n)                            (deepep)
    start     a + experts x e + between nodes (a_n + f (N-1)/N): every expert's tokens are counted

No step inside the node and no counts to wait for first: fewer microseconds and more bytes than ``normal``. Source:
DeepEP README, low-latency kernels.
"""

from moesim.alltoall.deepep import priced
from moesim.alltoall.libraries import LIBRARIES, find
from moesim.alltoall.traffic import Traffic
from moesim.cluster import Cluster, Group
from moesim.cost import Cost


def low_latency(cluster: Cluster, group: Group, traffic: Traffic, direction: str) -> Cost:
    """A token crosses a link for each of its experts there."""
    kernel, own = find(*LIBRARIES["deepep_ll"], direction, cluster)
    return priced(cluster, group, traffic, kernel, own)
