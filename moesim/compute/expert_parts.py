"""The closed-form seconds of an expert layer, and the family fitted to a table's rows of it.

    tau(t)   one expert with t tokens: arithmetic at the peak joined with the bytes of weights and activations
    active   experts that have tokens          work   sum of tau over them          most   the largest load
    t*       the load at which ``active`` equally loaded experts would have the same work

A skewed load is priced as the equally loaded one of the same (active, work), corrected for most / t*.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from moesim.compute.common import (
    ACTIVATION_BYTES,
    OTHER_DTYPE_ERROR,
    WEIGHT_BYTES,
    Source,
    candidates,
    far_outside,
    kernels,
    missing,
    peak_flops,
)  # fmt: skip
from moesim.compute.loads import balanced_load, power_law_loads
from moesim.cost import FloatArray
from moesim.errors import MoesimError, choice
from moesim.profile import DataSheet, Fit, Measured, Profile, Table, fit
from moesim.profile.fitting import Kernel

DEFAULT_KERNEL: Final = "moe_torch_flow_cutlass"  # its time falls with EP as a rank's tokens do
DEFAULT_KERNELS: Final = {  # (gpu, dtype) where that kernel was not measured
    ("H200", "int4"): "moe_torch_flow",
    ("H100", "int4"): "moe_torch_flow",
    ("A100", "bf16"): "moe_torch_flow",
    ("A100", "int4"): "sglang_marlin_moe",
}
# chosen by leaving one model out at a time on H200, H100 and A100; factors of 1.5 change little
KERNEL: Final = Kernel(
    scales=(1.5, 6.0, 2.0, 6.0, 6.0, 6.0, 4.0), signal=0.3, noise=0.05, jump=0.1, shape=(3, 4, 5)
)  # jump and fitting._COVERED: by the coverage of models left out on all three GPUs, H200 included
REACH: Final = 4.0  # times the smallest and largest hidden size and width of a table
TOKENS_REACH: Final = 8.0
_TILE: Final = 64  # widths are padded to it
_DRAWS: Final = 16
_LOADS: Final = np.geomspace(1.0, 2.0**20, 256)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The experts of one rank."""

    hidden: int
    ffn: int  # width on this rank
    gated: bool
    dtype: str
    local: int  # experts on this rank

    @property
    def matrices(self) -> int:
        """Gate, up and down; or up and down."""
        return 3 if self.gated else 2

    @property
    def weight_bytes(self) -> float:
        """Of one expert."""
        return self.matrices * self.hidden * self.ffn * WEIGHT_BYTES[self.dtype]

    @property
    def flops_per_token(self) -> float:
        """Of one token in one expert."""
        return 2.0 * self.matrices * self.hidden * self.ffn


def tau_s(gpu: DataSheet, shape: Shape, load: FloatArray) -> FloatArray:
    """Seconds of one expert with ``load`` tokens at the peaks; below one token, that share of one."""
    t = np.maximum(load, 1.0)
    compute_s = t * (_padded_flops(shape) / peak_flops(gpu, shape.dtype))
    per_token = (shape.hidden + shape.ffn) * ACTIVATION_BYTES[shape.dtype]
    per_token += 2.0 * (shape.hidden + (shape.matrices - 1) * shape.ffn)
    memory_s = (shape.weight_bytes + t * per_token) / gpu.memory_bytes_per_s
    compute_s *= compute_s
    memory_s *= memory_s
    return np.asarray(np.sqrt(np.sqrt(compute_s**2 + memory_s**2)) * np.minimum(load, 1.0))


def equal_load(gpu: DataSheet, shape: Shape, work_s: FloatArray) -> FloatArray:
    """t* of the work of one active expert: the inverse of tau."""
    return np.asarray(np.exp(np.interp(work_s, tau_s(gpu, shape, _LOADS), np.log(_LOADS))))


def parts(gpu: DataSheet, shape: Shape, active: FloatArray, equal: FloatArray) -> FloatArray:
    """[..., part] seconds: joined work, arithmetic, bytes of activations, launch, local, active."""
    copies = active * equal
    moved = copies * 2.0 * (2.0 * shape.hidden + shape.matrices * shape.ffn)
    compute_s = copies * _padded_flops(shape) / peak_flops(gpu, shape.dtype)
    one = np.full_like(copies, 1e-6)
    return np.stack(
        [
            active * tau_s(gpu, shape, equal), compute_s, moved / gpu.memory_bytes_per_s,
            one, one * shape.local, one * active,
        ],
        axis=-1,
    )  # fmt: skip


def features(gpu: DataSheet, shape: Shape, active: FloatArray, equal: FloatArray, skew: FloatArray) -> FloatArray:
    """[..., feature] logs: t*, active, work above the weights' bytes, hidden x width, width, local, skew."""
    weights_s = shape.weight_bytes / gpu.memory_bytes_per_s
    one = np.ones_like(active)
    return np.stack(
        [
            np.log(equal), np.log(active), np.log(tau_s(gpu, shape, equal) / weights_s),
            np.log(float(shape.hidden) * shape.ffn) * one, np.log(shape.ffn) * one,
            np.log(shape.local) * one, skew,
        ],
        axis=-1,
    )  # fmt: skip


def training(rows: Table, gpu: DataSheet) -> tuple[FloatArray, FloatArray]:
    """parts[point, part] and features[point, feature] of measured rows, their loads drawn as measured."""
    found = [_training_row(rows, i, gpu) for i in range(rows.rows)]
    return np.stack([p for p, _ in found]), np.stack([f for _, f in found])


def _training_row(rows: Table, i: int, gpu: DataSheet) -> tuple[FloatArray, FloatArray]:
    n = {name: float(column[i]) for name, column in rows.numbers.items()}
    shape = Shape(
        hidden=int(n["hidden"]), ffn=int(n["ffn"] / n["tp"]), gated=bool(n["gated"]),
        dtype=str(rows.text["dtype"][i]), local=int(n["experts"] / n["ep"]),
    )  # fmt: skip
    stated = rows.text.get("tokens_per_expert")
    loads = row_loads(n, str(rows.text["load"][i]), "" if stated is None else str(stated[i]))
    active = np.minimum(loads, 1.0).sum(axis=-1).mean()
    equal = equal_load(gpu, shape, tau_s(gpu, shape, loads).sum(axis=-1).mean() / active)
    skew = np.maximum(np.log(loads.max(axis=-1).mean() / equal), 0.0)
    return parts(gpu, shape, np.asarray(active), equal), features(gpu, shape, np.asarray(active), equal, skew)


def row_loads(n: dict[str, float], load: str, stated: str = "") -> FloatArray:
    """tokens[draw, local expert] of a row with tokens, experts, top_k, ep; ``stated`` (12;0;3) replaces the draw."""
    if stated:
        return _stated_load(stated, int(n["experts"] / n["ep"]))
    tokens, experts, top_k, ep = (int(n[name]) for name in ("tokens", "experts", "top_k", "ep"))
    if load == "balanced":
        return balanced_load(tokens, experts, top_k, ep)[None]
    if not load.startswith("power-law:"):
        raise MoesimError(
            f"load {load!r}: only balanced and power-law:A can be drawn; state the row's tokens_per_expert (12;0;3)"
        )
    rng = np.random.default_rng([tokens, experts, top_k, ep])  # the same row, the same draw
    return power_law_loads(tokens, (experts, top_k, ep), float(load.split(":")[1]), _DRAWS, rng)


def _stated_load(stated: str, local: int) -> FloatArray:
    try:
        load = np.array([float(cell) for cell in stated.split(";")])
    except ValueError:
        load = np.array([-1.0])
    if load.size != local or not ((load >= 0.0) & (load < np.inf)).all() or not load.any():
        raise MoesimError(
            f"tokens_per_expert {stated!r}: give {local} numbers, one for each expert of the rank, not all zero: 12;0;3"
        )
    return load[None]


def fitted(profile: Profile, source: Source) -> Fit:
    """The family of a source, fitted once."""
    key = fit_key(source)
    if key not in profile.memo:
        rows = source.measured.table.select(kernel=source.kernel, dtype=source.dtype)
        built, shapes = training(rows, source.measured.gpu)
        profile.memo[key] = fit_rows(rows, built, shapes)
    found: Fit = profile.memo[key]
    return found


def fit_key(source: Source) -> tuple[str, Path, str, str]:
    """Where a profile remembers the family of a source."""
    return "expert_fit", source.measured.table.path, source.dtype, source.kernel


def fit_rows(rows: Table, built: FloatArray, shapes: FloatArray) -> Fit:
    """The family of ``rows`` of one kernel and dtype; ``built`` and ``shapes`` are their ``training``."""
    return fit(built, shapes, rows.time_s, rows.text["model"], KERNEL)


def choose_source(profile: Profile, dtype: str, kernel: str | None, hidden: int, ffn: int) -> Source:
    """The nearest rows that reach the shape: own dtype before a neighbour's, own GPU before another's."""
    refused: MoesimError | None = None
    for source in _sources(profile, dtype, kernel):
        rows = source.measured.table.select(kernel=source.kernel, dtype=source.dtype).numbers
        where = f"{source.measured.gpu.name} {source.kernel} {source.dtype}"
        problem = far_outside("expert_ffn hidden", hidden, rows["hidden"], REACH, where) or far_outside(
            "expert_ffn ffn (width on a rank)", ffn, rows["ffn"] / rows["tp"], REACH, where
        )
        if problem is None:
            return source
        refused = refused or problem
    raise refused or missing(profile, "expert_ffn", dtype)


def _sources(profile: Profile, dtype: str, kernel: str | None) -> list[Source]:
    found = []
    for number, wanted in enumerate(candidates(dtype)):
        extra = OTHER_DTYPE_ERROR if number else 0.0
        for measured in profile.tables["expert_ffn"]:
            name = kernel or _default_kernel(measured, wanted)
            if name in kernels(measured, wanted):
                error = measured.carried_error + extra
                found.append(Source(measured=measured, dtype=wanted, kernel=name, error=error))
    if not found and kernel is not None:
        known = {str(name) for m in profile.tables["expert_ffn"] for name in m.table.text["kernel"].tolist()}
        raise choice("expert kernel", kernel, sorted(known))
    return found


def _default_kernel(measured: Measured, dtype: str) -> str:
    """The preferred kernel; in a table without it, the one with most rows of the dtype."""
    preferred = DEFAULT_KERNELS.get((measured.gpu.name, dtype), DEFAULT_KERNEL)
    names, rows = np.unique(measured.table.select(dtype=dtype).text["kernel"], return_counts=True)
    return preferred if preferred in names or not names.size else str(names[rows.argmax()])


def tokens_reach(source: Source) -> float:
    """The largest load of one expert that the rows can speak for."""
    rows = source.measured.table.select(kernel=source.kernel, dtype=source.dtype).numbers
    return float(rows["tokens"].max()) * TOKENS_REACH


def _padded_flops(shape: Shape) -> float:
    return shape.flops_per_token * (-(-shape.ffn // _TILE) * _TILE / shape.ffn)
