"""How fast does the planner answer?

DeepSeek-V3 training on 32 x DGX H100 (256 GPUs), the question with the most candidates among the README's;
one configuration of it played, and the same what-if again by the batched list schedule in a warm process.

Expected on two cores: a whole plan under 10 s with more than 5,000 candidates, bounds for thousands of
candidates a second, hundreds of thousands of SimPy events a second, a warm what-if under 5 ms, and
``moesim simulate`` from the command line under 2 s. Times vary with the machine; rerun it on yours:

    python studies/planner_speed.py --out results
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import numpy as np
import pandas as pd

from moesim.cluster import load_cluster
from moesim.metrics import play
from moesim.model import load_model
from moesim.planner import plan
from moesim.planner.screen import bounds, screen
from moesim.planner.space import space
from moesim.player import play_events
from moesim.program import Passes, pipeline
from moesim.routing import parse_routing
from moesim.step.scenario import Scenario, make_scenario
from moesim.strategy import Strategy, load_strategy
from moesim.timeline import write_whole
from moesim.units import show_seconds
from moesim.workload import make_workload

T = TypeVar("T")
FULL, QUICK = ("dgx-h100", 32), ("dgx-h200", 16)  # cluster, nodes


def run(where: tuple[str, int] = FULL) -> pd.DataFrame:
    """One row per figure: what, value, unit, and the goal it is held against."""
    rows = [*_plan_rows(where), *_what_if_rows(where), *_event_rows(), _command_row(where)]
    return pd.DataFrame(rows, columns=["what", "value", "unit", "goal"])


def _strategy(where: tuple[str, int]) -> str:
    return f"pp={where[1] // 2} ep=16 recompute=full chunks=4"


def _scenario(where: tuple[str, int]) -> Scenario:
    cluster = load_cluster(*where)
    work = make_workload("train", cluster.gpus)
    return make_scenario(load_model("deepseek-v3"), cluster, work, parse_routing("uniform"))


def _plan_rows(where: tuple[str, int]) -> list[tuple[str, float, str, str]]:
    found, plan_s = _timed(lambda: plan(_scenario(where)))
    fresh = _scenario(where)
    frames, fit_s = _timed(lambda: space(fresh).frames)
    numbered = screen(fresh, frames)
    _, cold_s = _timed(lambda: bounds(numbered))
    _, warm_s = _timed(lambda: bounds(numbered))
    candidates = found.candidates
    ratios = candidates.listed_s[candidates.played] / candidates.bound_s[candidates.played]
    return [
        ("plan: whole", plan_s, "s", "< 10"),
        ("plan: feasible strategies priced", float(found.searched), "", ">= 5000"),
        ("plan: played by SimPy", float(len(found.played)), "", ">= 50"),
        ("plan: median list schedule / bound", float(np.median(ratios)), "", "<= 1.05"),
        ("plan: cut by rank, bound not above the best", float(found.screened), "", ""),
        ("memory and feasibility, one core", fit_s, "s", ""),
        ("bounds, one core, nothing priced yet", len(numbered) / cold_s, "candidates/s", ">= 20000"),
        ("bounds, one core, prices known", len(numbered) / warm_s, "candidates/s", ">= 20000"),
    ]


def _what_if_rows(where: tuple[str, int]) -> list[tuple[str, float, str, str]]:
    scenario = _scenario(where)
    strategy: Strategy = load_strategy(_strategy(where), scenario.cluster.gpus)
    _, cold_s = _timed(lambda: play(scenario, strategy, events=False, fold=True))
    warm = [_timed(lambda: play(scenario, strategy, events=False, fold=True))[1] for _ in range(20)]
    _, events_s = _timed(lambda: play(scenario, strategy, events=True))
    return [
        ("what-if: batched, first", cold_s * 1e3, "ms", ""),
        ("what-if: batched, warm", float(np.median(warm)) * 1e3, "ms", "< 5"),
        ("what-if: SimPy, unfolded", events_s * 1e3, "ms", ""),
    ]


def _event_rows() -> list[tuple[str, float, str, str]]:
    program = pipeline(Passes(stages=16, micro_batches=128, classes=2, reduces=True))
    played, seconds = _timed(lambda: play_events(program, {op.key: [1.0] for op in program}))
    return [("SimPy", played.events / seconds, "events/s", "")]


def _command_row(where: tuple[str, int]) -> tuple[str, float, str, str]:
    cluster = ["--cluster", where[0], "--nodes", str(where[1]), "--strategy", _strategy(where)]
    command = [sys.executable, "-m", "moesim", "simulate", "deepseek-v3", *cluster]
    _, seconds = _timed(lambda: subprocess.run(command, check=True, capture_output=True))
    return "command line: simulate, played", seconds, "s", "< 2"


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started_s = perf_counter()
    return work(), perf_counter() - started_s


def draw(frame: pd.DataFrame, path: Path) -> None:
    """The times, on a logarithmic axis."""
    from moesim import plots

    times = frame[frame["unit"].isin(["s", "ms"])]
    seconds = times["value"] * np.where(times["unit"] == "ms", 1e-3, 1.0)
    picture, ax = plots.figure(rows=len(times))
    ax.scatter(seconds, times["what"], color="#0072B2", zorder=2)
    for second, what in zip(seconds, times["what"], strict=True):
        ax.annotate(show_seconds(second), (second, what), xytext=(8, 0), textcoords="offset points", va="center")
    ax.set(xscale="log", xlabel="time (s)", xlim=(1e-3, 30.0))
    ax.grid(axis="both", color="#dddddd", zorder=0)
    ax.invert_yaxis()
    plots.save(picture, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 x DGX H200 instead")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    arguments = parser.parse_args()
    frame = run(QUICK if arguments.quick else FULL)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.out / "planner_speed.csv", lambda path: frame.to_csv(path, index=False))
    draw(frame, arguments.out / "planner_speed.png")
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
