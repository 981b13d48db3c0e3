"""Exchanges of tokens and collectives between nodes: predicted against published.

Without a folder: the figures in cited/. With one: every row of its ``comm_deepep_aic.csv``,
``comm_ep_published.csv`` and ``comm_trtllm_alltoall_gb200_aic.csv`` (network_rows), ``comm_nccl_published.csv`` and
``comm_vidur.csv`` (network_collectives). Rows that constants were fitted on, older states of a case, withdrawn and
broken ones are skipped with the reason.

The headline is the kernel alone on four nodes and more, over InfiniBand or what equals it. Groups of their own: one,
two and three nodes, EFA, calls that include more than the kernel, reports of users, a GPU that the source leaves open.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.alltoall.deepep import priced
from moesim.alltoall.libraries import find
from moesim.alltoall.traffic import turned
from moesim.cost import ESTIMATED
from moesim.errors import MoesimError
from moesim.units import US
from moesim.validate.figures import SHIPPED, Row, frame, gpu_name
from moesim.validate.network_collectives import collective_lines
from moesim.validate.network_rows import Case, Found, domains, read

if TYPE_CHECKING:
    import pandas as pd

FITTED: Final = "the constants are fitted on it"
HEADLINE_NODES: Final = 4
_WHERE: Final = {1: "one node", 2: "two nodes", 3: "three nodes"}
_MECHANISM: Final = {"normal": "throughput", "by_node": "throughput", "low_latency": "low latency"}
_NAN: Final = float("nan")


def judge(data: Path | None) -> "pd.DataFrame":
    """One line per published row, in us."""
    folder = SHIPPED if data is None else data
    lines = [_line(found) for found in read(folder)] + collective_lines(folder)
    return frame(lines).sort_values(["group", "case"], ignore_index=True)


def _line(found: Found) -> dict[str, Any]:
    row, case = found.row, found.case
    line: dict[str, Any] = {
        "group": _group(found), "case": _text(row), "measured": _NAN, "predicted": _NAN, "low": _NAN, "high": _NAN,
        "unit": "us", "skipped": found.skipped, "source": str(row["source"]), "block": "", "headline": _headline(found),
    }  # fmt: skip
    if case is None:
        return line
    line["measured"] = case.measured.time_us
    try:
        line |= _predicted(case)
    except MoesimError as why:
        return line | {"skipped": found.skipped or f"moesim cannot express it: {why}"}
    return line | {"skipped": found.skipped or (FITTED if case.measured.fitted else "")}


def _predicted(case: Case) -> dict[str, Any]:
    kernel, own = find(
        case.measured.library, case.measured.mechanism, case.direction, case.cluster, case.measured.release
    )
    traffic = case.traffic if case.direction == "dispatch" else turned(case.traffic)
    cost = priced(case.cluster, case.group, traffic, kernel, own, case.measured.sms)
    found = {"predicted": float(cost.seconds) / US, "low": float(cost.low) / US, "high": float(cost.high) / US}
    return found if cost.basis is not ESTIMATED else found | {"headline": False}


def _headline(found: Found) -> bool:
    """The kernel alone, four nodes and more; skipped rows are shown with it."""
    row, case = found.row, found.case
    nodes = domains(row)
    apart = "EFA" in str(row.get("fabric")) or "not stated" in str(row["gpu"])
    return nodes >= HEADLINE_NODES and not apart and (case is None or case.measured.scope == "")


def _group(found: Found) -> str:
    row, case = found.row, found.case
    gpu = gpu_name(str(row["gpu"]))
    if case is None:
        return f"{row['library']} {row['op']} on {gpu}"
    nodes = domains(row)
    where = _WHERE.get(nodes, "four nodes and more")
    parts = [f"{_name(row, case)} {_MECHANISM[case.measured.mechanism]} {case.direction} on {gpu}, {where}"]
    if "EFA" in str(row.get("fabric")) and nodes > 1:
        parts.append("EFA")
    if case.measured.scope:
        parts.append(case.measured.scope)
    return ", ".join(parts)


def _name(row: Row, case: Case) -> str:
    """The library, with its release where it is not the newest."""
    name = str(row["library"]).split(" (")[0]
    if case.measured.library.startswith("trtllm"):
        return f"TRT-LLM {name}" + (" in a tray" if case.group.size <= HEADLINE_NODES else "")
    return " ".join(dict.fromkeys((*name.split(), *case.measured.release.split())))


def _text(row: Row) -> str:
    """What tells a row from the others of its group."""
    named = (
        ("ranks", "ranks"), ("tokens_per_rank", "tokens"), ("hidden", "hidden"), ("topk", "top-k"),
        ("num_experts", "experts"), ("dtype", ""), ("sms", "SMs"), ("num_sms", "SMs"),
    )  # fmt: skip
    cells = [(row.get(name), unit) for name, unit in named]
    return ", ".join(f"{_plain(value)} {unit}".rstrip() for value, unit in cells if value is not None)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
