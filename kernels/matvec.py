"""QMoE's case: every copy of a token reads and decodes its expert's weights anew, as one matrix-vector product.

    packed bytes  or  16-bit words --dictionary--> up to 28 ternary weights  --times x, summed in fp32-->  y

A batch that sends b tokens to an expert reads that expert b times, where ``low_bit`` reads it once for a block of
tokens: matvec_low_bit_cost counts the re-reads. ``Coded`` is QMoE's own storage (Frantar, Alistarh, "QMoE", 2023,
section 4): a fixed dictionary of 2^16 words, each 1 to 14 pairs of ternary weights, the likeliest at 88.5 % zeros;
rows are parsed greedily, and the dictionary of 512 KiB stays in the L2. Here a row's two levels are equal in size.
"""

from functools import cache
from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl

from .common import Work, divide_up, loop_bound, rounded
from .low_bit import (
    Int4,
    LowBit,
    Ternary,
    activate,
    activated,
    check_activation,
    decode,
    dequantise,
    group_scale,
    load_if,
    unpack,
)

ZERO_SHARE: Final = 0.885  # of the weights, for which the dictionary is made: QMoE's c2048, base-128 and large-128
WORDS: Final = 2**16
PAIRS: Final = 14  # at most, in a word


class Dictionary(NamedTuple):
    """The words that codes stand for."""

    entries: torch.Tensor  # int64 [WORDS]: up to 28 weights of two bits (1: +1, 2: -1), their number from bit 56
    child: torch.Tensor  # int32 [WORDS + 1, 9]: the word longer by this pair, -1 if none; last line: words of one pair


class Coded(NamedTuple):
    """Ternary weights [E, N, k] as words of the dictionary, row after row."""

    words: torch.Tensor  # int16, the bits of uint16
    first: torch.Tensor  # int64 [E * N + 1]: where each row begins
    scales: torch.Tensor  # float32 [E, N]
    k: int


@cache
def dictionary(device: torch.device) -> Dictionary:
    """The 2^16 likeliest words of up to 14 pairs: with a word in it, every beginning of that word is too."""
    log_share = torch.tensor([ZERO_SHARE, (1 - ZERO_SHARE) / 2, (1 - ZERO_SHARE) / 2], dtype=torch.float64).log()
    log_pair = (log_share[:, None] + log_share[None, :]).reshape(9)  # pair = first * 3 + second
    bits_pair = torch.tensor([[a | b << 2 for b in range(3)] for a in range(3)]).reshape(9)
    log_word, entry = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    parent, levels = torch.full((1,), -1), []
    for pairs in range(PAIRS):
        longer = (log_word[:, None] + log_pair).reshape(-1)
        best = longer.argsort(descending=True, stable=True)[:WORDS].sort().values
        parent, pair = best // 9, best % 9
        log_word, entry = longer[best], entry[parent] | bits_pair[pair] << (4 * pairs)
        levels.append((log_word, entry | (2 * pairs + 2) << 56, parent, pair))
    return Dictionary(*(array.to(device) for array in _numbered(levels)))


def _numbered(levels: list[tuple[torch.Tensor, ...]]) -> Dictionary:
    """Keep the likeliest words of all lengths, number them by length, and link each to its beginning."""
    likely = torch.cat([level[0] for level in levels]).argsort(descending=True, stable=True)[:WORDS]
    kept = torch.zeros(sum(len(level[0]) for level in levels), dtype=torch.bool)
    kept[likely] = True
    child = torch.full((WORDS + 1, 9), -1, dtype=torch.int32)
    entries, before, seen, numbers = [], 0, 0, torch.full((1,), WORDS)
    for _, entry, parent, pair in levels:
        keep = kept[seen : seen + len(entry)]
        number = torch.where(keep, keep.cumsum(0) - 1 + before, -1)
        child[numbers[parent[keep]], pair[keep]] = number[keep].int()
        entries.append(entry[keep])
        numbers, before, seen = number, before + int(keep.sum()), seen + len(entry)
    return Dictionary(torch.cat(entries), child)


def encode(weights: Ternary) -> Coded:
    """Each row parsed greedily into the longest words of the dictionary, all rows at once."""
    codes = unpack(weights.packed, 2)[:, :, : weights.k].reshape(-1, weights.k).long()
    signs = torch.nn.functional.pad(torch.tensor([2, 0, 1], device=codes.device)[codes], (0, weights.k % 2))
    pairs = (signs[:, 0::2] * 3 + signs[:, 1::2]).T  # [K / 2, rows]
    child = dictionary(codes.device).child.long()
    node = child[WORDS, pairs[0]]
    found = torch.empty_like(pairs)
    ends = torch.ones_like(pairs, dtype=torch.bool)
    for i in range(1, len(pairs)):
        longer = child[node, pairs[i]]
        found[i - 1], ends[i - 1] = node, longer < 0
        node = torch.where(longer < 0, child[WORDS, pairs[i]], longer)
    found[-1] = node
    first = torch.nn.functional.pad(ends.sum(dim=0).cumsum(0), (1, 0))
    words = found.T[ends.T]
    return Coded((words - (words >= 2**15) * 2**16).to(torch.int16), first, weights.scales, weights.k)


def decoded(weights: Coded) -> torch.Tensor:
    """The float32 weights [E, N, K] of coded rows."""
    entries = dictionary(weights.words.device).entries[weights.words.long() & 0xFFFF]
    lane = torch.arange(2 * PAIRS, device=entries.device)
    code = entries[:, None] >> (2 * lane) & 3
    signs = ((code & 1) - (code >> 1))[lane < (entries >> 56)[:, None]]
    rows = signs.reshape(weights.scales.numel(), -1)[:, : weights.k]
    return rows.reshape(*weights.scales.shape, weights.k) * weights.scales[:, :, None]


def matvec_low_bit_reference(
    x_SK: torch.Tensor, weights: LowBit | Coded, experts_C: torch.Tensor, *, activation: str = "none"
) -> torch.Tensor:
    """float64 [C, N or N / 2]: copy c of token c // (C / S) times its expert's weights; zeros if negative."""
    w = (decoded(weights) if isinstance(weights, Coded) else dequantise(weights)).double()
    x_CK = x_SK.double().repeat_interleave(len(experts_C) // len(x_SK), dim=0)
    y_CN = torch.zeros(len(experts_C), w.shape[1], dtype=torch.float64, device=w.device)
    for copy, expert in enumerate(experts_C.tolist()):
        if expert >= 0:
            y_CN[copy] = w[expert] @ x_CK[copy]
    return activate(y_CN, activation)


@triton.jit
def _packed_rows(
    x_ptr, packed_ptr, scales_ptr, expert, row_N, rows_w, K: tl.constexpr, BITS: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """fp32 products of an expert's rows with x."""
    SPANS: tl.constexpr = (K + 127) // 128
    PER_BYTE: tl.constexpr = 8 // BITS
    w_at = packed_ptr + (expert * rows_w + row_N)[:, None] * (SPANS * 16 * BITS) + tl.arange(0, 32)[None, :]
    acc_N32 = tl.zeros((BLOCK_N, 32), dtype=tl.float32)
    for span in tl.range(0, SPANS, num_stages=4):
        exponents = load_if(BITS == 4, scales_ptr + (expert * SPANS + span) * rows_w + row_N)
        for part in tl.static_range(4 // PER_BYTE):
            packed = tl.load(w_at + span * 16 * BITS + part * 32)
            for i in tl.static_range(PER_BYTE):
                k = span * 128 + (part * PER_BYTE + i) * 32 + tl.arange(0, 32)
                w = decode(packed, part * PER_BYTE + i, BITS)
                if BITS == 4:
                    w *= group_scale(exponents, part * PER_BYTE + i)[:, None]
                acc_N32 += w * tl.load(x_ptr + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    y_N = tl.sum(acc_N32, axis=1)
    if BITS == 2:
        y_N *= tl.load(scales_ptr + expert * rows_w + row_N)
    return y_N


@triton.jit
def _coded_rows(
    x_ptr, words_ptr, entries_ptr, first_ptr, scales_ptr, expert, row_N, rows_w, K: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """fp32 products of an expert's rows with x: a word a step, its weights side by side, rows at their own pace."""
    row = expert * rows_w + row_N
    first_N = tl.load(first_ptr + row)
    count_N = (tl.load(first_ptr + row + 1) - first_N).to(tl.int32)
    lane = tl.arange(0, 32)
    at_N = tl.zeros((BLOCK_N,), dtype=tl.int32)
    acc_N32 = tl.zeros((BLOCK_N, 32), dtype=tl.float32)
    for i in range(0, loop_bound(tl.max(count_N, axis=0))):
        word = tl.load(words_ptr + first_N + i, mask=i < count_N, other=0).to(tl.int32) & 0xFFFF
        entry = tl.load(entries_ptr + word, mask=i < count_N, other=0)
        code = (entry[:, None] >> (2 * lane)[None, :]).to(tl.int32) & tl.where(lane < 28, 3, 0)[None, :]
        k = at_N[:, None] + lane[None, :]
        x = tl.load(x_ptr + k, mask=(code > 0) & (k < K), other=0.0).to(tl.float32)
        acc_N32 += tl.where(code == 2, -x, x)
        at_N += (entry >> 56).to(tl.int32)
    return tl.sum(acc_N32, axis=1) * tl.load(scales_ptr + row)


@triton.jit
def _matvec_kernel(
    x_ptr, w_ptr, entries_ptr, first_ptr, scales_ptr, experts_ptr, y_ptr, n,
    K: tl.constexpr, CHOICES: tl.constexpr, BITS: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_N results of one copy of a token; BITS 0: coded rows."""
    GATED: tl.constexpr = ACTIVATION == "swiglu"
    copy = tl.program_id(1).to(tl.int64)
    expert = tl.load(experts_ptr + copy).to(tl.int64)
    column_N = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    y_N = tl.zeros((BLOCK_N,), dtype=tl.float32)
    if expert >= 0:
        x_at = x_ptr + copy // CHOICES * K
        row_N = tl.minimum(column_N, n - 1)
        rows_w = n * 2 if GATED else n
        if BITS == 0:
            y_N = _coded_rows(x_at, w_ptr, entries_ptr, first_ptr, scales_ptr, expert, row_N, rows_w, K, BLOCK_N)
            up_N = y_N
            if GATED:
                up_N = _coded_rows(
                    x_at, w_ptr, entries_ptr, first_ptr, scales_ptr, expert, n + row_N, rows_w, K, BLOCK_N
                )
        else:
            y_N = _packed_rows(x_at, w_ptr, scales_ptr, expert, row_N, rows_w, K, BITS, BLOCK_N)
            up_N = y_N
            if GATED:
                up_N = _packed_rows(x_at, w_ptr, scales_ptr, expert, n + row_N, rows_w, K, BITS, BLOCK_N)
        y_N = activated(y_N, up_N, ACTIVATION)
    tl.store(y_ptr + copy * n + column_N, rounded(y_N, y_ptr.dtype.element_ty), mask=column_N < n)


def matvec_low_bit(
    x_SK: torch.Tensor, weights: LowBit | Coded, experts_C: torch.Tensor, *, activation: str = "none"
) -> torch.Tensor:
    """y_CN bf16: copy c of token c // (C / S) times the weights of its expert, read for it alone; zeros if negative."""
    tokens, copies, rows_w = x_SK.shape[0], experts_C.shape[0], weights.scales.shape[1]
    if isinstance(weights, Int4):
        rows_w = weights.packed.shape[1]
    check_activation(activation, rows_w)
    if x_SK.dtype != torch.bfloat16 or x_SK.shape[1] != weights.k or not tokens or copies % tokens:
        raise ValueError(
            f"x is {x_SK.dtype} {tuple(x_SK.shape)} for {copies} copies: "
            f"give bfloat16 [S, {weights.k}], with S a divisor of the copies"
        )
    n = rows_w // 2 if activation == "swiglu" else rows_w
    y = torch.empty(copies, n, dtype=torch.bfloat16, device=x_SK.device)
    bits, w, entries, first, scales, rows, warps = 0, weights[0], None, None, weights.scales, 4, 4
    if isinstance(weights, Coded):
        entries, first = dictionary(x_SK.device).entries, weights.first
    else:
        bits, rows, warps = 4 if isinstance(weights, Int4) else 2, 32, 2
        scales = scales.view(torch.int32) if bits == 4 else scales
    _matvec_kernel[(divide_up(n, rows), copies)](
        x_SK.contiguous(), w, entries, first, scales, experts_C, y, n, K=weights.k, CHOICES=copies // tokens,
        BITS=bits, ACTIVATION=activation, BLOCK_N=rows, num_warps=warps,
    )  # fmt: skip
    return y


def coded_bytes(weights: Coded) -> float:
    """Bytes of one expert on average: its words, and 8 of a row's own (offset and scale)."""
    experts, n = weights.scales.shape
    return 2.0 * weights.words.numel() / experts + 8.0 * n


def matvec_low_bit_cost(copies: int, n: int, k: int, expert_bytes: float, activation: str = "none") -> Work:
    """Every copy reads ``expert_bytes``: b copies at one expert move b times what the grouped form moves for them.

    ``expert_bytes``: ``low_bit.weight_bytes(n, k, dtype)``, or ``coded_bytes(weights)``; ``n`` counts rows of w.
    """
    out = n // 2 if activation == "swiglu" else n
    return Work(2.0 * copies * n * k, copies * (expert_bytes + 2.0 * (k + out)))
