"""Published collectives that no curve of a profile holds: other sources, other groups, several nodes.

comm_nccl_published.csv   tables of blogs, vendors and benchmarks; ``fabric`` names the links
comm_vidur.csv            Vidur's profiles of all-reduce and send/recv
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from moesim.alltoall import Traffic, all_to_all
from moesim.cluster import Cluster, Group
from moesim.collectives import all_gather, all_reduce, point_to_point, reduce_scatter
from moesim.cost import Cost
from moesim.errors import MoesimError
from moesim.network import Product
from moesim.units import MIB, US
from moesim.validate.figures import Row, SkipError, gpu_name, number, positive, read_tables, whole
from moesim.validate.network_rows import domains, find_cluster

TABLES: Final = ("comm_nccl_published.csv", "comm_vidur.csv")
_NEEDED: Final = ("source", "gpu", "fabric", "op", "ranks", "nodes", "bytes", "latency_us")
SMALL_BYTES: Final = 4 * MIB  # below, the start decides: torch's own call adds 30 us that nccl-tests do not see
_NAN: Final = float("nan")


def collective_lines(folder: Path) -> list[dict[str, Any]]:
    """A line for each row of the tables that are there."""
    rows = [row for table in TABLES if (folder / table).is_file() for row in read_tables(folder, table, _NEEDED)]
    return [_line(row) for row in rows]


def _line(row: Row) -> dict[str, Any]:
    source = str(row["source"]).split("/")[0].split(",")[0]
    nodes = domains(row)
    line: dict[str, Any] = {
        "group": f"{row['op']} on {gpu_name(str(row['gpu']))}, {'one node' if nodes == 1 else f'{nodes} nodes'}, "
        f"{'small messages, ' if number(row, 'bytes') < SMALL_BYTES else ''}{source} (estimated)",
        "case": f"{row['ranks']:g} ranks, {row['bytes']:g} bytes, {row['fabric']}",
        "measured": _NAN, "predicted": _NAN, "low": _NAN, "high": _NAN, "unit": "us", "skipped": "",
        "source": str(row["source"]), "block": "", "headline": False,
    }  # fmt: skip
    try:
        line["measured"] = positive(row, "latency_us")
        cost = _predicted(row, nodes)
    except SkipError as why:
        return line | {"skipped": str(why)}
    except MoesimError as why:
        return line | {"skipped": f"moesim cannot express it: {why}"}
    found = {"predicted": cost.seconds, "low": cost.low, "high": cost.high}
    return line | {name: float(value) / US for name, value in found.items()}


def _predicted(row: Row, nodes: int) -> Cost:
    fabric, ranks = str(row["fabric"]), whole(row, "ranks")
    for word, reason in (
        ("not stated", "the source does not say what joins the nodes"),
        ("NVLS off", "NVLS is switched off: curves are NCCL's own choice"),
        ("bridge", "GPUs joined in pairs: no preset"),
    ):
        if word in fabric:
            raise SkipError(reason)
    cluster = find_cluster(str(row["gpu"]), ranks, nodes)
    if str(row["op"]) not in _OPS:
        raise SkipError(f"moesim has no collective {row['op']}")
    return _OPS[str(row["op"])](cluster, Group(size=ranks, per_node=ranks // nodes), number(row, "bytes"))


def _send(cluster: Cluster, group: Group, size_bytes: float) -> Cost:
    return point_to_point(cluster, size_bytes, group.nodes == 1)


def _exchange(cluster: Cluster, group: Group, size_bytes: float) -> Cost:
    """NCCL's grouped send/recv: each rank's buffer goes evenly to all ranks."""
    even = Product(sent=np.ones(group.size), share=np.full(group.size, 1.0 / group.size))
    return all_to_all(cluster, group, Traffic(pairs=even, tokens=1.0, token_bytes=size_bytes), "linear")


_OPS: Final[dict[str, Callable[[Cluster, Group, float], Cost]]] = {
    "all_reduce": all_reduce, "all_gather": all_gather, "reduce_scatter": reduce_scatter, "send_recv": _send,
    "alltoall": _exchange, "all_to_all": _exchange,
}  # fmt: skip
