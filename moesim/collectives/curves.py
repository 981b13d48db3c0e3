"""Measured NCCL curves inside a node: seconds by operation, ranks and bytes.

Between two measured sizes: a straight line in log-log. Below the smallest: its time (latency). Above the
largest: its bandwidth. A larger message never takes less time: a spike below a faster, larger message is
taken as noise.

Other numbers of ranks are read at equal *wire* bytes, ``bytes x (n-1)/n`` (twice that for all-reduce),
which every rank sends on its link, and interpolated between the two nearest measured numbers of ranks.

A table that ``moesim calibrate`` wrote for the cluster's GPU goes before all others. A GPU without one takes
the table of the nearest measured one and scales what is not latency by the ratio of the links' achieved
bandwidths: *estimated*, with a wider band, and never faster than the links' data sheet.
"""

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from moesim.cluster import CLUSTERS, Cluster
from moesim.collectives.steps import floor_share, once_around, ring
from moesim.cost import BASIS, ESTIMATED, Basis, Cost, FloatArray, cost
from moesim.errors import MoesimError, choice
from moesim.profile import own_table, shipped_folder, slug
from moesim.units import US

COLUMNS: Final = ("op", "ranks", "bytes", "library", "time_us", "basis", "source")
OPS: Final = ("all_gather", "all_reduce", "reduce_scatter", "all_to_all")
# 1.645 x the rms error on held-out sizes (moesim validate): 10 % with NVLink, 14 % with PCIe and wide tails.
BAND: Final = {"nvlink": 0.17, "pcie": 0.30}
OTHER_RANKS_BAND: Final = 0.25  # between measured numbers of ranks
TWIN_BAND: Final = 0.30  # the curve of another GPU with an equal link
CARRIED_BAND: Final = 0.40  # of another GPU with another link, or beyond the measured numbers of ranks
# Whose curves stand in, by link kind and architecture, and the preset whose link they were measured on.
_DONORS: Final = {
    ("nvlink", "ampere"): "dgx-a100",
    ("nvlink", "hopper"): "dgx-h100",
    ("nvlink", "blackwell"): "hgx-b200",
    ("pcie", ""): "pcie-l40s",
}


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Curve:
    """Seconds of one operation on ``ranks`` GPUs by bytes, both ascending."""

    ranks: int
    log_bytes: FloatArray
    log_s: FloatArray

    @property
    def launch_s(self) -> float:
        """Time of the smallest message."""
        return float(np.exp(self.log_s[0]))

    def seconds(self, size_bytes: FloatArray) -> FloatArray:
        """Interpolated seconds."""
        log_size = np.log(np.maximum(size_bytes, 1.0))
        beyond = np.maximum(log_size - self.log_bytes[-1], 0.0)
        return np.asarray(np.exp(np.interp(log_size, self.log_bytes, self.log_s) + beyond))


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Curves:
    """One operation on one cluster's node: curves by ranks, and how they apply to it."""

    curves: tuple[Curve, ...]  # ascending ranks
    slower: float  # the measured link's bandwidth over this one's
    basis: Basis
    band: float
    source: str


def in_node(cluster: Cluster, op: str, ranks: int, size_bytes: FloatArray | float) -> Cost:
    """Seconds of ``op`` on ``ranks`` GPUs of one node, bounded by the data-sheet peak."""
    if op not in OPS:
        raise choice("collective", op, OPS)
    if not 1 <= ranks <= cluster.gpus_per_node:
        raise MoesimError(f"{op} on {ranks} ranks of one {cluster.name} node: choose 1 to {cluster.gpus_per_node}")
    if cluster.fabric.inside != "switch" and ranks > 1:
        raise MoesimError(f"{op} in a {cluster.fabric.inside} has no measured curve: ask all_reduce() and its like")
    size = np.asarray(size_bytes, dtype=np.float64)
    kind = cluster.scale_up.kind
    if ranks == 1:
        zero = np.zeros_like(size)
        return cost(zero, 0.0, zero, kind, BASIS[cluster.scale_up.basis], "one rank exchanges nothing")
    known = node_curves(cluster, op)
    launch_s = float(_across_ranks(known.curves, op, ranks, np.zeros(())))
    seconds = _across_ranks(known.curves, op, ranks, size)
    seconds = launch_s + (seconds - launch_s) * known.slower
    bound_s = floor_share(cluster, op, ranks) * size / cluster.scale_up.peak_bytes_per_s
    if known.slower != 1.0:
        seconds = np.maximum(seconds, bound_s)
    return cost(
        seconds,
        _band(known, ranks),
        bound_s,
        kind if np.mean(seconds) > 2 * launch_s else "launch",
        known.basis,
        known.source,
    )


def wire_share(op: str, ranks: int) -> float:
    """Bytes that a rank sends in a ring over the message size: nccl-tests' bus-bandwidth factor."""
    return (ring if op == "all_reduce" else once_around)(ranks).share


def _band(known: Curves, ranks: int) -> float:
    measured = [curve.ranks for curve in known.curves]
    if ranks in measured:
        return known.band
    return max(known.band, OTHER_RANKS_BAND if ranks < measured[-1] else CARRIED_BAND)


def node_curves(cluster: Cluster, op: str) -> Curves:
    """The curves of ``op`` for one node of this cluster: its own, or those of the nearest measured GPU."""
    up = cluster.scale_up
    own = own_table(cluster.gpu.name, "collectives")
    if own is not None and any(row["op"] == op for row in _rows(own)):
        curves, basis, source = _read_curves(own, cluster.gpu.name, op)
        return Curves(curves=curves, slower=1.0, basis=BASIS[basis], band=BAND[up.kind], source=source)
    donor = CLUSTERS[_DONORS.get((up.kind, cluster.gpu.architecture if up.kind == "nvlink" else ""), "dgx-h100")]
    slower = donor.scale_up.bandwidth_bytes_per_s / up.bandwidth_bytes_per_s
    curves, basis, source = read_curves(donor.gpu.name, op)
    equal = abs(slower - 1.0) < 0.01
    if equal and donor.gpu.name == cluster.gpu.name:
        return Curves(curves=curves, slower=1.0, basis=BASIS[basis], band=BAND[up.kind], source=source)
    band = TWIN_BAND if equal else CARRIED_BAND
    carried = f"carried over from {donor.gpu.name} at {1 / slower:.2f} of its link bandwidth: {source}"
    return Curves(curves=curves, slower=slower, basis=ESTIMATED, band=band, source=carried)


def read_curves(gpu: str, op: str) -> tuple[tuple[Curve, ...], str, str]:
    """The measured curves of one GPU and operation, with their basis and source."""
    return _read_curves(shipped_folder() / slug(gpu) / "collectives.csv", gpu, op)


def measured_rows(gpu: str) -> tuple[dict[str, str], ...]:
    """The lines of the table that prices a GPU's node, the user's own before the shipped one; none without one."""
    path = own_table(gpu, "collectives") or shipped_folder() / slug(gpu) / "collectives.csv"
    return _rows(path) if path.is_file() else ()


@lru_cache(maxsize=64)
def _read_curves(path: Path, gpu: str, op: str) -> tuple[tuple[Curve, ...], str, str]:
    rows = [row for row in _rows(path) if row["op"] == op]
    if not rows:
        raise MoesimError(f"{path} has no rows of {op}: restore it")
    curves = []
    for ranks in sorted({int(row["ranks"]) for row in rows}):
        points = sorted((float(r["bytes"]), float(r["time_us"])) for r in rows if int(r["ranks"]) == ranks)
        size, time_us = np.array(points).T
        time_us = np.minimum.accumulate(time_us[::-1])[::-1]  # never slower than a larger message
        curves.append(Curve(ranks=ranks, log_bytes=np.log(size), log_s=np.log(time_us * US)))
    return tuple(curves), rows[0]["basis"], f"{rows[0]['library']} on {gpu}, {rows[0]['source']}"


def _across_ranks(curves: tuple[Curve, ...], op: str, ranks: int, size_bytes: FloatArray) -> FloatArray:
    """At equal wire bytes, log-log between the nearest measured numbers of ranks; the last one beyond."""
    below = [c for c in curves if c.ranks <= ranks] or [curves[0]]
    above = [c for c in curves if c.ranks >= ranks] or [curves[-1]]
    low, high = below[-1], above[0]
    wire = wire_share(op, ranks) * size_bytes
    at_low = low.seconds(wire / wire_share(op, low.ranks))
    if low.ranks == high.ranks:
        return at_low
    at_high = high.seconds(wire / wire_share(op, high.ranks))
    share = np.log(ranks / low.ranks) / np.log(high.ranks / low.ranks)
    return np.asarray(at_low * (at_high / at_low) ** share)


@lru_cache(maxsize=16)
def _rows(path: Path) -> tuple[dict[str, str], ...]:
    """The table's lines, with every column there and every number above zero."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = tuple(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise MoesimError(f"cannot read {path}: {error}; restore it") from None
    for line, row in enumerate(rows, 2):
        for column in COLUMNS:
            if row.get(column) is None:
                raise MoesimError(f"{path} line {line} has no {column!r}: its columns are {', '.join(COLUMNS)}")
        for column in ("ranks", "bytes", "time_us"):
            if not row[column].replace(".", "", 1).isdigit() or float(row[column]) <= 0:
                raise MoesimError(f"{path} line {line} column {column!r}: {row[column]!r} must be a number above 0")
    return rows
