"""The command: options in, a profile out, an exit code back."""

import argparse
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from moesim.calibrate.grid_cpu import cpu_points
from moesim.calibrate.grid_gpu import gpu_points
from moesim.calibrate.machine import Clocks, Machine, find_machine, identity, require_torch
from moesim.calibrate.meta import Session, cluster_file, meta
from moesim.calibrate.points import ONLY, TABLES, Point, ordered
from moesim.calibrate.progress import Bar, answer, clock, say
from moesim.calibrate.run import BROKEN, BUDGET, DONE, INTERRUPTED, measure_all
from moesim.calibrate.store import Store
from moesim.errors import MoesimError, choice

_EXIT: Final = {DONE: 0, BUDGET: 0, BROKEN: 2, INTERRUPTED: 130}


class _Parser(argparse.ArgumentParser):
    """Refuses bad options with one line, and looks like the other commands."""

    def format_help(self) -> str:
        return f"U{super().format_help()[1:]}"  # "Usage:", as the other commands have it

    def error(self, message: str) -> NoReturn:
        raise MoesimError(f"{message} (see: {self.prog} --help)")


def main(argv: Sequence[str], program: str = "python -m moesim.calibrate") -> int:
    """Run the command; exit code 0 done or out of budget, 2 bad input, 130 interrupted."""
    started = time.monotonic()
    try:
        options = _parser(program).parse_args(argv)
        return _calibrate(options, shlex.join([*program.split(), *argv]), started)
    except SystemExit as end:  # --help
        return int(end.code or 0)
    except MoesimError as error:
        say(f"moesim: {' '.join(str(error).split())}")
        return 2


def _parser(program: str) -> _Parser:
    parser = _Parser(
        prog=program,
        description="Measure this machine into a profile that plans and costs are priced with. "
        "An interrupted run goes on where it stopped.",
    )
    add = parser.add_argument
    where = "where the profile goes (%(default)s)"
    add("--out", type=Path, default=Path("moesim-profiles"), metavar="FOLDER", help=where)
    add("--device", default="cuda", choices=("cuda", "cpu"), help="this machine's GPU, or its CPU (%(default)s)")
    add("--quick", action="store_true", help="a small set of every table: about a minute")
    add("--budget", type=float, metavar="SECONDS", help="stop after this time; the same command goes on")
    add("--only", metavar="OP[,OP]", help=f"measure these alone: {', '.join(ONLY)}")
    add("--seed", type=int, default=0, help="of the random tensors and loads (%(default)s)")
    add("--name", help="name of the profile; default: the device's")
    add("--list", action="store_true", dest="only_list", help="points measured and left, by table; measures nothing")
    add("--json", action="store_true", dest="as_json", help="one JSON document on stdout at the end")
    return parser


def _calibrate(options: argparse.Namespace, command: str, started: float) -> int:
    tables = _tables(options.only)
    if options.budget is not None and options.budget <= 0:
        raise MoesimError(f"--budget {options.budget:g}: give seconds above zero")
    if options.seed < 0:
        raise MoesimError(f"--seed {options.seed}: give 0 or more")
    if options.name is not None and not any(character.isalnum() for character in options.name):
        raise MoesimError(f"--name {options.name!r}: give a name with a letter or a digit, for example H200")
    machine = find_machine(options.device, options.name)
    grid = cpu_points() if machine.device == "cpu" else gpu_points(machine.fp8, machine.gpus)
    points = [point for point in ordered(grid) if point.table in tables and (point.stratum == 0 or not options.quick)]
    store = Store(options.out / machine.slug, identity(machine))
    if options.only_list:
        _list(points, store, options.as_json)
        return 0
    require_torch()
    return _measure(options, machine, points, store, (command, started))


def _measure(
    options: argparse.Namespace, machine: Machine, points: list[Point], store: Store, run: tuple[str, float]
) -> int:
    from moesim.calibrate.bench import make_bench

    command, started = run
    left = [point for point in points if not store.done(point)]
    if store.dropped:
        say(f"measuring afresh, earlier points cannot be mixed: {'; '.join(store.dropped)}")
    say(f"{machine.full_name}: {len(points) - len(left):,} of {len(points):,} points are measured, {store.folder}")
    _start(store)
    clocks = Clocks(machine)
    bench = make_bench(machine.device, machine.l2_bytes, options.seed)
    deadline_s = float("inf") if options.budget is None else started + options.budget
    try:
        why = measure_all(left, bench, store, clocks, deadline_s, Bar(len(points) - len(left), len(points)))
    finally:
        clocks.sample()
    spent_s = time.monotonic() - started
    session = Session(
        command=command,
        quick=options.quick,
        seed=options.seed,
        seconds_spent=spent_s + float(store.meta.get("seconds_spent", 0.0)),
        by_events=bench.timer.events_used + int(store.meta.get("timed_by_events", 0)),
    )
    store.finish(meta(machine, store, clocks, session), {"cluster.yaml": cluster_file(machine, store)})
    if why != BROKEN:
        bench.leave()
    return _report(points, store, (why, command, spent_s), options.as_json)


def _start(store: Store) -> None:
    try:
        store.start()
    except OSError as error:
        raise MoesimError(f"--out {store.folder}: {error.strerror}; choose a folder that can be written") from None


def _tables(only: str | None) -> set[str]:
    """The tables that --only names; peaks belong to every profile."""
    if only is None:
        return set(TABLES)
    for name in only.split(","):
        if name not in ONLY:
            raise choice("--only", name, list(ONLY))
    return {ONLY[name] for name in only.split(",")} | {"peaks"}


def _counts(points: list[Point], store: Store) -> dict[str, dict[str, int]]:
    done = Counter(point.table for point in points if store.done(point))
    skipped = Counter(point.table for point in points if (point.table, point.name) in store.skipped)
    every = Counter(point.table for point in points)
    return {
        table: {"measured": done[table] - skipped[table], "skipped": skipped[table], "left": count - done[table]}
        for table, count in every.items()
    }


def _list(points: list[Point], store: Store, as_json: bool) -> None:
    counts = _counts(points, store)
    if as_json:
        answer({"folder": str(store.folder), "tables": counts})
        return
    for table, count in counts.items():
        say(f"{table:13s} {count['measured']:6,} measured {count['left']:6,} left")


def _report(points: list[Point], store: Store, end: tuple[str, str, float], as_json: bool) -> int:
    why, command, spent_s = end
    counts = _counts(points, store)
    total = {name: sum(count[name] for count in counts.values()) for name in ("measured", "skipped", "left")}
    text = f"{total['measured']:,} points measured, {total['skipped']:,} skipped, {total['left']:,} left"
    say(f"{text}, {clock(spent_s)}: {store.folder}")
    if why == BROKEN:
        say(f"moesim: the GPU failed and can do no more in this process; go on without that point: {command}")
    elif total["left"]:
        say(f"go on: {command}")
    if as_json:
        document: dict[str, Any] = {"folder": str(store.folder), "ended": why, "seconds": round(spent_s, 1)}
        answer(document | total | {"tables": counts})
    return _EXIT[why]
