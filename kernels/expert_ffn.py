"""An expert layer on one GPU, out of this package's kernels: what vLLM calls fused MoE, router excluded.

    x_TH --sort, permute--> x_RH --gate and up, SwiGLU--> h_RF --down--> y_RH --weighted sum--> y_TH

fp8 quantises tokens before they are permuted, and the intermediate after SwiGLU; int4 and ternary keep both in bf16.
"""

from typing import Final, NamedTuple

import torch

from .common import Work
from .fp8 import (
    dequantise_fp8_blocks,
    dequantise_fp8_rows,
    quantise_fp8_blocks,
    quantise_fp8_rows,
    quantise_fp8_rows_cost,
    quantise_fp8_rows_reference,
)
from .grouped_gemm import ACTIVATIONS, grouped_gemm, grouped_gemm_cost
from .low_bit import Int4, Ternary, grouped_gemm_low_bit, grouped_gemm_low_bit_cost, quantise_int4, quantise_ternary
from .low_bit import dequantise as dequantise_low_bit
from .permute import permute, permute_cost, unpermute, unpermute_cost
from .sort import Sorted, sort_by_expert
from .tiles import block_for

DTYPES: Final = ("bf16", "fp8_block", "int4", "ternary")
LOW_BIT: Final = {"int4": Int4, "ternary": Ternary}


class Experts(NamedTuple):
    """Weights of all experts here: w13 [E, 2F or F, H], w2 [E, H, F] in ``dtype``; scales where the dtype has them."""

    w13: torch.Tensor
    w2: torch.Tensor
    w13_scale: torch.Tensor | None
    w2_scale: torch.Tensor | None
    dtype: str
    gated: bool
    activation: str
    hidden: int
    ffn: int

    def matrices(self) -> tuple[tuple[torch.Tensor, torch.Tensor | None, int], ...]:
        """w13 and w2, each with its scale and its K."""
        return (self.w13, self.w13_scale, self.hidden), (self.w2, self.w2_scale, self.ffn)


def make_experts(
    experts: int, hidden: int, ffn: int, dtype: str, *, gated: bool = True, activation: str = "swiglu",
    device: torch.device | str, generator: torch.Generator | None = None,
) -> Experts:  # fmt: skip
    """Random weights of variance 1 / K, made one expert at a time so that only one is ever held in bf16."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown: give one of {', '.join(DTYPES)}")
    if gated != (activation == "swiglu") or activation not in ("swiglu", *ACTIVATIONS):
        raise ValueError(f"gated={gated} with {activation!r}: swiglu has a gate; none, relu and gelu have none")
    w13, w13_scale = _random(experts, ffn * (2 if gated else 1), hidden, dtype, device, generator)
    w2, w2_scale = _random(experts, hidden, ffn, dtype, device, generator)
    return Experts(w13, w2, w13_scale, w2_scale, dtype, gated, activation, hidden, ffn)


def _random(
    experts: int, rows: int, k: int, dtype: str, device: torch.device | str, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights [experts, rows, k] in ``dtype``, and their scales."""
    whole: list[torch.Tensor] = []
    for expert in range(experts):
        w_1NK = torch.empty(1, rows, k, dtype=torch.bfloat16, device=device).normal_(0.0, k**-0.5, generator=generator)
        parts = _quantised(w_1NK, dtype)
        whole = whole or [part.new_empty(experts, *part.shape[1:]) for part in parts]
        for to, part in zip(whole, parts, strict=True):
            to[expert] = part[0]
    return whole[0], whole[1] if len(whole) == 2 else None


def _quantised(w_ENK: torch.Tensor, dtype: str) -> tuple[torch.Tensor, ...]:
    if dtype == "bf16":
        return (w_ENK,)
    if dtype == "fp8_block":
        return quantise_fp8_blocks(w_ENK)
    return (quantise_int4 if dtype == "int4" else quantise_ternary)(w_ENK)[:2]


def dequantised(w: torch.Tensor, scale: torch.Tensor | None, k: int, dtype: str) -> torch.Tensor:
    """The float64 weights [E, N, K] that the kernels multiply with."""
    if dtype in LOW_BIT:
        return dequantise_low_bit(LOW_BIT[dtype](w, scale, k)).double()
    return w.double() if scale is None else dequantise_fp8_blocks(w, scale)


def expert_ffn_reference(
    x_TH: torch.Tensor, experts: Experts, experts_TK: torch.Tensor, weights_TK: torch.Tensor
) -> torch.Tensor:
    """y_TH in float64, expert by expert; fp8: from the quantised tokens, the intermediate left as it is."""
    x = dequantise_fp8_rows(*quantise_fp8_rows_reference(x_TH)) if experts.dtype == "fp8_block" else x_TH.double()
    w13, w2 = (dequantised(*matrix, experts.dtype) for matrix in experts.matrices())
    y_TH = torch.zeros_like(x)
    for expert in range(w13.shape[0]):
        token, choice = torch.nonzero(experts_TK == expert, as_tuple=True)
        h = x[token] @ w13[expert].T
        if experts.gated:
            gate, up = h.chunk(2, dim=1)
            h = torch.nn.functional.silu(gate) * up
        else:
            h = ACTIVATIONS[experts.activation](h)
        y_TH.index_add_(0, token, h @ w2[expert].T * weights_TK[token, choice].double()[:, None])
    return y_TH


def expert_ffn(
    x_TH: torch.Tensor, experts: Experts, experts_TK: torch.Tensor, weights_TK: torch.Tensor,
    *, load: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """y_TH bf16 of tokens, their choices (negative: another rank's expert) and those choices' weights.

    ``load`` is the mean tokens per expert that the tile is chosen for; by default as if all choices were here.
    Nothing waits for the host, so a CUDA graph can capture it.
    """
    if x_TH.dtype != torch.bfloat16 or x_TH.ndim != 2 or x_TH.shape[1] != experts.hidden:
        raise ValueError(f"x is {x_TH.dtype} {tuple(x_TH.shape)}: give bfloat16 tokens [T, {experts.hidden}]")
    count = experts.w13.shape[0]
    load = experts_TK.numel() / count if load is None else load
    order = sort_by_expert(experts_TK, count, block_for(load, experts.dtype))
    if experts.dtype == "fp8_block":
        x8_TH, scale_TG = quantise_fp8_rows(x_TH)
        x_RH, x_scale = permute(x8_TH, order), permute(scale_TG, order)
    else:
        x_RH, x_scale = permute(x_TH, order), None
    h_RF = _times(x_RH, x_scale, experts.w13, experts.w13_scale, order, experts, experts.activation)
    h_scale = None
    if experts.dtype == "fp8_block":
        h_RF, h_scale = quantise_fp8_rows(h_RF, order.offsets_E1[-1:])
    y_RH = _times(h_RF, h_scale, experts.w2, experts.w2_scale, order, experts, "none")
    return unpermute(y_RH, order, weights_TK)


def _times(
    x_RK: torch.Tensor, x_scale: torch.Tensor | None, w: torch.Tensor, w_scale: torch.Tensor | None,
    order: Sorted, experts: Experts, activation: str,
) -> torch.Tensor:  # fmt: skip
    """One grouped GEMM in the experts' dtype."""
    if experts.dtype in LOW_BIT:
        weights = LOW_BIT[experts.dtype](w, w_scale, x_RK.shape[1])
        return grouped_gemm_low_bit(x_RK, weights, order, activation=activation)
    return grouped_gemm(x_RK, w, order, x_scale=x_scale, w_scale=w_scale, activation=activation)


def expert_ffn_cost(
    counts_E: torch.Tensor, tokens: int, hidden: int, ffn: int, dtype: str, gated: bool = True, top_k: int = 1
) -> Work:
    """The sum of its kernels' work: permute, two GEMMs, combine; fp8: and the quantisation of tokens and intermediate.

    ``counts_E`` are the copies of each expert here; the tokens' copies on other ranks cost nothing.
    """
    rows, width = int(counts_E.sum()), ffn * (2 if gated else 1)
    share = rows / max(1, tokens * top_k)
    gemm = grouped_gemm_low_bit_cost if dtype in LOW_BIT else grouped_gemm_cost
    x_bytes = 1.0 if dtype == "fp8_block" else 2.0
    moved = [permute_cost(tokens, top_k, hidden, x_bytes), unpermute_cost(tokens, top_k, hidden, 2.0)]
    parts = [
        *(Work(share * work.flops, share * work.bytes) for work in moved),
        gemm(counts_E, width, hidden, dtype, "swiglu" if gated else "none"),
        gemm(counts_E, hidden, ffn, dtype),
    ]
    if dtype == "fp8_block":
        parts += [quantise_fp8_rows_cost(tokens, hidden), quantise_fp8_rows_cost(rows, ffn)]
    return Work(sum(work.flops for work in parts), sum(work.bytes for work in parts))
