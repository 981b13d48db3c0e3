"""fp8 (e4m3) with block scales: x by row and 128 values of K, w by blocks of 128 x 128, as DeepSeek-V3 is trained.

DeepSeek-AI 2024, arXiv 2412.19437, section 3.3. A scale is the largest magnitude of its group over 448.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from .common import DOT_IN_FP32, Work, divide_up

GROUP: Final = 128  # values of K that share a scale; rows of w likewise
LARGEST: Final = 448.0  # of e4m3
LEAST_SCALE: Final = 1e-12  # of a group of zeros
ROWS: Final = 16  # of one program


def dequantise_fp8_rows(x_RK: torch.Tensor, scale_RG: torch.Tensor) -> torch.Tensor:
    """The float64 values of x_RK."""
    return x_RK.double() * scale_RG.double().repeat_interleave(GROUP, 1)[:, : x_RK.shape[1]]


def dequantise_fp8_blocks(w_ENK: torch.Tensor, scale_EIJ: torch.Tensor) -> torch.Tensor:
    """The float64 values of w_ENK; I and J count blocks of 128, the last may be ragged."""
    scale = scale_EIJ.double().repeat_interleave(GROUP, 1).repeat_interleave(GROUP, 2)
    return w_ENK.double() * scale[:, : w_ENK.shape[1], : w_ENK.shape[2]]


def quantise_fp8_blocks(w_ENK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """w_ENK as e4m3, and its float32 scales, one expert at a time: done once, when weights are loaded."""
    experts, rows, k = w_ENK.shape
    shape = divide_up(rows, GROUP), divide_up(k, GROUP)
    w8_ENK = torch.empty(w_ENK.shape, dtype=torch.float8_e4m3fn, device=w_ENK.device)
    scale_EIJ = torch.empty(experts, *shape, device=w_ENK.device)
    for e in range(experts):
        padded = torch.zeros(shape[0] * GROUP, shape[1] * GROUP, device=w_ENK.device)
        padded[:rows, :k] = w_ENK[e]
        blocks = padded.view(shape[0], GROUP, shape[1], GROUP)
        scale_EIJ[e] = (blocks.abs().amax((1, 3)) / LARGEST).clamp(min=LEAST_SCALE)
        blocks /= scale_EIJ[e][:, None, :, None]
        w8_ENK[e] = padded[:rows, :k].to(torch.float8_e4m3fn)
    return w8_ENK, scale_EIJ


def quantise_fp8_rows_reference(x_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What quantise_fp8_rows gives."""
    rows, k = x_RK.shape
    groups = divide_up(k, GROUP)
    padded = torch.zeros(rows, groups * GROUP, device=x_RK.device)
    padded[:, :k] = x_RK
    grouped = padded.view(rows, groups, GROUP)
    scale_RG = (grouped.abs().amax(2) / LARGEST).clamp(min=LEAST_SCALE)
    return (grouped / scale_RG[..., None]).view(rows, -1)[:, :k].to(torch.float8_e4m3fn), scale_RG


@triton.jit(do_not_specialize_on_alignment=["in_use"])
def _quantise_rows_kernel(
    x, x8, scale, in_use, rows, k, groups,
    LEAST_SCALE: tl.constexpr, LARGEST: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one group; nothing beyond the rows in use."""
    if in_use is not None:
        rows = tl.minimum(rows, tl.load(in_use))
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS < rows:
        group = tl.program_id(1)
        col = group * GROUP + tl.arange(0, GROUP)
        inside = (row < rows)[:, None] & (col < k)[None, :]
        at = row[:, None] * k + col[None, :]
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        of_row = tl.maximum(tl.max(tl.abs(values), axis=1) / LARGEST, LEAST_SCALE)
        scaled = values / of_row[:, None]
        if DOT_IN_FP32:  # the interpreter halves what it rounds up to a power of two: leave it 3 bits of mantissa
            bits = scaled.to(tl.int32, bitcast=True)
            bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
            scaled = bits.to(tl.float32, bitcast=True)
        tl.store(x8 + at, scaled.to(tl.float8e4nv), mask=inside)
        tl.store(scale + row * groups + group, of_row, mask=row < rows)


def quantise_fp8_rows(x_RK: torch.Tensor, in_use: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x_RK as e4m3, and scale_RG float32 per row and 128 values of K; ``in_use`` (int32 [1]): only so many rows."""
    if x_RK.ndim != 2 or not x_RK.dtype.is_floating_point:
        raise ValueError(f"x_RK is {x_RK.dtype} of shape {tuple(x_RK.shape)}: give floating-point rows [R, K]")
    rows, k = x_RK.shape
    groups = divide_up(k, GROUP)
    x8_RK = torch.empty(rows, k, dtype=torch.float8_e4m3fn, device=x_RK.device)
    scale_RG = torch.empty(rows, groups, dtype=torch.float32, device=x_RK.device)
    if rows and k:
        _quantise_rows_kernel[(divide_up(rows, ROWS), groups)](
            x_RK.contiguous(), x8_RK, scale_RG, in_use, rows, k, groups,
            LEAST_SCALE=LEAST_SCALE, LARGEST=LARGEST, GROUP=GROUP, ROWS=ROWS,
        )  # fmt: skip
    return x8_RK, scale_RG


def quantise_fp8_rows_cost(rows: int, k: int, bytes_per_value: int = 2) -> Work:
    """Reads x, writes e4m3 and the scales; a maximum and a division a value."""
    return Work(2.0 * rows * k, rows * (k * (bytes_per_value + 1.0) + 4.0 * divide_up(k, GROUP)))
