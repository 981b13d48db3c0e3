"""What all kernels share: Work, the error measure, and what Triton's interpreter needs."""

import os
from typing import Final, NamedTuple

import torch
import triton.language as tl

INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"
# The interpreter multiplies bf16 operands of tl.dot as raw integers: there, and only there, cast them to fp32.
DOT_IN_FP32: Final = tl.constexpr(INTERPRETED)


class Work(NamedTuple):
    """What a kernel cannot avoid: arithmetic, and bytes of device memory (each input and output once)."""

    flops: float
    bytes: float


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected|| in float64; infinite where ``found`` holds what is not finite."""
    found, expected = found.double(), expected.double()
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    scale = float(expected.norm())
    return float((found - expected).norm()) / scale if scale else float(found.norm())


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """An output full of NaN (integers: -1), so that an element nobody writes is seen."""
    if dtype.is_floating_point:
        return torch.full(shape, float("nan"), dtype=torch.float32, device=device).to(dtype)
    return torch.full(shape, -1, dtype=dtype, device=device)


def divide_up(a: int, b: int) -> int:
    """ceil(a / b)."""
    return -(-a // b)
