"""Why the winner: what bounds it, what the runner-up loses, what would change the answer."""

from collections.abc import Callable
from dataclasses import replace
from math import inf, sqrt
from typing import Final, NamedTuple

from moesim.cluster import Link
from moesim.errors import MoesimError
from moesim.metrics import Result, measure
from moesim.planner.plan import Plan
from moesim.routing import parse_routing
from moesim.step.scenario import Scenario
from moesim.strategy import Strategy

NAMES: Final = {
    "experts": "expert GEMMs",
    "attention": "attention with its projections",
    "mamba": "Mamba scan with its projections",
    "dense": "dense and shared GEMMs",
    "head": "embedding and output head, those of MTP modules included",
    "gate": "routing and permutation",
    "recompute": "recomputation inside blocks",
    "imbalance": "waiting for the busiest experts",
    "host": "waiting for the CPU to launch kernels",
    "all-to-all": "exposed all-to-all",
    "tp": "exposed tensor-parallel collectives",
    "cp": "exposed context-parallel collectives",
    "etp": "exposed expert-tensor-parallel collectives",
    "dp": "exposed gradient and weight traffic",
    "pp": "exposed pipeline transfers",
    "bubble": "pipeline bubble",
    "optimizer": "optimizer",
}
BETWEEN_STAGES: Final = ("bubble", "pp")
SHORT: Final = ("tp", "pp", "virtual", "ep", "etp", "cp", "dp")


class Change(NamedTuple):
    """A what-if and the ranking that follows from it."""

    what: str
    best: Strategy
    same: bool  # the winner stays the winner
    speedup: float  # the winner's step before over its step after
    gain: float  # of the new best over the old winner, after the change; 0 when it stays


def bounds_it(result: Result) -> list[tuple[str, float]]:
    """Families of the step with their shares, largest first."""
    shares = sorted(result.breakdown.seconds.items(), key=lambda item: -item[1])
    least_s = 1e-9 * result.step_s  # less is rounding
    return [(NAMES.get(family, family), seconds / result.step_s) for family, seconds in shares if seconds > least_s]


class Loss(NamedTuple):
    """What a result loses against another one."""

    share: float  # of the better one's step
    families: list[tuple[str, float]]  # seconds more, largest first
    saves_s: float  # what it saves in the other families
    separable: bool  # the difference exceeds its own 90 % uncertainty


def loses(other: Result, winner: Result, *, steady: bool = False) -> Loss:
    """Where ``other`` is slower; errors that both share cancel. ``steady``: the time between steps is compared,
    in which batches fill each other's bubbles."""
    mine, theirs = winner.breakdown.seconds, other.breakdown.seconds
    compared = [family for family in mine | theirs if not (steady and family in BETWEEN_STAGES)]
    more = {family: theirs.get(family, 0.0) - mine.get(family, 0.0) for family in compared}
    errors = winner.breakdown.errors | other.breakdown.errors
    doubt_s = sqrt(sum((seconds * errors.get(family, 0.0)) ** 2 for family, seconds in more.items()))
    best_s = _ranked_s(winner, steady)
    slower_s = _ranked_s(other, steady) - best_s
    return Loss(
        share=slower_s / best_s,
        families=sorted(((NAMES.get(f, f), s) for f, s in more.items() if s > 0), key=lambda item: -item[1]),
        saves_s=-sum(s for s in more.values() if s < 0),
        separable=slower_s > doubt_s,
    )


def _ranked_s(result: Result, steady: bool) -> float:
    """What the plan ranked by: the step, or the time between steps."""
    rate = result.metrics["tokens_per_s"]
    return result.scenario.workload.tokens / rate if steady and rate else result.step_s


def _measured_s(scenario: Scenario, strategy: Strategy, steady: bool) -> float:
    """Without end where a kernel would be outside what was measured."""
    try:
        return _ranked_s(measure(scenario, strategy, events=False), steady)
    except MoesimError:
        return inf


def changes(plan: Plan) -> list[Change]:
    """Rank the plan's results again under each what-if, by the list schedule; not where the winner's kernels are then
    outside what was measured."""
    if len(plan.results) < 2:
        return []
    found = [_ranked_under(plan, what, change(plan.scenario)) for what, change in _what_ifs(plan.scenario).items()]
    return [one for one in found if one.speedup > 0]


def _ranked_under(plan: Plan, what: str, scenario: Scenario) -> Change:
    strategies, steady = [result.strategy for result in plan.results], plan.candidates.screen.steady
    seconds = [_measured_s(scenario, strategy, steady) for strategy in strategies]
    best = min(range(len(seconds)), key=seconds.__getitem__)
    return Change(
        what=what,
        best=strategies[best],
        same=best == 0,
        speedup=_ranked_s(plan.results[0], steady) / seconds[0],
        gain=seconds[0] / seconds[best] - 1.0,
    )


def _what_ifs(scenario: Scenario) -> dict[str, Callable[[Scenario], Scenario]]:
    found: dict[str, Callable[[Scenario], Scenario]] = {}
    if scenario.cluster.nodes > 1:
        found["network between nodes twice as fast"] = lambda s: _with_scale_out(s, 2.0)
        found["network between nodes half as fast"] = lambda s: _with_scale_out(s, 0.5)
    if scenario.model.moe is not None:
        other = "lognormal:1" if scenario.routing.kind == "uniform" else "uniform"
        found[f"routing {other} instead of {scenario.routing.label}"] = lambda s: replace(
            s, routing=parse_routing(other)
        )
    return found


def _with_scale_out(scenario: Scenario, factor: float) -> Scenario:
    link = scenario.cluster.scale_out
    assert isinstance(link, Link)  # several nodes have one
    faster = replace(
        link,
        bandwidth_bytes_per_s=link.bandwidth_bytes_per_s * factor,
        peak_bytes_per_s=link.peak_bytes_per_s * factor,
    )
    return replace(scenario, cluster=replace(scenario.cluster, scale_out=faster))


def short(strategy: Strategy) -> str:
    """The layout and what is not plain: ``ep=8 pp=2 virtual=2 linear x2``, ``ep=8 pp=2 zero_bubble linear shared``."""
    degrees = [f"{name}={getattr(strategy, name)}" for name in SHORT if getattr(strategy, name) > 1]
    if strategy.schedule not in ("1f1b", "interleaved"):
        degrees.append(strategy.schedule)
    chunks = f" x{strategy.chunks}" if strategy.chunks > 1 else ""
    exchange = [f"{strategy.all_to_all}{chunks}"] if strategy.ep > 1 else []
    if exchange and strategy.overlap not in ("none", "chunked"):
        exchange.append(strategy.overlap)
    return " ".join([*degrees, *exchange]) or "one GPU"
