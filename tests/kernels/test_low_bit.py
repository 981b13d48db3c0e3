"""The grouped GEMM with int4 and ternary weights: formats, values, refusals, cost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.kernels import low_bit
from moesim.kernels.common import relative_error
from moesim.kernels.permute import permute
from moesim.kernels.sort import sort_by_expert

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QUANTISE = {"int4": low_bit.quantise_int4, "ternary": low_bit.quantise_ternary}
kinds = st.sampled_from(sorted(QUANTISE))
activations = st.sampled_from(["none", "swiglu", "relu", "gelu"])


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def check(kind, experts_TK, experts, n, k, block, activation, weighted, seed):
    weights = QUANTISE[kind](randn(seed, experts, n, k))
    order = sort_by_expert(experts_TK.to(DEVICE), experts, block)
    x_RK = permute(randn(seed + 1, order.tokens, k).bfloat16(), order)
    real_R = order.source_R < experts_TK.numel()
    x_RK[~real_R] = float("nan")  # padding may hold anything
    row_weight_R = randn(seed + 2, order.rows) if weighted else None
    how = {"activation": activation, "row_weight_R": row_weight_R}
    y = low_bit.grouped_gemm_low_bit(x_RK, weights, order, **how)
    expected = low_bit.grouped_gemm_low_bit_reference(x_RK, weights, order, **how)
    assert y.shape == expected.shape
    assert relative_error(y[real_R], expected[real_R]) < 1e-2


@given(
    kind=kinds, tokens=st.integers(1, 24), top_k=st.integers(1, 2), experts=st.integers(1, 4),
    half=st.integers(1, 40), k=st.integers(1, 300), block=st.sampled_from([16, 32]),
    activation=activations, weighted=st.booleans(), hot=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
@settings(max_examples=50, deadline=None, derandomize=True)
def test_every_row_meets_its_experts_dequantised_weights(
    kind, tokens, top_k, experts, half, k, block, activation, weighted, hot, seed
):
    chosen = torch.randint(0, experts, (tokens, top_k), generator=torch.Generator().manual_seed(seed))
    chosen = chosen * 0 + experts - 1 if hot else chosen
    check(kind, chosen, experts, 2 * half, k, block, activation, weighted, seed)


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("kind", sorted(QUANTISE))
def test_long_blocks_and_more_than_one_tile_of_columns(kind, block):
    check(kind, torch.tensor([[1, 3]] * 70), 4, 130, 128, block, "none", False, 5)
    check(kind, torch.tensor([[2]] * 9), 4, 134, 96, block, "swiglu", False, 6)


def test_tokens_of_other_ranks_and_an_empty_batch_of_experts_change_nothing():
    check("int4", torch.tensor([[-1, 2], [2, -1], [-1, -1]]), 5, 20, 64, 16, "relu", False, 7)


@given(n=st.integers(1, 9), k=st.integers(1, 200), scale=st.floats(-20, 20), seed=st.integers(0, 2**20))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_int4_codes_lie_within_half_a_step_and_the_scale_is_the_least_power_of_two(n, k, scale, seed):
    w = randn(seed, 2, n, k) * 2.0**scale
    weights = low_bit.quantise_int4(w)
    step = (
        torch.exp2(weights.scales.float() - 127).transpose(1, 2).reshape(2, n, -1).repeat_interleave(32, dim=2)[..., :k]
    )
    assert ((low_bit.dequantise(weights) - w).abs() <= step / 2).all()
    most = torch.nn.functional.pad(w.abs(), (0, -k % 32)).reshape(2, n, -1, 32).amax(-1)
    least = step[..., ::32]
    assert (most <= 7 * least).all()
    assert (most > 3.5 * least).all()


def test_what_int4_can_hold_survives_exactly():
    codes = torch.randint(-7, 8, (1, 3, 160)).float()
    codes[..., ::32] = 7
    w = codes * 2.0**-5
    assert torch.equal(low_bit.dequantise(low_bit.quantise_int4(w)), w)


def test_what_ternary_can_hold_survives_exactly():
    w = torch.randint(-1, 2, (2, 3, 131)).float() * torch.tensor([0.5, 2.0, 3.0])[:, None]
    assert torch.equal(low_bit.dequantise(low_bit.quantise_ternary(w)), w)


def test_a_row_of_zeros_stays_zero():
    for quantise in QUANTISE.values():
        assert not low_bit.dequantise(quantise(torch.zeros(1, 2, 40))).any()


def test_a_higher_threshold_leaves_qmoes_share_of_zeros():
    w = low_bit.dequantise(low_bit.quantise_ternary(randn(1, 1, 64, 4096), threshold=1.97))
    assert (w == 0).float().mean().item() == pytest.approx(0.885, abs=0.005)


def test_int4_loses_less_than_ternary_and_the_loss_is_reported():
    w = randn(2, 2, 16, 512)
    lost = {kind: low_bit.quantisation_error(w, quantise(w)) for kind, quantise in QUANTISE.items()}
    assert 0.10 < lost["int4"] < 0.17
    assert 0.40 < lost["ternary"] < 0.47


def test_packed_weights_take_the_bytes_that_the_cost_counts():
    w = randn(3, 1, 8, 256)
    for kind, quantise in QUANTISE.items():
        weights = quantise(w)
        held = sum(array.numel() * array.element_size() for array in weights[:2])
        assert held == low_bit.weight_bytes(8, 256, kind)
    assert low_bit.weight_bytes(8, 256, "int4") == 8 * 256 * 0.53125


def test_cost_reads_the_weights_of_experts_with_tokens_only():
    work = low_bit.grouped_gemm_low_bit_cost(torch.tensor([3, 0, 1]), 128, 256, "int4", "swiglu")
    assert work.flops == 2 * 4 * 128 * 256
    assert work.bytes == 2 * 128 * 256 * 0.53125 + 4 * (256 + 64) * 2


@pytest.mark.parametrize("wrong", ["dtype", "width", "block", "activation", "experts"])
def test_what_does_not_fit_is_refused_in_a_sentence(wrong):
    weights = low_bit.quantise_int4(randn(4, 3 if wrong == "experts" else 2, 8, 64))
    order = sort_by_expert(torch.zeros(3, 1, dtype=torch.int64, device=DEVICE), 2, 8 if wrong == "block" else 16)
    x = torch.zeros(order.rows, 60 if wrong == "width" else 64, device=DEVICE)
    with pytest.raises(ValueError, match=r"give|sort by|one of"):
        low_bit.grouped_gemm_low_bit(
            x if wrong == "dtype" else x.bfloat16(),
            weights,
            order,
            activation="tanh" if wrong == "activation" else "none",
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: full sizes need one")
@pytest.mark.parametrize("kind", sorted(QUANTISE))
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_full_size(kind, block):
    chosen = torch.randint(0, 8, (1000, 2))
    check(kind, chosen, 8, 2 * 1408, 4096, block, "swiglu", False, 8)
    check(kind, chosen, 8, 4096, 1408, block, "none", True, 9)
