"""meta.json and cluster.yaml: what was measured, on what, and how a plan finds it."""

import json
import sys
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import numpy as np

from moesim import __version__
from moesim.calibrate.machine import Clocks, Machine, installed
from moesim.calibrate.points import TABLES
from moesim.calibrate.store import Store, skipped_text
from moesim.cluster import CLUSTERS

_MOST_LATENCY_S: Final = 0.01  # of a link in a cluster file


class Session(NamedTuple):
    """What is known of a run when it ends."""

    command: str
    quick: bool
    seed: int
    seconds_spent: float  # of all runs of this profile
    by_events: int  # points timed without a graph


def meta(machine: Machine, store: Store, clocks: Clocks, session: Session) -> dict[str, Any]:
    """The document meta.json."""
    day = datetime.now(UTC).date().isoformat()
    source = f"moesim {__version__} calibrate on {machine.full_name}, {day}"
    tables = [table for table, rows in store.rows.items() if rows and table != "peaks"]
    peaks = {row[0]: float(row[1]) for row in store.rows["peaks"].values()}
    return {
        "gpu": data_sheet(machine, store),
        "gpu_source": machine.source,
        "tables": {table: {"basis": "measured", "source": source, "rows": len(store.rows[table])} for table in tables},
        "device": machine.full_name,
        "driver": clocks.driver or store.meta.get("driver", ""),
        "clocks": clocks.summary() or store.meta.get("clocks", {}),
        "torch": installed("torch"),
        "triton": installed("triton"),
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "numpy": np.__version__,
        "date": day,
        "command": session.command,
        "quick": session.quick,
        "seed": session.seed,
        "seconds_spent": round(session.seconds_spent, 1),
        "peaks_measured": peaks,
        "timed_by_events": session.by_events,
        "skipped": skipped_text(store.skipped),
        "identity": store.identity,
        "format": 1,
    }


def data_sheet(machine: Machine, store: Store) -> dict[str, Any]:
    """The gpu of meta.json: as stated, and the highest measured rates where nothing is stated."""
    return {
        "name": machine.name,
        "architecture": machine.architecture,
        "memory_bytes_per_s": machine.memory_bytes_per_s or _best(store, "copy_bytes_per_s", _gemm_bytes),
        "flops": machine.flops or {"bf16": _best(store, "gemm_bf16_flops", _gemm_flops)},
        "sms": machine.sms,
        "l2_bytes": machine.l2_bytes,
    }


def _gemm_flops(m: float, n: float, k: float) -> float:
    return 2.0 * m * n * k


def _gemm_bytes(m: float, n: float, k: float) -> float:
    return 2.0 * (m * k + n * k + m * n)


def _best(store: Store, peak: str, work: Any) -> float:
    """The peak that was measured, or what a GEMM reached beyond it."""
    asked = len(TABLES["gemm"].asked)
    rows = [row for row in store.rows["gemm"].values() if row[1] == "bf16"]
    reached = [work(*(float(cell) for cell in row[2:asked])) / (float(row[asked]) * 1e-6) for row in rows]
    return max([*(float(row[1]) for row in store.rows["peaks"].values() if row[0] == peak), *reached], default=1.0)


def cluster_file(machine: Machine, store: Store) -> str:
    """This machine as a cluster file of ``moesim plan --cluster``."""
    sheet = data_sheet(machine, store)
    flops = ", ".join(f"{dtype}: {rate / 1e9:.6f}GFLOP/s" for dtype, rate in sheet["flops"].items())
    gpu = [
        f"  name: {json.dumps(machine.name)}",
        f"  architecture: {json.dumps(machine.architecture)}",
        f"  memory: {machine.memory_bytes / 2**30:.3f}GiB",
        f"  memory_bandwidth: {sheet['memory_bytes_per_s'] / 1e9:.6f}GB/s",
        f"  flops: {{{flops}}}",
        f"  sms: {machine.sms}",
        f"  l2: {machine.l2_bytes / 2**20:.3f}MiB",
        f"  source: {json.dumps(machine.source)}",
    ]
    link = [f"  {key}: {value}" for key, value in _link(machine, store).items()]
    return "\n".join(
        [
            f"name: {json.dumps(machine.slug)}",
            "gpu:", *gpu,
            "nodes: 1",
            f"gpus_per_node: {machine.gpus}",
            "scale_up:", *link,
            f"source: {json.dumps(f'moesim {__version__} calibrate')}",
            "",
        ]
    )  # fmt: skip


def _link(machine: Machine, store: Store) -> dict[str, str]:
    """The link inside this machine: measured between its processes, a preset's, or that of pinned copies."""
    preset = next((one.scale_up for one in CLUSTERS.values() if one.gpu.name == machine.name), None)
    rows = list(store.rows["collectives"].values())
    if rows and machine.device == "cpu":
        return _measured_link(rows)
    if preset is not None:
        rates = (preset.latency_s, preset.bandwidth_bytes_per_s, preset.peak_bytes_per_s)
        return _link_text(preset.kind, rates, preset.basis, preset.source)
    asked = len(TABLES["copies"].asked)
    pinned = [row for row in store.rows["copies"].values() if row[0] != "device_to_device"] or list(
        store.rows["copies"].values()
    )
    rate = max((float(row[1]) / (float(row[asked]) * 1e-6) for row in pinned), default=10e9)
    return _link_text("pcie", (20e-6, rate, rate), "estimated", "rate of copies; 20 us of latency assumed")


def _measured_link(rows: list[list[str]]) -> dict[str, str]:
    """Latency of the smallest exchange, rate of the largest, peak that no row exceeds."""
    exchanges = [(float(size), int(ranks), float(time_us) * 1e-6) for _, ranks, size, _, time_us, *_ in rows]
    sent = [
        (size if row[0] == "all_reduce" else size * (n - 1) / n, t)
        for row, (size, n, t) in zip(rows, exchanges, strict=True)
    ]
    latency_s = min(min(t for _, _, t in exchanges), _MOST_LATENCY_S)
    peak = max(wire / t for wire, t in sent)
    largest = max(wire for wire, _ in sent)
    rate = max(wire / t for wire, t in sent if wire >= largest / 2)
    return _link_text("pcie", (latency_s, rate, peak), "measured", rows[0][-1])


def _link_text(kind: str, rates: tuple[float, float, float], basis: str, source: str) -> dict[str, str]:
    latency_s, rate, peak = rates
    return {
        "kind": kind,
        "latency": f"{latency_s * 1e6:.4f}us",
        "bandwidth": f"{rate / 1e9:.9f}GB/s",
        "peak": f"{max(rate, peak) / 1e9:.9f}GB/s",
        "basis": basis,
        "source": json.dumps(source),
    }
