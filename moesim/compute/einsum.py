"""Tokens put in send order, and back, by dense einsums over a mask: the baseline of a sparse permute.

    dispatch   mask [T, E C] transposed x tokens [T, M]       combine   weights [T, E C] x outputs [E C, M]
    backward   the same two, and the gradient of the combine weights [T, M] x [M, E C]
    FLOPs      2 T (E C) M each: quadratic in T, because E C = capacity factor x k T; a permute moves k T M values

(GShard, arXiv:2006.16668: GSM -> EGCM and back, T the tokens of a group; here a rank's are one group, as
in DeepSpeed and fairseq.) Masks and weights are made for each of k choices in fp32, summed, and read in bf16 by the
einsums, tensor by tensor as in fairseq's ``top2gating`` and DeepSpeed's ``sharded_moe.py``:

    products of one-hot rows    4 k written     sums of them    12 (k - 1)     bool    4 + 1     casts    4 + 2, 1 + 2
    backward                    cast 2 + 4; each choice's gate reads 4

The slots of an expert are rounded up to a multiple of four (V-MoE's code, arXiv:2106.05974). What the expert kernel's
table says includes a gather of its own (compute.COVERS), which stays in its price.
"""

from typing import Final, NamedTuple

from moesim.compute.gemm import gemm
from moesim.compute.memory_bound import memory_bound
from moesim.cost import Cost
from moesim.model import Model
from moesim.profile import Profile

SLOT_MULTIPLE: Final = 4
KEPT_MASKS: Final = 2  # bf16: what the backward pass reads again, dispatch mask and combine weights
DTYPE: Final = "bf16"


class Einsum(NamedTuple):
    """Sizes of one rank's einsums."""

    tokens: float
    slots: float  # E C
    row: float
    top_k: int


def einsum_flops(one: Einsum) -> float:
    """Of the dispatch, or of the combine."""
    return 2.0 * one.tokens * one.slots * one.row


def building_bytes(model: Model, square: float) -> float:
    """Bytes that are there while a layer makes its masks, beside what it keeps: products, their sum, bool, bf16.

    ``square``: tokens times the slots that there are for each choice.
    """
    top_k = model.moe.top_k if model.moe else 0
    return square * top_k * (4.0 * top_k + 4.0 * (top_k > 1) + 1.0 + 2.0)


def mask_traffic_bytes(one: Einsum, *, backward: bool) -> float:
    """Bytes read and written to make the masks, or the gates' gradients from that of the combine weights."""
    each = 6.0 + 4.0 * one.top_k if backward else 4.0 * one.top_k + 12.0 * (one.top_k - 1) + 14.0
    return one.tokens * one.slots * each


def einsum_costs(profile: Profile, one: Einsum, way: str, *, backward: bool) -> tuple[list[Cost], list[Cost]]:
    """GEMMs, and kernels that only move bytes, of a "dispatch" or a "combine"."""
    gather = gemm(profile, one.slots, one.row, one.tokens, DTYPE)  # tokens, or gradients, to their slots
    spread = gemm(profile, one.tokens, one.row, one.slots, DTYPE)  # and back
    masks = [memory_bound(profile, mask_traffic_bytes(one, backward=backward))]
    if way == "dispatch":
        return ([spread], []) if backward else ([gather], masks)
    weights = gemm(profile, one.tokens, one.slots, one.row, DTYPE)  # their gradient
    return ([gather, weights], masks) if backward else ([spread], [])
