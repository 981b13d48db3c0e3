"""Data and weight gradient of the grouped GEMM."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.kernels import backward
from moesim.kernels.common import relative_error
from moesim.kernels.sort import Sorted, sort_by_expert

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HOT = torch.tensor([[2]] * 70)


def case(seed: int, chosen_TK: torch.Tensor, experts: int, n: int, k: int, block: int) -> tuple:
    """dy_RN, x_RK, w_ENK and the order; padding rows hold NaN."""
    generator = torch.Generator().manual_seed(seed)
    order = sort_by_expert(chosen_TK.to(DEVICE), experts, block)
    shapes = (order.rows, n), (order.rows, k), (experts, n, k)
    dy, x, w = (torch.randn(shape, generator=generator).bfloat16().to(DEVICE) for shape in shapes)
    padding = order.source_R >= chosen_TK.numel()
    dy[padding], x[padding] = float("nan"), float("nan")
    return dy, x, w, order


def real(order: Sorted) -> torch.Tensor:
    return order.source_R < order.tokens * order.top_k


def check(dy, x, w, order):
    dx = backward.grouped_dgrad(dy, w, order)
    assert relative_error(dx[real(order)], backward.grouped_dgrad_reference(dy, w, order)[real(order)]) < 1e-2
    dw = backward.grouped_wgrad(x, dy, order)
    assert dw.dtype == torch.bfloat16
    assert relative_error(dw, backward.grouped_wgrad_reference(x, dy, order)) < 1e-2
    assert not dw[order.counts_E == 0].any()


@given(
    tokens=st.integers(1, 24), top_k=st.integers(1, 2), experts=st.integers(1, 4), n=st.integers(1, 150),
    k=st.integers(1, 150), whole=st.booleans(), block=st.sampled_from([16, 32]), seed=st.integers(0, 2**20),
)  # fmt: skip
@settings(max_examples=50, deadline=None, derandomize=True)
def test_both_gradients_of_any_load_and_shape(tokens, top_k, experts, n, k, whole, block, seed):
    n, k = (n + 7 & ~7, k + 7 & ~7) if whole else (n, k)  # whole: rows begin at 16 bytes, as TMA wants
    chosen = torch.randint(0, experts, (tokens, top_k), generator=torch.Generator().manual_seed(seed))
    check(*case(seed, chosen, experts, n, k, block))


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize(("n", "k"), [(64, 272), (136, 63)])
def test_all_tokens_on_one_expert_fill_more_than_one_step_of_rows(block, n, k):
    check(*case(1, HOT, 4, n, k, block))


def test_copies_of_other_ranks_leave_no_gradient():
    check(*case(2, torch.tensor([[-1, 0], [3, -1]]), 5, 16, 32, 16))


def test_weight_gradients_in_fp32_are_nearer():
    dy, x, _, order = case(3, HOT, 3, 40, 24, 16)
    expected = backward.grouped_wgrad_reference(x, dy, order)
    assert relative_error(backward.grouped_wgrad(x, dy, order, out_dtype=torch.float32), expected) < 1e-5


def test_two_runs_give_the_same_bits():
    dy, x, _, order = case(4, HOT, 3, 40, 24, 16)
    assert torch.equal(backward.grouped_wgrad(x, dy, order), backward.grouped_wgrad(x, dy, order))


def test_cost_counts_each_operand_once_and_writes_zeros_of_empty_experts():
    counts = torch.tensor([5, 0])
    assert backward.grouped_dgrad_cost(counts, 64, 32) == (2 * 5 * 64 * 32, 2 * (64 * 32 + 5 * (64 + 32)))
    assert backward.grouped_wgrad_cost(counts, 64, 32) == (2 * 5 * 64 * 32, 2 * (2 * 64 * 32 + 5 * (64 + 32)))


def test_what_does_not_fit_is_refused_in_a_sentence():
    dy, x, w, order = case(5, torch.tensor([[0], [1]]), 2, 16, 24, 16)
    with pytest.raises(ValueError, match="give dy"):
        backward.grouped_dgrad(dy[:, 1:], w, order)
    with pytest.raises(ValueError, match="give bfloat16"):
        backward.grouped_dgrad(dy.float(), w, order)
    with pytest.raises(ValueError, match="rows"):
        backward.grouped_wgrad(x[1:], dy, order)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: full sizes need one")
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_full_size(block):
    check(*case(6, torch.randint(0, 7, (2000, 2)), 8, 2816, 2048, block))
