"""``moesim calibrate``: ``python -m moesim.calibrate`` under the name of the command line."""

import click

CONTEXT = {"ignore_unknown_options": True, "help_option_names": []}


@click.command("calibrate", context_settings=CONTEXT)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int:
    """Measure this machine's GPU, or its CPU, into a profile (--help: all options)."""
    from moesim.calibrate import main

    return main(arguments, "moesim calibrate")
