"""plan(): bound everything, list-schedule the promising, play the best with SimPy, rank.

    dominated   never faster than a fitting strategy of their layout that keeps more in memory: not priced
    searched    distinct feasible strategies that were priced = pruned + screened + simulated
    pruned      dropped for certain: their bound is above the winner's step, or another all-to-all is faster both ways;
                the bound is of layer passes as they are played, put on the stages in the best order there could be
    screened    cut by rank: not played, though their bound does not exclude them
    simulated   played by SimPy

The ranking holds the best strategy of each layout (dp, tp, ep, etp, pp, cp), so that the runner-up is a
different answer and not the winner with another chunk count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.cost import FloatArray
from moesim.errors import MoesimError, choice
from moesim.metrics import Play, Result, explain, steady_seconds
from moesim.planner.screen import Screen, screen
from moesim.planner.shards import (
    Shard,
    bound_steady,
    bound_steps,
    joined,
    list_steady,
    list_steps,
    named_part,
    play_finalist,
    play_in_full,
    shards,
)
from moesim.planner.space import Space
from moesim.planner.workers import Spread, available, workers
from moesim.step.scenario import Scenario
from moesim.strategy import Strategy

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_OBJECTIVE: Final = {"train": "throughput", "prefill": "latency", "decode": "throughput"}
OBJECTIVES: Final = ("throughput", "latency", "cost")
PROMISING: Final = 2000  # at most, by bound, go on to the list schedule
WITHIN: Final = 1.1  # of the lowest bound, unless that leaves fewer than an eighth of PROMISING
FINALISTS: Final = 52  # by list schedule, are played
LAYOUTS_FIRST: Final = 40  # finalists that are the best of their layout; the rest are the next best overall
CLOSE: Final = 3  # layouts after the ranked ones whose steps are played in full as well, before the last ranking
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
    dominated: int
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
    """Every priced candidate by number: bound, list-scheduled seconds (nan where not); and which were played."""

    screen: Screen
    bound_s: FloatArray
    listed_s: FloatArray
    played: list[int]


def plan(
    scenario: Scenario,
    *,
    objective: str | None = None,
    top: int = TOP,
    jobs: int | None = None,
    progress: Progress = lambda what, share: None,
) -> Plan:
    """Search the strategies of ``scenario`` and rank the ``top`` layouts, with ``jobs`` processes (default:
    one per core).

    Raises MoesimError for an unknown objective, or for cost without a price per GPU-hour. With nothing
    feasible the plan has no results and says why in ``infeasible``.
    """
    started_s = perf_counter()
    objective = objective or DEFAULT_OBJECTIVE[scenario.workload.kind]
    _check(scenario, objective, top)
    steady = objective != "latency" and scenario.workload.kind == "prefill"
    parts = shards(scenario, available() if jobs is None else jobs)
    with workers(scenario, len(parts)) as spread:
        progress("bounds of all that fits", 0.1)
        found = joined(spread(bound_steady if steady else bound_steps, parts))
        progress("list schedules", 0.6)
        numbered = screen(scenario, found.space.frames, found.space.options, steady=steady)
        listed_s = _listed(numbered, found, spread)
        finalists = _finalists(numbered, listed_s)
        progress("playing finalists", 0.7)
        played = spread(play_finalist, [numbered.strategy(candidate) for candidate in finalists])
        played.sort(key=lambda one: ranked_seconds(scenario, one, steady))
        close = spread(play_in_full, _best_of_layouts(played)[: top + CLOSE])
        close.sort(key=lambda one: ranked_seconds(scenario, one, steady))
    candidates = Candidates(screen=numbered, bound_s=found.bound_s, listed_s=listed_s, played=finalists)
    best = [explain(scenario, one) for one in close[:top]]
    best_s = ranked_seconds(scenario, close[0], steady) if close else np.inf
    return _counted(scenario, objective, best, best_s, found.space, candidates, played, perf_counter() - started_s)


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


def _listed(numbered: Screen, found: Shard, spread: Spread) -> FloatArray:
    """List-scheduled seconds of the candidates with the lowest bounds, nan for the others."""
    listed = np.full(len(found.bound_s), np.nan)
    if not len(listed):
        return listed
    order = np.argsort(found.bound_s, kind="stable")
    near = int((found.bound_s <= WITHIN * found.bound_s[order[0]]).sum())
    promising = np.sort(order[: min(PROMISING, max(near, PROMISING // 8))])
    edges = numbered.first[np.cumsum((0, *found.frames))]  # first candidate of each part
    parts = [promising[(promising >= low) & (promising < high)] for low, high in pairwise(edges)]
    list_part = list_steady if numbered.steady else list_steps
    listed[promising] = np.concatenate(spread(list_part, [named_part(numbered, part) for part in parts]))
    return listed


def _finalists(numbered: Screen, listed_s: FloatArray) -> list[int]:
    """Numbers of the best candidate of each layout, then of the next best of all."""
    order = [int(c) for c in np.argsort(listed_s, kind="stable") if np.isfinite(listed_s[c])]
    best_of_layout: dict[tuple[int, ...], int] = {}
    for candidate in order:
        best_of_layout.setdefault(layout_of(numbered.strategy(candidate)), candidate)
    first = list(best_of_layout.values())[:LAYOUTS_FIRST]
    return list(dict.fromkeys([*first, *order[:FINALISTS]]))[:FINALISTS]


def layout_of(strategy: Strategy) -> tuple[int, ...]:
    """What makes two strategies different answers."""
    return strategy.dp, strategy.tp, strategy.ep, strategy.etp, strategy.pp, strategy.cp


def ranked_seconds(scenario: Scenario, one: Play, steady: bool) -> float:
    """What the ranking goes by: the step, or the time between steps."""
    return steady_seconds(scenario, one) if steady else one.step_s


def _best_of_layouts(played: list[Play]) -> list[Play]:
    found: dict[tuple[int, ...], Play] = {}
    for one in played:
        found.setdefault(layout_of(one.strategy), one)
    return list(found.values())


def _counted(
    scenario: Scenario,
    objective: str,
    results: list[Result],
    best_s: float,
    found: Space,
    candidates: Candidates,
    played: list[Play],
    elapsed_s: float,
) -> Plan:
    unplayed = np.delete(candidates.bound_s, candidates.played)
    cut = unplayed[unplayed <= best_s]
    return Plan(
        scenario=scenario,
        objective=objective,
        results=results,
        played=played,
        searched=len(candidates.bound_s) + candidates.screen.slower,
        infeasible=dict(found.infeasible.most_common()),
        dominated=found.dominated,
        pruned=len(unplayed) - len(cut) + candidates.screen.slower,
        screened=len(cut),
        lowest_screened_bound_s=float(cut.min()) if len(cut) else None,
        elapsed_s=elapsed_s,
        candidates=candidates,
    )


def to_dict(one: Plan, inputs: dict[str, Any]) -> dict[str, Any]:
    """The JSON document of ``moesim plan``; ``inputs`` are model, cluster, workload, routing and seed as asked."""
    return {
        **inputs,
        "objective": one.objective,
        "searched": one.searched,
        "infeasible": one.infeasible,
        "dominated": one.dominated,
        "pruned": one.pruned,
        "screened": one.screened,
        "lowest_screened_bound_s": one.lowest_screened_bound_s,
        "simulated": len(one.played),
        "elapsed_s": one.elapsed_s,
        "configurations": [{"rank": rank, **result.to_dict()} for rank, result in enumerate(one.results, 1)],
    }
