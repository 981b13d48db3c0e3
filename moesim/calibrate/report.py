"""What a person or a program is told: the counts of --list, and how a run ended and what to do next."""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from moesim.calibrate.points import Point
from moesim.calibrate.progress import answer, clock, say
from moesim.calibrate.run import BROKEN
from moesim.calibrate.store import Store

_REASONS: Final = 3  # said at the end; meta.json has them all
_PRICED: Final = ("expert_ffn", "gemm", "attention")  # what a plan cannot do without
_STATES: Final = ("measured", "skipped", "left")


class End(NamedTuple):
    """How a run ended."""

    why: str
    command: str  # that goes on
    spent_s: float


def list_points(points: Sequence[Point], store: Store, as_json: bool) -> None:
    """Points of each table that are measured, skipped and left, on stdout."""
    counts = _counts(points, store)
    if as_json:
        answer({"folder": str(store.folder), "tables": counts})
        return
    for table, count in counts.items():
        columns = " ".join(f"{count[state]:6,} {state}" for state in _STATES)
        sys.stdout.write(f"{table:13s} {columns}\n")


def report(points: Sequence[Point], store: Store, end: End, as_json: bool) -> None:
    """The last lines of a run on stderr, and its JSON document."""
    counts = _counts(points, store)
    total = {state: sum(count[state] for count in counts.values()) for state in _STATES}
    text = ", ".join(f"{total[state]:,} {state}" for state in ("skipped", "left"))
    say(f"{total['measured']:,} points measured, {text}, {clock(end.spent_s)}: {store.folder}")
    _say_skipped(points, store)
    if end.why == BROKEN:
        say(f"moesim: the GPU failed and can do no more in this process; go on, that point last: {end.command}")
    elif total["left"]:
        say(f"go on: {end.command}")
    if all(store.rows[table] for table in _PRICED):
        say(f"plan with it: {_plan(store.folder)}")
    if as_json:
        document: dict[str, Any] = {"folder": str(store.folder), "ended": end.why, "seconds": round(end.spent_s, 1)}
        answer(document | total | {"tables": counts})


def _counts(points: Sequence[Point], store: Store) -> dict[str, dict[str, int]]:
    counts = {point.table: dict.fromkeys(_STATES, 0) for point in points}
    for point in points:
        state = "measured" if store.done(point) else "skipped" if store.reason(point) else "left"
        counts[point.table][state] += 1
    return counts


def _say_skipped(points: Sequence[Point], store: Store) -> None:
    reasons = Counter(reason for point in points if (reason := store.reason(point)))
    for reason, count in reasons.most_common(_REASONS):
        say(f"skipped {count:,}: {reason}")
    if reasons:
        say(f"the same command tries them again; which, and why: {store.folder / 'meta.json'}")


def _plan(folder: Path) -> str:
    cluster = shlex.quote(str(folder / "cluster.yaml"))
    return f"MOESIM_PROFILES={shlex.quote(str(folder.parent))} moesim plan MODEL --cluster {cluster}"
