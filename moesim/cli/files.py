"""What ``--out`` and ``--plot`` leave behind: report, tables and pictures, each written whole or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.adaptive import Policy
from moesim.errors import MoesimError
from moesim.memory import memory
from moesim.metrics import FULL, Result
from moesim.planner.plan import Plan
from moesim.planner.why import short
from moesim.report import nothing_feasible, question, recommendation
from moesim.step.trace import layer_spans, step_spans
from moesim.timeline import to_frame, write_json, write_whole

if TYPE_CHECKING:
    import pandas as pd

MOST_DRAWN = 20_000  # candidates in the plot


def folder(out: Path) -> None:
    """The folder of ``--out``, made if it is not there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoesimError(f"cannot make the folder {out}: {error.strerror}; give another --out") from None


def write_plan(found: Plan, document: dict[str, Any], out: Path) -> None:
    """report.md, plan.json; with results also configurations, candidates, breakdown and timeline."""
    folder(out)
    write_json(out / "plan.json", document)
    words = recommendation(found) if found.results else nothing_feasible(found.infeasible)
    text = "\n\n".join([f"# {question(found.scenario)}", *words]) + "\n"
    write_whole(out / "report.md", lambda path: path.write_text(text))
    if not found.results:
        return
    from moesim.plots import save_table

    save_table(found.to_frame(), out / "configurations.csv")
    draw_candidates(found, out / "candidates.png")
    draw_breakdown(found.results, out / "breakdown.png")
    draw_timeline(found.results[0], out / "timeline.png")
    draw_layer(found.results[0], out / "layer.png")


def write_result(result: Result, document: dict[str, Any], out: Path) -> None:
    """result.json, breakdown, timeline and one layer of a played strategy."""
    folder(out)
    write_json(out / "result.json", document)
    draw_breakdown([result], out / "breakdown.png")
    draw_timeline(result, out / "timeline.png")
    draw_layer(result, out / "layer.png")


def candidates_frame(found: Plan) -> "pd.DataFrame":
    """One row per drawn candidate: memory, speed, how far it was priced, band of the ranked ones."""
    import pandas as pd

    tokens = found.scenario.workload.tokens / found.scenario.cluster.gpus
    order = np.argsort(found.candidates.bound_s, kind="stable")
    drawn = order if len(order) <= MOST_DRAWN else order[np.linspace(0, len(order) - 1, MOST_DRAWN).astype(int)]
    rows = []
    for number in drawn.tolist():
        strategy = found.candidates.screen.strategy(number)
        listed = found.candidates.listed_s[number]
        seconds = listed if np.isfinite(listed) else found.candidates.bound_s[number]
        rows.append(
            {
                "memory_bytes_per_gpu": memory(found.scenario.model, found.scenario.workload, strategy).total,
                "tokens_per_s_per_gpu": tokens / seconds,
                "state": "batched" if np.isfinite(listed) else "bound",
                "low": np.nan,
                "high": np.nan,
                "label": "",
            }
        )
    return pd.concat([pd.DataFrame(rows), _played_frame(found, tokens)], ignore_index=True)


def _played_frame(found: Plan, tokens: float) -> "pd.DataFrame":
    import pandas as pd

    bands = {result.strategy: result.interval["tokens_per_s_per_gpu"] for result in found.results}
    rows = []
    for play in found.played:
        low, high = bands.get(play.strategy) or (np.nan, np.nan)
        rows.append(
            {
                "memory_bytes_per_gpu": memory(found.scenario.model, found.scenario.workload, play.strategy).total,
                "tokens_per_s_per_gpu": tokens / play.step_s,
                "state": "played",
                "low": low,
                "high": high,
                "label": short(play.strategy),
            }
        )
    return pd.DataFrame(rows)


def draw_candidates(found: Plan, path: Path) -> None:
    """All candidates over memory and speed."""
    from moesim import plots

    frame = candidates_frame(found)
    picture, ax = plots.figure()
    limit = FULL * found.scenario.cluster.gpu.memory_bytes
    plots.candidates(frame, ax, memory_limit_bytes=limit, winner=short(found.results[0].strategy))
    plots.save(picture, path)
    plots.save_table(frame, path)


def draw_breakdown(results: list[Result], path: Path) -> None:
    """Where the time of strategies goes, best first."""
    import pandas as pd

    from moesim import plots

    frame = pd.DataFrame([{"label": short(r.strategy)} | r.breakdown.seconds for r in results]).fillna(0.0)
    drawn = [name for name in frame if name == "label" or frame[name].max() > 1e-9 * results[0].step_s]
    frame = frame[drawn]
    picture, ax = plots.figure(rows=len(frame))
    plots.breakdown(frame, ax)
    plots.save(picture, path)
    plots.save_table(frame, path)


def draw_timeline(result: Result, path: Path) -> None:
    """The pipeline of a played step."""
    from moesim import plots

    spans = step_spans(result.scenario, result.strategy)
    frame = to_frame([span for span in spans if span.layer < 0])  # passes, not the layers inside them
    picture, ax = plots.figure(rows=result.strategy.pp)
    plots.timeline(frame, ax)
    plots.save(picture, path)
    plots.save_table(frame, path)


def draw_layer(result: Result, path: Path) -> None:
    """One layer pass on its streams."""
    from moesim import plots

    frame = to_frame(layer_spans(result.scenario, result.strategy))
    picture, ax = plots.figure()
    plots.layer_timeline(frame, ax)
    plots.save(picture, path)
    plots.save_table(frame, path)


def write_policy(found: Policy, document: dict[str, Any], out: Path) -> None:
    """policy.json, policy.csv, static.csv and policy.png."""
    folder(out)
    write_json(out / "policy.json", document)
    from moesim import plots

    plots.save_table(found.to_frame(), out / "policy.csv")
    plots.save_table(found.statics(), out / "static.csv")
    picture, ax = plots.figure()
    plots.policy(policy_frame(found), ax)
    plots.save(picture, out / "policy.png")


def policy_frame(found: Policy) -> "pd.DataFrame":
    """Milliseconds over the load: of the policy, and of the static choice of each r that loses least."""
    import pandas as pd

    best: dict[str, int] = {}
    for number, one in enumerate(found.ways):
        name = f"r = {one.way.r}"
        if name not in best or found.regret[number] < found.regret[best[name]]:
            best[name] = number
    lines = {"policy": found.chosen_s} | {f"{found.ways[n].way}": found.seconds[n] for n in best.values()}
    return pd.DataFrame(
        [
            {"choice": name, "capacity_factor": factor, "milliseconds": float(seconds[load]) * 1e3}
            for name, seconds in lines.items()
            for load, factor in enumerate(found.factors)
        ]
    )
