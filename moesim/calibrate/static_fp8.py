"""Activations to fp8 (e4m3) with a scale that is known beforehand, as one kernel: 3 bytes moved for each value."""

from typing import Any, Final

import torch
import triton
import triton.language as tl

from moesim.kernels.fp8 import LARGEST

_BLOCK: Final = 2048  # 16 values a thread: whole 16-byte loads and stores


def _to_fp8(  # quoted: triton reads annotations and knows no Any
    x_ptr: "Any", x8_ptr: "Any", inverse_ptr: "Any", values: "Any", largest: tl.constexpr, block: tl.constexpr
) -> None:
    """``block`` values times the inverse of their scale; beyond the largest: the largest."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    scaled = tl.load(x_ptr + at, mask=at < values, other=0.0).to(tl.float32) * tl.load(inverse_ptr)
    clamped = tl.minimum(tl.maximum(scaled, -largest), largest)
    tl.store(x8_ptr + at, clamped.to(tl.float8e4nv), mask=at < values)


to_fp8: Final = triton.jit(_to_fp8)


def quantise_static(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """``x`` (contiguous) times ``inverse`` (one float32, 1 over the scale) as e4m3."""
    x8 = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    to_fp8[(triton.cdiv(x.numel(), _BLOCK),)](x, x8, inverse, x.numel(), largest=LARGEST, block=_BLOCK)
    return x8
