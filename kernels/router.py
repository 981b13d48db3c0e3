"""Which experts each token asks for: top-k of softmax or sigmoid scores.

    router          plain top-k, or DeepSeek's group-limited: only experts of the best ``groups_kept`` groups
    grouped_router  MoGE: top_k / groups experts in each group, so that each group of GPUs has equal work

A bias per expert takes part in the choice, not in the weight (DeepSeek-V3). Among equals the lowest index wins.
Logits and bias are finite. Columns: a group's experts stand side by side, each group padded to a power of two.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from .common import Work, divide_up

SCORES: Final = ("softmax", "sigmoid")
TILE: Final = 512  # logits that a program holds
MOST_TOKENS: Final = 32  # tokens of them
WARPS: Final = 1  # a row stays in one warp: no barriers


def router_reference(
    logits_TE: torch.Tensor,
    top_k: int,
    *,
    score: str = "softmax",
    groups: int = 1,
    groups_kept: int = 1,
    group_top: int = 2,
    bias_E: torch.Tensor | None = None,
    renormalise: bool = True,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights_TK float32, experts_TK int32), best first; a group is as good as the sum of its ``group_top`` best.

    DeepSeek-V3 (arXiv 2412.19437, section 2.1.2) sums two of score + bias; V2 (arXiv 2405.04434) takes group_top=1.
    """
    _check(logits_TE, top_k, score, groups, groups_kept, group_top, bias_E)
    score_TE, choice_TE = _scores_reference(logits_TE, score, bias_E)
    if groups_kept < groups:
        choice_TGS = choice_TE.unflatten(1, (groups, -1))
        best = choice_TGS.sort(dim=2, descending=True).values[:, :, :group_top].sum(2)
        kept_TG = torch.zeros_like(best, dtype=torch.bool).scatter(1, _first(best, groups_kept), True)
        choice_TE = torch.where(kept_TG[..., None], choice_TGS, -torch.inf).flatten(1)
    return _weights_reference(score_TE, _first(choice_TE, top_k), renormalise, scale)


def grouped_router_reference(
    logits_TE: torch.Tensor,
    top_k: int,
    groups: int,
    *,
    score: str = "softmax",
    bias_E: torch.Tensor | None = None,
    renormalise: bool = True,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights_TK float32, experts_TK int32), the best of the first group, then of the next (arXiv 2505.21411)."""
    _check(logits_TE, top_k, score, groups, groups, 1, bias_E)
    _check_grouped(top_k, groups)
    score_TE, choice_TE = _scores_reference(logits_TE, score, bias_E)
    choice_TGS = choice_TE.unflatten(1, (groups, -1))
    chosen_TGk = choice_TGS.argsort(dim=2, descending=True, stable=True)[:, :, : top_k // groups]
    first_G1 = torch.arange(groups, device=logits_TE.device)[:, None] * choice_TGS.shape[2]
    return _weights_reference(score_TE, (chosen_TGk + first_G1).flatten(1), renormalise, scale)


def _scores_reference(logits_TE: torch.Tensor, score: str, bias_E: torch.Tensor | None) -> tuple:
    score_TE = logits_TE.double().softmax(1) if score == "softmax" else logits_TE.double().sigmoid()
    return score_TE, score_TE if bias_E is None else score_TE + bias_E.double()


def _first(values: torch.Tensor, count: int) -> torch.Tensor:
    return values.argsort(dim=1, descending=True, stable=True)[:, :count]


def _weights_reference(score_TE: torch.Tensor, chosen_TK: torch.Tensor, renormalise: bool, scale: float) -> tuple:
    weights_TK = score_TE.gather(1, chosen_TK)
    if renormalise:
        weights_TK = weights_TK / (weights_TK.sum(1, keepdim=True) + 1e-20)
    return (weights_TK * scale).float(), chosen_TK.int()


@triton.jit
def _score(logit, top, total, SIGMOID: tl.constexpr):
    """Sigmoid, or softmax over logits whose greatest is ``top`` and whose exp(logit - top) sum to ``total``."""
    if SIGMOID:
        return 1.0 / (1.0 + tl.exp(-logit))
    else:
        return tl.exp(logit - top) / total


@triton.jit
def _first_best(value, index, axis: tl.constexpr, SIZE: tl.constexpr):
    """The lowest of SIZE indices along ``axis`` whose value is the greatest; 0 where all are NaN."""
    top = tl.max(value, axis=axis, keep_dims=True)
    return tl.min(tl.where(value == top, index, SIZE), axis=axis, keep_dims=True) % SIZE


@triton.jit
def _keep_groups(
    choice, KEPT: tl.constexpr, GROUP_TOP: tl.constexpr, TOKENS: tl.constexpr, GROUPS: tl.constexpr,
    GROUPS2: tl.constexpr, SIZE2: tl.constexpr,
):  # fmt: skip
    """-inf for the choice of all experts outside the KEPT groups whose GROUP_TOP best sum to the most."""
    choice_TGS = tl.reshape(choice, (TOKENS, GROUPS2, SIZE2))
    member = tl.arange(0, SIZE2)[None, None, :]
    left = choice_TGS
    best = tl.zeros((TOKENS, GROUPS2), dtype=tl.float32)
    for _ in tl.static_range(GROUP_TOP):
        best += tl.max(left, axis=2)
        left = tl.where(member == _first_best(left, member, 2, SIZE2), float("-inf"), left)
    group = tl.arange(0, GROUPS2)[None, :]
    best = tl.where(group < GROUPS, best, float("-inf"))
    kept = tl.zeros((TOKENS, GROUPS2), dtype=tl.int32)
    for _ in tl.static_range(KEPT):
        chosen = group == _first_best(best, group, 1, GROUPS2)
        kept = tl.where(chosen, 1, kept)
        best = tl.where(chosen, float("-inf"), best)
    return tl.reshape(tl.where(kept[:, :, None] == 1, choice_TGS, float("-inf")), (TOKENS, GROUPS2 * SIZE2))


@triton.jit(do_not_specialize=["tokens"])
def _router_kernel(
    logits_ptr, bias_ptr, weights_ptr, experts_ptr, tokens, scale,
    EXPERTS: tl.constexpr, TOP_K: tl.constexpr, TOP_K2: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr,
    GROUP_TOP: tl.constexpr, EACH: tl.constexpr, SIGMOID: tl.constexpr, BIASED: tl.constexpr,
    RENORMALISE: tl.constexpr, TOKENS: tl.constexpr, GROUPS2: tl.constexpr, SIZE2: tl.constexpr,
):  # fmt: skip
    """A program finds the best of TOKENS tokens, TOP_K times; EACH > 0: so many of each group, group by group."""
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS))[:, None]
    column = tl.arange(0, GROUPS2 * SIZE2)[None, :]
    expert = column // SIZE2 * (EXPERTS // GROUPS) + column % SIZE2
    here = (column // SIZE2 < GROUPS) & (column % SIZE2 < EXPERTS // GROUPS)
    logits_T1_ptr = logits_ptr + token.to(tl.int64) * EXPERTS
    logit = tl.load(logits_T1_ptr + expert, mask=(token < tokens) & here, other=0.0).to(tl.float32)
    logit = tl.where(here, logit, float("-inf"))
    top = tl.max(logit, axis=1, keep_dims=True)
    total = tl.sum(tl.exp(logit - top), axis=1, keep_dims=True)
    choice = _score(logit, top, total, SIGMOID)
    if BIASED:
        choice += tl.load(bias_ptr + expert, mask=here, other=0.0).to(tl.float32)
    choice = tl.where(here, choice, float("-inf"))
    if KEPT < GROUPS:
        choice = _keep_groups(choice, KEPT, GROUP_TOP, TOKENS, GROUPS, GROUPS2, SIZE2)
    k = tl.arange(0, TOP_K2)[None, :]
    chosen = tl.zeros((TOKENS, TOP_K2), dtype=tl.int32)
    for j in tl.static_range(TOP_K):
        open_to_j = choice
        if EACH > 0:
            open_to_j = tl.where(column // SIZE2 == j // EACH, choice, float("-inf"))
        best = _first_best(open_to_j, column, 1, GROUPS2 * SIZE2)
        chosen = tl.where(k == j, best // SIZE2 * (EXPERTS // GROUPS) + best % SIZE2, chosen)
        choice = tl.where(column == best, float("-inf"), choice)
    inside = (token < tokens) & (k < TOP_K)
    weights = _score(tl.load(logits_T1_ptr + chosen, mask=inside, other=0.0).to(tl.float32), top, total, SIGMOID)
    if RENORMALISE:
        weights /= tl.sum(tl.where(k < TOP_K, weights, 0.0), axis=1, keep_dims=True) + 1e-20
    at = token.to(tl.int64) * TOP_K + k
    tl.store(weights_ptr + at, weights * scale, mask=inside)
    tl.store(experts_ptr + at, chosen, mask=inside)


def router(
    logits_TE: torch.Tensor,
    top_k: int,
    *,
    score: str = "softmax",
    groups: int = 1,
    groups_kept: int = 1,
    group_top: int = 2,
    bias_E: torch.Tensor | None = None,
    renormalise: bool = True,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights_TK float32, experts_TK int32) as router_reference gives them."""
    _check(logits_TE, top_k, score, groups, groups_kept, group_top, bias_E)
    limited = groups if groups_kept < groups else 1
    kept = min(groups_kept, limited)
    return _launch(
        logits_TE, bias_E, score, renormalise, scale,
        TOP_K=top_k, GROUPS=limited, KEPT=kept, GROUP_TOP=group_top, EACH=0,
    )  # fmt: skip


def grouped_router(
    logits_TE: torch.Tensor,
    top_k: int,
    groups: int,
    *,
    score: str = "softmax",
    bias_E: torch.Tensor | None = None,
    renormalise: bool = True,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights_TK float32, experts_TK int32) as grouped_router_reference gives them."""
    _check(logits_TE, top_k, score, groups, groups, 1, bias_E)
    _check_grouped(top_k, groups)
    return _launch(
        logits_TE, bias_E, score, renormalise, scale,
        TOP_K=top_k, GROUPS=groups, KEPT=groups, GROUP_TOP=1, EACH=top_k // groups,
    )  # fmt: skip


def _launch(
    logits_TE: torch.Tensor, bias_E: torch.Tensor | None, score: str, renormalise: bool, scale: float, **shape: int
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, experts = logits_TE.shape
    weights_TK = torch.empty(tokens, shape["TOP_K"], dtype=torch.float32, device=logits_TE.device)
    experts_TK = torch.empty(tokens, shape["TOP_K"], dtype=torch.int32, device=logits_TE.device)
    groups2 = triton.next_power_of_2(shape["GROUPS"])
    size2 = triton.next_power_of_2(experts // shape["GROUPS"])
    together = max(1, min(MOST_TOKENS, TILE // (groups2 * size2)))
    if tokens:
        _router_kernel[(divide_up(tokens, together),)](
            logits_TE.contiguous(), weights_TK if bias_E is None else bias_E.contiguous(), weights_TK, experts_TK,
            tokens, scale, EXPERTS=experts, TOP_K2=triton.next_power_of_2(shape["TOP_K"]), SIGMOID=score == "sigmoid",
            BIASED=bias_E is not None, RENORMALISE=renormalise, TOKENS=together, GROUPS2=groups2, SIZE2=size2,
            num_warps=WARPS, **shape,
        )  # fmt: skip
    return weights_TK, experts_TK


def _check(
    logits_TE: torch.Tensor, top_k: int, score: str, groups: int, kept: int, group_top: int, bias_E: torch.Tensor | None
) -> None:
    if logits_TE.ndim != 2 or score not in SCORES:
        raise ValueError(f"{score} of {tuple(logits_TE.shape)} is no score: give logits_TE [T, E] and one of {SCORES}")
    experts = logits_TE.shape[1]
    judged = kept < groups
    if (
        groups < 1
        or experts % groups
        or not 1 <= kept <= groups
        or (judged and not 1 <= group_top <= experts // groups)
    ):
        raise ValueError(
            f"{kept} of {groups} groups of {experts} experts, judged by {group_top}: the groups must divide the "
            "experts, one or more be kept, and each have as many experts as judge it"
        )
    if group_top not in (1, 2):
        raise ValueError(f"group_top {group_top}: a group is judged by its best expert (1) or its two best (2)")
    if not 1 <= top_k <= kept * (experts // groups):
        raise ValueError(f"top_k {top_k}: a token can ask for 1 to {kept * (experts // groups)} experts here")
    if bias_E is not None and bias_E.shape != (experts,):
        raise ValueError(f"bias_E has the shape {tuple(bias_E.shape)}: give one value for each of {experts} experts")


def _check_grouped(top_k: int, groups: int) -> None:
    if top_k % groups:
        raise ValueError(f"top_k {top_k} over {groups} groups: each group gives as many, so choose a multiple")


def router_cost(tokens: int, experts: int, top_k: int) -> Work:
    """Reads float32 logits, writes weights and experts; scores (4 FLOPs) and top_k comparisons of each logit."""
    return Work(
        flops=(4.0 + top_k) * tokens * experts + 2.0 * tokens * top_k,
        bytes=4.0 * tokens * experts + 8.0 * tokens * top_k,
    )
