"""Reading who went where: a histogram, a token trace, or the counters a serving engine writes.

    .csv   columns layer, expert and one of count, tokens, load, load_share; rows of one expert add up
    .json  [layer][expert] counts, or an object that holds them, e.g. SGLang's {"logical_count": ...}
    .npy   counts [layer, expert], or a trace: whole numbers [token, layer, choice], the ids of the experts
    .npz   the same under any key; arrays of other dimensions are passed over

FILE#NAME takes the one array called NAME, or the CSV rows that have NAME in any column; without it all
that a CSV holds adds up. A counter of three axes named logical_count is [step, layer, expert].
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from moesim.cost import FloatArray
from moesim.errors import MoesimError

AMOUNTS: Final = ("count", "tokens", "load", "load_share")
_MOST_EXPERTS: Final = 65_536
_COUNTERS: Final = "logical_count"


def read_load(path: Path, part: str) -> tuple[FloatArray, bool]:
    """Shares of load [layer, expert] (rows sum to 1), and whether they come from a token trace."""
    readers = {".csv": _csv, ".json": _json, ".npy": _npy, ".npz": _npz}
    if path.suffix not in readers:
        raise MoesimError(f"cannot read {path.name} as a routing: give one of {', '.join(readers)}")
    try:
        array, name = readers[path.suffix](path, part)
    except (
        OSError,
        EOFError,
        BadZipFile,
        UnicodeDecodeError,
        csv.Error,
        json.JSONDecodeError,
        ValueError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MoesimError(f"cannot read {path.name}: {reason}; write the file again") from error
    return _shares(array, name, path.name)


def _shares(array: NDArray[Any], name: str, file: str) -> tuple[FloatArray, bool]:
    if array.dtype.kind not in "iuf":
        raise MoesimError(f"{file} holds {array.dtype} values: give numbers, [layer, expert]")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise MoesimError(f"{file} has shape {list(array.shape)}: give [layer, expert] or [token, layer, choice]")
    is_trace = array.ndim == 3 and name != _COUNTERS
    if is_trace:
        counts = _count_trace(array, file)
    else:
        counts = array.astype(np.float64).reshape(-1, *array.shape[-2:]).sum(axis=0)
        _check_counts(array, file)
    total = counts.sum(axis=-1, keepdims=True)
    empty = np.flatnonzero(total == 0)
    if empty.size:
        raise MoesimError(f"{file} has no load in layer {empty[0]} (counted from 0): leave the layer out")
    return counts / total, is_trace


def _check_counts(array: NDArray[Any], file: str) -> None:
    bad = ~np.isfinite(array) | (array < 0)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise MoesimError(f"{file} holds {array[where]} at {list(where)}: a count is a number from 0 up")


def _count_trace(ids: NDArray[Any], file: str) -> FloatArray:
    """Ids of the chosen experts [token, layer, choice] -> counts [layer, expert]."""
    if ids.dtype.kind not in "iu":
        raise MoesimError(f"{file} has three axes of {ids.dtype}: a trace holds whole numbers, the experts' ids")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= _MOST_EXPERTS:
        raise MoesimError(f"{file} holds the expert id {low if low < 0 else high}: ids run from 0 to 65535")
    chosen = np.sort(ids, axis=-1)
    twice = np.argwhere(chosen[..., 1:] == chosen[..., :-1])
    if twice.size:
        token, layer = (int(i) for i in twice[0][:2])
        raise MoesimError(
            f"{file}: token {token} picks an expert twice in layer {layer}; a trace is [token, layer, choice]"
        )
    layers = ids.shape[1]
    flat = ids.astype(np.int64) + (high + 1) * np.arange(layers)[:, None]
    counted = np.bincount(flat.ravel(), minlength=layers * (high + 1))
    return counted.reshape(layers, high + 1).astype(np.float64)


def _npy(path: Path, part: str) -> tuple[NDArray[Any], str]:
    if part:
        raise MoesimError(f"{path.name} holds one array, there is no #{part}: leave it out")
    return np.asarray(np.load(path, allow_pickle=False)), ""


def _npz(path: Path, part: str) -> tuple[NDArray[Any], str]:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files if not part or key == part}
    usable = {key: array for key, array in arrays.items() if array.ndim in (2, 3)}
    if len(usable) == 1:
        name, array = next(iter(usable.items()))
        return array, name
    if not usable:
        raise MoesimError(f"{path.name} has no array{f' {part!r}' if part else ''} of 2 or 3 axes: see the docs")
    raise MoesimError(
        f"{path.name} holds {len(usable)} arrays: choose one with "
        + " or ".join(f"{path.name}#{key}" for key in list(usable)[:4])
    )


def _json(path: Path, part: str) -> tuple[NDArray[Any], str]:
    held = json.loads(path.read_text(encoding="utf-8"))
    name = part
    if isinstance(held, dict):
        name = part or (_COUNTERS if _COUNTERS in held else next((k for k, v in held.items() if _nested(v)), ""))
        if name not in held:
            raise MoesimError(f"{path.name} has no {name or 'nested list'!r}: give [layer][expert] counts")
        held = held[name]
    if not _nested(held):
        raise MoesimError(f"{path.name} is not a nested list: give [layer][expert] counts")
    return np.array(held), name


def _nested(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)


def _csv(path: Path, part: str) -> tuple[NDArray[Any], str]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        amount = _amount_column(reader.fieldnames or [], path.name)
        rows = [
            (
                _whole(row["layer"], "layer", reader.line_num),
                _whole(row["expert"], "expert", reader.line_num),
                _amount(row[amount], amount, reader.line_num),
            )
            for row in reader
            if not part or part in row.values()
        ]
    if not rows:
        raise MoesimError(f"{path.name} has no rows{f' with {part!r}' if part else ''}: give at least one layer")
    layer, expert, value = (np.array(column) for column in zip(*rows, strict=True))
    numbers, place = np.unique(layer, return_inverse=True)
    counts = np.zeros((len(numbers), int(expert.max()) + 1))
    np.add.at(counts, (place, expert), value)
    return counts, ""


def _amount_column(columns: Sequence[str], file: str) -> str:
    missing = [name for name in ("layer", "expert") if name not in columns]
    found = [name for name in AMOUNTS if name in columns]
    if missing or not found:
        wanted = missing[0] if missing else " or ".join(AMOUNTS)
        raise MoesimError(f"{file} has no column {wanted}: its columns are {', '.join(columns[:8]) or 'none'}")
    return found[0]


def _whole(text: str | None, column: str, line: int) -> int:
    if text is None or not text.strip().isdigit() or int(text) >= _MOST_EXPERTS:
        raise ValueError(f"line {line}: {column} {text!r} is not a whole number from 0 to 65535")
    return int(text)


def _amount(text: str | None, column: str, line: int) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"line {line}: {column} {text!r} is not a number from 0 up")
    return value
