"""Which profile prices a GPU: its own tables, measured before published, or those of the nearest measured GPU.

A table that the GPU lacks comes from another GPU of the same architecture, else of any, and is scaled by the
roofline of the two data sheets: *estimated*, with a wider band, and named in ``Profile.limits``.
"""

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

from moesim.cost import BASIS, ESTIMATED, MEASURED, Basis
from moesim.errors import MoesimError
from moesim.profile.folders import profile_folders, profile_homes
from moesim.profile.table import Table, read_table

OPERATIONS: Final = ("expert_ffn", "gemm", "attention")
OWN_ONLY: Final = ("kernels", "copies", "launch", "interference")  # say nothing about another GPU
# Added to the band of a carried table. Tables of one GPU pricing another's rows need, beyond their own band:
# H100 and H200 (expert FFN, GEMM) 0 to 0.03, A100 and H100 0.03 (expert FFN) and 0.15 to 0.19 (GEMM) in log.
SAME_ARCHITECTURE_ERROR: Final = 0.10
OTHER_ARCHITECTURE_ERROR: Final = 0.30


class DataSheet(Protocol):
    """What a roofline needs to know of a GPU; ``moesim.cluster.Gpu`` has it all."""

    @property
    def name(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def memory_bytes_per_s(self) -> float: ...
    @property
    def flops(self) -> dict[str, float]: ...
    @property
    def sms(self) -> int: ...
    @property
    def l2_bytes(self) -> float: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """The data sheet of the GPU that a table was measured on, as its meta.json states it."""

    name: str
    architecture: str
    memory_bytes_per_s: float
    flops: dict[str, float] = field(hash=False)
    sms: int
    l2_bytes: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measured:
    """One table, where it was measured, and what it is worth on the GPU it prices."""

    table: Table
    gpu: Sheet
    basis: Basis
    source: str
    carried_error: float  # added to the relative error of a table carried over from another GPU; else 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Profile:
    """The tables that price one GPU, nearest first."""

    gpu: DataSheet
    tables: dict[str, tuple[Measured, ...]]  # operation -> own tables first, then other GPUs' by nearness
    limits: tuple[str, ...]  # sentences for the limits of a plan
    folders: tuple[Path, ...]  # searched, in this order
    memo: dict[Any, Any] = field(default_factory=dict)  # fitted curves, by what they were fitted for


def load_profile(gpu: DataSheet, *folders: Path) -> Profile:
    """The profile of a GPU from ``folders``; without any, from all places that are searched."""
    return _load(_Key(gpu), folders or profile_folders())


def measured_gpus() -> list[Sheet]:
    """The GPUs that have a profile of their own."""
    return [sheet(read_meta(home / "meta.json"), home) for home in profile_homes(profile_folders())]


class _Key:
    """A GPU as a cache key: equal data sheets, equal profile."""

    def __init__(self, gpu: DataSheet) -> None:
        self.gpu = gpu
        self.facts = (
            gpu.name, gpu.architecture, gpu.memory_bytes_per_s, gpu.sms, gpu.l2_bytes,
            tuple(sorted(gpu.flops.items())),
        )  # fmt: skip

    def __hash__(self) -> int:
        return hash(self.facts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.facts == other.facts


@lru_cache(maxsize=64)
def _load(key: _Key, folders: tuple[Path, ...]) -> Profile:
    gpu = key.gpu
    metas = {home: read_meta(home / "meta.json") for home in profile_homes(folders)}
    if not metas:
        raise MoesimError(f"{folders[0]} has no <name>/meta.json: name a folder that moesim calibrate wrote")
    tables: dict[str, tuple[Measured, ...]] = {}
    for operation in (*OPERATIONS, *OWN_ONLY):
        found = [
            _measured(gpu, operation, home, meta)
            for home, meta in metas.items()
            if (home / f"{operation}.csv").is_file()
        ]
        if operation in OWN_ONLY:
            found = [one for one in found if not one.carried_error]
        tables[operation] = tuple(sorted(found, key=lambda one: _distance(gpu, one)))
    limits = [sentence for operation in OPERATIONS for sentence in _limits(gpu, operation, tables[operation])]
    return Profile(gpu=gpu, tables=tables, limits=tuple(limits), folders=folders)


def _limits(gpu: DataSheet, operation: str, tables: tuple[Measured, ...]) -> list[str]:
    """What is carried over from another GPU: the whole table, or the kinds of rows that the own one lacks."""
    carried = "carried over from {} by the ratio of their rooflines"
    if not tables:
        return [f"{operation}: no table at all; it cannot be priced"]
    if tables[0].carried_error > 0.0:
        return [f"{operation}: no table for {gpu.name}; " + carried.format(tables[0].gpu.name)]
    if operation != "attention":
        return []
    own = set(tables[0].table.text["kind"].tolist())
    return [
        f"attention {kind}: no rows for {gpu.name}; " + carried.format(other.gpu.name)
        for other in tables[1:2]
        for kind in sorted(set(other.table.text["kind"].tolist()) - own)
    ]


def _measured(gpu: DataSheet, operation: str, home: Path, meta: dict[str, Any]) -> Measured:
    where = sheet(meta, home)
    stated = meta["tables"].get(operation)
    if not isinstance(stated, dict) or stated.get("basis") not in BASIS:
        raise MoesimError(
            f"{home / 'meta.json'} tables.{operation} {stated!r}: state basis ({', '.join(BASIS)}) and source"
        )
    own = where.name.lower() == gpu.name.lower()
    carried = SAME_ARCHITECTURE_ERROR if where.architecture == gpu.architecture else OTHER_ARCHITECTURE_ERROR
    return Measured(
        table=read_table(home / f"{operation}.csv", operation),
        gpu=where,
        basis=BASIS[stated["basis"]] if own else ESTIMATED,
        source=f"{where.name} {operation}: {stated.get('source', 'no source stated')}",
        carried_error=0.0 if own else carried,
    )


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of one profile."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MoesimError(f"cannot read {path}: {error}; restore it or measure again") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("tables"), dict):
        raise MoesimError(f"{path} has no 'tables': it must name the basis and the source of each table")
    return meta


def sheet(meta: dict[str, Any], home: Path) -> Sheet:
    """The data sheet inside a meta.json."""
    try:
        stated = meta["gpu"]
        return Sheet(
            name=str(stated["name"]),
            architecture=str(stated["architecture"]),
            memory_bytes_per_s=float(stated["memory_bytes_per_s"]),
            flops={str(dtype): float(rate) for dtype, rate in stated["flops"].items()},
            sms=int(stated["sms"]),
            l2_bytes=float(stated["l2_bytes"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MoesimError(
            f"{home / 'meta.json'} gpu {error!r}: state name, architecture, memory_bytes_per_s, flops, sms, l2_bytes"
        ) from None


def _distance(gpu: DataSheet, table: Measured) -> tuple[bool, bool, bool, float]:
    """Own first, measured before published; then the same architecture, the nearest memory speed over compute."""
    other = table.gpu
    balance = gpu.memory_bytes_per_s / gpu.flops["bf16"]
    theirs = other.memory_bytes_per_s / other.flops["bf16"]
    return (
        other.name.lower() != gpu.name.lower(),
        table.basis is not MEASURED,
        other.architecture != gpu.architecture,
        abs(theirs / balance - 1.0),
    )
