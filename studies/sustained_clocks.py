"""How fast are kernels inside a training step, against tables that were measured at locked clocks?

A GPU at its power limit lowers its clock; kernel tables are taken with clocks locked. Dense models say by how much
without any MoE: measured step = compute / share + what communication is exposed, so that

    compute / measured            if all communication hides behind compute: the least the share can be
    compute / (measured - comm)   if none does: the most

Rows are the dense pre-training runs (is_moe False, kind pretrain) of a folder of training tables
(docs/validation.md). Only runs whose communication is
below a tenth of the step, and that need no recomputation (which no table states), pin the share: their median is
the GPU's. GPUs without kernels of their own also carry the error of the tables they borrow. Found on the tables of
Megatron-Bridge, where little but Llama 3 8B is that plain: H100 0.97, B200 0.85, GB200 0.79, GB300 0.96. GB200 runs as
fast as B200, though its data sheet promises 11 % more; GB300, at the same sheet with a sixth more power, does.

    python studies/sustained_clocks.py FOLDER --out studies/results
"""

import argparse
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd

from moesim.errors import MoesimError
from moesim.metrics import Result, measure
from moesim.plots import figure, save, save_table
from moesim.step import gemms
from moesim.validate.figures import Row, SkipError, gpu_name, read_tables
from moesim.validate.training import NEEDED, PATTERN, scenario_of
from moesim.validate.training_rows import case, read_run

LITTLE = 0.10  # of the step: communication that cannot blur the share
COMMUNICATION = ("tp", "cp", "dp", "pp", "etp", "all-to-all")


def run(folder: Path) -> pd.DataFrame:
    """A line per dense run: least and most of the share, and the share of its GPU.

    Kernels are priced at their tables' speed, without the shares that ship: those are what is looked for.
    """
    with patch.object(gemms, "sustained_share", lambda gpu: 1.0):
        return _run(folder)


def _run(folder: Path) -> pd.DataFrame:
    rows = [row for row in read_tables(folder, PATTERN, NEEDED) if row.get("is_moe") is False]
    found = [line for row in rows if row.get("kind") in (None, "pretrain") and (line := _line(row)) is not None]
    if not found:
        raise MoesimError(f"{folder} has no dense training run: its rows need is_moe False and every degree")
    frame = pd.DataFrame(found)
    pins = frame[frame["pins"]]
    frame["gpu_share"] = [_median(pins[pins["gpu"] == gpu]) for gpu in frame["gpu"]]
    return frame.sort_values(["gpu", "model", "least"], ignore_index=True)


def _median(rows: pd.DataFrame) -> float:
    return float(np.median((rows["least"] + rows["most"]) / 2)) if len(rows) else float("nan")


def _line(row: Row) -> dict[str, object] | None:
    try:
        one = read_run({**row, "ep": 1})
    except SkipError:
        return None
    result = measure(scenario_of(one), one.strategies[0], events=False, fold=True)
    assert one.tokens_per_s_per_gpu is not None
    measured_s = one.workload.tokens / one.tokens_per_s_per_gpu / one.cluster.gpus
    compute_s, comm_s = _parts(result)
    return {
        "gpu": gpu_name(str(row["gpu"])), "model": one.model.name, "case": case(row), "measured_s": measured_s,
        "compute_s": compute_s, "communication": comm_s / measured_s,
        "pins": comm_s < LITTLE * measured_s and result.strategy.recompute == "none",
        "least": compute_s / measured_s,
        "most": compute_s / (measured_s - comm_s) if comm_s < measured_s else np.inf,
    }  # fmt: skip


def _parts(result: Result) -> tuple[float, float]:
    """Seconds of compute with its bubble, and of exposed communication."""
    comm_s = sum(result.breakdown.seconds.get(name, 0.0) for name in COMMUNICATION)
    return result.step_s - comm_s, comm_s


def draw(frame: pd.DataFrame, path: Path) -> None:
    """A bar from least to most for the newest run of each configuration, and the GPU's share."""
    shown = frame.assign(shape=frame["case"].str.rpartition(",")[0], release=frame["case"].str.rpartition(",")[2])
    shown = shown.sort_values("release").drop_duplicates("shape", keep="last").sort_values(["gpu", "shape"])
    place = np.arange(len(shown))
    drawn, ax = figure(10.0, 0.24 * len(shown) + 1.2)
    colours = {gpu: f"C{i}" for i, gpu in enumerate(frame["gpu"].unique())}
    wide = (shown["most"].clip(upper=1.6) - shown["least"]).clip(lower=0.006)
    ax.barh(place, wide, left=shown["least"], color=shown["gpu"].map(colours), height=0.7)
    ax.plot(shown["gpu_share"], place, "k|", markersize=9, label="share of the GPU, from its plain runs")
    ax.set_yticks(place, shown["shape"], fontsize=7)
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.axvline(1.0, color="grey", linewidth=0.8)
    ax.set_xlabel("share of the kernel tables' speed\nleft end: all communication hides, right end: none does")
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize=8, frameon=False)
    save(drawn, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of training tables")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    options = parser.parse_args()
    frame = run(options.folder)
    options.out.mkdir(parents=True, exist_ok=True)
    save_table(frame, options.out / "sustained_clocks.csv")
    draw(frame, options.out / "sustained_clocks.png")
    print(frame[frame["pins"]].groupby(["gpu", "model"])[["least", "most", "gpu_share"]].median().round(3).to_string())


if __name__ == "__main__":
    main()
