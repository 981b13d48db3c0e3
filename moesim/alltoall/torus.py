"""Torus: the exchange of a TPU pod, dimension after dimension, each along the shorter way round.

    seconds = a + max over links of load / bandwidth of a link in one direction      network.torus

With equal traffic of S bytes a rank and one rank a place, the longest side has d places and every link of it carries
S d / 8 per direction: the time doubles from a square to the next rectangle and stays the same to the next square.
The latency of the link is that of the whole exchange, as fitted to GShard's (Lepikhin et al. 2020) measured exchanges.
Only a torus is crossed so, and no other algorithm crosses it.
"""

from moesim.alltoall.ports import link_copies, node_exchange
from moesim.alltoall.traffic import Traffic
from moesim.cluster import Cluster, Group
from moesim.cost import Cost


def torus(cluster: Cluster, group: Group, traffic: Traffic, _: str) -> Cost:
    """Seconds by the busiest link."""
    copies = link_copies(cluster, group, traffic).copies["up"]
    return node_exchange(cluster, group.size, copies * traffic.token_bytes)
