"""Training runs: predicted against measured tokens/s per GPU.

    training_rows      a row of a table as a run; the rules for what it leaves open
    training_families  rows that name a family of layouts only: the best configuration of it
    training_beside    what the errors are to be held against: repeats, one constant rate; memory's verdicts
    training_trace     one pair of micro-batches in DeepSeek's profile

    H100                        rows on GPUs with a profile of their own, every degree stated: the headline
    B200 (estimated)            rows on GPUs known by their data sheet
    best of its family on H100  rows that name a family only
    …                           the groups of training_beside and training_trace

Repeats of a configuration are merged: the newest container is judged; repeats that differ by more than 1.3 x
judge nobody. Kendall's tau is over the families of one block (model, GPUs, batch, sequence), whichever group
they are in.
"""

from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.cluster import Cluster
from moesim.metrics import Result, measure
from moesim.model import Model
from moesim.routing import parse_routing
from moesim.step.scenario import Scenario, make_scenario
from moesim.units import GIB
from moesim.validate.figures import (
    SHIPPED,
    Found,
    Row,
    SkipError,
    frame,
    line,
    merge_repeats,
    number,
    read_tables,
)
from moesim.validate.training_beside import beside
from moesim.validate.training_families import best_of_family
from moesim.validate.training_rows import Judged, Run, case, read_run
from moesim.validate.training_trace import judge_trace
from moesim.workload import Workload

if TYPE_CHECKING:
    import pandas as pd

PATTERN: Final = "e2e_training_*.csv"
NEEDED: Final = (
    *("source", "model", "gpu", "gpus", "precision", "tp", "pp", "cp", "vp", "ep", "mbs", "gbs", "seq"),
    *("token_handling", "tok_s_gpu", "tflops_gpu"),
)
BEST_OF: Final = "best of its family"
FIGURES: Final = {"HAI-LLM (DualPipe)": "DeepSeek's own run"}  # systems whose run is a figure of its own
NONE_FITS: Final = "no configuration of the family fits in memory"


def judge(data: Path | None) -> "pd.DataFrame":
    """One line per published run, in tokens/s per GPU, and the lines that stand beside them."""
    folder = SHIPPED if data is None else data
    rows = read_tables(folder, PATTERN, NEEDED)
    everything = [_read(row) for row in rows if row.get("is_moe") is not False]
    repeats: dict[tuple[Any, ...], list[Judged]] = defaultdict(list)
    for one in everything:
        if one.run is not None:
            repeats[_identity(one.row, one.run)].append(one)
    fitting = [(members, _judge_repeats(members)) for members in repeats.values()]
    return frame([*(one.line for one in everything), *beside(everything, fitting), *judge_trace(folder)])


def _read(row: Row) -> Judged:
    """The line of a row, in its group."""
    try:
        run = read_run(row)
    except SkipError as reason:
        one = line(str(row["gpu"]), case(row), row, "tokens/s/GPU")
        return Judged(row, one | {"skipped": str(reason)}, None)
    searched = not run.strategies
    group = BEST_OF if searched else FIGURES.get(str(row.get("framework")), "")
    one = line(str(row["gpu"]), case(row), row, "tokens/s/GPU", group)
    one |= {"block": run.block if run.family else "", "headline": one["headline"] and not searched}
    if run.tokens_per_s_per_gpu is None:
        one["skipped"] = "the run was out of memory"
    else:
        one["measured"] = run.tokens_per_s_per_gpu
    return Judged(row, one, run)


def _identity(row: Row, run: Run) -> tuple[Any, ...]:
    virtual, ran = number(row, "vp", 1), run.tokens_per_s_per_gpu is not None
    return row["model"], virtual, run.cluster, run.workload, run.strategies, run.family, run.drops, ran


def _judge_repeats(repeats: list[Judged]) -> bool:
    """One prediction for several runs of one configuration; whether it fits in memory."""
    run = repeats[0].run
    assert run is not None
    result = predicted(run)
    fits = result is not None and result.infeasible is None
    if run.tokens_per_s_per_gpu is None:
        return fits
    if result is None:
        for one in repeats:
            one.line["skipped"] = NONE_FITS
        return fits
    found, remarks = found_in(result), (*run.remarks, *_remarks(run, result))
    for one in repeats:
        one.line.update(found._asdict() | {"case": "; ".join((one.line["case"], *remarks))})
    merge_repeats([(str(one.row.get("container") or ""), one.line) for one in repeats])
    return fits


def scenario_of(run: Run) -> Scenario:
    """The run's question: balanced popularity, tokens drawn by chance."""
    return _scenario(run.model, run.cluster, run.workload)


@cache
def _scenario(model: Model, cluster: Cluster, workload: Workload) -> Scenario:
    return make_scenario(model, cluster, workload, parse_routing("uniform"), seed=0)


def predicted(run: Run) -> Result | None:
    """The fastest of the strategies that the run may have used; None where no member of its family fits."""
    scenario = scenario_of(run)
    if run.strategies:
        strategies = run.strategies
    else:
        best = best_of_family(scenario, run)
        strategies = () if best is None else (best,)
    results = [measure(scenario, one, events=False, fold=one.virtual == 1) for one in strategies]
    return min(results, key=lambda one: one.step_s, default=None)


def found_in(result: Result) -> Found:
    """Tokens/s per GPU with the band."""
    name = "tokens_per_s_per_gpu"
    value, band = result.metrics[name], result.interval[name]
    assert value is not None
    assert band is not None
    return Found(value, *band)


def _remarks(run: Run, result: Result) -> list[str]:
    """What no table says: how the configuration was completed."""
    one = result.strategy
    told = [f"recompute {one.recompute}"]
    if one.ep > 1 and one.all_to_all != "linear":
        told.append(one.all_to_all)
    if not run.strategies:
        told.append(f"found TP{one.tp} PP{one.pp} EP{one.ep} ETP{one.etp}")
    if result.infeasible:
        told.append(f"{result.infeasible}: {result.memory.total / GIB:.0f} GiB")
    return told
