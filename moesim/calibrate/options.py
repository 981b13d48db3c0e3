"""The options of the command, and what is refused before the machine is looked at."""

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from moesim.calibrate.points import ONLY, TABLES
from moesim.errors import MoesimError, choice

_MOST_NAME: Final = 100  # letters: it becomes a folder
_MOST_SEED: Final = 2**63 - 1


class _Parser(argparse.ArgumentParser):
    """Refuses bad options with one line, and looks like the other commands."""

    def format_help(self) -> str:
        return f"U{super().format_help()[1:]}"  # "Usage:", as the other commands have it

    def error(self, message: str) -> NoReturn:
        raise MoesimError(f"{message} (see: {self.prog} --help)")


def parse(argv: Sequence[str], program: str) -> argparse.Namespace:
    """The options; MoesimError for bad ones, SystemExit after --help."""
    return parser(program).parse_args(argv)


def parser(program: str) -> argparse.ArgumentParser:
    """The parser, which prints the help."""
    found = _Parser(
        prog=program,
        description="Measure this machine into a profile that plans and costs are priced with. "
        "An interrupted run goes on where it stopped; skipped points are tried again.",
    )
    add = found.add_argument
    where = "where the profile goes (%(default)s)"
    quick = "a small set of every table: about a minute on a GPU, seconds on a CPU"
    listing = "points measured, skipped and left, by table; measures nothing"
    seed = "of the random tensors and loads (%(default)s); another one measures afresh"
    add("--out", type=_folder, default=Path("moesim-profiles"), metavar="FOLDER", help=where)
    add("--device", default="cuda", choices=("cuda", "cpu"), help="this machine's GPU, or its CPU (%(default)s)")
    add("--quick", action="store_true", help=quick)
    add("--budget", type=_seconds, metavar="SECONDS", help="stop after this time; the same command goes on")
    add("--only", type=_tables, default=set(TABLES), metavar="OP[,OP]", help=f"measure these alone: {', '.join(ONLY)}")
    add("--seed", type=_seed, default=0, help=seed)
    add("--name", type=_name, help="name of the profile; default: the device's")
    add("--list", action="store_true", dest="only_list", help=listing)
    add("--json", action="store_true", dest="as_json", help="one JSON document on stdout at the end")
    return found


def slug(name: str) -> str:
    """The folder of a profile of that name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _folder(text: str) -> Path:
    if not text.strip():
        raise MoesimError(f"--out {text!r}: give a folder, for example moesim-profiles")
    return Path(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < math.inf:
        raise MoesimError(f"--budget {text}: give seconds above zero, for example 300")
    return seconds


def _seed(text: str) -> int:
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed <= _MOST_SEED:
        raise MoesimError(f"--seed {text}: give a whole number, 0 or more")
    return seed


def _name(text: str) -> str:
    if not slug(text) or len(text) > _MOST_NAME or not text.isprintable() or set(text) & set("/\\"):
        raise MoesimError(
            f"--name {text[:_MOST_NAME]!r}: give at most {_MOST_NAME} characters with a letter a-z or a digit "
            "and no slash, for example H200"
        )
    return text


def _tables(text: str) -> set[str]:
    """The tables that --only names; peaks belong to every profile."""
    for name in text.split(","):
        if name not in ONLY:
            raise choice("--only", name, list(ONLY))
    return {ONLY[name] for name in text.split(",")} | {"peaks"}
