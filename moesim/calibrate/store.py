"""The files of one machine's profile, and how they survive an interruption.

    .partial/run.json       what may be mixed: device, torch, triton, code
    .partial/<table>.csv    one line per measured point, on the disk before the next is measured
    .partial/skipped.csv    points that could not be measured
    .partial/current        the point at work: one in which the process ended is tried last
    <table>.csv             written beside and renamed, all at the end of a run

A line without its end is dropped. Rows of another device, torch, triton, code or seed are measured again, and so
are skipped points by the next run: those that lost the GPU last.
"""

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

from moesim.calibrate.points import TABLES, Point
from moesim.errors import MoesimError

_SKIPPED: Final = ("table", "point", "reason")
LOST: Final = "the GPU failed: "  # begins the reason of a point after which nothing else could be measured
_DIED: Final = f"{LOST}the process ended in this point"


class Store:
    """What was measured so far, on disk and in memory."""

    def __init__(self, folder: Path, identity: dict[str, str]) -> None:
        self.folder = folder
        self.identity = identity
        self.rows: dict[str, dict[str, list[str]]] = {table: {} for table in TABLES}
        self.skipped: dict[tuple[str, str], str] = {}
        self.dropped: list[str] = []  # what made the earlier rows useless
        self.meta: dict[str, Any] = {}  # of the run before
        self._read()

    @property
    def partial(self) -> Path:
        """The folder of the run in progress."""
        return self.folder / ".partial"

    def done(self, point: Point) -> bool:
        """Whether a point was measured."""
        return point.name in self.rows[point.table]

    def reason(self, point: Point) -> str:
        """Why a point was skipped, or an empty text."""
        return self.skipped.get((point.table, point.name), "")

    def tried(self, point: Point) -> int:
        """Place in the next run: 0 for new points, 1 for skipped ones, 2 for those that lost the GPU."""
        reason = self.reason(point)
        return 2 if reason.startswith(LOST) else int(bool(reason))

    def start(self) -> None:
        """Make the folder, and forget a partial run that cannot be mixed."""
        if _document(self.partial / "run.json") != self.identity:
            shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True, exist_ok=True)
        write_whole(self.partial / "run.json", json.dumps(self.identity, indent=1) + "\n")
        for table, name in _point_in(self.partial / "current"):
            _append(self.partial / "skipped.csv", _SKIPPED, [table, name, _DIED])
        self.end()

    def begin(self, point: Point) -> None:
        """Note the point at work, so that a process that dies in it tells the next one."""
        (self.partial / "current").write_text(f"{point.table}\n{point.name}\n", encoding="utf-8")

    def end(self) -> None:
        """No point is at work: the run ends in an orderly way."""
        (self.partial / "current").unlink(missing_ok=True)

    def add(self, point: Point, found: dict[str, str]) -> None:
        """Keep a measured row."""
        self.skipped.pop((point.table, point.name), None)
        row = [*(str(value) for value in point.values), *(found[column] for column in TABLES[point.table].found)]
        self.rows[point.table][point.name] = row
        columns = TABLES[point.table]
        _append(self.partial / f"{point.table}.csv", (*columns.asked, *columns.found), row)

    def skip(self, point: Point, reason: str) -> None:
        """Keep the reason why a point has no row."""
        line = " ".join(reason.split())[:300]
        self.skipped[point.table, point.name] = line
        _append(self.partial / "skipped.csv", _SKIPPED, [point.table, point.name, line])

    def finish(self, meta: dict[str, Any], others: dict[str, str]) -> None:
        """Write every table, ``others`` (name -> text) and meta.json, each whole or not at all."""
        for table, columns in TABLES.items():
            path = self.folder / f"{table}.csv"
            rows = self.rows[table]
            if rows and table != "peaks":
                write_whole(path, _text([(*columns.asked, *columns.found), *sorted(rows.values(), key=_place)]))
            else:
                path.unlink(missing_ok=True)
        for name, text in others.items():
            write_whole(self.folder / name, text)
        write_whole(self.folder / "meta.json", json.dumps(meta, indent=1) + "\n")
        shutil.rmtree(self.partial, ignore_errors=True)

    def _read(self) -> None:
        self.meta = _meta(self.folder / "meta.json")
        known = self.meta.get("identity")
        if known == self.identity:
            for table in TABLES:
                self._take(table, self.folder / f"{table}.csv")
            peaks = self.meta.get("peaks_measured", {})
            self.rows["peaks"] = {what: [what, repr(value)] for what, value in peaks.items()}
            self.skipped = dict(_skipped(self.meta.get("skipped", [])))
        elif known is not None:
            self.dropped = _changes(known, self.identity)
            self.meta = {}
        known = _document(self.partial / "run.json")
        if known == self.identity:
            for table in TABLES:
                self._take(table, self.partial / f"{table}.csv")
            for row in _lines(self.partial / "skipped.csv", _SKIPPED):
                self.skipped[row[0], row[1]] = row[2]
            for died in _point_in(self.partial / "current"):
                self.skipped[died] = _DIED
        elif known:
            self.dropped = self.dropped or _changes(known, self.identity)
        self.skipped = {point: why for point, why in self.skipped.items() if point[1] not in self.rows[point[0]]}

    def _take(self, table: str, path: Path) -> None:
        columns = TABLES[table]
        for row in _lines(path, (*columns.asked, *columns.found)):
            self.rows[table][",".join(row[: len(columns.asked)])] = row


def skipped_text(skipped: dict[tuple[str, str], str]) -> list[str]:
    """One sentence per skipped point: ``gemm torch_matmul,bf16,1,2,3: reason``."""
    return [f"{table} {name}: {reason}" for (table, name), reason in sorted(skipped.items())]


def _point_in(path: Path) -> list[tuple[str, str]]:
    """The table and the name of the point that a dead process was at, if any."""
    parts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [(parts[0], parts[1])] if len(parts) == 2 and parts[0] in TABLES else []


def _skipped(sentences: list[str]) -> list[tuple[tuple[str, str], str]]:
    found = []
    for sentence in sentences:
        where, _, reason = sentence.partition(": ")
        table, _, name = where.partition(" ")
        found.append(((table, name), reason))
    return found


def _changes(known: dict[str, str], now: dict[str, str]) -> list[str]:
    names = sorted(known.keys() | now.keys())
    return [f"{name} {known.get(name)} -> {now.get(name)}" for name in names if known.get(name) != now.get(name)]


def _lines(path: Path, header: tuple[str, ...]) -> list[list[str]]:
    """The rows of a CSV with exactly this header; a last line without its end is left out."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if not rows or tuple(rows[0]) != header:
        return []
    return [row for row in rows[1:] if len(row) == len(header)]


def _append(path: Path, header: tuple[str, ...], row: list[str]) -> None:
    """Add one line and wait until it is on the disk; repair a file that ends in half a line."""
    kept = path.read_bytes() if path.is_file() else b""
    whole = kept.rfind(b"\n") + 1
    with path.open("r+b" if kept else "wb") as file:
        file.truncate(whole)
        file.seek(whole)
        file.write(_text([row] if whole else [header, row]).encode())
        file.flush()
        os.fsync(file.fileno())


def _place(row: list[str]) -> list[tuple[bool, float, str]]:
    """Rows in the order of their columns, numbers by value."""
    numbers = [cell.replace(".", "", 1).isdigit() for cell in row]
    return [
        (not is_number, float(cell) if is_number else 0.0, cell) for is_number, cell in zip(numbers, row, strict=True)
    ]


def _text(rows: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_whole(path: Path, text: str) -> None:
    """Write a file beside its place and rename it: a reader sees the old or the new one, never half."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _meta(path: Path) -> dict[str, Any]:
    """meta.json of an earlier run; empty where there is none. Refuses one that a calibration did not write."""
    document = _document(path)
    parts = [document.get(name) for name in ("identity", "peaks_measured", "skipped")]
    if document and [type(part) for part in parts] != [dict, dict, list]:
        raise MoesimError(f"{path}: no calibration wrote this, or not all of it: give another --out or --name")
    return document


def _document(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file. Refuses what cannot be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError):
        document = None
    if not isinstance(document, dict):
        raise MoesimError(f"{path} is damaged: restore it, or delete {path.parent} to measure afresh")
    return document
