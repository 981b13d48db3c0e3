"""The command: options in, a profile out, an exit code back."""

import argparse
import shlex
import time
from collections.abc import Sequence
from typing import Final

from moesim.calibrate.grid_cpu import cpu_points
from moesim.calibrate.grid_gpu import gpu_points
from moesim.calibrate.lock import locked
from moesim.calibrate.machine import Clocks, Machine, find_machine, identity, present, require
from moesim.calibrate.meta import Session, cluster_file, meta
from moesim.calibrate.options import parse
from moesim.calibrate.points import Point, ordered
from moesim.calibrate.progress import Bar, say
from moesim.calibrate.report import End, list_points, report
from moesim.calibrate.run import BROKEN, BUDGET, DONE, INTERRUPTED, measure_all
from moesim.calibrate.store import Store
from moesim.errors import MoesimError

_EXIT: Final = {DONE: 0, BUDGET: 0, BROKEN: 2, INTERRUPTED: 130}


def main(argv: Sequence[str], program: str = "python -m moesim.calibrate") -> int:
    """Run the command; exit code 0 done or out of budget, 2 bad input, 130 interrupted."""
    started = time.monotonic()
    command = shlex.join([*program.split(), *argv])
    try:
        return _calibrate(parse(argv, program), command, started)
    except SystemExit as end:  # --help
        return int(end.code or 0)
    except MoesimError as error:
        say(f"moesim: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:  # before the first point, or after the last
        say(f"moesim: interrupted; go on: {command}")
        return _EXIT[INTERRUPTED]


def _calibrate(options: argparse.Namespace, command: str, started: float) -> int:
    machine = find_machine(options.device, options.name)
    points = _points(options, machine)
    home, known = options.out / machine.slug, identity(machine, options.seed)
    if options.only_list:
        list_points(points, Store(home, known), options.as_json)
        return 0
    require("torch")
    with locked(home):
        store = Store(home, known)
        why = _measure(options, machine, points, store, (command, started))
        report(points, store, End(why, command, time.monotonic() - started), options.as_json)
    return _EXIT[why]


def _points(options: argparse.Namespace, machine: Machine) -> list[Point]:
    """Those that were asked for, in their order; none of kernels.csv on a CPU without triton, which costs need."""
    grid = cpu_points() if machine.device == "cpu" else gpu_points(machine.fp8, machine.gpus)
    tables = set(options.only)
    if machine.device == "cpu" and "kernels" in tables and not present("triton"):
        if tables == {"kernels", "peaks"}:
            require("triton")
        tables.remove("kernels")
        say("triton is not installed, kernels.csv is left out; for it: pip install 'moesim[calibrate]'")
    return [point for point in ordered(grid) if point.table in tables and (point.stratum == 0 or not options.quick)]


def _measure(
    options: argparse.Namespace, machine: Machine, points: list[Point], store: Store, run: tuple[str, float]
) -> str:
    """Measure what is left and write the files; why it ended."""
    from moesim.calibrate.bench import make_bench

    command, started = run
    left = sorted((point for point in points if not store.done(point)), key=store.tried)
    _begin(machine, store, len(points) - len(left), len(points))
    clocks = Clocks(machine)
    bench = make_bench(machine.device, machine.l2_bytes, options.seed)
    deadline_s = float("inf") if options.budget is None else started + options.budget
    try:
        why = measure_all(left, bench, store, clocks, deadline_s, Bar(len(points) - len(left), len(points)))
        clocks.sample()
    finally:
        bench.close()
    session = Session(
        command=command,
        quick=options.quick,
        seed=options.seed,
        seconds_spent=time.monotonic() - started + float(store.meta.get("seconds_spent", 0.0)),
        by_events=bench.timer.events_used + int(store.meta.get("timed_by_events", 0)),
    )
    store.finish(meta(machine, store, clocks, session), {"cluster.yaml": cluster_file(machine, store)})
    return why


def _begin(machine: Machine, store: Store, done: int, total: int) -> None:
    try:
        store.start()
    except OSError as error:
        raise MoesimError(f"--out {store.folder}: {error.strerror}; choose a folder that can be written") from None
    if store.dropped:
        say(f"measuring afresh, earlier points cannot be mixed: {'; '.join(store.dropped)}")
    say(f"{machine.full_name}: {done:,} of {total:,} points are measured, {store.folder}")
