"""``moesim simulate``: one configuration played."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moesim.cli.options import AS_JSON, SCENARIO, described, read_scenario, with_options
from moesim.cli.output import check_file, check_folder, print_json, print_table

if TYPE_CHECKING:
    from moesim.metrics import Result


@click.command("simulate")
@with_options(*SCENARIO)
@click.option("--strategy", "-s", required=True,
              help="'dp=8 ep=8 tp=1 pp=1 all_to_all=2dh chunks=2 …', a YAML file, or a plan.json.")  # fmt: skip
@click.option("--batched", is_flag=True, help="Use the batched list schedule instead of SimPy.")
@click.option("--trace", type=click.Path(path_type=Path, dir_okay=False), help="Chrome/Perfetto trace to write.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Timeline to draw (.png, .svg, .pdf).")
@click.option("--out", "folder", help="Folder for result.json and plots: breakdown, timeline, one layer.")
@AS_JSON
def command(strategy: str, batched: bool, as_json: bool, folder: str | None, **asked: Any) -> int:
    """Play MODEL under one strategy: time, breakdown, exposed communication, imbalance, memory."""
    from moesim.metrics import measure
    from moesim.report import as_text, question, result_lines
    from moesim.strategy import load_strategy, show

    trace, plot, out = asked["trace"], asked["plot"], check_folder(folder)
    check_file(trace, "--trace", (".json",))
    check_file(plot, "--plot", (".png", ".svg", ".pdf"))
    scenario = read_scenario(asked)
    chosen = load_strategy(strategy, scenario.cluster.gpus, scenario.workload)
    result = measure(scenario, chosen, events=not batched)
    document = described(scenario) | result.to_dict()
    _write(result, trace, plot)
    if out is not None:
        from moesim.cli.files import write_result

        write_result(result, document, out)
    if as_json:
        print_json(document)
    else:
        print_table(question(scenario), ("where the time goes", "seconds", "share"), _rows(result))
        click.echo(f"{show(chosen)}\n{as_text(result_lines(result))}")
    return 1 if result.infeasible else 0


def _rows(result: "Result") -> list[tuple[str, ...]]:
    from moesim.planner.why import bounds_it

    return [(name, f"{share * result.step_s:.4g}", f"{share:.1%}") for name, share in bounds_it(result)]


def _write(result: "Result", trace: Path | None, plot: Path | None) -> None:
    if trace is not None:
        from moesim.step.trace import step_trace
        from moesim.timeline import write_json

        write_json(trace, step_trace(result.scenario, result.strategy).to_chrome(result.scenario, result.strategy))
    if plot is not None:
        from moesim.cli.files import draw_timeline

        draw_timeline(result, plot)
