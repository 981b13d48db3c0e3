"""What all compute costs share: bytes and peaks of a dtype, where rows come from, the refusal, the band."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from moesim.cost import BASIS, ESTIMATED, Cost, FloatArray
from moesim.errors import MoesimError, choice
from moesim.profile import DataSheet, Measured, Profile

DTYPES: Final = ("bf16", "fp8", "fp8_block", "int4", "ternary")
WEIGHT_BYTES: Final = {  # stored bytes of one value, scales included (int4: one 8-bit scale for 32 values)
    "bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int4": 0.53125, "ternary": 0.25,
}  # fmt: skip
ACTIVATION_BYTES: Final = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int4": 2.0, "ternary": 2.0}
OTHER_DTYPE_ERROR: Final = 0.35  # added to the relative error of rows of another dtype
_LAUNCH_BOUND: Final = 3.0  # seconds / roofline above which neither arithmetic nor memory is what binds
_LAUNCH_S: Final = 1e-4  # a longer kernel is slow for another reason than its launch
_NEAREST_DTYPE: Final = {  # where a dtype without rows is carried over from, nearest first
    "bf16": ("fp8_block", "fp8"),
    "fp8": ("fp8_block", "bf16"),
    "fp8_block": ("fp8", "bf16"),
    "int4": ("bf16", "fp8_block"),
    "ternary": ("int4", "bf16"),
}


def check_dtype(dtype: str) -> None:
    """Refuse an unknown dtype."""
    if dtype not in DTYPES:
        raise choice("dtype", dtype, list(DTYPES))


def candidates(dtype: str) -> tuple[str, ...]:
    """The dtype asked for, then those it is carried over from."""
    return (dtype, *_NEAREST_DTYPE[dtype])


def peak_flops(gpu: DataSheet, dtype: str) -> float:
    """Dense FLOP/s of the data sheet; weights narrower than 8 bits are widened and multiplied in bf16."""
    return gpu.flops.get("fp8", gpu.flops["bf16"]) if dtype.startswith("fp8") else gpu.flops["bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The rows that price a request: which table, which dtype and kernel inside it."""

    measured: Measured
    dtype: str
    kernel: str
    error: float  # added to the relative error for what was carried over from another GPU or dtype

    @property
    def estimated(self) -> bool:
        """True when the rows are of another GPU or dtype."""
        return self.measured.basis is ESTIMATED or self.error > 0.0


def kernels(measured: Measured, dtype: str) -> list[str]:
    """Kernel names with rows of that dtype."""
    return sorted(set(measured.table.select(dtype=dtype).text["kernel"].tolist()))


def missing(profile: Profile, what: str, dtype: str) -> MoesimError:
    """No rows anywhere."""
    return MoesimError(
        f"no {what} rows for {dtype} in {profile.folders[0]}: choose another dtype, or measure with moesim calibrate"
    )


def far_outside(
    what: str, asked: FloatArray | float, column: FloatArray, reach: float, where: str
) -> MoesimError | None:
    """The refusal of a value beyond ``reach`` times the largest or smallest of a column; else None."""
    return outside(what, asked, float(column.min()) / reach, float(column.max()) * reach, where)


def outside(what: str, asked: FloatArray | float, low: float, high: float, where: str) -> MoesimError | None:
    """The refusal of a value outside [low, high]; else None."""
    values = np.asarray(asked, dtype=np.float64)
    wrong = values[~((values >= low) & (values <= high))]
    if not wrong.size:
        return None
    return MoesimError(
        f"{what} {wrong.flat[0]:g} is far outside what was measured ({where}: from {low:g} to {high:g}); "
        "stay nearer, or measure it: moesim calibrate"
    )


def banded(seconds: FloatArray, half_width: FloatArray, bound_s: FloatArray, limited_by: str, source: Source) -> Cost:
    """A Cost with the band ``seconds x exp(+-half_width)``, nothing in it below the bound."""
    value = np.maximum(seconds, bound_s)
    wide = half_width + np.log1p(source.error)
    return Cost(
        seconds=value,
        low=np.maximum(value * np.exp(-wide), bound_s),
        high=value * np.exp(wide),
        bound_s=np.broadcast_to(bound_s, value.shape),
        limited_by=limited_by,
        basis=BASIS["estimated"] if source.estimated else source.measured.basis,
        source=f"{source.measured.source}; kernel {source.kernel}, {source.dtype}",
    )


def limit(compute_s: FloatArray, memory_s: FloatArray, seconds: FloatArray) -> str:
    """What bounds a batch of calls, by their summed seconds."""
    compute, memory = float(np.sum(compute_s)), float(np.sum(memory_s))
    total = float(np.sum(seconds))
    if total > _LAUNCH_BOUND * max(compute, memory) and total < _LAUNCH_S * np.size(seconds):
        return "launch"
    return "compute" if compute > memory else "memory"


def joined(compute_s: FloatArray, memory_s: FloatArray) -> FloatArray:
    """Arithmetic and memory traffic that overlap: their maximum, with the corner rounded."""
    return np.asarray(np.sqrt(np.sqrt(compute_s**4 + memory_s**4)))
