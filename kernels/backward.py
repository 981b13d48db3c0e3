"""Gradients of the grouped GEMM in bf16 with fp32 sums: of its rows (dgrad) and of each expert's weights (wgrad).

    dx_RK = dy_RN @ w_E[expert of the row]        dw_E[e] = dy[rows of e].T @ x[rows of e]

Padding rows may hold anything: the weight gradient leaves them out, and an expert without rows gets exact zeros. Each
tile is summed by one program in the order of its rows, so the result is the same in every run. With less than a wave
of tiles an expert's rows could be split between programs; real experts have thousands of tiles, and it is not done.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .common import DOT_IN_FP32, Work, divide_up, loop_bound, rounded
from .grouped_gemm import grouped_gemm_cost
from .low_bit import tile_of_program
from .sort import Sorted
from .tiles import Tile, has_tma, tile_for

AT_ONCE: Final = 8  # lines of tiles of the result that pass over the others together
WGRAD: Final = {True: Tile(256, 64, 8, 3, False), False: Tile(128, 32, 8, 4, False)}  # with and without TMA
WGRAD_N: Final = 128


def grouped_dgrad_reference(dy_RN: torch.Tensor, w_ENK: torch.Tensor, order: Sorted) -> torch.Tensor:
    """float64 dx [R, K]; zeros in the padding."""
    dx = torch.zeros(dy_RN.shape[0], w_ENK.shape[2], dtype=torch.float64, device=dy_RN.device)
    for expert, rows in enumerate(_rows_of_experts(order)):
        dx[rows] = dy_RN[rows].double() @ w_ENK[expert].double()
    return dx


def grouped_wgrad_reference(x_RK: torch.Tensor, dy_RN: torch.Tensor, order: Sorted) -> torch.Tensor:
    """float64 dw [E, N, K]."""
    return torch.stack([dy_RN[rows].double().T @ x_RK[rows].double() for rows in _rows_of_experts(order)])


def _rows_of_experts(order: Sorted) -> list[slice]:
    counts, firsts = order.counts_E.tolist(), order.offsets_E1.tolist()
    return [slice(first, first + count) for first, count in zip(firsts, counts, strict=False)]


@triton.jit
def _rows(source, row0, col0, end, width, ROWS: tl.constexpr, COLS: tl.constexpr):
    """A tile of a row-major array, zeros beyond row ``end`` and column ``width``."""
    row = row0 + tl.arange(0, ROWS)
    col = col0 + tl.arange(0, COLS)
    at = source + row.to(tl.int64)[:, None] * width + col[None, :]
    return tl.load(at, mask=(row < end)[:, None] & (col < width)[None, :], other=0.0)


@triton.jit
def _dot(a, b, acc):
    if DOT_IN_FP32:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        return tl.dot(a, b, acc)


@triton.jit
def _dgrad_kernel(
    dy, w, dx_ptr, block_expert_ptr, blocks, n, k,
    TMA: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, DEPTH: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One tile of dx [BLOCK_M, BLOCK_K]: rows of dy times their expert's w."""
    block, tile_k = tile_of_program(blocks, tl.cdiv(k, BLOCK_K), AT_ONCE)
    expert = tl.load(block_expert_ptr + block)
    if expert >= 0:
        row0, col0 = block * BLOCK_M, tile_k * BLOCK_K
        acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        for n0 in tl.range(0, loop_bound(n), DEPTH):
            if TMA:
                dy_tile = dy.load([row0, n0])
                w_tile = w.load([expert, n0, col0]).reshape(DEPTH, BLOCK_K)
            else:
                dy_tile = _rows(dy, row0, n0, row0 + BLOCK_M, n, BLOCK_M, DEPTH)
                w_tile = _rows(w + expert.to(tl.int64) * n * k, n0, col0, n, k, DEPTH, BLOCK_K)
            acc = _dot(dy_tile, w_tile, acc)
        rows = (row0 + tl.arange(0, BLOCK_M)).to(tl.int64)
        cols = col0 + tl.arange(0, BLOCK_K)
        tl.store(
            dx_ptr + rows[:, None] * k + cols[None, :], rounded(acc, dx_ptr.dtype.element_ty), mask=(cols < k)[None, :]
        )


@triton.jit
def _wgrad_kernel(
    x, dy, x_ptr, dy_ptr, dw_ptr, counts_ptr, offsets_ptr, n, k,
    TMA: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPTH: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One tile of one expert's dw [BLOCK_N, BLOCK_K], summed over its rows; the last rows masked, no rows: zeros."""
    tiles_n, tiles_k = tl.cdiv(n, BLOCK_N), tl.cdiv(k, BLOCK_K)
    tile_n, tile_k = tile_of_program(tiles_n, tiles_k, AT_ONCE)
    expert = tl.program_id(1)
    row0 = tl.load(offsets_ptr + expert)
    end = row0 + tl.load(counts_ptr + expert)
    whole = row0 + (end - row0) // DEPTH * DEPTH
    col_n, col_k = tile_n * BLOCK_N, tile_k * BLOCK_K
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for row in tl.range(loop_bound(row0), loop_bound(whole), DEPTH):
        if TMA:
            acc = _dot(dy.load([row, col_n]).T, x.load([row, col_k]), acc)
        else:
            dy_tile = _rows(dy_ptr, row, col_n, end, n, DEPTH, BLOCK_N)
            acc = _dot(dy_tile.T, _rows(x_ptr, row, col_k, end, k, DEPTH, BLOCK_K), acc)
    if whole < end:
        dy_tile = _rows(dy_ptr, whole, col_n, end, n, DEPTH, BLOCK_N)
        acc = _dot(dy_tile.T, _rows(x_ptr, whole, col_k, end, k, DEPTH, BLOCK_K), acc)
    cols_n, cols_k = col_n + tl.arange(0, BLOCK_N), col_k + tl.arange(0, BLOCK_K)
    at = dw_ptr + (expert.to(tl.int64) * n + cols_n)[:, None] * k + cols_k[None, :]
    tl.store(at, rounded(acc, dw_ptr.dtype.element_ty), mask=(cols_n < n)[:, None] & (cols_k < k)[None, :])


def grouped_dgrad(dy_RN: torch.Tensor, w_ENK: torch.Tensor, order: Sorted) -> torch.Tensor:
    """dx_RK bf16: each row of dy times its expert's w; padding rows hold what theirs gives, rows beyond nothing new."""
    experts, n, k = w_ENK.shape
    if dy_RN.shape != (order.rows, n) or order.counts_E.shape[0] != experts:
        raise ValueError(
            f"dy {tuple(dy_RN.shape)} and w {tuple(w_ENK.shape)} do not fit: "
            f"give dy [{order.rows}, N] and w [{order.counts_E.shape[0]}, N, K]"
        )
    _check_bf16(dy_RN, w_ENK)
    dy_RN, w_ENK = dy_RN.contiguous(), w_ENK.contiguous()
    tile, tma = tile_for("bf16", order.block, dy_RN.device), _fits_tma(dy_RN, w_ENK)
    dx = torch.empty(order.rows, k, dtype=torch.bfloat16, device=dy_RN.device)
    blocks = order.rows // order.block
    if blocks:
        _dgrad_kernel[(blocks * divide_up(k, tile.rows),)](
            TensorDescriptor.from_tensor(dy_RN, [order.block, tile.depth]) if tma else dy_RN,
            TensorDescriptor.from_tensor(w_ENK, [1, tile.depth, tile.rows]) if tma else w_ENK,
            dx, order.block_expert_B, blocks, n, k, TMA=tma, BLOCK_M=order.block, BLOCK_K=tile.rows,
            DEPTH=tile.depth, AT_ONCE=AT_ONCE, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return dx


def grouped_wgrad(
    x_RK: torch.Tensor, dy_RN: torch.Tensor, order: Sorted, *, out_dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """dw_ENK in ``out_dtype`` (bf16 or float32): dy transposed times x over the rows of each expert."""
    if x_RK.shape[0] != order.rows or dy_RN.shape[0] != order.rows:
        raise ValueError(f"x {tuple(x_RK.shape)} and dy {tuple(dy_RN.shape)} do not fit: give both {order.rows} rows")
    _check_bf16(x_RK, dy_RN)
    x_RK, dy_RN = x_RK.contiguous(), dy_RN.contiguous()
    experts, n, k = order.counts_E.shape[0], dy_RN.shape[1], x_RK.shape[1]
    tma = _fits_tma(x_RK, dy_RN)
    tile = WGRAD[tma]
    dw = torch.empty(experts, n, k, dtype=out_dtype, device=x_RK.device)
    _wgrad_kernel[(divide_up(n, WGRAD_N) * divide_up(k, tile.rows), experts)](
        TensorDescriptor.from_tensor(x_RK, [tile.depth, tile.rows]) if tma else x_RK,
        TensorDescriptor.from_tensor(dy_RN, [tile.depth, WGRAD_N]) if tma else dy_RN,
        x_RK, dy_RN, dw, order.counts_E, order.offsets_E1, n, k, TMA=tma, BLOCK_N=WGRAD_N, BLOCK_K=tile.rows,
        DEPTH=tile.depth, AT_ONCE=AT_ONCE, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return dw


def _fits_tma(*arrays: torch.Tensor) -> bool:
    """Whether the tensor memory accelerator can load them: they and their rows begin at multiples of 16 bytes."""
    aligned = (a.data_ptr() % 16 == 0 and a.shape[-1] * a.itemsize % 16 == 0 and a.numel() > 0 for a in arrays)
    return has_tma(arrays[0].device) and all(aligned)


def _check_bf16(*arrays: torch.Tensor) -> None:
    if any(a.dtype != torch.bfloat16 for a in arrays):
        raise ValueError(f"gradients of {', '.join(str(a.dtype) for a in arrays)}: give bfloat16")


def grouped_dgrad_cost(counts_E: torch.Tensor, n: int, k: int) -> Work:
    """As the forward GEMM: dy, w of the experts that have tokens, and dx once."""
    return grouped_gemm_cost(counts_E, n, k)


def grouped_wgrad_cost(counts_E: torch.Tensor, n: int, k: int, bytes_per_value: float = 2.0) -> Work:
    """x and dy in bf16 once; dw of every expert written, zeros included."""
    rows = float(counts_E.sum())
    return Work(2.0 * rows * n * k, 2.0 * rows * (n + k) + bytes_per_value * len(counts_E) * n * k)
