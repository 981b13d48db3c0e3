"""Seconds of an expert layer from the tokens of each local expert.

    per expert   t tokens cost tau(t): the arithmetic at the peak joined with the bytes of weights and activations
    per rank     active = experts with tokens, work = sum of tau over them, rows = tokens in and out
    seconds      = (work + rows' bytes + floor) x exp(correction(active, t*, shape))

``t*`` is the load at which ``active`` equally loaded experts would have the same work: a skewed load is priced
as that one. The correction is learned from the measurements (``moesim.profile.fit``). For one shape it becomes a
table over (active, work), made monotone along both, so that one more token never costs less.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from moesim.compute.common import (
    ACTIVATION_BYTES,
    OTHER_DTYPE_ERROR,
    WEIGHT_BYTES,
    Source,
    banded,
    candidates,
    check_dtype,
    check_range,
    kernels,
    missing,
    peak_flops,
)  # fmt: skip
from moesim.compute.loads import balanced_load, power_law_loads
from moesim.cost import Cost, FloatArray
from moesim.errors import MoesimError, choice
from moesim.profile import DataSheet, Fit, Profile, Table, fit
from moesim.profile.fit import Kernel

COVERS: Final = ("permute", "gate_up", "activation", "down", "unpermute")  # what the seconds include
DEFAULT_KERNELS: Final = {  # (gpu, dtype): the planner's kernel, because its time falls with EP as a rank's tokens do
    ("H200", "int4"): "moe_torch_flow",
    ("H100", "int4"): "moe_torch_flow",
    ("A100", "bf16"): "moe_torch_flow",
    ("A100", "int4"): "sglang_marlin_moe",
}
DEFAULT_KERNEL: Final = "moe_torch_flow_cutlass"
KERNEL: Final = Kernel(scales=(1.5, 1.5, 2.0, 2.0), signal=0.5, noise=0.06, band=1.64)
FLOOR_S: Final = 15e-6
_DRAWS: Final = 8
_STEPS: Final = 48  # of the table's work axis


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The experts of one rank."""

    hidden: int
    ffn: int  # width on this rank
    gated: bool
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curve:
    """log seconds and band over log active experts x log t*, for one shape."""

    active: FloatArray
    tokens: FloatArray
    log_s: FloatArray  # [active, tokens]
    half_width: FloatArray


def expert_ffn(  # noqa: PLR0913
    profile: Profile,
    tokens: FloatArray,
    hidden: int,
    ffn: int,
    dtype: str,
    *,
    top_k: int,
    gated: bool = True,
    kernel: str | None = None,
    rows: FloatArray | None = None,
) -> Cost:
    """Seconds of one fused expert layer on one rank (COVERS); no communication.

    ``tokens[..., local expert]``; ``rows[...]`` tokens that enter and leave the kernel, by default copies / top_k.
    A rank without tokens costs nothing.
    """
    check_dtype(dtype)
    load = np.asarray(tokens, dtype=np.float64)
    if load.ndim == 0 or load.shape[-1] == 0:
        raise MoesimError("expert_ffn tokens: give one number per local expert")
    if not (load >= 0.0).all():
        raise MoesimError(
            "expert_ffn tokens: a load is negative or not a number; give tokens per local expert"
        )
    shape = Shape(hidden=hidden, ffn=ffn, gated=gated, dtype=dtype)
    source, fitted = _fitted(profile, dtype, kernel)
    _check(shape, load, source)
    copies = load.sum(axis=-1)
    entering = (
        copies / top_k if rows is None else np.broadcast_to(np.asarray(rows, dtype=np.float64), copies.shape)
    )
    active = np.minimum(load, 1.0).sum(axis=-1)
    work = work_s(profile.gpu, shape, load)
    seconds, half_width = _lookup(_curve(profile, shape, kernel, fitted), active, work, profile.gpu, shape)
    seconds = np.where(copies > 0.0, seconds + rows_s(profile.gpu, shape, entering), 0.0)
    compute_s, memory_s = bound_parts_s(profile.gpu, shape, active, copies)
    bound_s = np.maximum(compute_s, memory_s)
    where = "compute" if compute_s.sum() > memory_s.sum() else "memory"
    return banded(seconds, half_width, bound_s, where, source)


def weight_bytes(shape: Shape) -> float:
    """Bytes of one expert on this rank."""
    return (3 if shape.gated else 2) * shape.hidden * shape.ffn * WEIGHT_BYTES[shape.dtype]


def flops_per_token(shape: Shape) -> float:
    """FLOPs of one token in one expert on this rank."""
    return 2.0 * (3 if shape.gated else 2) * shape.hidden * shape.ffn


def bound_parts_s(
    gpu: DataSheet, shape: Shape, active: FloatArray, copies: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Seconds at the data sheet's peaks: of the arithmetic, of the weights touched."""
    return (
        np.asarray(copies * flops_per_token(shape) / peak_flops(gpu, shape.dtype)),
        np.asarray(active * weight_bytes(shape) / gpu.memory_bytes_per_s),
    )


def work_s(gpu: DataSheet, shape: Shape, load: FloatArray) -> FloatArray:
    """Sum over experts of tau; ``load[..., expert]``."""
    return np.asarray(_tau(gpu, shape, load).sum(axis=-1))


def rows_s(gpu: DataSheet, shape: Shape, rows: FloatArray) -> FloatArray:
    """Reading and writing the token rows once."""
    moved = rows * shape.hidden * (ACTIVATION_BYTES[shape.dtype] + 2.0)
    return np.asarray(moved / gpu.memory_bytes_per_s)


def _tau(gpu: DataSheet, shape: Shape, load: FloatArray) -> FloatArray:
    """Seconds of one expert with ``load`` tokens at the peaks, joined smoothly; linear below one token."""
    t = np.maximum(load, 1.0)
    compute_s = t * flops_per_token(shape) / peak_flops(gpu, shape.dtype)
    per_token = (
        2.0 * shape.hidden * 2.0 + (3 if shape.gated else 2) * shape.ffn * ACTIVATION_BYTES[shape.dtype]
    )
    memory_s = (weight_bytes(shape) + t * per_token) / gpu.memory_bytes_per_s
    joined = np.sqrt(np.sqrt(compute_s**4 + memory_s**4))
    return np.asarray(joined * np.minimum(load, 1.0))


def _features(shape: Shape, active: FloatArray, tokens: FloatArray) -> FloatArray:
    """Logs of: t*, active experts, hidden, width."""
    ones = np.ones_like(active)
    return np.stack(
        [np.log(tokens), np.log(active), np.log(shape.hidden) * ones, np.log(shape.ffn) * ones], axis=-1
    )


def _curve(profile: Profile, shape: Shape, kernel: str | None, fitted: Fit) -> Curve:
    key = ("expert_curve", shape, kernel)
    if key not in profile.memo:
        gpu = profile.gpu
        active = np.geomspace(1 / 64, 1024.0, 49)
        tokens = np.geomspace(1.0, 2.0**22, _STEPS)
        a, t = np.meshgrid(active, tokens, indexing="ij")
        base = a * _tau(gpu, shape, t) + FLOOR_S
        mean, deviation = fitted.at(_features(shape, a, t))
        log_s = np.log(base) + mean
        log_s = np.maximum.accumulate(np.maximum.accumulate(log_s, axis=1), axis=0)
        profile.memo[key] = Curve(
            active=np.log(active), tokens=np.log(tokens), log_s=log_s, half_width=KERNEL.band * deviation
        )
    found: Curve = profile.memo[key]
    return found


def _lookup(
    curve: Curve, active: FloatArray, work: FloatArray, gpu: DataSheet, shape: Shape
) -> tuple[FloatArray, FloatArray]:
    a = np.maximum(active, np.exp(curve.active[0]))
    grid = np.exp(curve.tokens)
    t = np.interp(work / a, _tau(gpu, shape, grid), curve.tokens)
    i, u = _cell(curve.active, np.log(a))
    j, v = _cell(curve.tokens, t)
    corner = (1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v
    at = (i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1)
    log_s = sum(w * curve.log_s[where] for w, where in zip(corner, at, strict=True))
    wide = sum(w * curve.half_width[where] for w, where in zip(corner, at, strict=True))
    return np.exp(log_s), np.asarray(wide)


def _cell(grid: FloatArray, x: FloatArray) -> tuple[np.ndarray, FloatArray]:
    step = (grid[-1] - grid[0]) / (grid.size - 1)
    place = np.clip((x - grid[0]) / step, 0.0, grid.size - 1 - 1e-9)
    cell = place.astype(np.intp)
    return cell, place - cell


def _check(shape: Shape, load: FloatArray, source: Source) -> None:
    rows = source.measured.table.select(kernel=source.kernel, dtype=source.dtype).numbers
    name = source.measured.source
    width = rows["ffn"] / rows["tp"]
    for what, value, column in (("hidden", shape.hidden, rows["hidden"]), ("ffn", shape.ffn, width)):
        check_range(f"expert_ffn {what}", float(value), column.min() / 4, column.max() * 4, name)
    check_range("expert_ffn tokens per expert", load, 0.0, float(rows["tokens"].max()) * 8.0, name)
    check_range(
        "expert_ffn local experts", float(load.shape[-1]), 0.0, float(rows["experts"].max()) * 4, name
    )


def _fitted(profile: Profile, dtype: str, kernel: str | None) -> tuple[Source, Fit]:
    key = ("expert_ffn", dtype, kernel)
    if key not in profile.memo:
        source = _source(profile, dtype, kernel)
        rows = source.measured.table.select(kernel=source.kernel, dtype=source.dtype)
        features, base_s = training(rows, source.measured.gpu)
        profile.memo[key] = source, fit(features, np.log(rows.time_s / base_s), KERNEL)
    found: tuple[Source, Fit] = profile.memo[key]
    return found


def training(rows: Table, gpu: DataSheet) -> tuple[FloatArray, FloatArray]:
    """features[point, feature] and base seconds[point] of measured rows, loads drawn as they were measured."""
    features, base = [], []
    for i in range(rows.rows):
        n = {name: float(column[i]) for name, column in rows.numbers.items()}
        shape = Shape(
            hidden=int(n["hidden"]),
            ffn=int(n["ffn"] / n["tp"]),
            gated=bool(n["gated"]),
            dtype=str(rows.text["dtype"][i]),
        )
        loads = row_loads(n, str(rows.text["load"][i]))
        active = np.minimum(loads, 1.0).sum(axis=-1).mean()
        work = work_s(gpu, shape, loads).mean()
        tokens = np.exp(np.interp(work / active, _tau(gpu, shape, _T), np.log(_T)))
        features.append(_features(shape, np.asarray(active), np.asarray(tokens)))
        base.append(work + rows_s(gpu, shape, np.asarray(n["tokens"])) + FLOOR_S)
    return np.stack(features), np.stack(base)


_T: Final = np.geomspace(1.0, 2.0**22, 256)


def row_loads(n: dict[str, float], load: str) -> FloatArray:
    """tokens[draw, local expert] of a measured row."""
    experts, top_k, ep = int(n["experts"]), int(n["top_k"]), int(n["ep"])
    if load == "balanced":
        return balanced_load(n["tokens"], experts, top_k, ep)[None]
    if not load.startswith("power-law:"):
        raise choice("load", load, ["balanced", "power-law:1.2"])
    rng = np.random.default_rng([int(n["tokens"]), experts, top_k, ep])
    return power_law_loads(int(n["tokens"]), experts, top_k, ep, float(load.split(":")[1]), rng, _DRAWS)


def _source(profile: Profile, dtype: str, kernel: str | None) -> Source:
    known: set[str] = set()
    for number, wanted in enumerate(candidates(dtype)):
        for measured in profile.tables["expert_ffn"]:
            names = kernels(measured, wanted)
            known |= set(names)
            name = kernel or DEFAULT_KERNELS.get((measured.gpu.name, wanted), DEFAULT_KERNEL)
            if name in names:
                extra = OTHER_DTYPE_ERROR if number else 0.0
                return Source(
                    measured=measured, dtype=wanted, kernel=name, error=measured.carried_error + extra
                )
    if kernel is not None:
        raise choice("expert kernel", kernel, sorted(known))
    raise missing(profile, "expert_ffn", dtype)
