"""A CSV of cases: every row is priced, and comes back with its answer.

Columns are an operation's options with underscores, lists inside a cell separated by ``;``. An empty cell or
a missing column takes what was given for the whole table, else the default. Other columns pass through.
Every row is read before the first is priced, and nothing is returned unless all of them are.
"""

import csv
import io
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NamedTuple

from moesim.costs.answer import Answer, Operation
from moesim.costs.inputs import make, options
from moesim.errors import MoesimError

ANSWERS: Final = (
    "seconds", "low", "high", "bound_s", "limited_by", "measured", "published", "estimated", "source",
)  # fmt: skip
ALGORITHM: Final = "chosen_algorithm"
_LIKE: Final = 0.8  # similarity from which a column counts as a misspelled option
_STEP: Final = 64  # rows between two words about progress


class Row(NamedTuple):
    """One line of the table and its answer."""

    number: int
    cells: dict[str, str]  # as they were read
    answer: Answer

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the answer, the row's number and its cells."""
        return {"row": self.number, **self.answer.to_dict(), "columns": self.cells}


def price_table(
    operation: Operation, path: Path, given: dict[str, Any], advance: Callable[[str, float], None]
) -> list[Row]:
    """Read and price every row; ``given`` fills empty cells and missing columns."""
    lines = _lines(path)
    header = [name.strip() for name in lines[0][1]]
    _check_header(operation, path, header)
    asked = _read(operation, path, header, lines[1:], given)
    priced: dict[Any, Answer] = {}
    rows = []
    for i, (number, cells, noun) in enumerate(asked):
        if noun not in priced:
            try:
                priced[noun] = operation.price(noun)
            except MoesimError as error:
                raise _at(path, number, error) from None
        rows.append(Row(number, cells, priced[noun]))
        if i % _STEP == 0:
            advance(f"pricing {operation.name}", i / len(asked))
    return rows


def to_csv(rows: Sequence[Row]) -> str:
    """The rows with their answers as columns; a column named like an answer comes back as ``given_…``."""
    chosen = any("algorithm" in row.answer.more for row in rows)
    answers = [*ANSWERS, ALGORITHM] if chosen else list(ANSWERS)
    kept = [f"given_{name}" if name in answers else name for name in rows[0].cells]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*kept, *answers])
    memo: dict[int, list[str]] = {}
    for row in rows:
        key = id(row.answer)
        if key not in memo:
            memo[key] = _answer_cells(row.answer)
        writer.writerow([*row.cells.values(), *memo[key]])
    return out.getvalue()


def _answer_cells(answer: Answer) -> list[str]:
    found = answer.to_dict()
    found |= found["basis"]
    cells = [str(found[name]) for name in ANSWERS]
    return [*cells, answer.more["algorithm"]] if "algorithm" in answer.more else cells


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and cells of every line that is not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, line) for line in reader if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MoesimError(f"cannot read {path}: {error}; give a CSV file with a header") from None
    if len(lines) < 2:
        raise MoesimError(f"{path} has no rows: give a header with option names and a line for each case")
    return lines


def _check_header(operation: Operation, path: Path, header: list[str]) -> None:
    known = {each.name for each in options(operation.inputs)}
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise MoesimError(f"{path} has column {twice[0]!r} twice: keep one")
    for each in options(operation.inputs):
        off = each.metadata["off"]
        if off and off in header:
            raise MoesimError(f"{path} column {off!r}: write column {each.name!r} with true or false")
    for name in header:
        plain = name.lower().replace("-", "_").replace(" ", "_")
        near = get_close_matches(plain, sorted(known), n=1, cutoff=_LIKE)
        if name not in known and near:
            raise MoesimError(f"{path} column {name!r} looks like option {near[0]!r}: correct it, or rename it")
        if f"given_{name}" in header and name in (*ANSWERS, ALGORITHM):
            raise MoesimError(f"{path} has columns {name!r} and 'given_{name}': rename or drop one")


def _read(
    operation: Operation,
    path: Path,
    header: list[str],
    lines: list[tuple[int, list[str]]],
    given: dict[str, Any],
) -> list[tuple[int, dict[str, str], Any]]:
    """Number, cells and noun of every row."""
    known = {each.name for each in options(operation.inputs)}
    nouns: dict[tuple[str, ...], Any] = {}
    found = []
    for number, (line_number, line) in enumerate(lines, 1):
        if len(line) != len(header):
            raise MoesimError(
                f"{path} row {number} (line {line_number}) has {len(line)} cells, not {len(header)}: "
                "separate lists inside a cell by ; and quote cells with commas"
            )
        cells = dict(zip(header, line, strict=True))
        stated = {name: cell for name, cell in cells.items() if name in known and cell.strip()}
        key = tuple(f"{name}={cell}" for name, cell in stated.items())
        if key not in nouns:
            try:
                nouns[key] = make(operation.inputs, given | stated)
            except MoesimError as error:
                raise _at(path, number, error) from None
        found.append((number, cells, nouns[key]))
    return found


def _at(path: Path, number: int, error: MoesimError) -> MoesimError:
    return MoesimError(f"{path} row {number}: {error}")
