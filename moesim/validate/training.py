"""Training runs: predicted against measured tokens/s per GPU.

The table states model, GPUs, precision, TP, PP, EP, CP, batch and sequence; what it leaves open is chosen by
one rule for all rows, never by row:

    micro-batch   as given, else 1                  CP            as given, else 1
    expert TP     as given; TP where the framework is named "TP+EP" (experts share it); else 1
    ZeRO          3 for FSDP rows, else 1           recompute     the first of none, selective, full that fits
    all-to-all    linear, not overlapped            schedule      1F1B: virtual stages are not modelled yet
    routing       uniform popularity, drawn by chance; capacity factor 1 where the source drops tokens
    precision     FP8, FP8-CS -> fp8; FP8 blockwise, FP8-MX, MXFP8, FP8 mixed -> fp8_block; BF16

TFLOP/s become tokens/s by the source's FLOP count where the table gives it, else by moesim's. Repeats of a
configuration are merged: the newest container is judged; repeats that differ by more than 1.3 x judge nobody.
"""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from moesim.cluster import Cluster
from moesim.errors import MoesimError
from moesim.memory import memory
from moesim.metrics import does_not_fit, measure
from moesim.model import Model, training_flops
from moesim.routing import parse_routing
from moesim.step.scenario import make_scenario
from moesim.strategy import RECOMPUTE, Strategy, load_strategy, why_not
from moesim.units import GIB, TFLOPS
from moesim.validate.figures import (
    SHIPPED,
    Found,
    Row,
    SkipError,
    exchange,
    find_cluster,
    find_model,
    frame,
    line,
    merge_repeats,
    number,
    positive,
    read_tables,
    whole,
)
from moesim.workload import Workload, make_workload

if TYPE_CHECKING:
    import pandas as pd

PATTERN: Final = "e2e_training_*.csv"
NEEDED: Final = (
    *("source", "model", "gpu", "gpus", "precision", "tp", "pp", "cp", "vp", "ep", "mbs", "gbs", "seq"),
    *("token_handling", "tok_s_gpu", "tflops_gpu"),
)
DTYPES: Final = {
    "BF16": "bf16", "FP8": "fp8", "FP8-CS": "fp8", "FP8-MX": "fp8_block", "MXFP8": "fp8_block",
    "FP8 blockwise": "fp8_block", "FP8 mixed": "fp8_block",
}  # fmt: skip


class Run(NamedTuple):
    """One published run in moesim's nouns."""

    model: Model
    cluster: Cluster
    workload: Workload
    strategy: Strategy
    tokens_per_s_per_gpu: float
    remarks: tuple[str, ...]

    @property
    def block(self) -> str:
        """Runs of one block are alternatives for the same work."""
        w = self.workload
        return f"{self.model.name} {self.cluster.gpus} {self.cluster.gpu.name} {w.sequences} x {w.queries}"


def judge(data: Path | None) -> "pd.DataFrame":
    """One line per published run, in tokens/s per GPU."""
    rows = read_tables(SHIPPED if data is None else data, PATTERN, NEEDED)
    lines, runs = [], defaultdict(list)
    for row in rows:
        if row.get("is_moe") is False:  # a dense model
            continue
        one = line(str(row["gpu"]), _case(row), row, "tokens/s/GPU")
        lines.append(one)
        try:
            run = read_run(row)
        except SkipError as reason:
            one["skipped"] = str(reason)
            continue
        one |= {"measured": run.tokens_per_s_per_gpu, "block": run.block}
        runs[_identity(row, run)].append((row, run, one))
    for repeats in runs.values():
        _judge_repeats(repeats)
    return frame(lines)


def _identity(row: Row, run: Run) -> tuple[Any, ...]:
    return (row["model"], number(row, "vp", 1), run.cluster, run.workload, run.strategy)


def _judge_repeats(repeats: list[tuple[Row, Run, dict[str, Any]]]) -> None:
    """One prediction for several runs of one configuration."""
    found, remarks = predict(repeats[0][1])
    for _, _, one in repeats:
        one |= found._asdict() | {"case": "; ".join((one["case"], *remarks))}
    merge_repeats([(str(row.get("container") or ""), one) for row, _, one in repeats])


def predict(run: Run) -> tuple[Found, tuple[str, ...]]:
    """Tokens/s per GPU, and what to know about the number."""
    scenario = make_scenario(run.model, run.cluster, run.workload, parse_routing("uniform"), seed=0)
    result = measure(scenario, run.strategy, events=False, fold=True)
    name = "tokens_per_s_per_gpu"
    value, band = result.metrics[name], result.interval[name]
    assert value is not None
    assert band is not None
    remarks = (*run.remarks, f"recompute {run.strategy.recompute}")
    if result.infeasible:
        remarks = (*remarks, f"{result.infeasible}: {result.memory.total / GIB:.0f} GiB")
    return Found(value, *band), remarks


def read_run(row: Row) -> Run:
    """The run of a row; SkipError where the row leaves open what no rule decides."""
    if row.get("quality") not in (None, "table"):
        raise SkipError(f"quality of the figure: {row['quality']}")
    model = find_model(str(row["model"]))
    cluster = find_cluster(str(row["gpu"]), whole(row, "gpus"))
    tp, pp, ep = (whole(row, name) for name in ("tp", "pp", "ep"))
    dtype = DTYPES.get(str(row["precision"]))
    if dtype is None:
        raise SkipError(f"moesim has no precision {row['precision']}")
    workload = make_workload("train", cluster.gpus, global_batch=whole(row, "gbs"), seq=whole(row, "seq"), dtype=dtype)
    shares_tp = "TP+EP" in str(row.get("framework"))
    drops = "token drop" in str(row["token_handling"])
    choices = {
        "tp": tp, "pp": pp, "ep": ep, "cp": whole(row, "cp", 1), "micro_batch": whole(row, "mbs", 1),
        "etp": whole(row, "etp", tp if shares_tp else 1), "zero": 3 if number(row, "fsdp", 0) else 1,
        "all_to_all": exchange(row.get("framework"), "train", ep), **({"capacity_factor": 1.0} if drops else {}),
    }  # fmt: skip
    strategy = _fitting(model, cluster, workload, choices)
    speed, remarks = _speed(row, model, workload)
    return Run(model, cluster, workload, strategy, speed, (*remarks, *_not_modelled(row)))


def _fitting(model: Model, cluster: Cluster, workload: Workload, choices: dict[str, Any]) -> Strategy:
    """The least recompute that fits in memory; all of it where nothing does."""
    try:
        candidates = [load_strategy(choices | {"recompute": what}, cluster.gpus) for what in RECOMPUTE]
    except MoesimError as error:
        raise SkipError(str(error)) from None
    reason = why_not(model, cluster, workload, candidates[0])
    if reason is not None:
        raise SkipError(f"moesim cannot express it: {reason}")
    fits = (s for s in candidates if does_not_fit(cluster.gpu, memory(model, workload, s)) is None)
    return next(fits, candidates[-1])


def _speed(row: Row, model: Model, workload: Workload) -> tuple[float, tuple[str, ...]]:
    """Measured tokens/s per GPU."""
    if row["tok_s_gpu"] is not None:
        return positive(row, "tok_s_gpu"), ()
    if row["tflops_gpu"] is None:
        raise SkipError("neither tokens/s nor TFLOP/s: the run was out of memory or not reported")
    ours = training_flops(model, workload.queries) / workload.queries
    given = row.get("gflop_per_token")
    remark = () if given is not None else (f"tokens/s by moesim's {ours / 1e9:.0f} GFLOP/token",)
    counted = ours if given is None else positive(row, "gflop_per_token") * 1e9
    return positive(row, "tflops_gpu") * TFLOPS / counted, remark


def _not_modelled(row: Row) -> tuple[str, ...]:
    virtual = number(row, "vp", 1)
    return (f"VP{virtual:.0f} not modelled",) if virtual > 1 and number(row, "pp") > 1 else ()


def _case(row: Row) -> str:
    shape = " ".join(
        f"{name.upper()}{number(row, name):.0f}"
        for name in ("tp", "cp", "pp", "ep", "etp", "mbs", "gbs", "seq")
        if row.get(name) is not None
    )
    gpus = "?" if row["gpus"] is None else f"{whole(row, 'gpus')}"
    where = row.get("container") or row.get("framework") or ""
    return f"{row['model']}, {gpus} x {row['gpu']}, {row['precision']}, {shape}, {where}".rstrip(", ")
