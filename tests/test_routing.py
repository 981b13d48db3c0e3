"""Popularity, drawing and capacity."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cost import FloatArray
from moesim.errors import MoesimError
from moesim.placement import by_rank, contiguous
from moesim.routing import dispatch, draw_tokens, imbalance, inclusion, parse_routing, popularity
from moesim.routing.presets import ROUTINGS


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def lognormal(sigma: float, layers: int, experts: int, seed: int = 0) -> FloatArray:
    return popularity(parse_routing(f"lognormal:{sigma}"), layers, experts, rng(seed))


def test_a_uniform_token_picks_each_expert_with_chance_k_over_experts():
    assert (inclusion(np.full((3, 8), 1 / 8), 2) == 0.25).all()


def test_an_expert_that_every_token_wants_leaves_the_rest_to_the_others():
    # k p = 1.2, 0.4, 0.2, 0.2: the first is picked by everyone, 0.8 -> 1 is shared as 2 : 1 : 1
    assert inclusion(np.array([0.6, 0.2, 0.1, 0.1]), 2) == pytest.approx([1.0, 0.5, 0.25, 0.25])


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(8, 40), st.floats(0, 3), st.integers(0, 99))
def test_chances_sum_to_k_and_none_exceeds_one(top_k, experts, sigma, seed):
    chance = inclusion(lognormal(sigma, 4, experts, seed), top_k)
    assert chance.sum(axis=-1) == pytest.approx(top_k, rel=1e-12)
    assert (chance <= 1).all()
    assert (chance > 0).all()


def test_more_choices_than_experts_with_load_are_refused():
    with pytest.raises(MoesimError, match="cannot pick 3 different experts: only 2"):
        inclusion(np.array([0.5, 0.5, 0.0, 0.0]), 3)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(4, 24),
    st.integers(0, 300),
    st.integers(1, 5),
    st.floats(0, 3),
    st.integers(0, 99),
)
def test_every_source_sends_k_copies_of_each_token_and_no_expert_gets_one_twice(
    top_k, experts, tokens, ranks, sigma, seed
):
    drawn = draw_tokens(lognormal(sigma, 2, experts, seed), top_k, tokens, ranks, rng(seed))
    assert drawn.shape == (2, ranks, experts)
    assert (drawn.sum(axis=-1) == tokens * top_k).all()
    assert drawn.min() >= 0
    assert drawn.max() <= tokens


@pytest.mark.parametrize("text", ["uniform", "lognormal:1", "zipf:1.2", "zipf:3"])
def test_large_draws_keep_the_same_promises(text):
    drawn = draw_tokens(popularity(parse_routing(text), 2, 256, rng()), 8, 4096, 256, rng())
    assert (drawn.sum(axis=-1) == 8 * 4096).all()
    assert drawn.min() >= 0
    assert drawn.max() <= 4096


def test_experts_without_load_get_nothing_and_saturated_ones_everything():
    drawn = draw_tokens(np.array([[0.0, 0.6, 0.2, 0.2]]), 2, 100, 5, rng())
    assert (drawn[..., 0] == 0).all()
    assert (drawn[..., 1] == 100).all()


def counts_of_one_token(p: FloatArray, top_k: int, draws: int) -> FloatArray:
    return draw_tokens(p[None], top_k, 1, draws, rng(1))[0].astype(np.float64)


def test_skewed_tokens_pick_each_expert_with_its_chance():
    p = lognormal(1.0, 1, 16)[0]
    chance = inclusion(p, 4)
    seen = counts_of_one_token(p, 4, 40_000).mean(axis=0)
    assert np.abs(seen - chance).max() < 4 * 0.5 / np.sqrt(40_000)


def test_uniform_draws_agree_with_gumbel_top_k_in_every_pair():
    # the reference of the field: the k largest of log p + Gumbel noise
    noise = rng(2).gumbel(size=(40_000, 8))
    reference = (np.argsort(np.argsort(-noise, axis=-1), axis=-1) < 2).astype(np.float64)
    ours = counts_of_one_token(np.full(8, 1 / 8), 2, 40_000)
    assert np.abs(np.cov(ours.T) - np.cov(reference.T)).max() < 0.006


@pytest.mark.parametrize(
    ("experts", "top_k", "tokens", "ranks"), [(8, 2, 40, 8192), (8, 2, 4096, 9000), (256, 8, 4096, 1024)]
)
def test_counts_have_the_mean_and_variance_of_independent_tokens(experts, top_k, tokens, ranks):
    # every token picks the expert with chance pi, independently: mean T pi, variance T pi (1 - pi)
    p = lognormal(0.5, 1, experts)
    chance = inclusion(p, top_k)[0]
    drawn = draw_tokens(p, top_k, tokens, ranks, rng(3))[0]
    variance = tokens * chance * (1 - chance)
    error = np.abs(drawn.mean(axis=0) - tokens * chance) / np.sqrt(variance / len(drawn))
    assert error.max() < 4.5
    assert (drawn.var(axis=0) / np.maximum(variance, 0.01)).mean() == pytest.approx(1.0, abs=0.02)


def test_the_load_of_a_rank_varies_as_its_experts_together():
    # uniform, 2 of 8 experts on a rank: Var = 2 T pi (1-pi) + 2 T cov, cov = -pi (1-pi) / 7, so x 2 (1 - 1/7)
    drawn = draw_tokens(np.full((1, 8), 1 / 8), 2, 64, 8000, rng(4))[0]
    on_rank = by_rank(drawn, contiguous(np.ones(8), 4), 4)
    assert on_rank.var(axis=0).mean() == pytest.approx(64 * 0.25 * 0.75 * 2 * 6 / 7, rel=0.03)


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others():
    p = lognormal(1.0, 2, 16)
    first, again, other = (draw_tokens(p, 2, 100, 4, rng(seed)) for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("ranks", "sigma", "expected"),
    [(8, 0.5, 1.14), (8, 1, 1.36), (32, 0.5, 1.46), (32, 1, 2.36), (64, 1, 3.65), (256, 0.5, 3.72)],
)
def test_lognormal_skew_unbalances_the_ranks_as_known(ranks, sigma, expected):
    # 256 experts over 8 to 256 ranks; largest share of a rank over the mean, averaged over 20 x 58 layers
    shares = lognormal(sigma, 20 * 58, 256)
    seen = imbalance(by_rank(shares, contiguous(shares, ranks), ranks)).mean()
    assert seen == pytest.approx(expected, rel=0.03)


def test_drawn_tokens_are_as_unbalanced_as_their_popularity():
    # 32 ranks of 8 experts, top-8 without replacement: 2.36 +- 0.15 over 20 seeds
    seen = [
        imbalance(by_rank(draw_tokens(p, 8, 512, 32, rng(seed)).sum(axis=1), contiguous(p, 32), 32)).mean()
        for seed in range(20)
        for p in [lognormal(1.0, 10, 256, seed)]
    ]
    assert np.mean(seen) == pytest.approx(2.36, abs=0.15)


def test_every_layer_has_its_own_popular_experts():
    shares = popularity(parse_routing("zipf:1"), 10, 64, rng())
    assert len(set(shares.argmax(axis=-1))) > 1
    assert np.sort(shares[0]) == pytest.approx(np.sort(shares[1]))
    assert shares[0].max() == pytest.approx(64 * shares[0].min())


@pytest.mark.parametrize("text", ["uniform", "zipf:1.2", "lognormal:0.5", "gpt-oss-20b-mmlu", "gpt-oss-20b-polyglot"])
def test_a_label_can_be_typed_again_and_shares_sum_to_one(text):
    routing = parse_routing(text)
    assert parse_routing(routing.label).label == text
    assert popularity(routing, 24, 32, rng()).sum(axis=-1) == pytest.approx(1.0)
    assert routing.source


def test_the_shipped_histograms_are_skewed_in_their_own_ways():
    mmlu, polyglot = (parse_routing(f"gpt-oss-20b-{name}").load for name in ("mmlu", "polyglot"))
    assert mmlu is not None
    assert polyglot is not None
    assert mmlu.shape == polyglot.shape == (24, 32)
    assert imbalance(mmlu)[12] == pytest.approx(4.59, abs=0.01)
    assert imbalance(polyglot)[12] == pytest.approx(4.80, abs=0.01)
    assert set(ROUTINGS) >= {"uniform", "gpt-oss-20b-mmlu", "gpt-oss-20b-polyglot", "FILE"}


def test_measured_layers_start_again_when_the_model_has_more():
    shares = popularity(parse_routing("gpt-oss-20b-mmlu"), 26, 32, rng())
    assert (shares[24] == shares[0]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lognormal", "lognormal needs a number from 0 to 10"),
        ("zipf:-1", "zipf needs a number"),
        ("zipf:nan", "zipf needs a number"),
        ("lognormal:many", "write lognormal:1"),
        ("gpt-oss-20b-mmul", "did you mean gpt-oss-20b-mmlu"),
        ("x" * 3000, "unknown routing"),
        ("missing.csv", r"no routing file 'missing\.csv'"),
    ],
)
def test_a_wrong_routing_is_refused_in_one_line(text, message):
    with pytest.raises(MoesimError, match=message) as error:
        parse_routing(text)
    assert "\n" not in str(error.value)


def test_a_histogram_of_another_model_is_refused():
    with pytest.raises(MoesimError, match="has 32 experts a layer and the model 128"):
        popularity(parse_routing("gpt-oss-20b-mmlu"), 24, 128, rng())


def test_dropless_keeps_everything_and_pads_nothing():
    tokens = draw_tokens(lognormal(1.0, 1, 8), 2, 10, 4, rng())
    sent = dispatch(tokens, 2, None)
    assert (sent.tokens == tokens).all()
    assert sent.dropped_share == sent.padding_share == 0
    assert sent.capacity is None


def test_capacity_drops_what_is_over_and_pads_what_is_under():
    # 8 tokens, top-1, 4 experts: a fair share of 2, factor 1.5 gives 3 slots each
    sent = dispatch(np.array([[[5, 2, 1, 0]]]), 1, 1.5)
    assert sent.capacity == 3
    assert sent.tokens.tolist() == [[[3, 2, 1, 0]]]
    assert sent.dropped.tolist() == [[[2, 0, 0, 0]]]
    assert sent.padding.tolist() == [[[0, 1, 2, 3]]]
    assert sent.dropped_share == 0.25
    assert sent.padding_share == 0.5


def test_capacity_never_exceeds_the_tokens_of_a_rank():
    assert dispatch(np.array([[[4, 4, 0, 0]]]), 2, 100.0).capacity == 4


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(0, 50), st.floats(0.1, 8), st.integers(0, 99))
def test_tokens_in_are_tokens_kept_and_dropped(top_k, tokens, factor, seed):
    drawn = draw_tokens(lognormal(1.0, 2, 8, seed), top_k, tokens, 3, rng(seed))
    sent = dispatch(drawn, top_k, factor)
    assert (sent.tokens + sent.dropped == drawn).all()
    assert (sent.tokens + sent.padding == sent.capacity).all()
    assert min(sent.dropped.min(), sent.padding.min()) >= 0


def test_an_automatic_capacity_is_the_least_that_drops_nothing_and_may_have_a_cap():
    drawn = np.array([[[5, 1, 1, 1]], [[2, 2, 2, 2]]])  # 8 copies of 4 tokens: an equal share is 2
    free = dispatch(drawn, 2, 0.0)
    assert free.dropped.sum() == 0
    assert (free.tokens + free.padding).tolist() == [[[5] * 4], [[2] * 4]]
    capped = dispatch(drawn, 2, -1.5)  # at most 3
    assert (capped.tokens + capped.padding).tolist() == [[[3] * 4], [[2] * 4]]
    assert (int(capped.dropped.sum()), capped.capacity) == (2, 3)


def test_a_capacity_factor_without_a_number_is_refused():
    with pytest.raises(MoesimError, match="capacity factor nan is no number"):
        dispatch(np.array([[[1]]]), 1, float("nan"))


def test_imbalance_is_largest_over_mean():
    assert imbalance(np.array([[1, 1, 4], [2, 2, 2], [0, 0, 0]])).tolist() == [2.0, 1.0, 1.0]
