"""How answers leave: one JSON document, tables for people, a bar when it takes longer than a second."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import click

from moesim.errors import MoesimError

Advance = Callable[[str, float], None]


def print_json(document: Any) -> None:
    """One document on stdout. Floats keep their digits; nan and infinity do not occur."""
    click.echo(json.dumps(document, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people; numbers are right-aligned by the caller's text."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(table)


def check_file(path: Path | None, option: str, endings: Sequence[str]) -> None:
    """Refuse a file that could not be written, before the work is done."""
    if path is None:
        return
    if path.suffix not in endings:
        raise MoesimError(f"{option} {path}: end its name in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise MoesimError(f"{option} {path}: there is no folder {path.parent}; make it first")


def check_folder(folder: str | None) -> Path | None:
    """The folder that ``--out`` names, refused before the work is done if it cannot be one."""
    if folder is None:
        return None
    if not folder:
        raise MoesimError("--out is empty: name a folder, or . for this one")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise MoesimError(f"--out {folder} is a file: name a folder")
    return Path(folder)


@contextmanager
def progress() -> Iterator[Advance]:
    """A bar on stderr that appears after a second; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True)
    task = bar.add_task("", total=1.0)
    started_s = monotonic()

    def advance(what: str, share: float) -> None:
        bar.update(task, description=what, completed=share)
        if console.is_terminal and monotonic() - started_s > 1.0:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
