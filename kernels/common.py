"""What all kernels share: Work, the error measure, and what Triton's interpreter needs."""

import os
from typing import Final, NamedTuple

import torch
import triton
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


@triton.jit
def rounded(value, DTYPE: tl.constexpr):
    """float32 in the type that is stored, to the nearest: the interpreter alone would cut bf16 off."""
    if DOT_IN_FP32 and tl.bfloat16 == DTYPE:
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        return bits.to(tl.float32, bitcast=True).to(DTYPE)
    else:
        return value.to(DTYPE)


@triton.jit
def loop_bound(bound):
    """The bound of a loop that the launch or the device's memory gives; the interpreter wants a Python integer."""
    if DOT_IN_FP32:
        return bound.handle.data.item()
    else:
        return bound
