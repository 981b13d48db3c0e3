"""The most loaded rank: who it is, what it carries, and that draws are repeatable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.costs import OPERATIONS
from moesim.costs.loads import DRAWS, heaviest_rank
from moesim.errors import MoesimError

LOADS = ["balanced", "uniform", "zipf:1", "lognormal:1", "power-law:1.2"]


def test_balanced_is_the_mean_of_every_expert():
    # 64 tokens x 2 choices over 8 experts: 16 each; rank 0 of 4 holds two
    assert heaviest_rank("balanced", 64, (8, 2, 4), seed=0).tolist() == [[16.0, 16.0]]


@given(load=st.sampled_from(LOADS), ep=st.sampled_from([1, 2, 8]), tokens=st.integers(16, 512), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_the_heaviest_rank_has_its_fair_share_at_least_and_no_token_twice(load, ep, tokens, seed):
    drawn = heaviest_rank(load, tokens, (16, 2, ep), seed)  # [draw, local expert]
    assert drawn.shape == (1 if load == "balanced" else DRAWS, 16 // ep)
    assert (drawn.sum(axis=1) >= tokens * 2 / ep - 1e-6).all()
    assert drawn.max() <= tokens


@pytest.mark.parametrize("load", LOADS[1:])
def test_draws_repeat_with_the_seed(load):
    again = [heaviest_rank.__wrapped__(load, 256, (32, 4, 8), seed) for seed in (3, 3, 4)]
    assert np.array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])


def test_all_tokens_are_on_a_single_rank():
    assert (heaviest_rank("lognormal:1", 100, (8, 2, 1), 0).sum(axis=1) == 200).all()


def test_a_wider_distribution_makes_a_heavier_rank():
    narrow, wide = (heaviest_rank(f"lognormal:{s}", 4096, (64, 4, 8), 0).sum(axis=1).mean() for s in (0.2, 1.5))
    assert wide > 1.5 * narrow


@pytest.mark.parametrize("load", ["power-law:0", "power-law:x", "power-law:99", "zipf:-1", "lognormal", "even"])
def test_a_wrong_load_is_refused_by_its_text(load):
    with pytest.raises(MoesimError, match=r"give|write|choose|did you mean"):
        heaviest_rank(load, 64, (8, 2, 2), 0)


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=8), st.integers(0, 7), st.integers(1, 500))
@settings(max_examples=40, deadline=None)
def test_one_more_token_never_costs_less(tokens, which, more):
    before = OPERATIONS["expert-ffn"](gpu="H200", hidden=4096, ffn=1536, tokens_per_expert=tokens)
    tokens[which % len(tokens)] += more
    after = OPERATIONS["expert-ffn"](gpu="H200", hidden=4096, ffn=1536, tokens_per_expert=tokens)
    assert float(after.seconds) >= float(before.seconds) * (1 - 1e-9)
    assert float(after.bound_s) <= float(after.seconds)
