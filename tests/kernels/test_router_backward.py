"""The gradient of the router's weights, against float64 autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.kernels import common
from moesim.kernels.router import grouped_router, router
from moesim.kernels.router_backward import router_backward, router_backward_cost, router_backward_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIFTY = settings(max_examples=50, deadline=None, derandomize=True)


def case(tokens: int, experts: int, top_k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits_TE = 2 * torch.randn(tokens, experts, generator=draw)
    return logits_TE.to(DEVICE), torch.randn(tokens, top_k, generator=draw).to(DEVICE)


@FIFTY
@given(
    tokens=st.integers(1, 20), experts=st.integers(1, 70), top_k=st.integers(1, 8), seed=st.integers(0, 10**6),
    score=st.sampled_from(["softmax", "sigmoid"]), renormalise=st.booleans(),
)  # fmt: skip
def test_every_logit_gets_its_gradient(tokens, experts, top_k, seed, score, renormalise):
    top_k = min(top_k, experts)
    logits_TE, dweights_TK = case(tokens, experts, top_k, seed)
    _, experts_TK = router(logits_TE, top_k, score=score, renormalise=renormalise, scale=2.5)
    options = {"score": score, "renormalise": renormalise, "scale": 2.5}
    found = router_backward(logits_TE, experts_TK, dweights_TK, **options)
    expected = router_backward_reference(logits_TE, experts_TK, dweights_TK, **options)
    assert float((found.double() - expected).norm()) <= 1e-5 * (float(expected.norm()) + float(dweights_TK.norm()))


def test_a_grouped_choice_has_the_same_gradient():
    logits_TE, dweights_TK = case(9, 24, 4, 3)
    _, experts_TK = grouped_router(logits_TE, 4, 2)
    found = router_backward(logits_TE, experts_TK, dweights_TK)
    assert common.relative_error(found, router_backward_reference(logits_TE, experts_TK, dweights_TK)) < 1e-5


def test_renormalised_weights_do_not_feel_the_logits_of_others():
    logits_TE, dweights_TK = case(5, 16, 2, 7)
    _, experts_TK = router(logits_TE, 2)
    gradient = router_backward(logits_TE, experts_TK, dweights_TK)
    others = torch.ones_like(gradient).scatter(1, experts_TK.long(), 0.0)
    assert float((gradient * others).abs().max()) < 1e-6
    assert float(gradient.sum(1).abs().max()) < 1e-6


def test_a_wrong_score_is_refused():
    logits_TE, dweights_TK = case(2, 4, 2, 0)
    with pytest.raises(ValueError, match="tanh"):
        router_backward(logits_TE, torch.zeros(2, 2, dtype=torch.int32), dweights_TK, score="tanh")


def test_it_moves_each_logit_twice():
    assert router_backward_cost(10, 100, 2).bytes == 2 * 4 * 1000 + 8 * 20
