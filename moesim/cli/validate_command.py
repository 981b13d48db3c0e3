"""``moesim validate``: predicted against measured."""

from pathlib import Path
from typing import Any

import click

from moesim.cli.options import AS_JSON, with_options
from moesim.cli.output import print_json, print_table


@click.command("validate")
@click.option("--group", "groups", multiple=True, help="kernels, collectives, training or serving.  [default: all]")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of measured tables (docs/validation.md).")
@click.option("--rows", is_flag=True, help="Every judged figure instead of the summary.")
@click.option("--check", is_flag=True, help="Exit with 1 when a target is missed.")
@with_options(AS_JSON)
def command(groups: tuple[str, ...], data: Path | None, rows: bool, check: bool, as_json: bool) -> int:
    """Compare predictions with measurements: the cited set that ships with moesim, or a folder of tables."""
    from moesim.validate import validate

    found = validate(groups or None, data)
    if as_json:
        print_json(found.to_dict())
    elif rows:
        click.echo(found.to_frame().to_csv(index=False))
    else:
        summary = found.summary()
        cells = [[_text(value) for value in row] for row in summary.itertuples(index=False)]
        print_table("Predicted against measured", list(summary.columns), cells)
    return 1 if check and not found.met else 0


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    if isinstance(value, dict):
        return "; ".join(f"{k}: {v}" for k, v in value.items())
    return str(value)
