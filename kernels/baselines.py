"""What the literature compares a sorted expert layer with: experts padded to a capacity, and one-hot dispatch.

    experts_TK  --capacity_slots-->  slot of each copy in [E, C], copies beyond an expert's capacity dropped
    x_TH  --dense_dispatch or sparse_encode-->  x_ECH  --two batched GEMMs-->  y_ECH
    y_ECH  --dense_combine or sparse_decode-->  y_TH

GShard (arXiv 2006.16668) and DeepSpeed multiply by a one-hot mask_TEC: 2 T E C H FLOPs to move T K H values, and
the mask in memory. Tutel's fast encode and decode (arXiv 2206.03382) move only those values. Both give the same.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from .common import Work, divide_up
from .expert_ffn import Experts, expert_ffn_reference
from .grouped_gemm import ACTIVATIONS
from .permute import Sorted, permute, sort_by_expert, unpermute, unpermute_cost

COPIES: Final = 256  # copies that one program places


def capacity_slots_reference(experts_TK: torch.Tensor, experts: int, capacity: int) -> Sorted:
    """What capacity_slots gives, by GShard's running sum over one-hot choices."""
    tokens, top_k = experts_TK.shape
    expert_N = experts_TK.T.reshape(-1)  # all first choices, then all second ones
    chosen_NE = expert_N[:, None] == torch.arange(experts, device=experts_TK.device)
    place_N = ((chosen_NE.int().cumsum(0) - 1) * chosen_NE).sum(1)
    kept_N = chosen_NE.any(1) & (place_N < capacity)
    slot_TK = torch.where(kept_N, expert_N * capacity + place_N, -1).reshape(top_k, tokens).T.contiguous()
    source_R = torch.full((experts * capacity,), tokens * top_k, dtype=torch.int32, device=experts_TK.device)
    copy_N = torch.nonzero(slot_TK.reshape(-1) >= 0).reshape(-1)
    source_R[slot_TK.reshape(-1)[copy_N].long()] = copy_N.int()
    return _slots(slot_TK.int(), source_R, chosen_NE.sum(0).int(), capacity)


def padded_ffn_reference(
    x_TH: torch.Tensor, experts: Experts, experts_TK: torch.Tensor, weights_TK: torch.Tensor, capacity: int
) -> torch.Tensor:
    """y_TH in float64 of the copies that are not dropped."""
    kept_TK = capacity_slots_reference(experts_TK, experts.w13.shape[0], capacity).row_TK >= 0
    return expert_ffn_reference(x_TH, experts, torch.where(kept_TK, experts_TK, -1), weights_TK)


@triton.jit(do_not_specialize=["copies", "tokens"])
def _slot_kernel(
    row_KT_ptr, offsets_ptr, expert_R_ptr, slot_TK_ptr, source_ptr, copies, tokens, top_k, capacity,
    COPIES: tl.constexpr,
):  # fmt: skip
    """A copy's place among its expert's copies is its slot, if the capacity reaches so far."""
    copy = tl.program_id(0) * COPIES + tl.arange(0, COPIES)
    row = tl.load(row_KT_ptr + copy, mask=copy < copies, other=-1)
    expert = tl.load(expert_R_ptr + row, mask=row >= 0, other=0)
    place = row - tl.load(offsets_ptr + expert)
    kept = (row >= 0) & (place < capacity)
    copy_TK = copy % tokens * top_k + copy // tokens
    tl.store(slot_TK_ptr + copy_TK, tl.where(kept, expert * capacity + place, -1), mask=copy < copies)
    tl.store(source_ptr + expert * capacity + place, copy_TK, mask=kept)


def capacity_slots(experts_TK: torch.Tensor, experts: int, capacity: int) -> Sorted:
    """Each expert in a block of ``capacity`` rows; first choices come first, copies beyond it are dropped (row -1)."""
    if capacity < 1:
        raise ValueError(f"capacity {capacity}: an expert takes at least one token")
    tokens, top_k = experts_TK.shape
    order = sort_by_expert(experts_TK.T, experts, 1)
    slot_TK = torch.empty(tokens, top_k, dtype=torch.int32, device=experts_TK.device)
    source_R = torch.full((experts * capacity,), tokens * top_k, dtype=torch.int32, device=experts_TK.device)
    if slot_TK.numel():
        _slot_kernel[(divide_up(tokens * top_k, COPIES),)](
            order.row_TK, order.offsets_E1, order.block_expert_B, slot_TK, source_R,
            tokens * top_k, tokens, top_k, capacity, COPIES=COPIES,
        )  # fmt: skip
    return _slots(slot_TK, source_R, order.counts_E, capacity)


def _slots(slot_TK: torch.Tensor, source_R: torch.Tensor, counts_E: torch.Tensor, capacity: int) -> Sorted:
    expert_E1 = torch.arange(len(counts_E) + 1, dtype=torch.int32, device=counts_E.device)
    kept_E = counts_E.clamp(max=capacity)
    return Sorted(source_R, slot_TK, kept_E, expert_E1 * capacity, expert_E1[:-1], capacity, *slot_TK.shape)


def one_hot(slots: Sorted, values_TK: torch.Tensor) -> torch.Tensor:
    """mask_TEC: each copy's value in its slot, zeros elsewhere; a dropped copy has none."""
    mask_TR = values_TK.new_zeros(slots.tokens, slots.rows)
    mask_TR.scatter_add_(1, slots.row_TK.clamp(min=0).long(), values_TK * (slots.row_TK >= 0))
    return mask_TR.unflatten(1, (-1, slots.block))


def dense_dispatch(x_TH: torch.Tensor, slots: Sorted) -> torch.Tensor:
    """x_ECH by a one-hot mask, as GShard and DeepSpeed do it."""
    mask_TEC = one_hot(slots, torch.ones(slots.row_TK.shape, dtype=x_TH.dtype, device=x_TH.device))
    return torch.einsum("tec,th->ech", mask_TEC, x_TH)


def dense_combine(y_ECH: torch.Tensor, slots: Sorted, weights_TK: torch.Tensor) -> torch.Tensor:
    """y_TH by a mask of the weights in y's type; weight 0 for dropped copies."""
    return torch.einsum("tec,ech->th", one_hot(slots, weights_TK.to(y_ECH.dtype)), y_ECH)


def sparse_encode(x_TH: torch.Tensor, slots: Sorted) -> torch.Tensor:
    """x_ECH by moving each copy to its slot and clearing the others, as Tutel's fast encode does."""
    return permute(x_TH, slots).unflatten(0, (-1, slots.block))


def sparse_decode(y_ECH: torch.Tensor, slots: Sorted, weights_TK: torch.Tensor) -> torch.Tensor:
    """y_TH by reading each copy's slot, as Tutel's fast decode does."""
    return unpermute(y_ECH.flatten(0, 1), slots, weights_TK)


def padded_ffn(
    x_TH: torch.Tensor, experts: Experts, experts_TK: torch.Tensor, weights_TK: torch.Tensor, capacity: int
) -> torch.Tensor:
    """y_TH of an expert layer whose experts all compute ``capacity`` rows, full or not; what exceeds it is dropped."""
    if experts.dtype != "bf16":
        raise ValueError(f"experts in {experts.dtype}: the padded baseline multiplies in bf16 only")
    slots = capacity_slots(experts_TK, experts.w13.shape[0], capacity)
    h_ECF = torch.bmm(sparse_encode(x_TH, slots), experts.w13.transpose(1, 2))
    if experts.gated:
        gate, up = h_ECF.chunk(2, dim=2)
        h_ECF = torch.nn.functional.silu(gate) * up
    else:
        h_ECF = ACTIVATIONS[experts.activation](h_ECF)
    return sparse_decode(torch.bmm(h_ECF, experts.w2.transpose(1, 2)), slots, weights_TK)


def dense_dispatch_cost(tokens: int, experts: int, capacity: int, hidden: int, bytes_per_value: float) -> Work:
    """2 T E C H FLOPs; reads the mask and the tokens, writes the slots. dense_combine costs the same."""
    slots = float(experts * capacity)
    values = tokens * slots + (tokens + slots) * hidden
    return Work(flops=2.0 * tokens * slots * hidden, bytes=values * bytes_per_value)


def sparse_encode_cost(
    tokens: int, top_k: int, experts: int, capacity: int, hidden: int, bytes_per_value: float
) -> Work:
    """No FLOPs; reads the tokens and their slots, writes all slots: copies of T K H values, and zeros in the rest."""
    values = (tokens + float(experts * capacity)) * hidden
    return Work(flops=0.0, bytes=values * bytes_per_value + 4.0 * tokens * top_k)


def sparse_decode_cost(tokens: int, top_k: int, hidden: int, bytes_per_value: float) -> Work:
    """2 T K H FLOPs; reads a slot for each copy, writes the tokens."""
    return unpermute_cost(tokens, top_k, hidden, bytes_per_value)


def padded_ffn_cost(
    tokens: int, top_k: int, experts: int, capacity: int, hidden: int, ffn: int, gated: bool = True
) -> Work:
    """Encode, two bf16 GEMMs over all slots with their intermediate in memory, decode."""
    slots, up = float(experts * capacity), 2 if gated else 1
    gemm_bytes = 2.0 * (experts * (up + 1.0) * hidden * ffn + slots * (2.0 * hidden + (2.0 * up + 2.0) * ffn))
    gemms = Work(2.0 * slots * (up + 1.0) * hidden * ffn, gemm_bytes)
    ends = [sparse_encode_cost(tokens, top_k, experts, capacity, hidden, 2.0)]
    ends.append(sparse_decode_cost(tokens, top_k, hidden, 2.0))
    return Work(gemms.flops + sum(end.flops for end in ends), gemms.bytes + sum(end.bytes for end in ends))
