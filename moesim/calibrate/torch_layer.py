"""An MoE layer in plain torch: what a CPU runs, one matrix multiplication per expert.

logits_TE --route--> weights_TK, experts_TK --sort--> Order --gather--> x_CH --experts--> y_CH --combine--> y_TH
"""

import math
from typing import Final, NamedTuple

import torch
from torch.nn.functional import silu

_BLOCK: Final = 2**18 - 1  # random values; odd, so that no two rows of a matrix are equal


class Weights(NamedTuple):
    """The experts of a rank."""

    w13_EGH: torch.Tensor  # gate rows, then up rows: G = 2 x ffn
    w2_EHF: torch.Tensor


class Order(NamedTuple):
    """Copies sorted by expert."""

    copy_C: torch.Tensor  # copy number t * top_k + j of each row
    row_TK: torch.Tensor  # row of each copy
    counts: list[int]  # rows of each expert


def random_values(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normal values on the CPU, which draws them slowly: a block of them, repeated until the tensor is full."""
    size = math.prod(shape)
    block = (torch.randn(min(size, _BLOCK)) * scale).to(dtype)
    return block.repeat(-(-size // _BLOCK))[:size].view(shape)


def make_weights(experts: int, hidden: int, ffn: int) -> Weights:
    """Random bf16 weights that keep the size of activations."""
    w13 = random_values(experts, 2 * ffn, hidden, scale=hidden**-0.5)
    return Weights(w13, random_values(experts, hidden, ffn, scale=ffn**-0.5))


def route(logits_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The top_k experts of each token and their softmax weights, summing to one."""
    scores, experts_TK = torch.topk(torch.softmax(logits_TE, dim=1), top_k, dim=1)
    return scores / scores.sum(1, keepdim=True), experts_TK


def sort(experts_TK: torch.Tensor, experts: int) -> Order:
    """Copies by expert, in the order of the tokens."""
    flat = experts_TK.flatten()
    copy_C = torch.argsort(flat, stable=True)
    row_C = torch.empty_like(copy_C)
    row_C[copy_C] = torch.arange(len(copy_C))
    return Order(copy_C, row_C.view_as(experts_TK), torch.bincount(flat, minlength=experts).tolist())


def gather(x_TH: torch.Tensor, order: Order) -> torch.Tensor:
    """x_CH: the token of each row."""
    return x_TH.index_select(0, order.copy_C // order.row_TK.shape[1])


def gate_up(x_CH: torch.Tensor, weights: Weights, counts: list[int]) -> torch.Tensor:
    """silu(gate) x up of each row by its expert [C, F]."""
    ffn = weights.w2_EHF.shape[2]
    out = x_CH.new_empty(len(x_CH), ffn)
    for e, (first, last) in _spans(counts):
        both = x_CH[first:last] @ weights.w13_EGH[e].T
        torch.mul(silu(both[:, :ffn]), both[:, ffn:], out=out[first:last])
    return out


def down(h_CF: torch.Tensor, weights: Weights, counts: list[int]) -> torch.Tensor:
    """Each row by its expert [C, H]."""
    out = h_CF.new_empty(len(h_CF), weights.w2_EHF.shape[1])
    for e, (first, last) in _spans(counts):
        torch.mm(h_CF[first:last], weights.w2_EHF[e].T, out=out[first:last])
    return out


def combine(y_CH: torch.Tensor, order: Order, weights_TK: torch.Tensor) -> torch.Tensor:
    """y_TH: the weighted sum of each token's rows."""
    tokens, top_k = order.row_TK.shape
    y_TKH = y_CH.index_select(0, order.row_TK.flatten()).view(tokens, top_k, -1)
    return torch.bmm(weights_TK[:, None, :].to(y_CH.dtype), y_TKH)[:, 0]


def expert_layer(
    x_TH: torch.Tensor, weights: Weights, experts_TK: torch.Tensor, weights_TK: torch.Tensor
) -> torch.Tensor:
    """Sort, gather, gate and up, down, combine."""
    order = sort(experts_TK, len(weights.w2_EHF))
    h_CF = gate_up(gather(x_TH, order), weights, order.counts)
    return combine(down(h_CF, weights, order.counts), order, weights_TK)


def _spans(counts: list[int]) -> list[tuple[int, tuple[int, int]]]:
    """(expert, first and last row) of each expert that has rows."""
    found, first = [], 0
    for e, count in enumerate(counts):
        if count:
            found.append((e, (first, first + count)))
        first += count
    return found
