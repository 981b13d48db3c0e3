"""Tokens into the rows of their experts, and the weighted combine back: dispatch and combine on one GPU.

    experts_TK  --sort_by_expert-->  row of each copy  --permute-->  x_RH  --experts-->  y_RH
    y_RH, weights_TK  --unpermute-->  y_TH

Rows beyond the last block in use are neither written nor read: no kernel wastes time on the worst load.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from .common import Work, divide_up, rounded
from .sort import Sorted, sort_by_expert, sort_by_expert_reference, sort_cost

__all__ = [
    "Sorted",
    "permute",
    "permute_cost",
    "permute_reference",
    "sort_by_expert",
    "sort_by_expert_reference",
    "sort_cost",
    "unpermute",
    "unpermute_backward",
    "unpermute_backward_cost",
    "unpermute_cost",
    "unpermute_reference",
]

BLOCK_BYTES: Final = 2048  # of one row that a program moves: 16 bytes a thread
SLAB: Final = 16  # rows that one program clears of what they held


@triton.jit
def _clear_padding(out_RH_ptr, counts_ptr, offsets_ptr, block_expert_ptr, slab, cols, rows, block, hidden,
                   SLAB: tl.constexpr):  # fmt: skip
    """Zeros in those of SLAB rows that lie in a block of an expert, beyond its last copy."""
    row = slab * SLAB + tl.arange(0, SLAB)
    expert = tl.load(block_expert_ptr + row // block, mask=row < rows, other=-1)
    used = expert >= 0
    end = tl.load(offsets_ptr + expert, mask=used, other=0) + tl.load(counts_ptr + expert, mask=used, other=0)
    padding = used & (row >= end)
    if tl.sum(padding.to(tl.int32), axis=0) > 0:
        at = row.to(tl.int64)[:, None] * hidden + cols[None, :]
        zero = tl.zeros((SLAB, cols.shape[0]), dtype=out_RH_ptr.dtype.element_ty)
        tl.store(out_RH_ptr + at, zero, mask=padding[:, None] & (cols < hidden)[None, :])


def _checked(array: torch.Tensor, lines: int, name: str) -> torch.Tensor:
    if array.ndim != 2 or array.shape[0] != lines:
        raise ValueError(f"{name} has the shape {tuple(array.shape)}: this order of copies wants [{lines}, ...]")
    return array


def _block_h(array: torch.Tensor) -> int:
    return min(triton.next_power_of_2(array.shape[1]), BLOCK_BYTES // array.itemsize)


def permute_reference(x_TH: torch.Tensor, order: Sorted) -> torch.Tensor:
    """x_RH: each copy's token in its row, zeros in all others."""
    padded = torch.cat([x_TH, torch.zeros_like(x_TH[:1])])
    token_R = torch.div(order.source_R, order.top_k, rounding_mode="floor")
    return padded[token_R.long()]


@triton.jit(do_not_specialize=["tokens", "rows"])
def _permute_kernel(
    x_TH_ptr, x_RH_ptr, row_ptr, counts_ptr, offsets_ptr, block_expert_ptr, tokens, rows, block, hidden,
    TOP_K: tl.constexpr, SLAB: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """A program reads a piece of a token once and writes it to its rows; those behind the tokens clear padding."""
    program = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    if program < tokens:
        x = tl.load(x_TH_ptr + program.to(tl.int64) * hidden + cols, mask=cols < hidden)
        for k in tl.static_range(TOP_K):
            row = tl.load(row_ptr + program * TOP_K + k)
            tl.store(x_RH_ptr + row.to(tl.int64) * hidden + cols, x, mask=(cols < hidden) & (row >= 0))
    else:
        _clear_padding(
            x_RH_ptr, counts_ptr, offsets_ptr, block_expert_ptr, program - tokens, cols, rows, block, hidden, SLAB
        )


def permute(x_TH: torch.Tensor, order: Sorted) -> torch.Tensor:
    """x_RH: each copy's token in its row, zeros in the padding of the blocks in use."""
    x_TH = _checked(x_TH, order.tokens, "x_TH").contiguous()
    hidden = x_TH.shape[1]
    x_RH = torch.empty(order.rows, hidden, dtype=x_TH.dtype, device=x_TH.device)
    programs = order.tokens + divide_up(order.rows, SLAB)
    if x_TH.numel() and order.top_k:
        from_TH, to_RH = (x_TH.view(torch.uint8), x_RH.view(torch.uint8)) if x_TH.itemsize == 1 else (x_TH, x_RH)
        wide = _block_h(x_TH)
        _permute_kernel[(programs, divide_up(hidden, wide))](
            from_TH, to_RH, order.row_TK, order.counts_E, order.offsets_E1, order.block_expert_B,
            order.tokens, order.rows, order.block, hidden, TOP_K=order.top_k, SLAB=SLAB, BLOCK_H=wide,
        )  # fmt: skip
    return x_RH


def permute_cost(tokens: int, top_k: int, hidden: int, bytes_per_value: float) -> Work:
    """Reads each token once, writes top_k rows for it; and an int32 row for each copy."""
    return Work(flops=0.0, bytes=(1.0 + top_k) * tokens * hidden * bytes_per_value + 4.0 * tokens * top_k)


def unpermute_reference(y_RH: torch.Tensor, order: Sorted, weights_TK: torch.Tensor | None = None) -> torch.Tensor:
    """y_TH: the weighted sum of each token's rows in float64; without weights the plain sum."""
    here_TK = order.row_TK >= 0
    weights = here_TK.double() if weights_TK is None else weights_TK.double() * here_TK
    rows_TKH = y_RH.double()[order.row_TK.clamp(min=0).long()]
    return (torch.where(here_TK[..., None], rows_TKH, 0.0) * weights[..., None]).sum(1)


@triton.jit
def _unpermute_kernel(
    y_RH_ptr, y_TH_ptr, row_ptr, weights_ptr, hidden,
    TOP_K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """A program sums a piece of a token's rows in fp32."""
    token = tl.program_id(0)
    cols = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    total = tl.zeros((BLOCK_H,), dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        row = tl.load(row_ptr + token * TOP_K + k)
        y = tl.load(y_RH_ptr + row.to(tl.int64) * hidden + cols, mask=(cols < hidden) & (row >= 0), other=0.0)
        if WEIGHTED:
            total += y.to(tl.float32) * tl.load(weights_ptr + token * TOP_K + k).to(tl.float32)
        else:
            total += y.to(tl.float32)
    y_TH = rounded(total, y_TH_ptr.dtype.element_ty)
    tl.store(y_TH_ptr + token.to(tl.int64) * hidden + cols, y_TH, mask=cols < hidden)


def unpermute(y_RH: torch.Tensor, order: Sorted, weights_TK: torch.Tensor | None = None) -> torch.Tensor:
    """y_TH: the weighted sum of each token's rows, in fp32; without weights the plain sum, permute's backward."""
    y_RH = _checked(y_RH, order.rows, "y_RH").contiguous()
    hidden = y_RH.shape[1]
    y_TH = torch.empty(order.tokens, hidden, dtype=y_RH.dtype, device=y_RH.device)
    if y_TH.numel():
        wide = _block_h(y_RH)
        weights = order.row_TK if weights_TK is None else _checked(weights_TK, order.tokens, "weights_TK")
        _unpermute_kernel[(order.tokens, divide_up(hidden, wide))](
            y_RH, y_TH, order.row_TK, weights.contiguous(), hidden,
            TOP_K=order.top_k, WEIGHTED=weights_TK is not None, BLOCK_H=wide,
        )  # fmt: skip
    return y_TH


def unpermute_cost(tokens: int, top_k: int, hidden: int, bytes_per_value: float) -> Work:
    """Reads top_k rows for each token, multiplies and adds, writes the token once."""
    work = permute_cost(tokens, top_k, hidden, bytes_per_value)
    return Work(flops=2.0 * tokens * top_k * hidden, bytes=work.bytes + 4.0 * tokens * top_k)


@triton.jit(do_not_specialize=["tokens", "rows"])
def _unpermute_backward_kernel(
    dy_TH_ptr, y_RH_ptr, dy_RH_ptr, dweights_ptr, row_ptr, weights_ptr, counts_ptr, offsets_ptr, block_expert_ptr,
    tokens, rows, block,
    HIDDEN: tl.constexpr, TOP_K: tl.constexpr, TOP_K2: tl.constexpr, SLAB: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """A program walks over a token: its gradient times each weight, and times each row; those behind clear padding."""
    program = tl.program_id(0)
    if program < tokens:
        k = tl.arange(0, TOP_K2)
        row = tl.load(row_ptr + program * TOP_K + k, mask=k < TOP_K, other=-1)
        weight = tl.load(weights_ptr + program * TOP_K + k, mask=k < TOP_K, other=0.0).to(tl.float32)
        dot = tl.zeros((TOP_K2, BLOCK_H), dtype=tl.float32)
        for first in range(0, HIDDEN, BLOCK_H):
            cols = first + tl.arange(0, BLOCK_H)
            dy = tl.load(dy_TH_ptr + program.to(tl.int64) * HIDDEN + cols, mask=cols < HIDDEN, other=0.0)
            at = row.to(tl.int64)[:, None] * HIDDEN + cols[None, :]
            inside = (row >= 0)[:, None] & (cols < HIDDEN)[None, :]
            y = tl.load(y_RH_ptr + at, mask=inside, other=0.0)
            dot += y.to(tl.float32) * dy.to(tl.float32)[None, :]
            dy_KH = rounded(weight[:, None] * dy.to(tl.float32)[None, :], dy_RH_ptr.dtype.element_ty)
            tl.store(dy_RH_ptr + at, dy_KH, mask=inside)
        tl.store(dweights_ptr + program * TOP_K + k, tl.sum(dot, axis=1), mask=k < TOP_K)
    else:
        for first in range(0, HIDDEN, BLOCK_H):
            cols = first + tl.arange(0, BLOCK_H)
            _clear_padding(
                dy_RH_ptr, counts_ptr, offsets_ptr, block_expert_ptr, program - tokens, cols, rows, block, HIDDEN, SLAB
            )


def unpermute_backward(
    dy_TH: torch.Tensor, y_RH: torch.Tensor, order: Sorted, weights_TK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dy_RH (zeros where the blocks in use are padded) and dweights_TK float32 (0 where the expert is elsewhere)."""
    dy_TH, y_RH = _checked(dy_TH, order.tokens, "dy_TH").contiguous(), _checked(y_RH, order.rows, "y_RH").contiguous()
    weights_TK = _checked(weights_TK, order.tokens, "weights_TK").contiguous()
    dy_RH = torch.empty(y_RH.shape, dtype=y_RH.dtype, device=y_RH.device)
    dweights_TK = torch.empty(order.tokens, order.top_k, dtype=torch.float32, device=dy_TH.device)
    if dy_TH.numel() and order.top_k:
        _unpermute_backward_kernel[(order.tokens + divide_up(order.rows, SLAB),)](
            dy_TH, y_RH, dy_RH, dweights_TK, order.row_TK, weights_TK, order.counts_E,
            order.offsets_E1, order.block_expert_B,
            order.tokens, order.rows, order.block, HIDDEN=dy_TH.shape[1],
            TOP_K=order.top_k, TOP_K2=triton.next_power_of_2(order.top_k), SLAB=SLAB, BLOCK_H=256,
        )  # fmt: skip
    return dy_RH, dweights_TK


def unpermute_backward_cost(tokens: int, top_k: int, hidden: int, bytes_per_value: float) -> Work:
    """Reads the token's gradient and its top_k rows, writes top_k gradients and weights' gradients."""
    values = (1.0 + 2.0 * top_k) * tokens * hidden
    return Work(flops=3.0 * tokens * top_k * hidden, bytes=values * bytes_per_value + 12.0 * tokens * top_k)
