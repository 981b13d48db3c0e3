"""The gradient of the router: from the weights of the chosen experts to the logits of all of them.

    w_k = scale s_k / sum of chosen s      (renormalised), or scale s_k
    softmax   dl_e = s_e (ds_e - sum of s ds)         sigmoid   dl_e = s_e (1 - s_e) ds_e

The choice itself, the groups and the bias pass no gradient: only chosen experts have a ds. With softmax every
logit moves all scores, so every expert has a dl.
"""

import torch
import triton
import triton.language as tl

from .common import Work
from .router import SCORES

WARPS = 1  # a row stays in one warp


def router_backward_reference(
    logits_TE: torch.Tensor,
    experts_TK: torch.Tensor,
    dweights_TK: torch.Tensor,
    *,
    score: str = "softmax",
    renormalise: bool = True,
    scale: float = 1.0,
) -> torch.Tensor:
    """dlogits_TE in float64, by differentiating the weights of the experts that were chosen."""
    logits = logits_TE.double().detach().requires_grad_()
    score_TE = logits.softmax(1) if score == "softmax" else logits.sigmoid()
    weights_TK = score_TE.gather(1, experts_TK.long())
    if renormalise:
        weights_TK = weights_TK / weights_TK.sum(1, keepdim=True)
    (scale * weights_TK * dweights_TK.double()).sum().backward()
    assert logits.grad is not None
    return logits.grad


@triton.jit
def _router_backward_kernel(
    logits,  # [T, E] float
    experts,  # [T, K] int32
    dweights,  # [T, K] float32
    dlogits,  # [T, E] float32
    scale,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    EXPERTS2: tl.constexpr,
    TOP_K2: tl.constexpr,
    SIGMOID: tl.constexpr,
    RENORMALISE: tl.constexpr,
):
    """One token a program; the chosen experts find their place in the row by comparing indices."""
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, EXPERTS2)
    choice = tl.arange(0, TOP_K2)
    logit = tl.load(logits + token * EXPERTS + expert, mask=expert < EXPERTS, other=-float("inf")).to(tl.float32)
    chosen = tl.load(experts + token * TOP_K + choice, mask=choice < TOP_K, other=-1)
    dweight = tl.load(dweights + token * TOP_K + choice, mask=choice < TOP_K, other=0.0) * scale
    if SIGMOID:
        s = 1.0 / (1.0 + tl.exp(-logit))
    else:
        raised = tl.exp(logit - tl.max(logit, axis=0))
        s = raised / tl.sum(raised, axis=0)
    is_chosen = chosen[:, None] == expert[None, :]
    taken = tl.sum(is_chosen.to(tl.float32), axis=0)  # 1 where chosen
    ds = tl.sum(tl.where(is_chosen, dweight[:, None], 0.0), axis=0)
    if RENORMALISE:
        total = tl.sum(s * taken, axis=0)
        ds = taken * (ds - tl.sum(s * ds, axis=0) / total) / total
    gradient = s * (1.0 - s) * ds if SIGMOID else s * (ds - tl.sum(s * ds, axis=0))
    tl.store(dlogits + token * EXPERTS + expert, gradient, mask=expert < EXPERTS)


def router_backward(
    logits_TE: torch.Tensor,
    experts_TK: torch.Tensor,
    dweights_TK: torch.Tensor,
    *,
    score: str = "softmax",
    renormalise: bool = True,
    scale: float = 1.0,
) -> torch.Tensor:
    """dlogits_TE float32 of ``router`` and ``grouped_router``, from the gradient of their weights."""
    if score not in SCORES or logits_TE.ndim != 2 or experts_TK.shape != dweights_TK.shape:
        raise ValueError(
            f"{score} of logits {tuple(logits_TE.shape)}, experts {tuple(experts_TK.shape)}, gradients "
            f"{tuple(dweights_TK.shape)}: give one of {SCORES}, [T, E] and twice [T, K]"
        )
    tokens, experts = logits_TE.shape
    dlogits_TE = torch.empty(tokens, experts, dtype=torch.float32, device=logits_TE.device)
    if tokens:
        _router_backward_kernel[(tokens,)](
            logits_TE.contiguous(), experts_TK.contiguous(), dweights_TK.float().contiguous(), dlogits_TE, scale,
            EXPERTS=experts, TOP_K=experts_TK.shape[1], EXPERTS2=triton.next_power_of_2(experts),
            TOP_K2=triton.next_power_of_2(experts_TK.shape[1]), SIGMOID=score == "sigmoid", RENORMALISE=renormalise,
            num_warps=WARPS,
        )  # fmt: skip
    return dlogits_TE


def router_backward_cost(tokens: int, experts: int, top_k: int) -> Work:
    """Reads float32 logits, experts and gradients, writes a gradient for every logit; scores and two sums."""
    return Work(flops=8.0 * tokens * experts, bytes=8.0 * tokens * experts + 8.0 * tokens * top_k)
