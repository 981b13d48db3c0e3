"""One measured point: which table, what was asked, and its place in the order.

    (table, values of the asked columns)  --measure-->  values of the found columns  -->  one row of <table>.csv

The order makes a stopped run useful: stratum 0 is a small set of every table and all of ``--quick``; inside a
stratum the points of one group, which share their tensors, are adjacent.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

Value = str | int | float


class Columns(NamedTuple):
    """The columns of a table: what identifies a row, and what was found."""

    asked: tuple[str, ...]
    found: tuple[str, ...]


def _columns(text: str) -> Columns:
    asked, found = text.split("|")
    return Columns(tuple(asked.split()), tuple(found.split()))


TABLES: Final = {
    "peaks": _columns("what | value"),  # never a file of its own: it goes into meta.json
    "expert_ffn": _columns(
        "kernel dtype model load gated tokens hidden ffn experts top_k ep tp | time_us tokens_per_expert spread repeats"
    ),
    "gemm": _columns("kernel dtype m n k | time_us spread repeats"),
    "attention": _columns(
        "kernel phase kind dtype kv_dtype heads kv_heads head_dim v_head_dim latent_dim batch queries context | "
        "time_us spread repeats"
    ),
    "kernels": _columns(
        "op kernel dtype model load tokens hidden ffn experts top_k | flops bytes time_us spread repeats"
    ),
    "copies": _columns("direction bytes | time_us spread repeats"),
    "launch": _columns("how kernels | time_us spread repeats"),
    "interference": _columns("kernel sms_held | alone_us beside_us factor spread repeats"),
    "collectives": _columns("op ranks bytes library | time_us basis source"),
}
ONLY: Final = {  # what --only names
    "experts": "expert_ffn",
    "gemm": "gemm",
    "attention": "attention",
    "kernels": "kernels",
    "copies": "copies",
    "launch": "launch",
    "interference": "interference",
    "collectives": "collectives",
}


class Point(NamedTuple):
    """One row to be measured."""

    table: str
    values: tuple[Value, ...]  # of the asked columns
    stratum: int  # 0: what --quick measures
    group: str  # points of one group share their tensors

    @property
    def name(self) -> str:
        """The values as they stand in the CSV: the point's identity inside its table."""
        return ",".join(str(value) for value in self.values)

    @property
    def text(self) -> dict[str, str]:
        """All asked columns as text."""
        return dict(zip(TABLES[self.table].asked, (str(value) for value in self.values), strict=True))

    @property
    def number(self) -> dict[str, int]:
        """The asked columns that are whole numbers."""
        asked = zip(TABLES[self.table].asked, self.values, strict=True)
        return {column: value for column, value in asked if isinstance(value, int)}


def ordered(points: Iterable[Point]) -> list[Point]:
    """Each point once, by stratum, then by the first appearance of its group in that stratum."""
    first: dict[tuple[str, str], Point] = {}
    for point in points:
        known = first.get((point.table, point.name))
        if known is None or point.stratum < known.stratum:
            first[point.table, point.name] = point
    places: dict[tuple[int, str], int] = {}
    for point in first.values():
        places.setdefault((point.stratum, point.group), len(places))
    return sorted(first.values(), key=lambda point: (point.stratum, places[point.stratum, point.group]))
