"""Measured figures as rows of tables: read them, and find the preset that a name or a GPU means.

Every judge returns a frame with COLUMNS, one line per measured figure. The figures that ship with moesim lie
in cited/ as small tables in the layout of docs/validation.md, so one reader serves both.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from moesim.cluster import CLUSTERS, Cluster
from moesim.cost import ESTIMATED
from moesim.errors import MoesimError
from moesim.model import MODELS, Experts, Model
from moesim.profile import load_profile

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]
SHIPPED: Final = Path(__file__).parent / "cited"
COLUMNS: Final = (
    *("group", "case", "measured", "predicted", "low", "high", "unit", "skipped", "source"),
    *("block", "headline"),
)
REPEATS_DIFFER: Final = 1.3
# The published checkpoint has the layers of the preset.
_SAME_LAYERS: Final = {
    "deepseekr1": "deepseekv3", "deepseekv31": "deepseekv3", "deepseekv3r1": "deepseekv3",
    "llama38b": "llama318b", "llama370b": "llama3170b",
}  # fmt: skip


# Dense presets with experts as wide as their feed-forward part in its place: (preset, experts, top_k).
# Llama3-8x70B: MoE Parallel Folding, arXiv:2504.14960 section 4.1.
_UPCYCLED: Final = {"llama38x70b": ("llama-3.1-70b", 8, 2)}
_WITH_DEEPEP: Final = ("HAI-LLM", "DeepSeek", "sglang 2025")


def exchange(framework: object, phase: str, ep: int) -> str:
    """The all-to-all of a system: DeepEP where it is published with it (low latency in decode), else linear."""
    if ep == 1 or not str(framework).startswith(_WITH_DEEPEP):
        return "linear"
    return "deepep_ll" if phase == "decode" else "deepep"


class Found(NamedTuple):
    """A prediction with its 90 % band, in the unit of the figure."""

    predicted: float
    low: float
    high: float


class SkipError(Exception):
    """Why a figure is not judged."""


def read_tables(data: Path, pattern: str, needed: Iterable[str]) -> list[Row]:
    """The rows of all tables of a folder whose name matches; an empty cell is None.

    Raises MoesimError when a table cannot be read or lacks one of the ``needed`` columns.
    """
    import pandas as pd

    parts = [_read(path, tuple(needed)) for path in sorted(data.glob(pattern))]
    if not parts:
        raise MoesimError(f"{data} has no {pattern}: point --data at a folder of measured tables")
    rows = pd.concat(parts, ignore_index=True).astype(object)
    cells = rows.where(rows.notna(), None).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in cells]


def _read(path: Path, needed: tuple[str, ...]) -> "pd.DataFrame":
    import pandas as pd

    try:
        rows = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise MoesimError(f"cannot read {path}: {str(error).splitlines()[0]}; restore it as a CSV table") from None
    missing = [column for column in needed if column not in rows]
    if missing:
        raise MoesimError(f"{path} has no column {missing[0]!r}: its header needs {', '.join(needed)}")
    return rows


def line(gpu: str, case: str, row: Row, unit: str, group: str = "") -> dict[str, Any]:
    """The line of one figure before it is judged; its group is the GPU, or ``group`` on the GPU.

    A GPU whose kernels nobody measured is a group of its own, outside the headline.
    """
    own = has_own_profile(gpu)
    nan = float("nan")
    name = f"{group} on {gpu_name(gpu)}" if group else gpu_name(gpu)
    return {
        "group": name if own else f"{name} (estimated)",
        "case": case,
        "measured": nan,
        **Found(nan, nan, nan)._asdict(),
        "unit": unit,
        "skipped": "",
        "source": str(row["source"]),
        "block": "",
        "headline": own,
    }


def merge_repeats(runs: list[tuple[str, dict[str, Any]]]) -> None:
    """Keep one of several (version, line) of one configuration: the newest version, and of these the first.

    Where they differ by more than REPEATS_DIFFER x, none is counted.
    """
    measured = [one["measured"] for _, one in runs]
    spread = max(measured) / min(measured)
    newest = max(range(len(runs)), key=lambda i: (runs[i][0], -i))
    for place, (_, one) in enumerate(runs):
        if spread > REPEATS_DIFFER:
            one["skipped"] = f"repeats of the configuration differ by more than {REPEATS_DIFFER} x"
        elif place != newest:
            one["skipped"] = "another run of a configuration that is judged"
        elif len(runs) > 1:
            one["case"] = f"{one['case']}; {len(runs)} runs within {spread - 1.0:.1%}"


def frame(lines: list[dict[str, Any]]) -> "pd.DataFrame":
    """Lines as a frame with COLUMNS."""
    import pandas as pd

    return pd.DataFrame(lines, columns=list(COLUMNS))


def number(row: Row, name: str, default: float | None = None) -> float:
    """The number in a cell, or ``default`` where the cell is empty; SkipError where there is neither."""
    value = row.get(name)
    if value is None:
        if default is None:
            raise SkipError(f"{name} is not given")
        return default
    try:
        found = float(value)
    except ValueError:
        found = inf
    if not isfinite(found):
        raise MoesimError(f"{name} is {value!r} in a table: write a number or leave the cell empty")
    return found


def positive(row: Row, name: str) -> float:
    """The number in a cell; SkipError where it is not above zero."""
    found = number(row, name)
    if found <= 0:
        raise SkipError(f"{name} is not above zero")
    return found


def whole(row: Row, name: str, default: int | None = None) -> int:
    """The whole number in a cell."""
    return round(number(row, name, default))


def find_model(name: str) -> Model:
    """The preset of a published name; organisation, number format and remarks in brackets are left out."""
    known = {_plain(preset): preset for preset in MODELS}
    bare = re.sub(r"\(.*?\)", "", name)
    for candidate in (bare, bare.rpartition("/")[2]):
        plain = _plain(re.sub(r"-(fp8|nvfp4|mxfp4|bf16)$", "", candidate.strip().lower()))
        found = known.get(_SAME_LAYERS.get(plain, plain))
        if found is not None:
            return MODELS[found]
        if plain in _UPCYCLED:
            return _upcycled(candidate.strip().lower(), *_UPCYCLED[plain])
    raise SkipError(f"no model preset is {name}")


@cache
def _upcycled(name: str, preset: str, experts: int, top_k: int) -> Model:
    """The preset with an expert layer of its own width in every layer."""
    dense = MODELS[preset]
    layers = tuple(
        replace(layer, ffn=Experts(experts=experts, top_k=top_k, width=layer.ffn.width))
        for layer in dense.layers
        if layer.ffn
    )
    return replace(dense, name=name, layers=layers, published=None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def gpu_name(text: str) -> str:
    """``H100`` of ``h100_sxm``, ``H100 (Eos)`` or ``H100 80GB SXM``."""
    return re.split(r"[^A-Za-z0-9]", text, maxsplit=1)[0].upper()


def find_cluster(gpu: str, gpus: int) -> Cluster:
    """``gpus`` of the preset with this GPU, in nodes as full as they divide: 256 of an NVL72 are 4 x 64."""
    for preset in CLUSTERS.values():
        if preset.gpu.name == gpu_name(gpu):
            node = max(n for n in range(1, preset.gpus_per_node + 1) if gpus % n == 0)
            nics = max(1, preset.nics_per_node * node // preset.gpus_per_node) if preset.scale_out else 0
            return replace(preset, nodes=gpus // node, gpus_per_node=node, nics_per_node=nics)
    raise SkipError(f"no cluster preset has a {gpu_name(gpu)}")


@cache
def has_own_profile(gpu: str) -> bool:
    """Whether the expert kernels of this GPU were measured, here or in a published table."""
    try:
        tables = load_profile(find_cluster(gpu, 1).gpu).tables.get("expert_ffn", ())
    except SkipError:
        return False
    return bool(tables) and tables[0].basis is not ESTIMATED
