"""plan(): bound everything, list-schedule the promising, play the best with SimPy, rank.

    searched    distinct feasible strategies that were priced (a bound each)
    pruned      dropped for certain: dominated by a strategy of their layout, or bound above the best played
    screened    cut by rank: not played, though their bound does not exclude them
    simulated   played by SimPy

The ranking holds the best strategy of each layout (dp, tp, ep, etp, pp, cp), so that the runner-up is a
different answer and not the winner with another chunk count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.cost import FloatArray
from moesim.errors import MoesimError, choice
from moesim.metrics import Play, Result, explain, play, steady_seconds
from moesim.planner.screen import Screen, bounds, list_schedule, screen
from moesim.planner.space import Space, space
from moesim.step.scenario import Scenario
from moesim.strategy import Strategy

if TYPE_CHECKING:
    import pandas as pd

OBJECTIVES: Final = ("throughput", "latency", "cost")
PROMISING: Final = 2000  # by bound, go on to the list schedule
FINALISTS: Final = 52  # by list schedule, are played
LAYOUTS_FIRST: Final = 40  # finalists that are the best of their layout; the rest are the next best overall
TOP: Final = 5

Progress = Callable[[str, float], None]  # what is being done, share done


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Plan:
    """Ranked configurations and what was not considered further."""

    scenario: Scenario
    objective: str
    results: list[Result]  # best first, one per layout
    played: list[Play]  # all finalists, best first
    searched: int
    infeasible: dict[str, int]
    pruned: int
    screened: int
    lowest_screened_bound_s: float | None
    elapsed_s: float
    candidates: "Candidates"

    @property
    def best(self) -> Result | None:
        return self.results[0] if self.results else None

    def to_frame(self) -> "pd.DataFrame":
        """One row per ranked configuration."""
        import pandas as pd

        rows = [r.strategy.to_dict() | r.metrics for r in self.results]
        return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="rank"))


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Candidates:
    """Every priced candidate, for the plot: bound, list-scheduled seconds (nan where not), memory, by number."""

    screen: Screen
    bound_s: FloatArray
    listed_s: FloatArray


def plan(
    scenario: Scenario,
    *,
    objective: str = "throughput",
    top: int = TOP,
    progress: Progress = lambda what, share: None,
) -> Plan:
    """Search the strategies of ``scenario`` and rank the ``top`` layouts.

    Raises MoesimError for an unknown objective, or for cost without a price per GPU-hour. With nothing
    feasible the plan has no results and says why in ``infeasible``.
    """
    started_s = perf_counter()
    _check(scenario, objective, top)
    progress("strategies that fit", 0.0)
    found = space(scenario)
    numbered = screen(scenario, found.frames)
    progress("bounds", 0.2)
    bound_s = bounds(numbered) if len(numbered) else np.zeros(0)
    progress("list schedules", 0.6)
    listed_s = _listed(numbered, bound_s)
    finalists = _finalists(numbered, listed_s)
    played = _play(scenario, finalists, objective, progress)
    return _ranked(scenario, objective, top, found, Candidates(screen=numbered, bound_s=bound_s, listed_s=listed_s),
                   played, started_s)  # fmt: skip


def _check(scenario: Scenario, objective: str, top: int) -> None:
    if objective not in OBJECTIVES:
        raise choice("objective", objective, OBJECTIVES)
    if top < 1:
        raise MoesimError(f"--top is {top}: ask for at least 1 configuration")
    if objective == "cost" and scenario.cluster.gpu_hour_price is None:
        raise MoesimError(
            f"--objective cost needs a price and cluster {scenario.cluster.name!r} has none: give --gpu-hour-price "
            "or gpu_hour_price in the cluster file"
        )


def _listed(numbered: Screen, bound_s: FloatArray) -> FloatArray:
    """List-scheduled seconds of the candidates with the lowest bounds, nan for the others."""
    listed = np.full(len(bound_s), np.nan)
    if len(bound_s):
        promising = np.argsort(bound_s, kind="stable")[:PROMISING]
        listed[promising] = list_schedule(numbered, promising)
    return listed


def _finalists(numbered: Screen, listed_s: FloatArray) -> list[Strategy]:
    """The best of each layout first, then the next best of all."""
    order = [int(c) for c in np.argsort(listed_s, kind="stable") if np.isfinite(listed_s[c])]
    chosen: dict[Strategy, None] = {}
    seen = set()
    for candidate in order:
        strategy = numbered.strategy(candidate)
        layout = layout_of(strategy)
        if layout not in seen and len(chosen) < LAYOUTS_FIRST:
            seen.add(layout)
            chosen[strategy] = None
    for candidate in order[: 2 * FINALISTS]:
        if len(chosen) < FINALISTS:
            chosen[numbered.strategy(candidate)] = None
    return list(chosen)


def layout_of(strategy: Strategy) -> tuple[int, ...]:
    """What makes two strategies different answers."""
    return strategy.dp, strategy.tp, strategy.ep, strategy.etp, strategy.pp, strategy.cp


def _play(scenario: Scenario, finalists: list[Strategy], objective: str, progress: Progress) -> list[Play]:
    """SimPy plays of the finalists, best first."""
    played = []
    for number, strategy in enumerate(finalists):
        progress("playing finalists", 0.7 + 0.3 * number / len(finalists))
        played.append(play(scenario, strategy, events=True, fold=True))
    by_rate = objective != "latency"
    return sorted(played, key=lambda one: steady_seconds(scenario, one) if by_rate else one.step_s)


def _ranked(
    scenario: Scenario, objective: str, top: int, found: Space, candidates: Candidates, played: list[Play],
    started_s: float,
) -> Plan:  # fmt: skip
    best_of_layout: dict[tuple[int, ...], Play] = {}
    for one in played:
        best_of_layout.setdefault(layout_of(one.strategy), one)
    best_s = min((one.step_s for one in played), default=np.inf)
    excluded = candidates.bound_s > best_s
    played_anyway = {one.strategy for one in played}
    cut = [c for c in np.flatnonzero(~excluded).tolist() if candidates.screen.strategy(c) not in played_anyway]
    results = [explain(scenario, one) for one in list(best_of_layout.values())[:top]]
    return Plan(
        scenario=scenario,
        objective=objective,
        results=results,
        played=played,
        searched=len(candidates.bound_s),
        infeasible=dict(found.infeasible.most_common()),
        pruned=found.dominated + int(excluded.sum()),
        screened=len(cut),
        lowest_screened_bound_s=float(candidates.bound_s[cut].min()) if cut else None,
        elapsed_s=perf_counter() - started_s,
        candidates=candidates,
    )


def to_dict(one: Plan, inputs: dict[str, Any]) -> dict[str, Any]:
    """The JSON document of ``moesim plan``; ``inputs`` are model, cluster, workload, routing and seed as asked."""
    return {
        **inputs,
        "objective": one.objective,
        "searched": one.searched,
        "infeasible": one.infeasible,
        "pruned": one.pruned,
        "screened": one.screened,
        "lowest_screened_bound_s": one.lowest_screened_bound_s,
        "simulated": len(one.played),
        "elapsed_s": one.elapsed_s,
        "configurations": [{"rank": rank, **result.to_dict()} for rank, result in enumerate(one.results, 1)],
    }

