"""The experts and weights of the router, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.kernels import common, router

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIFTY = settings(max_examples=50, deadline=None, derandomize=True)
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 4), st.integers(1, 9), st.integers(0, 10**6))


def logits(tokens: int, experts: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (2 * torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed))).to(DEVICE, dtype)


def bias(experts: int, seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(experts, generator=torch.Generator().manual_seed(seed + 1)).to(DEVICE)


def nearly_ties(values_TN: torch.Tensor, biased: bool) -> torch.Tensor:
    """Rows in which float64 tells two values apart and fp32 may not."""
    ascending = values_TN.sort(dim=1).values
    gap = ascending.diff(dim=1)
    return ((gap > 0) & (gap < 1e-6 * ascending[:, 1:].abs() + 1e-7 * biased)).any(1)


def assert_routes_as_reference(route, reference, logits_TE: torch.Tensor, *shape: int, **options) -> torch.Tensor:
    """The same experts in the same order wherever fp32 can tell them apart, and their weights; returns experts_TK."""
    weights_TK, experts_TK = route(logits_TE, *shape, **options)
    expected_TK, expected_experts_TK = reference(logits_TE, *shape, **options)
    assert (weights_TK.dtype, experts_TK.dtype) == (torch.float32, torch.int32)
    score, bias_E = options["score"], options.get("bias_E")
    choice_TE = logits_TE.double().softmax(1) if score == "softmax" else logits_TE.double().sigmoid()
    choice_TE = choice_TE if bias_E is None else choice_TE + bias_E
    best_TGS = choice_TE.unflatten(1, (options.get("groups", 1), -1)).sort(dim=2, descending=True).values
    groups_tie = nearly_ties(best_TGS[:, :, : options.get("group_top", 2)].sum(2), bias_E is not None)
    certain = ~nearly_ties(choice_TE, bias_E is not None) & ~groups_tie
    assert torch.equal(experts_TK[certain], expected_experts_TK[certain])
    assert common.relative_error(weights_TK[certain], expected_TK[certain]) < 1e-5
    assert bool((experts_TK.sort(dim=1).values.diff(dim=1) > 0).all())
    return experts_TK


@FIFTY
@given(SHAPES, st.sampled_from(router.SCORES), st.booleans(), st.booleans(), st.data())
def test_the_router_chooses_and_weighs_as_float64_does(shape, score, biased, renormalise, data):
    tokens, groups, size, seed = shape
    experts = groups * size
    top_k = data.draw(st.integers(1, experts))
    bias_E = bias(experts, seed) if biased else None
    options = {"score": score, "renormalise": renormalise, "scale": 2.5, "bias_E": bias_E}
    assert_routes_as_reference(router.router, router.router_reference, logits(tokens, experts, seed), top_k, **options)


@FIFTY
@given(SHAPES, st.sampled_from(router.SCORES), st.booleans(), st.data())
def test_group_limited_routing_stays_in_the_best_groups(shape, score, biased, data):
    tokens, groups, size, seed = shape
    kept = data.draw(st.integers(1, groups))
    top_k = data.draw(st.integers(1, kept * size))
    logits_TE = logits(tokens, groups * size, seed)
    options = {
        "score": score, "groups": groups, "groups_kept": kept, "group_top": data.draw(st.integers(1, min(2, size))),
        "bias_E": bias(groups * size, seed) if biased else None,
    }  # fmt: skip
    experts_TK = assert_routes_as_reference(router.router, router.router_reference, logits_TE, top_k, **options)
    assert max(len(set(row)) for row in (experts_TK // size).tolist()) <= kept


@FIFTY
@given(SHAPES, st.sampled_from(router.SCORES), st.booleans(), st.data())
def test_grouped_routing_takes_as_many_from_each_group(shape, score, renormalise, data):
    tokens, groups, size, seed = shape
    each = data.draw(st.integers(1, size))
    logits_TE = logits(tokens, groups * size, seed, torch.bfloat16)  # which tie often: the lowest index wins
    experts_TK = assert_routes_as_reference(
        router.grouped_router, router.grouped_router_reference, logits_TE, groups * each, groups,
        score=score, renormalise=renormalise,
    )  # fmt: skip
    group_K = torch.arange(groups, device=DEVICE).repeat_interleave(each)
    assert torch.equal(experts_TK // size, group_K.int().expand(tokens, -1))


@pytest.mark.parametrize("experts", [1, 6, 8, 33])
def test_among_equal_scores_the_lowest_index_wins(experts):
    top_k = (experts + 1) // 2
    weights_TK, experts_TK = router.router(torch.zeros(5, experts, device=DEVICE), top_k)
    assert experts_TK.tolist() == [list(range(top_k))] * 5
    assert weights_TK.flatten().tolist() == pytest.approx([1 / top_k] * (5 * top_k))


def test_among_equal_groups_the_lowest_index_wins():
    logits_TE = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0]], device=DEVICE)
    assert router.router(logits_TE, 2, groups=3, groups_kept=2)[1].tolist() == [[1, 2]]
    assert router.grouped_router(logits_TE, 3, 3)[1].tolist() == [[1, 2, 4]]


def test_a_bias_changes_the_choice_but_not_the_weight():
    logits_TE = torch.tensor([[2.0, 0.0, 1.0, -3.0]], device=DEVICE)
    bias_E = torch.tensor([0.0, 0.0, 0.0, 5.0], device=DEVICE)
    weights_TK, experts_TK = router.router(logits_TE, 2, score="sigmoid", bias_E=bias_E, renormalise=False)
    assert experts_TK.tolist() == [[3, 0]]
    assert weights_TK[0].tolist() == pytest.approx(torch.tensor([-3.0, 2.0]).sigmoid().tolist())


def test_a_group_is_as_good_as_its_two_best_and_in_v2_as_its_best():
    logits_TE = torch.tensor([[3.0, -9.0, 2.5, 2.5]], device=DEVICE)  # sigmoid: 0.953 + 0.000 against 0.924 + 0.924
    options = {"score": "sigmoid", "groups": 2, "groups_kept": 1}
    assert router.router(logits_TE, 1, **options)[1].tolist() == [[2]]
    assert router.router(logits_TE, 1, group_top=1, **options)[1].tolist() == [[0]]


def test_no_token_gives_no_choice():
    weights_TK, experts_TK = router.router(torch.zeros(0, 8, device=DEVICE), 2)
    assert weights_TK.shape == experts_TK.shape == (0, 2)


def test_renormalised_weights_sum_to_the_scale():
    weights_TK, _ = router.router(logits(9, 12, 3), 4, score="sigmoid", scale=2.5)
    assert weights_TK.sum(1).tolist() == pytest.approx([2.5] * 9)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"top_k": 9}, "top_k 9: a token can ask for 1 to 8"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_k": 5, "groups": 4, "groups_kept": 2}, "1 to 4 experts"),
        ({"top_k": 1, "groups": 3}, "1 of 3 groups of 8 experts"),
        ({"top_k": 1, "groups": 2, "groups_kept": 3}, "3 of 2 groups"),
        ({"top_k": 1, "groups": 8, "groups_kept": 2}, "judged by 2"),
        ({"top_k": 1, "group_top": 3}, "group_top 3"),
        ({"top_k": 1, "score": "tanh"}, "tanh"),
        ({"top_k": 1, "bias_E": torch.zeros(7)}, r"\(7,\)"),
    ],
)
def test_what_cannot_be_routed_is_refused(options, names):
    with pytest.raises(ValueError, match=names):
        router.router(torch.zeros(2, 8), **options)


def test_grouped_routing_needs_a_multiple_of_the_groups():
    with pytest.raises(ValueError, match="top_k 3 over 2 groups"):
        router.grouped_router(torch.zeros(2, 8), 3, 2)


def test_the_cost_is_the_logits_once_and_the_answers_once():
    work = router.router_cost(tokens=2, experts=8, top_k=2)
    assert work.bytes == 2 * 8 * 4 + 2 * 2 * 8
    assert work.flops == (4 + 2) * 16 + 2 * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: full sizes need one")
def test_a_full_batch_is_routed_as_float64_does():
    logits_TE = logits(16384, 256, 5)
    options = {"score": "sigmoid", "groups": 8, "groups_kept": 4, "bias_E": bias(256, 5)}
    assert_routes_as_reference(router.router, router.router_reference, logits_TE, 8, **options)
