"""Seconds of all-reduce, all-gather, reduce-scatter and point to point.

    inside a node    the measured NCCL curve of this GPU, operation and group size      curves
    across nodes     launch + steps x step latency + max(NVLink part, NIC part)         hierarchical

Message sizes follow nccl-tests: all-gather counts the gathered output, reduce-scatter its input,
all-reduce the buffer. All functions take arrays of bytes. A group of one rank costs nothing.
"""

from moesim.collectives.curves import in_node, measured_rows
from moesim.collectives.hierarchical import all_gather, all_reduce, point_to_point, reduce_scatter

__all__ = ["all_gather", "all_reduce", "in_node", "measured_rows", "point_to_point", "reduce_scatter"]
