"""Gradients of the expert layer: tokens, both weights, routing weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.kernels import expert_backward
from moesim.kernels.common import relative_error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ACTIVATIONS = ["swiglu", "relu", "gelu", "none"]
NAMES = ["x", "w13", "w2", "weights"]


def inputs(seed, tokens, top_k, experts, hidden, ffn, activation, here=None):
    """x_TH, w13, w2, experts_TK, weights_TK, noise_TH; the choices are drawn from the first ``here`` experts."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int, size: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * size).bfloat16().to(DEVICE)

    wide = ffn * 2 if activation == "swiglu" else ffn
    chosen = torch.randint(0, here or experts, (tokens, top_k), generator=generator).to(DEVICE)
    weights = torch.rand(tokens, top_k, generator=generator).to(DEVICE) + 0.1
    w13, w2 = randn(experts, wide, hidden, size=hidden**-0.5), randn(experts, hidden, ffn, size=ffn**-0.5)
    return randn(tokens, hidden), w13, w2, chosen, weights, randn(tokens, hidden)


def check(x, w13, w2, chosen, weights, noise, activation):
    """A loss that pulls y to zero, and noise: with noise alone the gradient of a weight may cancel out."""
    for leaf in (x, w13, w2, weights):
        leaf.requires_grad_()
    y = expert_backward.ExpertFfn.apply(x, w13, w2, chosen, weights, activation)
    size = y.detach().float().square().mean().sqrt()
    dy = (y.detach().float() + 0.5 * size * noise.float()).bfloat16()
    found = torch.autograd.grad(y, (x, w13, w2, weights), dy)
    expected = expert_backward.expert_ffn_backward_reference(x, w13, w2, chosen, weights, dy, activation)
    errors = {name: relative_error(a, b) for name, a, b in zip(NAMES, found, expected, strict=True)}
    assert max(errors.values()) < 1e-2, errors
    return found


@given(
    tokens=st.integers(1, 7), top_k=st.integers(1, 2), experts=st.integers(1, 2), hidden=st.integers(16, 60),
    ffn=st.integers(16, 40), activation=st.sampled_from(ACTIVATIONS), seed=st.integers(0, 2**20),
)  # fmt: skip
@settings(max_examples=50, deadline=None, derandomize=True)
def test_gradients_agree_with_float64_autograd(tokens, top_k, experts, hidden, ffn, activation, seed):
    check(*inputs(seed, tokens, top_k, experts, hidden, ffn, activation), activation)


def test_experts_without_tokens_get_exact_zeros():
    _, dw13, dw2, _ = check(*inputs(1, 9, 2, 5, 24, 16, "swiglu", here=2), "swiglu")
    assert dw13[:2].any()
    assert not dw13[2:].any()
    assert not dw2[2:].any()


def test_a_choice_on_another_rank_has_no_gradient_here():
    x, w13, w2, chosen, weights, noise = inputs(2, 6, 2, 3, 24, 16, "gelu")
    chosen[:, 1] = -1
    *_, dweights = check(x, w13, w2, chosen, weights, noise, "gelu")
    assert dweights[:, 0].all()
    assert not dweights[:, 1].any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activations_slope_at_zero_and_far_from_it(activation):
    h = torch.tensor([-30.0, -1.0, 0.0, 1.0, 30.0]).repeat(2, 1).bfloat16().double().requires_grad_()
    wide = torch.cat([h, torch.ones_like(h)], dim=1) if activation == "swiglu" else h
    expected = torch.autograd.grad(expert_backward.activate(wide, activation).sum(), h)[0]
    order = expert_backward.sort_by_expert(torch.zeros(2, 1, dtype=torch.int64, device=DEVICE), 1, 2)
    h_RN, da = wide.detach().bfloat16().to(DEVICE), torch.ones(2, 5, dtype=torch.bfloat16, device=DEVICE)
    saved = expert_backward.Saved(da, h_RN, da, da, torch.ones(2, 1, device=DEVICE), order, activation)
    dh, a, dweights = expert_backward.activation_backward(saved, da)
    assert relative_error(dh[:, :5].cpu(), expected) < 1e-2
    assert relative_error(a.cpu(), expert_backward.activate(wide.detach(), activation)) < 1e-2
    assert relative_error(dweights[:, 0].cpu(), a.double().sum(dim=1).cpu()) < 1e-2


def test_the_backward_pass_costs_twice_the_forward_gemms():
    work = expert_backward.expert_ffn_backward_cost(torch.tensor([4096, 4096]), 4096, 2048, 1024, top_k=2)
    assert work.flops == pytest.approx(2 * 2 * 8192 * 3 * 2048 * 1024, rel=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: full sizes need one")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_full_size(activation):
    check(*inputs(3, 2048, 2, 8, 2048, 1408, activation), activation)
