"""``moesim validate``: predicted against measured."""

from pathlib import Path
from typing import Any, Final

import click

from moesim.cli.options import AS_JSON, with_options
from moesim.cli.output import print_json, print_table

COLUMNS: Final = ("group", "n", "median", "mean", "p90", "rms of log", "inside band", "tau", "goals missed")


@click.command("validate")
@click.option(
    "--group",
    "groups",
    multiple=True,
    help="kernels, collectives, training, serving, or live: a real MoE layer run here now.  [default: all but live]",
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of measured tables (docs/validation.md).")
@click.option("--rows", is_flag=True, help="Every judged figure instead of the summary.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Tables, predicted-against-measured plots, and a roofline of each GPU with kernels of its own.",
)
@click.option("--check", is_flag=True, help="Exit with 1 when a target is missed.")
@with_options(AS_JSON)
def command(
    groups: tuple[str, ...], data: Path | None, rows: bool, out: Path | None, check: bool, as_json: bool
) -> int:  # fmt: skip
    """Compare predictions with measurements: the cited set that ships with moesim, or a folder of tables."""
    from moesim.validate import validate

    found = validate(groups or None, data)
    if out is not None:
        from moesim.cli.validate_files import write_validation

        write_validation(found, out)
    if as_json:
        print_json(found.to_dict())
    elif rows:
        click.echo(found.to_frame().to_csv(index=False))
    else:
        lines = found.to_dict()["groups"]
        judged = [line for line in lines if line["n"]]
        print_table("Error: |predicted / measured - 1|", COLUMNS, [_cells(line) for line in judged])
        for line in (line for line in lines if line["group"] == "all" and line["targets"]):
            goals = ", ".join(f"{name} {value:g}" for name, value in line["targets"].items())
            click.echo(f"{line['part']}: goals {goals}")
        for line in lines:
            click.echo("".join(_skips(line)), nl=False)
    return 1 if check and not found.met else 0


def _cells(line: dict[str, Any]) -> list[str]:
    percents = [_percent(line[name]) for name in ("median", "mean", "p90", "rms", "inside")]
    tau = "" if line["tau"] is None else f"{line['tau']:.2f}"
    return [f"{line['part']}: {line['group']}", str(line["n"]), *percents, tau, " ".join(line["missed"])]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _skips(line: dict[str, Any]) -> list[str]:
    where = f"{line['part']}: {line['group']}"
    return [f"{where}: {count:,} not judged: {reason}\n" for reason, count in line["skipped"].items()]
