"""The wires of a ``graph`` fabric: read from a CSV file, and checked to join every GPU of the node.

    one,other,bandwidth
    gpu0,gpu1,50GB/s
    gpu1,plx0,25GB/s

The file is text and no more: three columns, names and quantities. GPUs are gpu0, gpu1, ...; every other end is a
switch. A bandwidth is that of one direction.
"""

import csv
from pathlib import Path
from typing import Final

from moesim import units
from moesim.cluster.fabric import Wire
from moesim.cluster.graph import GPU_END
from moesim.errors import MoesimError

COLUMNS: Final = ["one", "other", "bandwidth"]


def read_wires(path: Path) -> tuple[Wire, ...]:
    """The wires of one file. MoesimError names the file, the line, the value and what to do."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MoesimError(f"cannot read the wires {path}: {error}; check the path") from None
    found = [cell.strip() for cell in rows[0]] if rows else []
    if found != COLUMNS:
        raise MoesimError(f"{path} has the columns {','.join(found) or 'none'}: begin it with {','.join(COLUMNS)}")
    wires = tuple(_wire(path, number, row) for number, row in enumerate(rows[1:], 2) if row)
    if not wires:
        raise MoesimError(f"{path} has no wires: write a line for each")
    return wires


def _wire(path: Path, number: int, row: list[str]) -> Wire:
    try:
        if len(row) != len(COLUMNS):
            raise MoesimError(f"{len(row)} values: give {', '.join(COLUMNS)}")
        one, other, bandwidth = (cell.strip() for cell in row)
        if not one or not other:
            raise MoesimError("a wire without an end: name both")
        return Wire(one=one, other=other, bandwidth_bytes_per_s=units.bytes_per_s(bandwidth))
    except MoesimError as error:
        raise MoesimError(f"{path} line {number}: {error}") from None


def check_wires(wires: tuple[Wire, ...], gpus: int) -> None:
    """Refuse two wires between the same ends, a GPU that is not there or has no wire, and a graph in parts."""
    import networkx as nx

    net: nx.Graph[str] = nx.Graph()
    for wire in wires:
        if net.has_edge(wire.one, wire.other):
            raise MoesimError(
                f"fabric.wires: two wires between {wire.one} and {wire.other}: write one with their bandwidth together"
            )
        net.add_edge(wire.one, wire.other)
    there = {f"gpu{rank}" for rank in range(gpus)}
    for end in net:
        if GPU_END.fullmatch(end) and end not in there:
            raise MoesimError(f"fabric.wires: a wire to {end} with gpus_per_node {gpus}: name gpu0 to gpu{gpus - 1}")
    for rank in range(gpus):
        if f"gpu{rank}" not in net:
            raise MoesimError(f"fabric.wires: gpu{rank} has no wire: connect it, or give fewer gpus_per_node")
    parts = sorted(sorted(part)[0] for part in nx.connected_components(net))
    if len(parts) > 1:
        raise MoesimError(
            f"fabric.wires: no way from {parts[0]} to {parts[1]}: connect the {len(parts)} parts of the graph"
        )
