"""The expert layer equals its float64 reference in every dtype, under any routing."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.kernels import expert_ffn, fp8
from moesim.kernels.common import poisoned, relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIFTY = settings(max_examples=50, deadline=None, derandomize=True)
LIMITS = {"bf16": 1e-2, "fp8_block": 5e-2, "int4": 1e-2, "ternary": 1e-2}


def poisoned_empty(*shape, dtype=None, device=None):
    """What torch.empty gives, full of NaN or -1: an element that is read before it is written is seen."""
    return poisoned(shape if isinstance(shape[0], int) else shape[0], dtype or torch.float32, device)


def layer(tokens, experts, hidden, ffn, dtype, activation="swiglu", seed=0):
    """Tokens, experts and a generator for the rest."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    weights = expert_ffn.make_experts(experts, hidden, ffn, dtype, gated=activation == "swiglu", activation=activation,
                                      device=DEVICE, generator=generator)  # fmt: skip
    x_TH = torch.randn(tokens, hidden, generator=generator, device=DEVICE).bfloat16()
    return x_TH, weights, generator


def error(x_TH, weights, experts_TK, weights_TK, load=None):
    with mock.patch.object(torch, "empty", poisoned_empty):
        found = expert_ffn.expert_ffn(x_TH, weights, experts_TK, weights_TK, load=load)
    return relative_error(found, expert_ffn.expert_ffn_reference(x_TH, weights, experts_TK, weights_TK))


@st.composite
def routed(draw):
    """Shape, choices of any load (other ranks' experts among them), their weights."""
    tokens, experts = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    hidden, ffn = draw(st.sampled_from([72, 100, 130])), draw(st.sampled_from([40, 61, 136]))
    x_TH, weights, generator = layer(
        tokens, experts, hidden, ffn, draw(st.sampled_from(sorted(LIMITS))),
        draw(st.sampled_from(["swiglu", "swiglu", "relu", "gelu"])), draw(st.integers(0, 10**6)),
    )  # fmt: skip
    first, end = sorted([draw(st.integers(-1, experts - 1)), draw(st.integers(-1, experts - 1))])
    shape = tokens, draw(st.integers(1, 3))
    experts_TK = torch.randint(first, end + 1, shape, generator=generator, device=DEVICE)
    weights_TK = torch.rand(shape, generator=generator, device=DEVICE)
    return x_TH, weights, experts_TK, weights_TK


@FIFTY
@given(routed(), st.sampled_from([None, 20.0, 60.0, 1000.0]))
def test_the_layer_equals_its_reference_in_every_dtype_and_tile(case, load):
    assert error(*case, load) < LIMITS[case[1].dtype]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("routing", ["one token", "one expert has all"])
def test_the_loads_that_go_wrong_first(routing, dtype):
    tokens = 1 if routing == "one token" else 19
    x_TH, weights, _ = layer(tokens, 3, 128, 128, dtype)
    experts_TK = torch.full((tokens, 1), 2, device=DEVICE)
    assert error(x_TH, weights, experts_TK, torch.ones(tokens, 1, device=DEVICE)) < LIMITS[dtype]


def test_no_tokens_give_no_tokens():
    x_TH, weights, _ = layer(0, 3, 64, 64, "bf16")
    chosen = torch.zeros(0, 2, dtype=torch.int64, device=DEVICE)
    assert expert_ffn.expert_ffn(x_TH, weights, chosen, chosen.float()).shape == (0, 64)


def test_tokens_in_fp8_are_rounded_as_torch_rounds_them():
    x_RK = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.bfloat16)
    x_RK[:, 128:] *= 1e4
    x_RK[3] = 0.0
    (found, scale), (expected, wanted) = fp8.quantise_fp8_rows(x_RK), fp8.quantise_fp8_rows_reference(x_RK)
    assert torch.equal(scale, wanted)
    assert relative_error(fp8.dequantise_fp8_rows(found, scale), fp8.dequantise_fp8_rows(expected, wanted)) < 1e-3
    assert relative_error(fp8.dequantise_fp8_rows(found, scale), x_RK) < 0.03


def test_ragged_blocks_of_weights_in_fp8_lose_less_than_4_per_cent():
    w_ENK = torch.randn(2, 130, 200, generator=torch.Generator().manual_seed(0)).bfloat16()
    w_ENK[:, 128:] *= 100.0
    w8_ENK, scale_EIJ = fp8.quantise_fp8_blocks(w_ENK)
    assert scale_EIJ.shape == (2, 2, 2)
    assert relative_error(fp8.dequantise_fp8_blocks(w8_ENK, scale_EIJ)[:, :128], w_ENK[:, :128]) < 0.04


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("dtype 'fp4' is unknown", {"dtype": "fp4"}),
        ("swiglu has a gate", {"gated": False}),
        ("swiglu has a gate", {"activation": "gelu"}),
    ],
)
def test_experts_that_nobody_can_compute_are_refused(message, change):
    wanted = {"dtype": "bf16", "gated": True, "activation": "swiglu", **change}
    with pytest.raises(ValueError, match=message):
        expert_ffn.make_experts(2, 8, 8, wanted.pop("dtype"), device=DEVICE, **wanted)


def test_tokens_of_another_width_are_refused():
    x_TH, weights, _ = layer(2, 2, 16, 16, "bf16")
    chosen = torch.zeros(2, 1, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match=r"give bfloat16 tokens \[T, 16\]"):
        expert_ffn.expert_ffn(x_TH[:, :8], weights, chosen, chosen.float())


def test_the_cost_is_two_gemms_and_the_moving_of_tokens():
    counts_E = torch.tensor([3, 0, 1])  # of 2 tokens with 2 choices each
    work = expert_ffn.expert_ffn_cost(counts_E, 2, hidden=100, ffn=10, dtype="bf16", top_k=2)
    gemms = 4 * 2 * (20 * 100 + 100 * 10)
    assert work.flops == gemms + 2 * 4 * 100
    weights_bytes = 2 * 3 * 100 * 10 * 2
    assert weights_bytes < work.bytes < weights_bytes + 2 * (2 * 2 * 3 * 100 + 4 * (2 * 110)) + 100
    here = torch.tensor([1, 0, 1])  # the other two copies are on another rank
    assert expert_ffn.expert_ffn_cost(here, 2, 100, 10, "bf16", top_k=2).flops == work.flops / 2


@pytest.mark.parametrize("dtype", LIMITS)
def test_the_cost_of_weights_follows_their_bits(dtype):
    bits = {"bf16": 16.0, "fp8_block": 8.0, "int4": 4.25, "ternary": 2.0}[dtype]
    counts_E = torch.ones(4, dtype=torch.int64)
    values = 4 * 3 * 4096 * 1024
    found = expert_ffn.expert_ffn_cost(counts_E, 4, 4096, 1024, dtype).bytes / values * 8
    assert bits < found < 1.03 * bits


FULL = {"Mixtral 8x7B": (8192, 2, 8, 4096, 14336), "Qwen3-30B-A3B": (33, 8, 128, 2048, 768)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: full sizes need one")
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("model", FULL)
def test_full_sizes_are_right_and_a_cuda_graph_replays_them(model, dtype):
    tokens, top_k, experts, hidden, ffn = FULL[model]
    x_TH, weights, _ = layer(tokens, experts, hidden, ffn, dtype)
    experts_TK = torch.rand(tokens, experts, device=DEVICE).topk(top_k, dim=1).indices
    weights_TK = torch.rand(tokens, top_k, device=DEVICE)
    call = (x_TH, weights, experts_TK, weights_TK)
    eager = expert_ffn.expert_ffn(*call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = expert_ffn.expert_ffn(*call)
    graph.replay()
    assert torch.equal(captured, eager)
    few = slice(0, 64)
    expected = expert_ffn.expert_ffn_reference(x_TH[few], weights, experts_TK[few], weights_TK[few])
    assert relative_error(eager[few], expected) < LIMITS[dtype]
