"""Copies stand sorted by expert in padded blocks, tokens find their rows, and the weighted sums come back."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.kernels import common, permute, sort

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIFTY = settings(max_examples=50, deadline=None, derandomize=True)
HIDDEN = st.sampled_from([1, 7, 33, 128, 200])
DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])
# A unit in the last place: Triton's interpreter truncates where a GPU rounds.
LIMITS = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-6}


@st.composite
def routed(draw, most_tokens=40):
    """experts_TK of any load, with copies that belong to other ranks, the number of experts, and a block."""
    tokens, top_k = draw(st.integers(1, most_tokens)), draw(st.integers(1, 5))
    experts, block = draw(st.integers(1, 40)), draw(st.sampled_from([1, 3, 16, 64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    first, end = sorted([draw(st.integers(-3, experts + 2)), draw(st.integers(-3, experts + 2))])
    experts_TK = torch.randint(first, end + 1, (tokens, top_k), generator=generator)  # narrow: a hot expert
    return experts_TK.to(DEVICE, draw(st.sampled_from([torch.int32, torch.int64]))), experts, block


def values(lines: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(lines, columns, generator=torch.Generator().manual_seed(lines + columns)).to(DEVICE, dtype)


def poisoned_empty(*shape, dtype=None, device=None):
    """What torch.empty gives, full of NaN or -1: an element that is read before it is written is seen."""
    return common.poisoned(shape if isinstance(shape[0], int) else shape[0], dtype, device)


def poisoned_outputs():
    return mock.patch.object(torch, "empty", poisoned_empty)


def assert_same_order(found: permute.Sorted, expected: permute.Sorted) -> None:
    for name, array, wanted in zip(found._fields, found, expected, strict=True):
        if torch.is_tensor(wanted):
            assert array.dtype == torch.int32, name
            assert torch.equal(array, wanted), name
        else:
            assert array == wanted, name


@FIFTY
@given(routed(200), st.sampled_from([2, 256]))
def test_copies_stand_in_the_order_of_a_stable_sort(case, chunks):
    with mock.patch.object(sort, "SCAN_CHUNKS", chunks), poisoned_outputs():
        found = permute.sort_by_expert(*case)
    assert_same_order(found, permute.sort_by_expert_reference(*case))


@FIFTY
@given(routed())
def test_each_copy_knows_its_row_and_each_block_its_expert(case):
    experts_TK, experts, block = case
    found = permute.sort_by_expert(*case)
    copies = experts_TK.numel()
    here = (experts_TK.reshape(-1) >= 0) & (experts_TK.reshape(-1) < experts)
    row_N = found.row_TK.reshape(-1)
    assert torch.equal(row_N >= 0, here)
    assert torch.equal(found.source_R[row_N[here].long()].long(), torch.arange(copies, device=DEVICE)[here])
    assert torch.equal(found.block_expert_B[(row_N[here] // block).long()].long(), experts_TK.reshape(-1)[here].long())
    assert int((found.source_R < copies).sum()) == int(found.counts_E.sum()) == int(here.sum())


@FIFTY
@given(routed(15), HIDDEN, st.sampled_from([torch.bfloat16, torch.float32, torch.float8_e4m3fn]))
def test_each_row_holds_its_token_and_padding_zeros(case, hidden, dtype):
    x_TH = values(case[0].shape[0], hidden).to(dtype)
    order = permute.sort_by_expert(*case)
    used = int(order.offsets_E1[-1])
    with poisoned_outputs():
        x_RH = permute.permute(x_TH, order)
    assert x_RH.dtype == dtype
    assert torch.equal(x_RH[:used].float(), permute.permute_reference(x_TH.float(), order)[:used])


@FIFTY
@given(routed(15), HIDDEN, DTYPES, st.booleans())
def test_each_token_is_the_weighted_sum_of_its_rows(case, hidden, dtype, weighted):
    order = permute.sort_by_expert(*case)
    y_RH = values(order.rows, hidden, dtype)
    y_RH[order.source_R == case[0].numel()] = float("nan")  # nobody reads padding
    weights_TK = values(*case[0].shape).abs() if weighted else None
    with poisoned_outputs():
        y_TH = permute.unpermute(y_RH, order, weights_TK)
    assert y_TH.dtype == dtype
    assert common.relative_error(y_TH, permute.unpermute_reference(y_RH, order, weights_TK)) < LIMITS[dtype]


@FIFTY
@given(routed(6), st.sampled_from([1, 7, 130, 300]), DTYPES)
def test_the_gradients_of_the_weighted_sum_are_those_of_autograd(case, hidden, dtype):
    order = permute.sort_by_expert(*case)
    dy_TH, y_RH = values(order.tokens, hidden, dtype), values(order.rows, hidden, dtype)
    weights_TK = values(order.tokens, order.top_k).abs()
    leaves = [y_RH.double().requires_grad_(), weights_TK.double().requires_grad_()]
    permute.unpermute_reference(leaves[0], order, leaves[1]).backward(dy_TH.double())
    used = int(order.offsets_E1[-1])
    with poisoned_outputs():
        dy_RH, dweights_TK = permute.unpermute_backward(dy_TH, y_RH, order, weights_TK)
    assert dy_RH.dtype == dtype
    assert common.relative_error(dy_RH[:used], leaves[0].grad[:used]) < LIMITS[dtype]
    assert common.relative_error(dweights_TK, leaves[1].grad) < 1e-5


@FIFTY
@given(routed(10), HIDDEN)
def test_the_gradient_of_permute_is_unpermute_without_weights(case, hidden):
    order = permute.sort_by_expert(*case)
    leaf = values(order.tokens, hidden).double().requires_grad_()
    dx_RH = values(order.rows, hidden)
    permute.permute_reference(leaf, order).backward(dx_RH.double())
    assert common.relative_error(permute.unpermute(dx_RH, order), leaf.grad) < LIMITS[torch.float32]


def test_tokens_of_uniform_weights_come_back_as_they_went():
    order = permute.sort_by_expert(torch.tensor([[0, 2], [2, 1], [0, 1]], device=DEVICE), experts=4, block=2)
    x_TH = values(3, 5)
    back = permute.unpermute(permute.permute(x_TH, order), order, torch.full((3, 2), 0.5, device=DEVICE))
    assert torch.equal(back, x_TH)


def test_an_example_that_fits_in_the_head():
    found = permute.sort_by_expert(torch.tensor([[2, 0], [2, 2]], device=DEVICE), experts=3, block=2)
    assert found.counts_E.tolist() == [1, 0, 3]
    assert found.offsets_E1.tolist() == [0, 2, 2, 6]
    assert found.row_TK.tolist() == [[2, 0], [3, 4]]
    assert found.source_R[:6].tolist() == [1, 4, 0, 2, 3, 4]
    assert found.block_expert_B[:3].tolist() == [0, 2, 2]
    assert found.rows == 6 == 2 * sort.most_blocks(copies=4, experts=3, block=2)


@pytest.mark.parametrize("tokens", [0, 1, 300])
def test_all_tokens_on_one_expert(tokens):
    case = torch.full((tokens, 1), 6, device=DEVICE), 9, 16
    found = permute.sort_by_expert(*case)
    assert_same_order(found, permute.sort_by_expert_reference(*case))
    assert found.counts_E.tolist() == [0] * 6 + [tokens] + [0, 0]


def test_no_token_gives_empty_arrays():
    order = permute.sort_by_expert(torch.zeros(0, 2, dtype=torch.int32, device=DEVICE), 4, 16)
    assert permute.permute(values(0, 8), order).shape == (0, 8)
    assert permute.unpermute(values(0, 8), order).shape == (0, 8)
    dy_RH, dweights_TK = permute.unpermute_backward(values(0, 8), values(0, 8), order, values(0, 2))
    assert (dy_RH.shape, dweights_TK.shape) == ((0, 8), (0, 2))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 20))
def test_no_load_needs_more_blocks_than_are_reserved(counts, block):
    needed = sum(-(-count // block) for count in counts)
    assert needed <= sort.most_blocks(sum(counts), len(counts), block) <= needed + len(counts)


def test_arrays_of_another_size_are_refused():
    order = permute.sort_by_expert(torch.zeros(3, 2, dtype=torch.int32), 4, 16)
    with pytest.raises(ValueError, match=r"x_TH has the shape \(4, 8\).*\[3, ...\]"):
        permute.permute(values(4, 8), order)
    with pytest.raises(ValueError, match="y_RH"):
        permute.unpermute(values(3, 8), order)
    with pytest.raises(ValueError, match="weights_TK"):
        permute.unpermute(values(order.rows, 8), order, values(4, 2))
    with pytest.raises(ValueError, match="dy_TH"):
        permute.unpermute_backward(values(4, 8), values(order.rows, 8), order, values(3, 2))
    with pytest.raises(ValueError, match="0 experts"):
        permute.sort_by_expert(torch.zeros(3, 2), 0, 16)


def test_the_costs_count_each_row_once():
    assert permute.permute_cost(tokens=3, top_k=2, hidden=10, bytes_per_value=2.0) == (0.0, 9 * 10 * 2.0 + 24.0)
    assert permute.unpermute_cost(tokens=3, top_k=2, hidden=10, bytes_per_value=2.0) == (120.0, 9 * 10 * 2.0 + 48.0)
    assert permute.unpermute_backward_cost(3, 2, 10, 2.0) == (180.0, 15 * 10 * 2.0 + 72.0)
    assert permute.sort_cost(tokens=3, experts=4, top_k=2) == (10.0, 72.0 + 32.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: full sizes need one")
@pytest.mark.parametrize(("tokens", "top_k", "experts", "block"), [(16384, 8, 256, 128), (70001, 6, 160, 64)])
def test_a_full_batch_goes_out_and_comes_back_in_a_cuda_graph(tokens, top_k, experts, block):
    generator = torch.Generator(device="cuda").manual_seed(0)
    experts_TK = torch.zeros(tokens, top_k, dtype=torch.int32, device="cuda")
    weights_TK, x_TH = torch.rand(tokens, top_k, device="cuda"), values(tokens, 2048, torch.bfloat16)

    def there_and_back() -> tuple[permute.Sorted, torch.Tensor]:
        order = permute.sort_by_expert(experts_TK, experts, block)
        return order, permute.unpermute(permute.permute(x_TH, order), order, weights_TK)

    there_and_back()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        order, y_TH = there_and_back()
    experts_TK.random_(-1, experts, generator=generator)
    graph.replay()
    assert_same_order(order, permute.sort_by_expert_reference(experts_TK, experts, block))
    kept_T1 = (weights_TK.double() * (experts_TK >= 0)).sum(1, keepdim=True)
    assert common.relative_error(y_TH, x_TH.double() * kept_T1) < LIMITS[torch.bfloat16]
