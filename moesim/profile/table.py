"""One measured table of a profile: a CSV whose header names every column and its unit.

    hardware_profiles/<gpu>/expert_ffn.csv   kernel, dtype, tokens, hidden, ..., time_us

There is one reader; it refuses what it cannot trust and says which file, column, value and what to do.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.cost import FloatArray
from moesim.errors import MoesimError
from moesim.units import US

_EXPERT = "kernel dtype model load | gated tokens hidden ffn experts top_k ep tp time_us"
COLUMNS: Final = {  # text columns | columns of numbers
    "expert_ffn": _EXPERT,
    "held_out_expert_ffn": _EXPERT,
    "gemm": "kernel dtype | m n k time_us",
    "attention": "kernel phase kind dtype kv_dtype | "
    "heads kv_heads head_dim v_head_dim latent_dim batch queries context time_us",
    "kernels": "op kernel dtype model load | tokens hidden ffn experts top_k flops bytes time_us",
    "copies": "direction | bytes time_us",
    "launch": "how | kernels time_us",
    "interference": "kernel | sms_held alone_us beside_us",
}
OPTIONAL: Final = {"expert_ffn": ("tokens_per_expert",)}  # text; empty where a table has no such column
_MAY_BE_ZERO: Final = ("gated", "latent_dim", "ffn", "flops", "sms_held")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Table:
    """Rows of one file, by column; ``time_s`` in seconds."""

    path: Path
    text: dict[str, NDArray[np.str_]]
    numbers: dict[str, FloatArray]

    @property
    def rows(self) -> int:
        """Measured points."""
        return len(next(iter(self.text.values())))

    @property
    def time_s(self) -> FloatArray:
        """Measured seconds."""
        return self.numbers["time_us"] * US

    def select(self, **equal: str) -> "Table":
        """The rows whose text columns equal what is asked."""
        keep = np.ones(self.rows, dtype=bool)
        for column, value in equal.items():
            keep &= self.text[column] == value
        return self.take(keep)

    def take(self, keep: NDArray[np.bool_]) -> "Table":
        """The rows where ``keep``."""
        return Table(
            path=self.path,
            text={name: column[keep] for name, column in self.text.items()},
            numbers={name: column[keep] for name, column in self.numbers.items()},
        )


def read_table(path: Path, kind: str) -> Table:
    """Read and check one CSV; ``kind`` is a key of COLUMNS."""
    text, numbers = (part.split() for part in COLUMNS[kind].split("|"))
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise MoesimError(f"cannot read {path}: {error}; restore it") from None
    if len(lines) < 2:
        raise MoesimError(f"{path} has no rows: delete it, or measure again")
    header = lines[0]
    for name in (*text, *numbers):
        if name not in header:
            raise MoesimError(f"{path} has no column {name!r}: its header needs {', '.join((*text, *numbers))}")
    short = next((i for i, line in enumerate(lines) if len(line) != len(header)), None)
    if short is not None:
        raise MoesimError(
            f"{path} line {short + 1} has {len(lines[short])} cells, not {len(header)}: "
            "it was cut short; write it again"
        )
    columns = dict(zip(header, zip(*lines[1:], strict=True), strict=True))
    nothing = ("",) * (len(lines) - 1)
    texts = {name: columns[name] for name in text} | {
        name: columns.get(name, nothing) for name in OPTIONAL.get(kind, ())
    }
    return Table(
        path=path,
        text={name: np.asarray(column, dtype=np.str_) for name, column in texts.items()},
        numbers={name: _numbers(path, name, columns[name]) for name in numbers},
    )


def _numbers(path: Path, name: str, cells: tuple[str, ...]) -> FloatArray:
    try:
        values = np.asarray(cells, dtype=np.float64)
    except ValueError:
        bad = next(i for i, cell in enumerate(cells) if not _is_number(cell))
        raise MoesimError(
            f"{path} line {bad + 2} column {name!r}: {cells[bad]!r} is not a number; correct the cell"
        ) from None
    low = 0.0 if name in _MAY_BE_ZERO else np.nextafter(0.0, 1.0)
    wrong = np.flatnonzero(~((values >= low) & (values < np.inf)))
    if wrong.size:
        i = int(wrong[0])
        raise MoesimError(
            f"{path} line {i + 2} column {name!r}: {cells[i]} must be above zero; correct or remove the row"
        )
    return values


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
