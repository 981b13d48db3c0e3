"""Published exchanges of tokens as cases: which kernel on which ranks, what it sends, how long it took.

    comm_deepep_aic.csv                  DeepEP V1 on one to eight nodes, by SMs, tokens and shape
    comm_ep_published.csv                tables of READMEs; a bandwidth counts the bytes of a token once for each
                                         distinct node (NVLink: rank) it reaches, its own among them
    comm_trtllm_alltoall_gb200_aic.csv   TensorRT-LLM inside one NVLink domain; a token's experts are spread evenly

A dispatch in fp8 carries a scale for 128 values. Several states of one case (a README at different dates): the
newest is judged. A figure that a newer state repeats was not measured again and belongs to the older release.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from moesim.alltoall import Traffic
from moesim.cluster import CLUSTERS, Cluster, Group
from moesim.errors import MoesimError
from moesim.network import Product
from moesim.validate.figures import Row, SkipError, gpu_name, number, positive, read_tables, whole

AIC: Final = "comm_deepep_aic.csv"
PUBLISHED: Final = "comm_ep_published.csv"
TRTLLM: Final = "comm_trtllm_alltoall_gb200_aic.csv"
NEEDED: Final = {
    AIC: "source gpu mode op library ranks nodes tokens_per_rank hidden topk num_experts sms latency_us suspect",
    PUBLISHED: "source library version gpu fabric op mode measured_scope ranks nodes tokens_per_rank hidden topk dtype "
    "num_sms routing bw_GBps latency_us derived_latency_us note",
    TRTLLM: "source gpu op library dtype ranks tokens_per_rank hidden topk distribution latency_us",
}
ROW_BYTES: Final = {"fp8": 1.0 + 4.0 / 128, "bf16": 2.0, "bfloat16": 2.0, "nvfp4": 0.5 + 1.0 / 16}
_UNSEEN: Final = ("B300", "GB200", "GB300")  # no constant was fitted on READMEs' rows of these GPUs
_V1: Final = "V1 2025-06"  # the state of DeepEP's README that its H800 constants belong to
_LIBRARIES: Final = {
    "DeepEP": "deepep", "DeepEP V2": "deepep_v2", "Hybrid-EP": "hybrid_ep", "UCCL-EP": "uccl",
    "pplx-kernels IBGDA": "pplx_ibgda", "pplx-kernels IBRC": "pplx_ibrc", "pplx-kernels NVLINK": "pplx_nvlink",
    "NVLinkOneSided": "trtllm_one_sided", "NVLinkTwoSided": "trtllm_two_sided",
}  # fmt: skip


class Measured(NamedTuple):
    """What a table's row says beyond its ranks and tokens."""

    library: str
    release: str  # empty: the newest
    mechanism: str
    token_bytes: float
    experts: int
    limited: bool  # to the best four of its groups of experts, one group a node
    sms: int  # 0: as many as the library takes
    time_us: float
    scope: str  # empty: the kernel alone
    fitted: bool  # among the rows that the constants were fitted on


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Case:
    """One measured exchange, in moesim's nouns."""

    direction: str
    cluster: Cluster
    group: Group
    traffic: Traffic
    measured: Measured


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """A row: its case, or why there is none."""

    row: Row
    table: str
    case: Case | None
    skipped: str = ""


def read(data: Path) -> Iterator[Found]:
    """All rows of the tables that are there."""
    for table, reader in _READERS.items():
        if (data / table).is_file():
            rows = read_tables(data, table, NEEDED[table].split())
            reasons = _states(rows) if table == PUBLISHED else [""] * len(rows)
            for row, reason in zip(rows, reasons, strict=True):
                yield _found(row, table, reader, reason)


def _found(row: Row, table: str, reader: Any, reason: str) -> Found:
    try:
        case = reader(row)
    except SkipError as why:
        return Found(row=row, table=table, case=None, skipped=reason or str(why))
    except MoesimError as why:
        return Found(row=row, table=table, case=None, skipped=f"moesim cannot express it: {why}")
    if reason.startswith("repeats "):
        older = case.measured._replace(release=_release(row, reason))
        return Found(row=row, table=table, case=replace(case, measured=older))
    return Found(row=row, table=table, case=case, skipped=reason)


# Fitted on: tokens of a rank in every second column of the table, on these GPUs and numbers of nodes.
_HALF: Final = {
    ("normal", 1): {64, 1024, 8192},
    ("normal", 2): {1, 64, 256, 1024, 4096, 16384},
    ("low_latency", 1): {1, 4, 12, 24, 32, 48, 96, 128, 160, 512, 2048},
    ("low_latency", 2): {2, 8, 16, 32, 64, 128, 256},
    ("low_latency", 8): {2, 8, 16, 32, 64, 128, 256},
}
_FITTED_GPUS: Final = {
    "normal": ("H100", "H100-SXM-80GB", "B300-SXM"),
    "low_latency": ("H100", "H100-SXM-80GB", "H200-SXM-141GB", "B300-SXM"),
}


def _aic(row: Row) -> Case:
    mode, gpu, nodes, tokens = str(row["mode"]), str(row["gpu"]), whole(row, "nodes"), whole(row, "tokens_per_rank")
    if mode not in ("normal", "low_latency"):
        raise SkipError(f"{row['library']}: a call with its own copies and launches, not the exchange alone")
    if str(row["suspect"]) == "True":
        raise SkipError("marked as broken by the source of the table")
    dtype = "fp8" if row["op"] == "dispatch" else "bf16"
    old = "0.5.6" in str(row["library"])
    fitted = gpu in _FITTED_GPUS[mode] and tokens in _HALF.get((mode, nodes), ())
    return _case(
        row,
        Measured(
            library="deepep",
            release="V1 (sglang 0.5.6)" if old and mode == "low_latency" and nodes == 1 else "V1",
            mechanism=mode,
            token_bytes=number(row, "hidden") * ROW_BYTES[dtype],
            experts=whole(row, "num_experts"),
            limited=mode == "normal",
            sms=whole(row, "sms", 0),
            time_us=positive(row, "latency_us"),
            scope="",
            fitted=fitted and (gpu, mode, nodes) != ("H100", "normal", 1),
        ),
    )


def _published(row: Row) -> Case:
    library, version = str(row["library"]), str(row["version"] or "")
    for word in ("withdrawn", "approximate", "misconfigured", "degraded"):
        if word in str(row["note"] or ""):
            raise SkipError(f"{row['note']}")
    if library not in _LIBRARIES:
        raise SkipError(f"no constants of {library}")
    key, scope = _LIBRARIES[library], str(row["measured_scope"] or "")
    scope = version if version == "user report" else "" if scope.startswith("kernel") else scope
    mechanism = "low_latency" if row["mode"] == "low_latency" else "by_node" if key == "hybrid_ep" else "normal"
    ranks, release = whole(row, "ranks"), _release(row)
    seen = _FITTED_RANKS.get((key, release, mechanism, str(row["op"])), ())
    return _case(
        row,
        Measured(
            library=key,
            release=release,
            mechanism=mechanism,
            token_bytes=number(row, "hidden") * ROW_BYTES[str(row["dtype"])],
            experts=ranks * (8 if "8 local" in str(row["routing"]) else -(-256 // ranks)),
            limited="top-4" in str(row["routing"]),
            sms=whole(row, "num_sms", 0),
            time_us=_microseconds(row),
            scope=scope,
            fitted=scope == "" and ranks in seen and gpu_name(str(row["gpu"])) not in _UNSEEN,
        ),
    )


def _trtllm(row: Row) -> Case:
    """Balanced: eight experts of a token lie on eight ranks, or on all of them."""
    op, ranks = str(row["op"]).removeprefix("alltoall_"), whole(row, "ranks")
    if op not in ("dispatch", "combine") or str(row["distribution"]) != "balanced":
        raise SkipError(f"{op}, {row['distribution']}: not an exchange of rows by balanced routing")
    dtype = str(row["dtype"]) if op == "dispatch" else "bf16"
    return _case(
        {**row, "nodes": 1, "topk": min(whole(row, "topk"), ranks), "op": op},
        Measured(
            library=_LIBRARIES[str(row["library"])],
            release="",
            mechanism="normal",
            token_bytes=number(row, "hidden") * ROW_BYTES[dtype],
            experts=ranks,
            limited=False,
            sms=0,
            time_us=positive(row, "latency_us"),
            scope="",
            fitted=ranks == _TRTLLM_FITTED,
        ),
    )


_TRTLLM_FITTED: Final = 8
# Fitted on: so many ranks, by direction; all others are judged.
_FITTED_RANKS: Final = {
    ("deepep", _V1, "normal", "dispatch"): (8, 32, 64),
    ("deepep", _V1, "low_latency", "dispatch"): (32, 64),
    ("deepep", "V1 2025-02", "normal", "dispatch"): (8, 16, 32, 64),
    ("deepep", "V1 2025-02", "low_latency", "dispatch"): (8, 32, 128),
    ("deepep", "V1 2025-02", "low_latency", "combine"): (8, 32, 128),
    ("deepep_v2", "", "normal", "dispatch"): (8, 16, 32),
    ("hybrid_ep", "", "by_node", "dispatch"): (8, 16, 32, 64),
    ("uccl", "", "normal", "dispatch"): (8, 24, 32),
    ("uccl", "", "low_latency", "dispatch"): (24, 32),
    ("pplx_ibgda", "", "low_latency", "dispatch"): (16, 32, 64, 128),
    ("pplx_ibrc", "", "low_latency", "dispatch"): (16, 32, 64, 128),
    ("pplx_nvlink", "", "low_latency", "dispatch"): (8,),
}
_READERS: Final = {AIC: _aic, PUBLISHED: _published, TRTLLM: _trtllm}


def _case(row: Row, measured: Measured) -> Case:
    """``pure RDMA`` goes by NIC even inside a node: then each rank is a node of its own."""
    ranks, tokens, top_k = (whole(row, name) for name in ("ranks", "tokens_per_rank", "topk"))
    nodes = domains(row)
    direction, experts = str(row["op"]), measured.experts
    if direction not in ("dispatch", "combine"):
        raise SkipError(f"{direction}: not a dispatch or a combine")
    if "pure RDMA" in str(row.get("fabric")):
        nodes = ranks
    traffic = Traffic(
        pairs=Product(sent=np.full(ranks, float(tokens * top_k)), share=np.full(ranks, 1.0 / ranks)),
        tokens=tokens,
        token_bytes=measured.token_bytes,
        share=np.full(experts, 1.0 / experts),
        top_k=top_k,
        groups=(nodes, 4) if measured.limited and nodes > 4 else (1, 1),
    )
    cluster = find_cluster(str(row["gpu"]), ranks, nodes)
    group = Group(size=ranks, per_node=ranks // nodes)
    return Case(direction=direction, cluster=cluster, group=group, traffic=traffic, measured=measured)


def domains(row: Row) -> int:
    """Nodes as moesim counts them: trays of one NVLink domain are one node."""
    whole_rack = any(word in f"{row['gpu']} {row.get('fabric')}" for word in ("NVL72", "MNNVL", "NVLink5 domain"))
    return 1 if whole_rack else whole(row, "nodes", 1)


def find_cluster(gpu: str, ranks: int, nodes: int) -> Cluster:
    """``ranks`` GPUs on ``nodes`` nodes of the preset with this GPU."""
    name = gpu_name(gpu)
    for preset in CLUSTERS.values():
        if preset.gpu.name == name:
            if ranks % nodes or ranks // nodes > preset.gpus_per_node:
                raise SkipError(f"{ranks} ranks on {nodes} nodes of {preset.name}")
            here = min(ranks // nodes, preset.gpus_per_node)
            return replace(preset, nodes=nodes, gpus_per_node=here, nics_per_node=min(here, preset.nics_per_node))
    raise SkipError(f"no cluster preset has a {name}")


def _microseconds(row: Row) -> float:
    """As printed; else the bytes that the README counts over its bandwidth."""
    for name in ("latency_us", "derived_latency_us"):
        if row[name] is not None:
            return positive(row, name)
    nodes, ranks, top_k = domains(row), whole(row, "ranks"), whole(row, "topk")
    parts = ranks if nodes == 1 else min(nodes, 4) if "top-4" in str(row["routing"]) else nodes
    distinct = parts * (1.0 - (1.0 - 1.0 / parts) ** top_k)
    size = number(row, "tokens_per_rank") * distinct * number(row, "hidden") * ROW_BYTES[str(row["dtype"])]
    return size / positive(row, "bw_GBps") / 1e3


def _states(rows: list[Row]) -> list[str]:
    """Why a row is not judged: there is a newer state of its case; or whose figure it repeats."""
    found = [""] * len(rows)
    cases: dict[tuple[Any, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if _date(row) and "withdrawn" not in str(row["note"] or ""):
            what = ("library", "gpu", "op", "mode", "ranks", "tokens_per_rank", "hidden", "topk", "dtype")
            cases.setdefault(tuple(str(row[name]) for name in what), []).append(place)
    for places in cases.values():
        *older, newest = sorted(places, key=lambda place: _date(rows[place]))
        for place in older:
            found[place] = f"a newer state of this case: {_date(rows[newest])}"
        same = [place for place in older if _microseconds(rows[place]) == _microseconds(rows[newest])]
        if same and domains(rows[newest]) > 1:
            found[newest] = f"repeats {_date(rows[same[0]])}"
    return found


def _date(row: Row) -> str:
    dates = re.findall(r"\d{4}-\d{2}(?:-\d{2})?", str(row["version"] or row["source"]))
    return dates[0] if dates and row["library"] == "DeepEP" else ""


def _release(row: Row, repeated: str = "") -> str:
    date = repeated.removeprefix("repeats ") or _date(row)
    if not date:
        return ""
    return _V1 if date > "2025-05" else f"V1 {date[:7]}"
