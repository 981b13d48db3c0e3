"""``moesim plan``: rank configurations, the first one explained."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moesim.cli.options import AS_JSON, SCENARIO, described, read_scenario, with_options
from moesim.cli.output import check_folder, print_json, print_table, progress

if TYPE_CHECKING:
    from moesim.planner import Plan


@click.command("plan")
@with_options(*SCENARIO)
@click.option("--objective", help="throughput, latency or cost.  [prefill: latency, the TTFT; else throughput]")
@click.option("--top", type=int, default=5, show_default=True, help="Layouts to rank.")
@click.option("--out", "folder", help="Folder for report, tables and plots.")
@AS_JSON
def command(objective: str | None, top: int, folder: str | None, as_json: bool, **asked: Any) -> int:
    """Rank configurations for MODEL (a preset or a Hugging Face config.json) on a cluster."""
    from moesim.planner import plan
    from moesim.planner.plan import to_dict
    from moesim.report import COLUMNS, as_text, nothing_feasible, question, recommendation, table_row

    out = check_folder(folder)
    scenario = read_scenario(asked)
    with progress() as advance:
        found = plan(scenario, objective=objective, top=top, progress=advance)
    document = to_dict(found, described(scenario))
    if out is not None:
        _write(found, document, out)
    if as_json:
        print_json(document)
    elif found.results:
        print_table(question(scenario), COLUMNS, [table_row(i, r) for i, r in enumerate(found.results, 1)])
        click.echo(as_text(recommendation(found)))
    if not found.results:
        if not as_json:
            click.echo(f"{question(scenario)}\nNothing is feasible:")
            click.echo(as_text(nothing_feasible(found.infeasible)))
        return 1
    return 0


def _write(found: "Plan", document: dict[str, Any], out: Path) -> None:
    """report.md, plan.json, configurations.csv and, with results, the plots with their tables."""
    from moesim.cli.files import write_plan

    write_plan(found, document, out)
