"""NCCL inside a node: predicted against measured, on message sizes that no profile holds.

Without a folder: the rows of ``hardware_profiles/<gpu>/collectives_held_out.csv``. With one: every row of its
``comm_nccl_intranode_aic.csv`` (columns source, gpu, op, library, ranks, nodes, bytes, latency_us); rows that
a profile holds, older NCCL releases and GPUs that no preset describes are skipped, with the reason.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.cluster import CLUSTERS, Cluster
from moesim.collectives import in_node
from moesim.errors import MoesimError
from moesim.profile import shipped_folder
from moesim.units import US

if TYPE_CHECKING:
    import pandas as pd

TABLE: Final = "comm_nccl_intranode_aic.csv"
COLUMNS: Final = ("group", "case", "measured", "predicted", "low", "high", "unit", "skipped", "source")
_NEEDED: Final = ("source", "gpu", "op", "library", "ranks", "nodes", "bytes", "latency_us")
_KEY: Final = ["gpu", "op", "library", "ranks", "bytes"]


def judge(data: Path | None) -> "pd.DataFrame":
    """One line per measured row, with COLUMNS; times in us."""
    import pandas as pd

    rows = _shipped() if data is None else _folder(data)
    frame = pd.DataFrame([_judged(row) for row in rows.to_dict("records")], columns=list(COLUMNS))
    return frame.sort_values(["group", "case"], ignore_index=True)


def _judged(row: Mapping[Hashable, Any]) -> dict[str, object]:
    """One measured row beside its prediction, or why it is skipped."""
    gpu, op, ranks, size = str(row["gpu"]), str(row["op"]), int(str(row["ranks"])), float(str(row["bytes"]))
    line: dict[str, object] = {
        "group": f"NCCL intra-node {gpu} {op}",
        "case": f"{ranks} ranks, {size:.0f} bytes, {row['library']}",
        "measured": float(str(row["time_us"])),
        "predicted": float("nan"),
        "low": float("nan"),
        "high": float("nan"),
        "unit": "us",
        "skipped": row["skipped"],
        "source": row["source"],
    }
    cluster = _cluster(gpu)
    if cluster is None:
        line["skipped"] = line["skipped"] or f"no cluster preset has a {gpu}"
    elif ranks > cluster.gpus_per_node:
        line["skipped"] = line["skipped"] or f"{cluster.name} has {cluster.gpus_per_node} GPUs a node"
    elif not line["skipped"]:
        predicted = in_node(cluster, op, ranks, size)
        line |= {
            "predicted": float(predicted.seconds) / US,
            "low": float(predicted.low) / US,
            "high": float(predicted.high) / US,
        }
    return line


def _cluster(gpu: str) -> Cluster | None:
    return next((cluster for cluster in CLUSTERS.values() if cluster.gpu.name == gpu), None)


def _shipped(table: str = "collectives_held_out") -> "pd.DataFrame":
    """All GPUs' rows of one shipped table, with their GPU."""
    import pandas as pd

    parts = [
        pd.read_csv(path).assign(gpu=path.parent.name.upper(), skipped="")
        for path in sorted(shipped_folder().glob(f"*/{table}.csv"))
    ]
    return pd.concat(parts)


def _folder(data: Path) -> "pd.DataFrame":
    """The folder's table with moesim's names, and the reason for every row that is not judged."""
    import pandas as pd

    path = data / TABLE
    if not path.is_file():
        raise MoesimError(f"{data} has no {TABLE}: point --data at a folder of measured tables")
    rows = pd.read_csv(path)
    missing = [column for column in _NEEDED if column not in rows]
    if missing:
        raise MoesimError(f"{path} has no column {missing[0]!r}: its header needs {', '.join(_NEEDED)}")
    rows = rows.rename(columns={"latency_us": "time_us"}).assign(
        gpu=rows["gpu"].str.split("-").str[0], op=rows["op"].replace("alltoall", "all_to_all")
    )
    newest = rows.groupby("gpu")["library"].transform("max")
    older = "an older release than " + newest
    kept = rows[_KEY].apply(tuple, axis=1).isin(set(_shipped("collectives")[_KEY].apply(tuple, axis=1)))
    reason = older.where(rows["library"] != newest, "").mask(kept, "in the profile")
    return rows.assign(skipped=reason.mask(rows["nodes"] != 1, "more than one node"))
