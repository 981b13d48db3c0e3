"""Padded and one-hot forms give what the sorted form gives, with drops, and cost what the literature says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.kernels import baselines, common, expert_ffn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIFTY = settings(max_examples=50, deadline=None, derandomize=True)
HIDDEN = st.sampled_from([1, 7, 33, 64])


@st.composite
def routed(draw, most_tokens=24):
    """experts_TK of any load, with copies that belong to other ranks, the number of experts, and a capacity."""
    tokens, top_k, experts = draw(st.integers(1, most_tokens)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    first, end = sorted([draw(st.integers(-1, experts - 1)), draw(st.integers(-1, experts - 1))])
    experts_TK = torch.randint(first, end + 1, (tokens, top_k), generator=generator, dtype=torch.int32)
    return experts_TK.to(DEVICE), experts, draw(st.integers(1, 2 * tokens))


def values(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def same(found: tuple, expected: tuple) -> bool:
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(found, expected, strict=True))


@FIFTY
@given(routed())
def test_copies_take_slots_as_gshards_running_sum_gives_them(case):
    assert same(baselines.capacity_slots(*case), baselines.capacity_slots_reference(*case))


@FIFTY
@given(routed(), HIDDEN)
def test_encode_fills_the_slots_as_the_one_hot_product_does(case, hidden):
    slots = baselines.capacity_slots(*case)
    x_TH = values(slots.tokens, hidden)
    x_ECH = baselines.sparse_encode(x_TH, slots)
    assert x_ECH.shape == (case[1], case[2], hidden)
    assert torch.equal(x_ECH, baselines.dense_dispatch(x_TH.float(), slots).bfloat16())


@FIFTY
@given(routed(), HIDDEN)
def test_decode_gathers_the_slots_as_the_one_hot_product_does(case, hidden):
    slots = baselines.capacity_slots(*case)
    y_ECH, weights_TK = values(case[1], case[2], hidden), values(*case[0].shape, dtype=torch.float32).abs()
    expected = baselines.dense_combine(y_ECH.double(), slots, weights_TK.double())
    assert common.relative_error(baselines.sparse_decode(y_ECH, slots, weights_TK), expected) < 1e-2
    assert common.relative_error(baselines.dense_combine(y_ECH, slots, weights_TK), expected) < 1e-2


@FIFTY
@given(routed(), st.sampled_from([8, 33]), st.sampled_from([16, 23]), st.sampled_from(["swiglu", "relu", "gelu"]))
def test_the_padded_layer_is_the_layer_without_the_dropped_copies(case, hidden, ffn, activation):
    experts_TK, experts, capacity = case
    weights = expert_ffn.make_experts(
        experts, hidden, ffn, "bf16", gated=activation == "swiglu", activation=activation, device=DEVICE,
        generator=torch.Generator(device=DEVICE).manual_seed(hidden + ffn),
    )  # fmt: skip
    x_TH, weights_TK = values(experts_TK.shape[0], hidden), values(*experts_TK.shape, dtype=torch.float32).abs()
    found = baselines.padded_ffn(x_TH, weights, experts_TK, weights_TK, capacity)
    expected = baselines.padded_ffn_reference(x_TH, weights, experts_TK, weights_TK, capacity)
    assert common.relative_error(found, expected) < 2e-2  # bf16 intermediates


def test_first_choices_take_their_places_before_second_ones():
    slots = baselines.capacity_slots(torch.tensor([[0, 1], [1, 0], [2, 0]], device=DEVICE), experts=3, capacity=2)
    assert slots.row_TK.tolist() == [[0, 3], [2, 1], [4, -1]]  # expert 0: token 0, then 1; token 2 comes too late
    assert slots.counts_E.tolist() == [2, 2, 1]
    assert slots.source_R.tolist() == [0, 3, 2, 1, 4, 6]


def test_a_dropped_token_comes_back_as_zeros():
    slots = baselines.capacity_slots(torch.zeros(5, 1, dtype=torch.int32, device=DEVICE), experts=2, capacity=3)
    y_TH = baselines.sparse_decode(values(2, 3, 4).abs() + 1, slots, torch.ones(5, 1, device=DEVICE))
    assert (y_TH.abs().sum(1) > 0).tolist() == [True, True, True, False, False]


def test_no_token_leaves_all_slots_empty():
    slots = baselines.capacity_slots(torch.zeros(0, 2, dtype=torch.int32, device=DEVICE), experts=3, capacity=2)
    assert slots.counts_E.tolist() == [0, 0, 0]
    assert slots.source_R.tolist() == [0] * 6


def test_what_the_baselines_cannot_do_is_refused():
    with pytest.raises(ValueError, match="capacity 0"):
        baselines.capacity_slots(torch.zeros(3, 2, dtype=torch.int32), 4, 0)
    weights = expert_ffn.make_experts(2, 128, 128, "fp8_block", device=DEVICE)
    with pytest.raises(ValueError, match="fp8_block"):
        baselines.padded_ffn(values(3, 128), weights, torch.zeros(3, 1, dtype=torch.int32), values(3, 1), 2)


def test_the_dense_form_multiplies_where_the_sparse_one_moves():
    tokens, top_k, experts, capacity, hidden = 1000, 2, 10, 200, 50
    dense = baselines.dense_dispatch_cost(tokens, experts, capacity, hidden, 2.0)
    sparse = baselines.sparse_encode_cost(tokens, top_k, experts, capacity, hidden, 2.0)
    assert dense.flops == 2 * tokens * experts * capacity * hidden
    assert sparse.flops == 0
    assert sparse.bytes == (tokens + tokens * top_k) * hidden * 2 + 4 * tokens * top_k  # capacity: no slot empty
    assert dense.bytes - sparse.bytes == tokens * experts * capacity * 2 - 4 * tokens * top_k  # the mask
    assert baselines.sparse_decode_cost(tokens, top_k, hidden, 2.0).flops == 2 * tokens * top_k * hidden


def test_padding_costs_the_capacity_not_the_load():
    tight = baselines.padded_ffn_cost(1000, 2, 10, 200, hidden=50, ffn=80)
    loose = baselines.padded_ffn_cost(1000, 2, 10, 400, hidden=50, ffn=80)
    combine = 2 * 1000 * 2 * 50
    assert tight.flops - combine == 2 * 10 * 200 * 3 * 50 * 80
    assert loose.flops - combine == 2 * (tight.flops - combine)
    # encode and the first GEMM: hidden twice; gate and up, and their product, written and read; down: hidden once
    assert loose.bytes - tight.bytes == 2000 * 2 * (3 * 50 + 6 * 80)
    assert baselines.padded_ffn_cost(1000, 2, 10, 200, 50, 80, gated=False).flops - combine == 2 * 2000 * 2 * 50 * 80


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: full sizes need one")
def test_a_full_batch_is_encoded_as_the_one_hot_product_does():
    experts_TK = torch.randint(0, 64, (4096, 2), dtype=torch.int32, device="cuda")
    slots = baselines.capacity_slots(experts_TK, 64, 160)
    assert same(slots, baselines.capacity_slots_reference(experts_TK, 64, 160))
    x_TH = values(4096, 4096)
    x_ECH, weights_TK = baselines.sparse_encode(x_TH, slots), torch.rand(4096, 2, device="cuda")
    assert torch.equal(x_ECH, baselines.dense_dispatch(x_TH, slots))
    found, expected = (form(x_ECH, slots, weights_TK) for form in (baselines.dense_combine, baselines.sparse_decode))
    assert common.relative_error(found, expected) < 1e-2
