"""Grouped GEMM with weights of few bits: int4 with a scale per 32 values, or ternary with a scale per row.

    packed bytes --shift, mask, magic number--> bf16 in registers --tl.dot with bf16 tokens--> fp32 --> activation

Both formats cut K into spans of 128 values, four groups of 32. One byte holds the same position of 2 groups (int4) or
of 4 (ternary): shifting a tile of 32 bytes yields a tile of 32 consecutive values, so nothing moves between threads
and each group has one scale. The weights are the left operand, which tensor cores accept from registers, and the
tokens are its columns: a block of 16 tokens wastes nothing. The weights of an expert are read once for each block of
its tokens; ``matvec`` holds the other way, once for each token.
"""

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl

from .common import DOT_IN_FP32, Work, divide_up, relative_error, rounded
from .sort import Sorted
from .tiles import BLOCKS

SPAN, GROUP = 128, 32


class Int4(NamedTuple):
    """Codes -8..7 plus 8: packed uint8 [E, N, spans * 64]; scales uint8 [E, spans, N, 4] hold e of 2^(e - 127); k."""

    packed: torch.Tensor
    scales: torch.Tensor
    k: int


class Ternary(NamedTuple):
    """Codes -1, 0, 1 plus 1: packed uint8 [E, N, spans * 32], four a byte; scales float32 [E, N]; k."""

    packed: torch.Tensor
    scales: torch.Tensor
    k: int


LowBit = Int4 | Ternary
ACTIVATIONS: Final = ("none", "swiglu", "relu", "gelu")


def _pack(codes_ENK: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned codes [E, N, K], K a multiple of 128, to bytes [E, N, K * bits / 8]."""
    experts, n, k = codes_ENK.shape
    held = 8 // bits  # groups that share their bytes
    tiles = codes_ENK.to(torch.uint8).reshape(experts, n, k // (held * GROUP), held, GROUP)
    packed = torch.zeros_like(tiles[:, :, :, 0])
    for i in range(held):
        packed |= tiles[:, :, :, i] << (bits * i)
    return packed.reshape(experts, n, -1)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes [E, N, spans * 128] uint8 of packed bytes."""
    tiles = packed.reshape(*packed.shape[:2], -1, GROUP)
    parts = [(tiles >> (bits * i)) & (2**bits - 1) for i in range(8 // bits)]
    return torch.stack(parts, dim=3).reshape(*packed.shape[:2], -1)


def _padded(w_ENK: torch.Tensor) -> torch.Tensor:
    """float32 weights with K filled up by zeros to whole spans."""
    return torch.nn.functional.pad(w_ENK.float(), (0, -w_ENK.shape[2] % SPAN))


def quantise_int4(w_ENK: torch.Tensor) -> Int4:
    """Each group of 32 values of K scaled by the least power of two that holds its largest value as 7 or less."""
    experts, n, k = w_ENK.shape
    groups = _padded(w_ENK).reshape(experts, n, -1, GROUP)
    most = groups.abs().amax(dim=-1).clamp(min=2.0**-100)
    exponent = torch.ceil(torch.log2(most / 7.0)).clamp(-120, 120)
    codes = torch.round(groups / torch.exp2(exponent)[..., None]).clamp(-8, 7) + 8
    by_span = (exponent + 127).to(torch.uint8).reshape(experts, n, -1, SPAN // GROUP)
    return Int4(_pack(codes.reshape(experts, n, -1), 4), by_span.transpose(1, 2).contiguous(), k)


def quantise_ternary(w_ENK: torch.Tensor, threshold: float = 0.7) -> Ternary:
    """Zero below ``threshold`` times a row's mean magnitude, else the row's scale with the sign.

    Li, Zhang, Liu, "Ternary Weight Networks", 2016: threshold 0.7, scale the mean magnitude of what is kept. At 1.97 of
    normal weights 88.5 % become zero, as in QMoE (whose levels of a row may differ in magnitude; here they do not).
    """
    w = _padded(w_ENK)
    size = w[:, :, : w_ENK.shape[2]].abs()
    kept = w.abs() > threshold * size.mean(dim=2, keepdim=True)
    scales = (w.abs() * kept).sum(dim=2) / kept.sum(dim=2).clamp(min=1)
    return Ternary(_pack(torch.sign(w) * kept + 1, 2), scales, w_ENK.shape[2])


def dequantise(weights: LowBit) -> torch.Tensor:
    """The float32 weights [E, N, K] that the kernels multiply with."""
    if isinstance(weights, Ternary):
        codes = unpack(weights.packed, 2)[:, :, : weights.k].float() - 1
        return codes * weights.scales[:, :, None]
    codes = unpack(weights.packed, 4).float() - 8
    scales = torch.exp2(weights.scales.float() - 127).transpose(1, 2).reshape(*codes.shape[:2], -1, 1)
    return (codes.reshape(*scales.shape[:3], GROUP) * scales).reshape(codes.shape)[:, :, : weights.k]


def quantisation_error(w_ENK: torch.Tensor, weights: LowBit) -> float:
    """Relative norm of what quantisation lost: reported beside results, never judged."""
    return relative_error(dequantise(weights), w_ENK)


def activate(y: torch.Tensor, activation: str) -> torch.Tensor:
    """The activation on [..., N]; swiglu takes gate then up halves to [..., N / 2]."""
    if activation == "swiglu":
        return torch.nn.functional.silu(y.chunk(2, dim=-1)[0]) * y.chunk(2, dim=-1)[1]
    return {"none": lambda v: v, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation](y)


def grouped_gemm_low_bit_reference(
    x_RK: torch.Tensor,
    weights: LowBit,
    order: Sorted,
    *,
    activation: str = "none",
    row_weight_R: torch.Tensor | None = None,
) -> torch.Tensor:
    """float64 [R, N or N / 2] from the dequantised weights; zero in rows that no token holds."""
    w = dequantise(weights).double()
    columns = w.shape[1] // 2 if activation == "swiglu" else w.shape[1]
    y = torch.zeros(x_RK.shape[0], columns, dtype=torch.float64, device=x_RK.device)
    for expert, (first, count) in enumerate(zip(order.offsets_E1.tolist(), order.counts_E.tolist(), strict=False)):
        rows = slice(first, first + count)
        y[rows] = activate(x_RK[rows].double() @ w[expert].T, activation)
    return y if row_weight_R is None else y * row_weight_R.double()[:, None]


@triton.jit
def decode(packed, place, BITS: tl.constexpr):
    """Signed codes as float32: the code becomes the low bits of 2^23 + code, and a subtraction leaves it."""
    code = (packed.to(tl.int32) >> (BITS * (place % (8 // BITS)))) & ((1 << BITS) - 1)
    return (code | 0x4B000000).to(tl.float32, bitcast=True) - (8388616.0 if BITS == 4 else 8388609.0)


@triton.jit
def group_scale(exponents, place):
    """2^(e - 127) of byte ``place``."""
    return (((exponents >> (8 * place)) & 0xFF) << 23).to(tl.float32, bitcast=True)


@triton.jit
def load_if(WANTED: tl.constexpr, at):
    """What stands at ``at``; 0 without reading where it is not wanted."""
    if WANTED:
        return tl.load(at)
    else:
        return 0


@triton.jit
def tile_of_program(blocks, tiles_n, AT_ONCE: tl.constexpr):
    """Block of rows and tile of columns: AT_ONCE blocks pass over all columns before the next, for the L2."""
    first = tl.program_id(0) // (AT_ONCE * tiles_n) * AT_ONCE
    width = tl.minimum(blocks - first, AT_ONCE)
    place = tl.program_id(0) % (AT_ONCE * tiles_n)
    return first + place % width, place // width


@triton.jit
def activated(gate, up, ACTIVATION: tl.constexpr):
    """The activation in float32; swiglu alone reads ``up``."""
    if ACTIVATION == "swiglu":
        return gate * tl.sigmoid(gate) * up
    elif ACTIVATION == "relu":
        return tl.maximum(gate, 0.0)
    elif ACTIVATION == "gelu":
        return 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    else:
        return gate


@triton.jit
def _multiply(packed, exponents, x_TK, place, acc_NM, BITS: tl.constexpr):
    """acc_NM plus the weights of group ``place`` times the tokens."""
    w = decode(packed, place, BITS)
    if BITS == 4:
        w *= group_scale(exponents, place)[:, None]
    if DOT_IN_FP32:
        return tl.dot(w, tl.trans(x_TK.to(tl.float32)), acc_NM)
    return tl.dot(w.to(tl.bfloat16), tl.trans(x_TK), acc_NM)


@triton.jit
def _low_bit_kernel(
    x_ptr, packed_ptr, scales_ptr, y_ptr, row_weight_ptr, block_expert_ptr, counts_ptr, offsets_ptr, blocks, n,
    K: tl.constexpr, BITS: tl.constexpr, ACTIVATION: tl.constexpr, WEIGHTED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS_AT_ONCE: tl.constexpr,
):  # fmt: skip
    """One tile of y: BLOCK_M rows of one expert, BLOCK_N of its n columns (for swiglu rows n and n + columns of w)."""
    GATED: tl.constexpr = ACTIVATION == "swiglu"
    SPAN_BYTES: tl.constexpr = 16 * BITS
    PER_BYTE: tl.constexpr = 8 // BITS
    SPANS: tl.constexpr = (K + 127) // 128
    block, tile_n = tile_of_program(blocks, tl.cdiv(n, BLOCK_N), BLOCKS_AT_ONCE)
    expert = tl.load(block_expert_ptr + block).to(tl.int64)
    if expert >= 0:
        row_M = block * BLOCK_M + tl.arange(0, BLOCK_M)
        real_M = row_M < tl.load(offsets_ptr + expert) + tl.load(counts_ptr + expert)
        column_N = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        inside_N = tl.minimum(column_N, n - 1)
        rows_w = n * 2 if GATED else n
        x_at = x_ptr + row_M.to(tl.int64)[:, None] * K + tl.arange(0, 32)[None, :]
        w_at = packed_ptr + (expert * rows_w + inside_N)[:, None] * (SPANS * SPAN_BYTES) + tl.arange(0, 32)[None, :]
        scale_at = scales_ptr + expert * SPANS * rows_w + inside_N
        up_at = packed_ptr + (expert * rows_w + n + inside_N)[:, None] * (SPANS * SPAN_BYTES) + tl.arange(0, 32)
        acc_NM = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        up_NM = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        for span in range(0, SPANS):
            exponents = load_if(BITS == 4, scale_at + span * rows_w)
            up_exponents = load_if(BITS == 4 and GATED, scale_at + n + span * rows_w)
            for part in tl.static_range(4 // PER_BYTE):
                packed = tl.load(w_at + span * SPAN_BYTES + part * 32)
                up_packed = load_if(GATED, up_at + span * SPAN_BYTES + part * 32)
                for i in tl.static_range(PER_BYTE):
                    first = span * 128 + (part * PER_BYTE + i) * 32
                    read = real_M[:, None] & ((first + tl.arange(0, 32) < K) | (K % 128 == 0))[None, :]
                    x = tl.load(x_at + first, mask=read, other=0.0)
                    acc_NM = _multiply(packed, exponents, x, part * PER_BYTE + i, acc_NM, BITS)
                    if GATED:
                        up_NM = _multiply(up_packed, up_exponents, x, part * PER_BYTE + i, up_NM, BITS)
        if BITS == 2:
            acc_NM *= tl.load(scales_ptr + expert * rows_w + inside_N)[:, None]
            if GATED:
                up_NM *= tl.load(scales_ptr + expert * rows_w + n + inside_N)[:, None]
        y_MN = tl.trans(activated(acc_NM, up_NM, ACTIVATION))
        if WEIGHTED:
            y_MN *= tl.load(row_weight_ptr + row_M, mask=real_M, other=0.0)[:, None]
        y_at = y_ptr + row_M.to(tl.int64)[:, None] * n + column_N[None, :]
        tl.store(y_at, rounded(y_MN, y_ptr.dtype.element_ty), mask=(column_N < n)[None, :])


def grouped_gemm_low_bit(
    x_RK: torch.Tensor,
    weights: LowBit,
    order: Sorted,
    *,
    activation: str = "none",
    row_weight_R: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """y [R, N], for swiglu [R, N / 2]: bf16 rows of expert e times its weights; blocks of no expert stay unwritten."""
    rows_w = weights.packed.shape[1]
    check_activation(activation, rows_w)
    _check(x_RK, weights, order)
    gated, bits, block = activation == "swiglu", 4 if isinstance(weights, Int4) else 2, order.block
    n, blocks = rows_w // 2 if gated else rows_w, order.rows // block
    wide = 64 if block <= 32 or (gated and block <= 64) else 128
    y = torch.empty(order.rows, n, dtype=out_dtype, device=x_RK.device)
    scales = weights.scales.view(torch.int32) if bits == 4 else weights.scales
    _low_bit_kernel[(blocks * divide_up(n, wide),)](
        x_RK.contiguous(), weights.packed, scales, y, row_weight_R, order.block_expert_B, order.counts_E,
        order.offsets_E1, blocks, n, K=weights.k, BITS=bits, ACTIVATION=activation,
        WEIGHTED=row_weight_R is not None, BLOCK_M=block, BLOCK_N=wide,
        BLOCKS_AT_ONCE=8, num_warps=8 if block >= 128 else 4, num_stages=3 if block >= 128 else 4,
    )  # fmt: skip
    return y


def check_activation(activation: str, rows_w: int) -> None:
    """Refuse an unknown activation, and gate and up of unequal rows."""
    if activation not in ACTIVATIONS or (activation == "swiglu" and rows_w % 2):
        raise ValueError(f"activation {activation!r} on {rows_w} rows: one of {ACTIVATIONS}, swiglu on even rows")


def _check(x_RK: torch.Tensor, weights: LowBit, order: Sorted) -> None:
    experts = weights.packed.shape[0]
    if x_RK.dtype != torch.bfloat16 or x_RK.shape != (order.rows, weights.k):
        wanted = f"give bfloat16 rows as permute lays them, [{order.rows}, {weights.k}]"
        raise ValueError(f"x is {x_RK.dtype} {tuple(x_RK.shape)}: {wanted}")
    if order.counts_E.shape[0] != experts or order.block not in BLOCKS:
        sorted_for = f"{order.counts_E.shape[0]} experts in blocks of {order.block}"
        raise ValueError(f"rows are sorted for {sorted_for}: sort by {experts} experts in blocks of one of {BLOCKS}")


def weight_bytes(n: int, k: int, dtype: str) -> float:
    """Bytes of one expert's packed weights and scales; ``dtype`` is "int4" or "ternary"."""
    values = n * divide_up(k, SPAN) * SPAN
    return values * (1 / 2 + 1 / GROUP) if dtype == "int4" else values / 4 + 4.0 * n


def grouped_gemm_low_bit_cost(counts_E: torch.Tensor, n: int, k: int, dtype: str, activation: str = "none") -> Work:
    """Weights of each expert that has tokens once, bf16 tokens in, bf16 results out; ``n`` counts rows of w."""
    rows, touched = float(counts_E.sum()), int((counts_E > 0).sum())
    out = n // 2 if activation == "swiglu" else n
    return Work(2.0 * rows * n * k, touched * weight_bytes(n, k, dtype) + 2.0 * rows * (k + out))
