"""The recommendation in words: lines of text from a plan or a result."""

from collections.abc import Sequence

from moesim.metrics import TIME_METRIC, Result, limits
from moesim.planner.plan import Plan
from moesim.planner.why import Change, bounds_it, changes, loses, short
from moesim.step.scenario import Scenario
from moesim.strategy import show
from moesim.units import show_bytes, show_count, show_seconds

TIME_NAME = {"train": "step", "prefill": "TTFT", "decode": "TPOT"}
COLUMNS = ("rank", "strategy", "time", "90 % band", "tokens/s/GPU", "MFU", "memory", "exposed comm", "imbalance")


def question(scenario: Scenario) -> str:
    """What was asked, defaults filled in."""
    work, cluster = scenario.workload, scenario.cluster
    past = f" after {work.past:,}" if work.past else ""
    routing = "average load (no skew)" if scenario.average else f"routing {scenario.routing.label}"
    depths = scenario.model.mtp_layers
    model = f"{scenario.model.name} with {depths} MTP" if depths else scenario.model.name
    return (
        f"{model} on {cluster.nodes} x {cluster.name} ({cluster.gpus} {cluster.gpu.name}), {work.kind}: "
        f"{work.sequences:,} sequences x {work.queries:,} tokens{past}, {work.dtype}, {routing}, seed {scenario.seed}"
    )


def table_row(rank: int, result: Result) -> tuple[str, ...]:
    """One line of the ranking, in the order of ``COLUMNS``."""
    metric = TIME_METRIC[result.scenario.workload.kind]
    low, high = result.interval[metric] or (0.0, 0.0)
    m = {name: value or 0.0 for name, value in result.metrics.items()}
    return (
        str(rank),
        short(result.strategy),
        show_seconds(result.step_s),
        f"{show_seconds(low)} – {show_seconds(high)}",
        f"{m['tokens_per_s_per_gpu']:,.0f}",
        f"{m['mfu']:.1%}",
        show_bytes(m["memory_bytes_per_gpu"]),
        f"{m['exposed_comm_fraction']:.1%}",
        f"{m['imbalance']:.2f}",
    )


def recommendation(plan: Plan) -> list[str]:
    """Why the first one: what bounds it, what the runner-up loses, what would change the answer."""
    winner = plan.results[0]
    lines = [f"Run: {show(winner.strategy)}", *_bound_lines(winner)]
    if len(plan.results) > 1:
        lines.append(_loss_line(winner, plan.results[1], plan.candidates.screen.steady))
    lines += [_change_line(change) for change in changes(plan)]
    return [*lines, _search_line(plan), *_limit_lines(winner)]


def _bound_lines(result: Result) -> list[str]:
    shares = [f"{share:.0%} {name}" for name, share in bounds_it(result) if share >= 0.01]
    metrics = result.metrics
    basis = result.breakdown.basis
    used = result.memory.total / result.scenario.cluster.gpu.memory_bytes
    price = metrics["cost_per_million_tokens"]
    cost = f" {price:,.3f} per million tokens at the given price." if price is not None else ""
    return [
        f"What bounds it: {', '.join(shares)}.",
        f"The bound for this order of work is {show_seconds(result.bound_s)}; memory is {used:.0%} full "
        f"({_memory_text(result)}).{cost}",
        f"The time rests {basis.measured:.0%} on measurements of this hardware, {basis.published:.0%} on published "
        f"figures, {basis.estimated:.0%} on estimates.",
    ]


def _memory_text(result: Result) -> str:
    parts = {name: size for name, size in result.memory._asdict().items() if size > 0}
    return ", ".join(f"{name.replace('_', ' ')} {show_bytes(size)}" for name, size in parts.items())


def _loss_line(winner: Result, other: Result, steady: bool) -> str:
    loss = loses(other, winner, steady=steady)
    where = ", ".join(f"{show_seconds(seconds)} more {name}" for name, seconds in loss.families[:3])
    verdict = "" if loss.separable else " The difference is within its own uncertainty: try both."
    name = short(other.strategy)
    if loss.saves_s > 0.01 * winner.step_s:
        where += f"; {show_seconds(loss.saves_s)} less elsewhere"
    return f"The runner-up ({name}) is {loss.share:.1%} slower: {where or 'no family stands out'}.{verdict}"


def _change_line(change: Change) -> str:
    moved = f"the winner's step would be {1 / change.speedup:.2f} x as long"
    if change.same:
        return f"With {change.what} {moved}, and it stays first of these."
    faster = f"{change.gain:.1%} faster" if change.gain < 1 else f"{1 + change.gain:.1f} x as fast"
    return f"With {change.what} {moved}, and {short(change.best)} would be {faster}."


def _search_line(plan: Plan) -> str:
    cut = ""
    if plan.lowest_screened_bound_s is not None:
        cut = f" (lowest bound among them {show_seconds(plan.lowest_screened_bound_s)})"
    return (
        f"Searched {plan.searched:,} feasible strategies in {plan.elapsed_s:.1f} s: {len(plan.played)} played, "
        f"{plan.pruned:,} excluded for certain, {plan.screened:,} cut by rank{cut}; {plan.dominated:,} more "
        "keep less in memory than a faster one that fits."
    )


def _limit_lines(result: Result) -> list[str]:
    return [f"Limit: {text}." for text in limits(result.scenario, result.strategy)]


def nothing_feasible(infeasible: dict[str, int]) -> list[str]:
    """Why there is no answer, by reason and count."""
    if not infeasible:
        return ["No strategy divides the cluster: nothing was left to check."]
    return [f"{count:,} strategies: {reason}" for reason, count in infeasible.items()]


def result_lines(result: Result) -> list[str]:
    """One configuration in words."""
    metric = TIME_METRIC[result.scenario.workload.kind]
    low, high = result.interval[metric] or (0.0, 0.0)
    name = TIME_NAME[result.scenario.workload.kind]
    m = {key: value or 0.0 for key, value in result.metrics.items()}
    lines = [
        f"{name} {show_seconds(result.step_s)} (90 % band {show_seconds(low)} – {show_seconds(high)}), "
        f"{show_count(m['tokens_per_s'])} tokens/s, {m['tokens_per_s_per_gpu']:,.0f} per GPU, MFU {m['mfu']:.1%}, "
        f"exposed communication {m['exposed_comm_fraction']:.1%}, imbalance {m['imbalance']:.2f}",
        *_bound_lines(result),
    ]
    if result.dropped_share or result.padding_share:
        lines.append(
            f"Capacity: {result.dropped_share:.2%} of the copies dropped, {result.padding_share:.1%} padding; MFU "
            "counts what was dropped as done."
        )
    if result.infeasible:
        lines.append(f"It {result.infeasible}: {show_bytes(result.memory.total)} are needed.")
    return [*lines, *_limit_lines(result)]


def as_text(lines: Sequence[str]) -> str:
    """Lines for a terminal or a file."""
    return "\n".join(lines)
