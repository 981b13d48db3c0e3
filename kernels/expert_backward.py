"""Gradients of the expert layer: tokens, w13, w2 and routing weights.

    dy_TH --permute--> dy_RH --dgrad, w2--> da_RF --activation backward--> dh_RN --dgrad, w13--> dx_RH --> dx_TH
                         |                              |                   |
                         +------wgrad----> dw2 <-- weight * a_RF            +--wgrad, x_RH--> dw13

The gradient of a routing weight is the dot product of its row's da (before that weight) and a: the layer's output is
never needed. Kept from the forward pass are x_RH and h_RN, the values before the activation.
"""

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl

from .backward import grouped_dgrad, grouped_dgrad_cost, grouped_wgrad, grouped_wgrad_cost
from .common import Work, divide_up, loop_bound, rounded
from .grouped_gemm import grouped_gemm
from .low_bit import activate, activated
from .permute import permute, permute_cost, unpermute, unpermute_cost
from .sort import Sorted, sort_by_expert
from .tiles import block_for

BLOCK_F: Final = 1024  # values of a row that a program takes at a time


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass."""

    x_RH: torch.Tensor
    h_RN: torch.Tensor
    w13: torch.Tensor
    w2: torch.Tensor
    weights_TK: torch.Tensor
    order: Sorted
    activation: str


def expert_ffn_backward_reference(
    x_TH: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, experts_TK: torch.Tensor, weights_TK: torch.Tensor,
    dy_TH: torch.Tensor, activation: str = "swiglu",
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """(dx_TH, dw13, dw2, dweights_TK) by autograd in float64."""
    x, up, down, weights = (a.detach().double().requires_grad_() for a in (x_TH, w13, w2, weights_TK))
    y = torch.zeros_like(x)
    for expert in range(len(w13)):
        token, choice = torch.nonzero(experts_TK == expert, as_tuple=True)
        rows = activate(x[token] @ up[expert].T, activation) @ down[expert].T
        y = y.index_add(0, token, rows * weights[token, choice, None])
    return torch.autograd.grad(y, (x, up, down, weights), dy_TH.double())


@triton.jit
def _activation_kernel(h_ptr, a_ptr, source_ptr, copies, f, ACTIVATION: tl.constexpr, BLOCK_F: tl.constexpr):
    """A piece of a row: h [N] to a [F]; N is 2 F with swiglu; zeros in a padding row."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    h_at = h_ptr + row * (f * 2 if ACTIVATION == "swiglu" else f) + col
    read = (col < f) & (tl.load(source_ptr + row) < copies)
    gate = tl.load(h_at, mask=read, other=0.0).to(tl.float32)
    up = tl.load(h_at + f, mask=read, other=0.0).to(tl.float32) if ACTIVATION == "swiglu" else gate
    tl.store(a_ptr + row * f + col, rounded(activated(gate, up, ACTIVATION), a_ptr.dtype.element_ty), mask=col < f)


@triton.jit
def _slope(gate, ACTIVATION: tl.constexpr):
    """The activation's derivative, for swiglu that of silu."""
    if ACTIVATION == "swiglu":
        share = tl.sigmoid(gate)
        return share * (1.0 + gate * (1.0 - share))
    elif ACTIVATION == "relu":
        return tl.where(gate > 0.0, 1.0, 0.0)
    elif ACTIVATION == "gelu":
        below = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
        return below + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    else:
        return tl.full(gate.shape, 1.0, tl.float32)


@triton.jit
def _activation_backward_kernel(
    h_ptr, da_ptr, dh_ptr, wa_ptr, dweights_ptr, source_ptr, weights_ptr, copies, f,
    ACTIVATION: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """One row: dh, weight * a, and the weight's gradient sum(a * da); zeros in a padding row."""
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(source_ptr + row)
    real = source < copies
    width = f * 2 if ACTIVATION == "swiglu" else f
    weight = tl.load(weights_ptr + source, mask=real, other=0.0).to(tl.float32)
    product = tl.zeros((BLOCK_F,), tl.float32)
    for first in tl.range(0, loop_bound(f), BLOCK_F):
        col = first + tl.arange(0, BLOCK_F)
        read = (col < f) & real
        gate = tl.load(h_ptr + row * width + col, mask=read, other=0.0).to(tl.float32)
        da = tl.load(da_ptr + row * f + col, mask=read, other=0.0).to(tl.float32)
        up = gate
        d_gate = _slope(gate, ACTIVATION) * da * weight
        if ACTIVATION == "swiglu":
            up = tl.load(h_ptr + row * width + f + col, mask=read, other=0.0).to(tl.float32)
            d_up = gate * tl.sigmoid(gate) * da * weight
            tl.store(dh_ptr + row * width + f + col, rounded(d_up, dh_ptr.dtype.element_ty), mask=col < f)
            d_gate *= up
        a = activated(gate, up, ACTIVATION)
        product += a * da
        tl.store(dh_ptr + row * width + col, rounded(d_gate, dh_ptr.dtype.element_ty), mask=col < f)
        tl.store(wa_ptr + row * f + col, rounded(a * weight, wa_ptr.dtype.element_ty), mask=col < f)
    tl.store(dweights_ptr + source, tl.sum(product, axis=0), mask=real)


def activation_forward(h_RN: torch.Tensor, order: Sorted, activation: str) -> torch.Tensor:
    """a_RF of what the first GEMM gave, F = N / 2 with swiglu; zeros in padding rows."""
    rows, n = h_RN.shape
    f = n // 2 if activation == "swiglu" else n
    a = torch.empty(rows, f, dtype=h_RN.dtype, device=h_RN.device)
    if a.numel():
        wide = min(BLOCK_F, triton.next_power_of_2(f))
        _activation_kernel[(rows, divide_up(f, wide))](
            h_RN, a, order.source_R, order.row_TK.numel(), f, ACTIVATION=activation, BLOCK_F=wide
        )  # fmt: skip
    return a


def activation_backward(saved: Saved, da_RF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dh_RN, weight * a_RF, dweights_TK float32) from the gradient of a before the routing weight."""
    order, f = saved.order, da_RF.shape[1]
    dh, wa = torch.empty_like(saved.h_RN), torch.empty_like(da_RF)
    dweights = torch.zeros(order.tokens, order.top_k, dtype=torch.float32, device=da_RF.device)
    if order.rows:
        _activation_backward_kernel[(order.rows,)](
            saved.h_RN, da_RF, dh, wa, dweights, order.source_R, saved.weights_TK, dweights.numel(), f,
            ACTIVATION=saved.activation, BLOCK_F=min(BLOCK_F, triton.next_power_of_2(f)),
        )  # fmt: skip
    return dh, wa, dweights


def expert_ffn_forward(
    x_TH: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, experts_TK: torch.Tensor, weights_TK: torch.Tensor,
    activation: str = "swiglu",
) -> tuple[torch.Tensor, Saved]:  # fmt: skip
    """y_TH bf16, and what its gradient needs; choices outside [0, E) are another rank's."""
    order = sort_by_expert(experts_TK, len(w13), block_for(experts_TK.numel() / len(w13), "bf16"))
    x_RH = permute(x_TH, order)
    h_RN = grouped_gemm(x_RH, w13, order)
    y_RH = grouped_gemm(activation_forward(h_RN, order, activation), w2, order)
    saved = Saved(x_RH, h_RN, w13, w2, weights_TK.contiguous(), order, activation)
    return unpermute(y_RH, order, weights_TK), saved


def expert_ffn_backward(
    dy_TH: torch.Tensor, saved: Saved
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx_TH, dw13, dw2) in bf16 and dweights_TK in float32."""
    dy_RH = permute(dy_TH, saved.order)
    dh, wa, dweights_TK = activation_backward(saved, grouped_dgrad(dy_RH, saved.w2, saved.order))
    dw2 = grouped_wgrad(wa, dy_RH, saved.order)
    dw13 = grouped_wgrad(saved.x_RH, dh, saved.order)
    dx_TH = unpermute(grouped_dgrad(dh, saved.w13, saved.order), saved.order)
    return dx_TH, dw13, dw2, dweights_TK


class ExpertFfn(torch.autograd.Function):
    """y_TH = ExpertFfn.apply(x_TH, w13, w2, experts_TK, weights_TK, activation), all but the choices differentiable."""

    @staticmethod
    def forward(ctx, x_TH, w13, w2, experts_TK, weights_TK, activation="swiglu"):
        y_TH, saved = expert_ffn_forward(x_TH, w13, w2, experts_TK, weights_TK, activation)
        ctx.save_for_backward(*saved[:5], *saved.order[:5])
        ctx.order, ctx.activation = saved.order[5:], activation
        return y_TH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy_TH):
        tensors = ctx.saved_tensors
        saved = Saved(*tensors[:5], Sorted(*tensors[5:], *ctx.order), ctx.activation)
        dx_TH, dw13, dw2, dweights_TK = expert_ffn_backward(dy_TH.to(torch.bfloat16), saved)
        return dx_TH, dw13, dw2, None, dweights_TK.to(saved.weights_TK.dtype), None


def activation_cost(rows: float, ffn: int, gated: bool = True) -> Work:
    """h read, a written, bf16; 5 FLOPs a value with a gate, else 1."""
    return Work(rows * ffn * (5.0 if gated else 1.0), rows * ffn * 2.0 * (3 if gated else 2))


def activation_backward_cost(rows: float, ffn: int, gated: bool = True) -> Work:
    """h and da read, dh and weight * a written, bf16, and the weights; about 16 FLOPs a value with a gate, else 8."""
    return Work(rows * ffn * (16.0 if gated else 8.0), rows * ffn * 2.0 * (6 if gated else 4) + 12.0 * rows)


def expert_ffn_backward_cost(
    counts_E: torch.Tensor, tokens: int, hidden: int, ffn: int, gated: bool = True, top_k: int = 1
) -> Work:
    """The sum of its kernels: two dgrads, two wgrads, the activation, dy permuted and dx combined."""
    wide = 2 * ffn if gated else ffn
    parts = (
        permute_cost(tokens, top_k, hidden, 2),
        grouped_dgrad_cost(counts_E, hidden, ffn),
        activation_backward_cost(float(counts_E.sum()), ffn, gated),
        grouped_wgrad_cost(counts_E, hidden, ffn),
        grouped_wgrad_cost(counts_E, wide, hidden),
        grouped_dgrad_cost(counts_E, wide, hidden),
        unpermute_cost(tokens, top_k, hidden, 2),
    )
    return Work(sum(part.flops for part in parts), sum(part.bytes for part in parts))
