"""``moesim cost``: one operation's predicted seconds, and where the number comes from."""

from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from moesim.cli.options import AS_JSON, with_options
from moesim.cli.output import print_json, progress

if TYPE_CHECKING:
    from moesim.costs import Answer, Operation

OPERATIONS: Final = {
    "expert-ffn": "The expert layer of one GPU.",
    "gemm": "A dense matrix product.",
    "attention": "The attention core, prefill or decode.",
    "all-to-all": "Dispatch or combine of an expert layer.",
    "all-reduce": "Sum a buffer over GPUs.",
    "all-gather": "Gather a buffer on all GPUs.",
    "reduce-scatter": "Sum a buffer, each GPU keeps a part.",
    "send": "One message between two GPUs.",
}
FROM_FILE: Final = (
    click.option("--from", "table", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.csv",
                 help="Price every row: columns are these options with underscores, lists in a cell by ;. "
                      "Options beside it fill empty cells and missing columns."),
    click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.csv",
                 help="With --from: where to write the table.  [default: stdout]"),
    AS_JSON,
)  # fmt: skip

PLOT: Final = click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.png",
    help="Draw the cluster with the time that each link is busy; a CSV is left beside it.",
)  # fmt: skip
DRAWN: Final = ("all-to-all",)


class Operations(click.Group):
    """Builds the command of an operation when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(OPERATIONS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from moesim import costs

        return _command(costs.OPERATIONS[name]) if name in costs.OPERATIONS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Operations"):
            formatter.write_dl(list(OPERATIONS.items()))


@click.command("cost", cls=Operations, no_args_is_help=False)
def command() -> None:
    """Price one operation: seconds with a 90 % band, a lower bound, what limits it, and its source.

    All sizes are counts or bytes; answers are in seconds.
    """


def _command(operation: "Operation") -> click.Command:
    def run(table: Path | None, out: Path | None, as_json: bool, plot: Path | None = None, **asked: Any) -> int:
        given = {name: _one(name, value) for name, value in asked.items() if value not in (None, ())}
        if table is not None and plot is not None:
            raise click.UsageError("--plot draws one case: leave out --from")
        if table is not None:
            return _price_table(operation, table, out, as_json, given)
        if out is not None:
            raise click.UsageError("--out belongs to --from: it is where the priced table goes")
        answer = operation.answer(**given)
        if plot is not None:
            from moesim.costs.exchange_picture import draw

            draw(given, plot)
        if as_json:
            print_json({"op": operation.name} | answer.to_dict())
        else:
            click.echo("\n".join(_lines(operation.name, answer)))
        return 0

    drawn = (PLOT,) if operation.name in DRAWN else ()
    decorated = with_options(*_options(operation), *FROM_FILE, *drawn)(run)
    return click.command(operation.name, help=operation.about)(decorated)


def _options(operation: "Operation") -> list[Callable[[Any], Any]]:
    """One click option for each field of the operation's inputs; text is read by the field itself."""
    from moesim.costs.inputs import FLAG, options

    found = []
    for each in options(operation.inputs):
        kind, about, off = (each.metadata[what] for what in ("kind", "about", "off"))
        flag = f"--{each.name.replace('_', '-')}"
        if each.default is MISSING:
            about += "  [required]"
        elif kind is not FLAG and each.default is not None:
            about += f"  [default: {each.default}]"
        if kind is FLAG:
            both = f"{flag}/--{off}" if off else flag
            found.append(click.option(both, is_flag=True, default=None, multiple=True, help=about))
        else:
            found.append(click.option(flag, metavar=kind.metavar, help=about))
    return found


def _one(name: str, value: Any) -> Any:
    """A flag is given once, or as often as one likes, but not with its opposite."""
    if not isinstance(value, tuple):
        return value
    if len(set(value)) > 1:
        raise click.UsageError(f"--{name.replace('_', '-')} is given with its opposite: give one of them")
    return value[-1]


def _price_table(operation: "Operation", table: Path, out: Path | None, as_json: bool, given: dict[str, Any]) -> int:
    from moesim.costs.table import price_table, to_csv
    from moesim.timeline import write_whole

    if as_json and out is not None:
        raise click.UsageError("--json prints on stdout and --out writes CSV: give one of them")
    with progress() as advance:
        rows = price_table(operation, table, given, advance)
    if as_json:
        print_json([{"op": operation.name} | row.to_dict() for row in rows])
    elif out is None:
        click.echo(to_csv(rows), nl=False)
    else:
        text = to_csv(rows)
        write_whole(out, lambda partial: partial.write_text(text, encoding="utf-8"))
        click.echo(f"{len(rows)} rows priced: {out}")
    return 0


def _lines(name: str, answer: "Answer") -> list[str]:
    """The answer for people."""
    from moesim.units import show_seconds

    cost = answer.cost
    seconds, bound_s = float(cost.seconds), float(cost.bound_s)
    basis = ", ".join(f"{share:.0%} {what}" for what, share in cost.basis._asdict().items() if share)
    lines = [
        f"{name}: {show_seconds(seconds)}, nine times in ten {show_seconds(float(cost.low))} to "
        f"{show_seconds(float(cost.high))}",
        f"  bound       {show_seconds(bound_s)}" + (f", {bound_s / seconds:.0%} of it" if seconds else ""),
        f"  limited by  {cost.limited_by}",
        f"  basis       {basis}",
        f"  source      {cost.source}",
    ]
    more = dict(answer.more)
    for what in ("compared", "fused"):
        if more.get(what):
            more[what] = {each: show_seconds(value) for each, value in more[what].items()}
    if "busiest" in more:
        more["busiest"] = _busiest(more["busiest"], answer.inputs.get("share_left", {}))
    cannot_run = more.pop("cannot_run", {})
    more = {what: value for what, value in more.items() if value not in ([], {})}
    lines += [f"  {what:<11} {_said(value)}" for what, value in more.items()]
    if cannot_run:
        lines.append(f"  cannot run  {len(cannot_run)} other algorithms; --json says why")
    return [*lines, f"  inputs      {_said(answer.inputs)}"]


def _busiest(size_bytes: dict[str, float], share_left: dict[str, float]) -> dict[str, str]:
    """Bytes as a whole link would carry them in that time; where there are slow links, what one of these carries."""
    from moesim.units import show_bytes

    found = {kind: show_bytes(size) for kind, size in size_bytes.items()}
    for kind, share in share_left.items():
        if kind in found:
            found[kind] += f" (or {show_bytes(size_bytes[kind] * share)} on the one with {share:.0%} left)"
    return found


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name}={_said(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ",".join(_said(part) for part in value)
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
