"""Seconds of all-reduce, all-gather, reduce-scatter and point to point.

    steps         ring, tree, NVLS: how often and how much a rank sends
    curves        the measured NCCL curve of a node's switch, by GPU, operation and group size
    inside        in a node: the curve; rings on a mesh, through a host, over wires; the dimensions of a torus
    hierarchical  across nodes: launch + steps x step latency + max(node part, rail part)

Message sizes follow nccl-tests: all-gather counts the gathered output, reduce-scatter its input,
all-reduce the buffer. All functions take arrays of bytes. A group of one rank costs nothing.
"""

from moesim.collectives.curves import in_node, measured_rows
from moesim.collectives.hierarchical import all_gather, all_reduce, point_to_point, reduce_scatter

__all__ = ["all_gather", "all_reduce", "in_node", "measured_rows", "point_to_point", "reduce_scatter"]
