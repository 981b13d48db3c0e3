"""Where bytes wait: what every link carries, and how long that takes.

    copies[src, dst]  --fabric, route-->  load of each link  --busiest-->  waits by kind of link

pairs    Dense and Product traffic, and the sums of it that links carry
links    the families of links of a group, their worth, their loads; waits
torus    loads of a torus, dimension after dimension
wires    loads of any graph, over all shortest ways
"""

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
from moesim.network.pairs import Dense, Pairs, Product

__all__ = [
    "Dense", "Pairs", "Product", "Route", "bytes_per_s", "families", "forwards", "inside_loads", "leaf_of", "loads",
    "longest", "nic_of", "waits",
]  # fmt: skip
