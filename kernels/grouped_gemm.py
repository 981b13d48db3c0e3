"""One GEMM over ragged expert loads: the rows of expert e times w[e] transposed, bf16 or fp8 with block scales.

    x_RK (rows sorted and padded by expert), w_ENK  -->  y_RN = activation(x_RK @ w_E[expert of the row].T)

Tiles run through all experts: 16 blocks of rows side by side (of one expert while it has as many), so that one
wave of programs shares few tiles of w and of x in the L2. With SwiGLU a tile holds the same columns of gate and
up, and only their product is written.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .common import DOT_IN_FP32, Work, divide_up, loop_bound, rounded
from .fp8 import GROUP, dequantise_fp8_blocks, dequantise_fp8_rows
from .permute import Sorted
from .tiles import Tile, block_for, capability, has_tma, multiprocessors, tile_for

__all__ = ["ACTIVATIONS", "block_for", "grouped_gemm", "grouped_gemm_cost", "grouped_gemm_reference"]

ACTIVATIONS: Final = {
    "none": lambda a: a,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,  # exact, by erf
}
BESIDE: Final = tl.constexpr(16)  # blocks of rows side by side in the order of tiles
SCALE_GROUP: Final = tl.constexpr(GROUP)


def grouped_gemm_reference(
    x_RK: torch.Tensor, w_ENK: torch.Tensor, order: Sorted, *, x_scale: torch.Tensor | None = None,
    w_scale: torch.Tensor | None = None, activation: str = "none", row_weight_R: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """y_RN in float64, expert by expert; zeros in the padding."""
    x = x_RK.double() if x_scale is None else dequantise_fp8_rows(x_RK, x_scale)
    w = w_ENK.double() if w_scale is None else dequantise_fp8_blocks(w_ENK, w_scale)
    width = w.shape[1] // 2 if activation == "swiglu" else w.shape[1]
    y_RN = torch.zeros(x.shape[0], width, dtype=torch.float64, device=x.device)
    for expert, (start, count) in enumerate(zip(order.offsets_E1.tolist(), order.counts_E.tolist(), strict=False)):
        product = x[start : start + count] @ w[expert].T
        if activation == "swiglu":
            gate, up = product.chunk(2, dim=1)
            y_RN[start : start + count] = torch.nn.functional.silu(gate) * up
        else:
            y_RN[start : start + count] = ACTIVATIONS[activation](product)
    return y_RN if row_weight_R is None else y_RN * row_weight_R.double()[:, None]


@triton.jit
def _load_x(x, row0, k0, k, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr):
    """x [BLOCK_M, BLOCK_K]; zeros beyond K."""
    if TMA:
        tile = x.load([row0, k0])
    else:
        rows = (row0 + tl.arange(0, BLOCK_M)).to(tl.int64)
        ks = k0 + tl.arange(0, BLOCK_K)
        tile = tl.load(x + rows[:, None] * k + ks[None, :], mask=(ks < k)[None, :], other=0.0)
    if DOT_IN_FP32:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _load_w(
    w, expert, col0, k0, n, k, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr
):
    """w [PARTS * BLOCK_N, BLOCK_K]: the same columns of each part (gate, up); zeros beyond K."""
    if TMA:
        tile = w.load([expert, 0, col0, k0]).reshape(PARTS * BLOCK_N, BLOCK_K)
    else:
        both = tl.arange(0, PARTS * BLOCK_N)
        row = both // BLOCK_N * n + tl.minimum(col0 + both % BLOCK_N, n - 1)
        ks = k0 + tl.arange(0, BLOCK_K)
        start = w + expert.to(tl.int64) * (PARTS * n) * k
        tile = tl.load(start + row.to(tl.int64)[:, None] * k + ks[None, :], mask=(ks < k)[None, :], other=0.0)
    if DOT_IN_FP32:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _load_w_scale(w_scale, col0, n, k_block, k_groups, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr):
    """The scale of each of PARTS * BLOCK_N rows of w; WHOLE: one scale for all of a part."""
    both = tl.arange(0, PARTS * BLOCK_N)
    if WHOLE:
        scale = tl.load(w_scale + col0 // SCALE_GROUP * k_groups + k_block)
        if PARTS == 2:
            up = tl.load(w_scale + (n + col0) // SCALE_GROUP * k_groups + k_block)
            scales = tl.where(both < BLOCK_N, scale, up)
        else:
            scales = tl.zeros((BLOCK_N,), tl.float32) + scale
    else:
        row = both // BLOCK_N * n + tl.minimum(col0 + both % BLOCK_N, n - 1)
        scales = tl.load(w_scale + row // SCALE_GROUP * k_groups + k_block)
    return scales


@triton.jit
def _activate(acc, ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """What is written of an accumulator."""
    if ACTIVATION == "swiglu":
        gate, up = acc.reshape(BLOCK_M, 2, BLOCK_N).permute(0, 2, 1).split()
        result = gate * tl.sigmoid(gate) * up
    elif ACTIVATION == "relu":
        result = tl.maximum(acc, 0.0)
    elif ACTIVATION == "gelu":
        result = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    else:
        result = acc
    return result


@triton.jit
def _tile(
    tile, blocks, n_tiles, x, w, y, x_scale, w_scale, row_weight, block_expert, n, k, w_groups,
    ACTIVATION: tl.constexpr, TMA: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of y [BLOCK_M, BLOCK_N]."""
    PARTS: tl.constexpr = 2 if ACTIVATION == "swiglu" else 1
    band = BESIDE * n_tiles
    first = tile // band * BESIDE
    beside = tl.minimum(blocks - first, BESIDE)
    block = first + tile % band % beside
    col0 = tile % band // beside * BLOCK_N
    row0 = block * BLOCK_M
    expert = tl.load(block_expert + block)
    rows = (row0 + tl.arange(0, BLOCK_M)).to(tl.int64)
    k_groups = tl.cdiv(k, SCALE_GROUP)
    acc = tl.zeros((BLOCK_M, PARTS * BLOCK_N), tl.float32)
    for k0 in tl.range(0, loop_bound(k), BLOCK_K):
        x_tile = _load_x(x, row0, k0, k, BLOCK_M, BLOCK_K, TMA)
        w_tile = _load_w(w, expert, col0, k0, n, k, PARTS, BLOCK_N, BLOCK_K, TMA)
        if x_scale is None:
            acc = tl.dot(x_tile, w_tile.T, acc)
        else:
            tl.static_assert(BLOCK_K == SCALE_GROUP, "a step in K is one group of scales")
            k_block = k0 // SCALE_GROUP
            scales = w_scale + expert.to(tl.int64) * w_groups * k_groups
            of_w = _load_w_scale(scales, col0, n, k_block, k_groups, PARTS, BLOCK_N, WHOLE)
            of_x = tl.load(x_scale + rows * k_groups + k_block)
            acc += tl.dot(x_tile, w_tile.T) * (of_x[:, None] * of_w[None, :])
    result = _activate(acc, ACTIVATION, BLOCK_M, BLOCK_N)
    if row_weight is not None:
        result *= tl.load(row_weight + rows)[:, None].to(tl.float32)
    cols = col0 + tl.arange(0, BLOCK_N)
    tl.store(y + rows[:, None] * n + cols[None, :], rounded(result, y.dtype.element_ty), mask=(cols < n)[None, :])


@triton.jit(do_not_specialize=["experts", "w_groups"])
def _grouped_gemm_kernel(
    x, w, y, x_scale, w_scale, row_weight, block_expert, offsets, n, k, experts, w_groups,
    ACTIVATION: tl.constexpr, TMA: tl.constexpr, WHOLE: tl.constexpr, LOOPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile a program, or with LOOPS every so many; blocks beyond the last in use are nobody's."""
    blocks = tl.load(offsets + experts) // BLOCK_M
    n_tiles = tl.cdiv(n, BLOCK_N)
    if LOOPS:
        start, end, step = tl.program_id(0), blocks * n_tiles, tl.num_programs(0)
        for tile in tl.range(loop_bound(start), loop_bound(end), loop_bound(step), flatten=True):
            _tile(
                tile, blocks, n_tiles, x, w, y, x_scale, w_scale, row_weight, block_expert, n, k, w_groups,
                ACTIVATION, TMA, WHOLE, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    else:
        tile = tl.program_id(0)
        if tile < blocks * n_tiles:
            _tile(
                tile, blocks, n_tiles, x, w, y, x_scale, w_scale, row_weight, block_expert, n, k, w_groups,
                ACTIVATION, TMA, WHOLE, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip


def grouped_gemm(
    x_RK: torch.Tensor, w_ENK: torch.Tensor, order: Sorted, *, x_scale: torch.Tensor | None = None,
    w_scale: torch.Tensor | None = None, activation: str = "none", row_weight_R: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16, tile: Tile | None = None,
) -> torch.Tensor:  # fmt: skip
    """y_RN: each block of rows times its expert's w, transposed; then the activation, then the row's weight.

    swiglu: w_ENK holds gate above up, [E, 2F, K], and y is silu(gate) * up, [R, F]. fp8: x_scale_RG per row and 128
    values of K, w_scale per 128 x 128 block. Padding rows hold what their x gives; rows beyond, nothing new.
    """
    parts = 2 if activation == "swiglu" else 1
    n = w_ENK.shape[1] // parts
    _check(x_RK, w_ENK, order, x_scale, w_scale, activation)
    tile = tile or tile_for("bf16" if x_scale is None else "fp8_block", order.block, x_RK.device)
    y_RN = torch.empty(order.rows, n, dtype=out_dtype, device=x_RK.device)
    tiles = order.block_expert_B.numel() * divide_up(n, tile.rows // parts)
    if not tiles:
        return y_RN
    tma = has_tma(x_RK.device)
    x, w = _operands(x_RK, w_ENK, parts, order.block, tile) if tma else (x_RK.contiguous(), w_ENK.contiguous())
    programs = min(tiles, multiprocessors(x_RK.device)) if tile.loops else tiles
    _grouped_gemm_kernel[(programs,)](
        x, w, y_RN, x_scale, w_scale, row_weight_R, order.block_expert_B, order.offsets_E1,
        n, x_RK.shape[1], w_ENK.shape[0], w_scale.shape[1] if w_scale is not None else 0,
        ACTIVATION=activation, TMA=tma, WHOLE=parts == 1 or n % GROUP == 0, LOOPS=tile.loops,
        BLOCK_M=order.block, BLOCK_N=tile.rows // parts, BLOCK_K=tile.depth,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y_RN


def _operands(
    x_RK: torch.Tensor, w_ENK: torch.Tensor, parts: int, block: int, tile: Tile
) -> tuple[TensorDescriptor, TensorDescriptor]:
    """Descriptors for the tensor memory accelerator, which wants rows and tensors to begin at multiples of 16 bytes."""
    x_RK, w_ENK = _aligned(x_RK), _aligned(w_ENK)
    experts, rows, k = w_ENK.shape
    shape = [1, parts, tile.rows // parts, tile.depth]
    w = TensorDescriptor.from_tensor(w_ENK.view(experts, parts, rows // parts, k), shape)
    return TensorDescriptor.from_tensor(x_RK, [block, tile.depth]), w


def _aligned(a: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or where it begins or its rows begin elsewhere, a copy with zeros behind each row."""
    short = -a.shape[-1] % (16 // a.itemsize)
    if short:
        wide = torch.zeros(*a.shape[:-1], a.shape[-1] + short, dtype=a.dtype, device=a.device)
        wide[..., : a.shape[-1]] = a
        return wide
    a = a.contiguous()
    return a.clone() if a.data_ptr() % 16 else a


def _check(
    x_RK: torch.Tensor, w_ENK: torch.Tensor, order: Sorted, x_scale: torch.Tensor | None,
    w_scale: torch.Tensor | None, activation: str,
) -> None:  # fmt: skip
    """Refuse what the kernel would misread."""
    known = ("swiglu", *ACTIVATIONS)
    if activation not in known:
        raise ValueError(f"activation {activation!r} is unknown: give one of {', '.join(known)}")
    if x_RK.ndim != 2 or w_ENK.ndim != 3 or x_RK.shape[1] != w_ENK.shape[2] or not x_RK.shape[1]:
        shapes = f"x {tuple(x_RK.shape)}, w {tuple(w_ENK.shape)}"
        raise ValueError(f"{shapes} do not fit: give x [R, K] and w [E, N, K] with the same K > 0")
    if x_RK.shape[0] != order.rows or order.offsets_E1.numel() != w_ENK.shape[0] + 1:
        have = f"{x_RK.shape[0]} rows and {w_ENK.shape[0]} experts"
        raise ValueError(f"{have}, but sorted into {order.rows} and {order.offsets_E1.numel() - 1}: sort for these w")
    if activation == "swiglu" and w_ENK.shape[1] % 2:
        raise ValueError(f"swiglu takes gate and up, an even number of rows of w, not {w_ENK.shape[1]}")
    if (x_scale is None) != (w_scale is None):
        raise ValueError("only one of x_scale and w_scale: quantise both operands or none")
    wanted = torch.bfloat16 if x_scale is None else torch.float8_e4m3fn
    if (x_RK.dtype, w_ENK.dtype) != (wanted, wanted):
        raise ValueError(f"x is {x_RK.dtype} and w is {w_ENK.dtype}: both must be {wanted} here")
    if x_scale is not None and w_scale is not None:
        groups, w_groups = divide_up(x_RK.shape[1], GROUP), divide_up(w_ENK.shape[1], GROUP)
        if x_scale.shape != (x_RK.shape[0], groups) or w_scale.shape != (w_ENK.shape[0], w_groups, groups):
            raise ValueError(f"scales {tuple(x_scale.shape)}, {tuple(w_scale.shape)}: give one per 128 values")
        if capability(x_RK.device) < (8, 9):
            raise ValueError("this GPU has no fp8: use bf16 (fp8 begins with compute capability 8.9)")


def grouped_gemm_cost(counts_E: torch.Tensor, n: int, k: int, dtype: str = "bf16", activation: str = "none") -> Work:
    """Two FLOPs per multiply-add; x and y once, w of the experts that have tokens once, padding not counted.

    ``n`` counts the rows of w (gate and up together); y is bf16 and has half of them with swiglu.
    """
    rows, touched = float(counts_E.sum()), float((counts_E > 0).sum())
    groups = divide_up(k, GROUP)
    x_bytes, w_bytes = 2.0 * k, 2.0 * n * k
    if dtype == "fp8_block":
        x_bytes, w_bytes = k + 4.0 * groups, float(n * k) + 4.0 * divide_up(n, GROUP) * groups
    y_bytes = 2.0 * (n / 2 if activation == "swiglu" else n)
    return Work(2.0 * rows * n * k, rows * (x_bytes + y_bytes) + touched * w_bytes)
