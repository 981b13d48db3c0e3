"""What all compute costs share: bytes and peaks of a dtype, the base time, the refusal, the band."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from moesim.cost import BASIS, ESTIMATED, Cost, FloatArray
from moesim.errors import MoesimError, choice
from moesim.profile import DataSheet, Measured, Profile

LAUNCH_GAP_S: Final = (
    2e-6  # median gap between kernels on a compute stream, DeepSeek's H800 profile data (2025)
)
DTYPES: Final = ("bf16", "fp8", "fp8_block", "int4", "ternary")
WEIGHT_BYTES: Final = {  # stored bytes of one weight, scales included
    "bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int4": 0.53125, "ternary": 0.25,
}  # fmt: skip
ACTIVATION_BYTES: Final = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int4": 2.0, "ternary": 2.0}
_NEAREST_DTYPE: Final = {  # where a dtype without a table is carried over from
    "bf16": ("fp8_block", "fp8"),
    "fp8": ("fp8_block", "bf16"),
    "fp8_block": ("fp8", "bf16"),
    "int4": ("bf16", "fp8_block"),
    "ternary": ("int4", "bf16"),
}
OTHER_DTYPE_ERROR: Final = 0.35


def check_dtype(dtype: str) -> None:
    """Refuse an unknown dtype."""
    if dtype not in DTYPES:
        raise choice("dtype", dtype, list(DTYPES))


def peak_flops(gpu: DataSheet, dtype: str) -> float:
    """Dense FLOP/s of the data sheet; weights narrower than the arithmetic are widened to bf16 first."""
    return gpu.flops.get("fp8", gpu.flops["bf16"]) if dtype.startswith("fp8") else gpu.flops["bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The rows that will price a request: which table, which dtype and kernel inside it."""

    measured: Measured
    dtype: str
    kernel: str
    error: float  # added to the relative error for what was carried over

    @property
    def estimated(self) -> bool:
        """True when the rows are of another GPU or dtype."""
        return self.measured.basis is ESTIMATED or self.error > 0.0


def kernels(measured: Measured, dtype: str, **equal: str) -> list[str]:
    """Kernel names with rows of that dtype."""
    rows = measured.table.select(dtype=dtype, **equal)
    return sorted(set(rows.text["kernel"].tolist()))


def candidates(dtype: str) -> tuple[str, ...]:
    """The dtype asked for, then those it is carried over from."""
    return (dtype, *_NEAREST_DTYPE[dtype])


def missing(profile: Profile, operation: str, dtype: str) -> MoesimError:
    """No table anywhere."""
    return MoesimError(
        f"no {operation} table for {dtype} in {profile.folder}: measure it with moesim calibrate, or set MOESIM_PROFILES"
    )


def check_range(what: str, asked: FloatArray | float, low: float, high: float, source: str) -> None:
    """Refuse to extrapolate far outside a table."""
    values = np.asarray(asked, dtype=np.float64)
    if values.size == 0:
        return
    if not np.isfinite(values).all():
        raise MoesimError(f"{what} {values[~np.isfinite(values)].flat[0]}: give a finite number")
    if values.max() > high:
        raise MoesimError(
            f"{what} {values.max():g} is far outside {source.split(':')[0]} (up to {high:g}): "
            f"measure larger {what} with moesim calibrate"
        )
    if values.min() < low:
        raise MoesimError(
            f"{what} {values.min():g} is far outside {source.split(':')[0]} (from {low:g}): "
            f"measure smaller {what} with moesim calibrate"
        )


def banded(
    seconds: FloatArray, half_width: FloatArray, bound_s: FloatArray, limited_by: str, source: Source
) -> Cost:
    """A Cost with the band ``seconds x exp(+-half_width)``, never below the bound."""
    value = np.maximum(seconds, bound_s)
    wide = half_width + np.log1p(source.error)
    return Cost(
        seconds=value,
        low=np.maximum(value * np.exp(-wide), np.minimum(bound_s, value)),
        high=value * np.exp(wide),
        bound_s=np.broadcast_to(bound_s, value.shape),
        limited_by=limited_by,
        basis=BASIS["estimated"] if source.estimated else source.measured.basis,
        source=f"{source.measured.source}; kernel {source.kernel}, {source.dtype}",
    )


def limit(compute_s: FloatArray, memory_s: FloatArray, floor_s: float) -> str:
    """What bounds a batch, by its summed seconds."""
    parts = {
        "compute": float(np.sum(compute_s)),
        "memory": float(np.sum(memory_s)),
        "launch": floor_s * np.size(compute_s),
    }
    return max(parts, key=lambda name: parts[name])
