"""Kernel times on shapes that no profile holds: predicted against measured.

Without a folder: ``hardware_profiles/<gpu>/held_out_expert_ffn.csv``, whole models that the fit never saw.
With one: its ``kernel_moe_*.csv``, ``kernel_gemm_*.csv`` and ``kernel_attention_*.csv`` (docs/validation.md), and
once more every expert row that can be judged, predicted from the other models of its own table (leave_out).
Rows that a profile holds, that cannot be what they say or that measure something else are skipped, with the
reason.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.cluster import GPUS
from moesim.compute import AttentionShape, attention, expert_ffn, gemm
from moesim.compute.expert_parts import row_loads
from moesim.cost import ESTIMATED, Cost
from moesim.errors import MoesimError
from moesim.profile import load_profile, profile_folders, profile_homes, shipped_folder
from moesim.profile.load import read_meta, sheet
from moesim.profile.table import COLUMNS as TABLE_COLUMNS
from moesim.units import US
from moesim.validate.kernel_rows import attention_rows, expert_rows, gemm_rows
from moesim.validate.leave_out import leave_one_out

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]
COLUMNS: Final = (
    "group", "case", "measured", "predicted", "low", "high", "unit", "skipped", "source", "headline",
)  # fmt: skip
LEFT_OUT: Final = "leave-one-{}-out"  # model, or load
IN_PROFILE: Final = "in the profile"
_NEEDED: Final = {
    "expert_ffn": "source gpu kernel dtype model_hint num_tokens hidden inter num_experts topk ep tp "
    "distribution measured_scope latency_us",
    "gemm": "source gpu dtype m n k latency_us",
    "attention": "source gpu kernel phase attn num_heads num_kv_heads head_dim dtype kv_dtype batch_size isl "
    "kv_step latency_us",
}
_FILES: Final = {
    "expert_ffn": "kernel_moe_*.csv",
    "gemm": "kernel_gemm_*.csv",
    "attention": "kernel_attention_*.csv",
}
_READ: Final[dict[str, Callable[["pd.DataFrame"], "pd.DataFrame"]]] = {
    "expert_ffn": expert_rows, "gemm": gemm_rows, "attention": attention_rows,
}  # fmt: skip


def judge(data: Path | None) -> "pd.DataFrame":
    """One line per measured row, with COLUMNS; times in us. ``headline``: the GPU has rows of its own."""
    import pandas as pd

    lines: list[dict[str, object]] = []
    for operation in _FILES:
        rows = _shipped(operation) if data is None else _folder(data, operation)
        lines += [_judged(operation, row) for row in rows.to_dict("records")]
        if data is not None and operation == "expert_ffn" and not rows.empty:
            lines += _left_out(rows[rows["skipped"].isin(["", IN_PROFILE])], "model")
    own = _measured_here()
    if not own.empty:
        lines += [*_left_out(own, "model"), *_left_out(own, "load")]
    return pd.DataFrame(lines, columns=list(COLUMNS)).sort_values(["group", "case"], ignore_index=True)


def _judged(operation: str, row: Mapping[Any, Any]) -> dict[str, object]:
    """One measured row beside its prediction, or why it is skipped."""
    line: dict[str, object] = {
        "group": _GROUP[operation](row),
        "case": _CASE[operation](row),
        "measured": float(row["time_us"]),
        "predicted": float("nan"), "low": float("nan"), "high": float("nan"),
        "unit": "us",
        "skipped": row["skipped"],
        "source": row["source"],
        "headline": True,
    }  # fmt: skip
    if line["skipped"]:
        return line
    try:
        cost = _PREDICT[operation](row)
    except MoesimError as refusal:
        return line | {"skipped": f"refused: {refusal}"}
    mean = {name: float(getattr(cost, name).mean()) / US for name in ("seconds", "low", "high")}
    return line | {
        "predicted": mean["seconds"],
        "low": mean["low"],
        "high": mean["high"],
        "headline": cost.basis is not ESTIMATED,
    }


def _left_out(rows: "pd.DataFrame", by: str) -> list[dict[str, object]]:
    """Rows, each predicted without those of its model or load; not of the headline."""
    return [_left_out_line(row, by) for row in leave_one_out(rows, by).to_dict("records")]


def _left_out_line(row: Mapping[Any, Any], by: str) -> dict[str, object]:
    return {
        "group": f"{LEFT_OUT.format(by)} {row['gpu']} {row['kernel']} {row['dtype']}",
        "case": _CASE["expert_ffn"](row),
        "measured": float(row["time_us"]),
        **{name: row[name] for name in ("predicted", "low", "high")},
        "unit": "us",
        "skipped": row["refused"],
        "source": row["source"],
        "headline": False,
    }


def _expert(row: Row) -> Cost:
    loads = row_loads({name: float(row[name]) for name in ("tokens", "experts", "top_k", "ep")}, row["load"])
    profile = load_profile(GPUS[row["gpu"]])
    return expert_ffn(
        profile, loads, int(row["hidden"]), int(row["ffn"] // row["tp"]), row["dtype"],
        top_k=int(row["top_k"]), gated=bool(row["gated"]), kernel=row["kernel"],
    )  # fmt: skip


def _gemm(row: Row) -> Cost:
    return gemm(load_profile(GPUS[row["gpu"]]), float(row["m"]), float(row["n"]), float(row["k"]), row["dtype"])


def _attention(row: Row) -> Cost:
    shape = AttentionShape(
        kind=row["kind"], phase=row["phase"], heads=int(row["heads"]), kv_heads=int(row["kv_heads"]),
        head_dim=int(row["head_dim"]), v_head_dim=int(row["v_head_dim"]), latent_dim=int(row["latent_dim"]),
        batch=float(row["batch"]), queries=float(row["queries"]), context=float(row["context"]),
    )  # fmt: skip
    return attention(load_profile(GPUS[row["gpu"]]), shape, row["dtype"], row["kv_dtype"])


_PREDICT: Final[dict[str, Callable[[Row], Cost]]] = {
    "expert_ffn": _expert,
    "gemm": _gemm,
    "attention": _attention,
}
_GROUP: Final[dict[str, Callable[[Row], str]]] = {
    "expert_ffn": lambda row: f"expert-ffn {row['gpu']} {row['kernel']} {row['dtype']}",
    "gemm": lambda row: f"gemm {row['gpu']} {row['dtype']}",
    "attention": lambda row: f"attention {row['gpu']} {row['phase']} {row['kind']} kv {row['kv_dtype']}",
}


def _named(names: tuple[str, ...], row: Row) -> str:
    return " ".join(f"{name}={row[name]}" for name in names)


_CASE: Final[dict[str, Callable[[Row], str]]] = {
    "expert_ffn": partial(_named, ("model", "tokens", "ep", "tp", "load")),
    "gemm": partial(_named, ("m", "n", "k")),
    "attention": partial(_named, ("heads", "kv_heads", "batch", "queries", "context")),
}


def _shipped(operation: str) -> "pd.DataFrame":
    """The held-out rows of every profile."""
    import pandas as pd

    found = [
        pd.read_csv(path).assign(
            gpu=path.parent.name.upper(),
            skipped="",
            source="aiconfigurator-core 0.12.0 (Apache-2.0), held out",
        )
        for path in sorted(shipped_folder().glob(f"*/held_out_{operation}.csv"))
    ]
    return pd.concat(found) if found else pd.DataFrame()


def _measured_here() -> "pd.DataFrame":
    """The expert layers that the user's own profiles hold."""
    import pandas as pd

    found = []
    for home in profile_homes(profile_folders()[:-1]):
        path, gpu = home / "expert_ffn.csv", sheet(read_meta(home / "meta.json"), home)
        if path.is_file():
            rows = pd.read_csv(path, keep_default_na=False)
            found.append(rows.assign(gpu=gpu.name, skipped="", source=f"{home.name}, the user's own profile"))
    return pd.concat(found) if found else pd.DataFrame()


def _folder(data: Path, operation: str) -> "pd.DataFrame":
    """The folder's rows of one operation, and the reason for every row that is not judged."""
    import pandas as pd

    found = [_file(path, operation) for path in sorted(data.glob(_FILES[operation]))]
    return pd.concat(found) if found else pd.DataFrame()


def _file(path: Path, operation: str) -> "pd.DataFrame":
    import pandas as pd

    try:
        raw = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise MoesimError(f"cannot read {path}: {error}; restore the table") from None
    if any(name not in raw for name in _NEEDED[operation].split()):
        return pd.DataFrame()  # another layout: not a table of this operation's calls
    rows = _READ[operation](raw)
    unknown = ~rows["gpu"].isin(list(GPUS))
    no_dtype = rows["dtype"].isna()
    reason = rows["skipped"].mask(_kept(rows, operation), IN_PROFILE)
    reason = reason.mask(no_dtype, "a dtype that moesim does not know")
    return rows.assign(skipped=reason.mask(unknown, "no preset describes a " + rows["gpu"]))


def _kept(rows: "pd.DataFrame", operation: str) -> "pd.Series[bool]":
    """True where a profile holds the row."""
    import pandas as pd

    text, numbers = TABLE_COLUMNS[operation].split("|")
    names = [*text.split(), *numbers.split()]
    kept: set[tuple[Any, ...]] = set()
    for path in shipped_folder().glob(f"*/{operation}.csv"):
        held = pd.read_csv(path, keep_default_na=False)
        kept |= {(path.parent.name.upper(), *row) for row in held[names].itertuples(index=False, name=None)}
    here = zip(rows["gpu"], *(rows[name] for name in names), strict=True)
    return pd.Series([row in kept for row in here], index=rows.index)
