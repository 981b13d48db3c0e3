"""The command line: one module per command, imported when it is called.

plan      rank configurations          simulate  play one
goodput   weeks of it, with failures   tiers     experts in CPU memory and on SSD
policy    an expert layer by its load  cost      price one operation
list      what is there                validate  predicted against measured
calibrate measure this machine

exit code 0  done
exit code 1  nothing feasible, or a check failed
exit code 2  bad input: one line that says what, which value, and what to do
"""

import os
import sys
from importlib import import_module
from typing import Any, Final

import click

from moesim import __version__
from moesim.errors import MoesimError

# The matrices are small: BLAS threads cost more than they save (a plan took 1.4 x as long with two).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

COMMANDS: Final = {
    "plan": "Rank configurations for a model, a cluster and a workload.",
    "simulate": "Play one configuration: time, breakdown, memory, trace.",
    "goodput": "What a training step means over weeks: failures, checkpoints, stragglers, barriers.",
    "tiers": "Experts in CPU memory and on SSD: what fits, what a layer hides of its fetching.",
    "policy": "The best way to run an expert layer at each load, and what a static one loses.",
    "cost": "Price one operation, and say where the number comes from.",
    "list": "What is there: models, clusters, profiles, routing, …",
    "validate": "Compare predictions with published measurements.",
    "calibrate": "Measure this machine's GPU or CPU into a profile.",
}


class Lazy(click.Group):
    """Knows its commands by name and imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"moesim.cli.{name}_command").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    cls=Lazy, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="moesim")
def moesim() -> None:
    """Which MoE configuration should I run, how fast will it be, and why?"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; one line on stderr and exit code 2 for bad input."""
    try:
        result: Any = moesim.main(args=arguments, prog_name="moesim", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except MoesimError as error:
        return _refuse(str(error))
    except click.UsageError as error:
        where = f" (see: {error.ctx.command_path} --help)" if error.ctx else ""
        return _refuse(" ".join(error.format_message().split()) + where)
    except click.ClickException as error:
        return _refuse(" ".join(error.format_message().split()))
    except (click.Abort, KeyboardInterrupt):
        return _refuse("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _refuse(text: str, code: int = 2) -> int:
    click.echo(f"moesim: {' '.join(text.split())}", err=True)
    return code


def run() -> None:
    """Entry point of the installed command."""
    sys.exit(main())
