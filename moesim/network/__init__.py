"""Where bytes wait: what every link carries, and how long that takes.

    copies[src, dst]  --fabric, route-->  load of each link  --busiest-->  waits by kind of link

pairs       Dense and Product traffic, and the sums of it that links carry
links       the families of links of a group, their worth, their loads; waits
torus       loads of a torus, dimension after dimension
wires       loads of any graph, over all shortest ways
maxmin      max-min fair rates of flows that share links; when each flow ends
ways        the flows of drawn routing: which links each pair crosses
classes     the same folded into load classes, for 100,000 ranks
contention  how much longer than its busiest link an all-to-all takes
events      the same links under a SimPy clock: late ranks, exchanges that compete
jitter      how late the last of many ranks is
"""

from moesim.network.contention import contention
from moesim.network.links import (
    Route,
    bytes_per_s,
    families,
    forwards,
    inside_loads,
    leaf_of,
    loads,
    longest,
    nic_of,
    waits,
)
from moesim.network.maxmin import Flows, ends
from moesim.network.pairs import Dense, Pairs, Product
from moesim.network.ways import pair_flows

__all__ = [
    "Dense", "Flows", "Pairs", "Product", "Route", "bytes_per_s", "contention", "ends", "families", "forwards",
    "inside_loads", "leaf_of", "loads", "longest", "nic_of", "pair_flows", "waits",
]  # fmt: skip
