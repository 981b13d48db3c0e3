"""Which rank holds which expert."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moesim.errors import MoesimError
from moesim.placement import PLACEMENTS, balanced, by_rank, contiguous


def test_contiguous_gives_each_rank_the_next_experts():
    assert contiguous(np.ones(6), 3).tolist() == [0, 0, 1, 1, 2, 2]


def test_balanced_pairs_the_heaviest_with_the_lightest():
    # 4 | 3 then 2 joins 3, and 1 fills the other: 5 and 5 where contiguous has 7 and 3
    owner = balanced(np.array([4.0, 3.0, 2.0, 1.0]), 2)
    assert owner.tolist() == [0, 1, 1, 0]
    assert by_rank(np.array([4, 3, 2, 1]), owner, 2).tolist() == [5, 5]


def test_a_full_rank_takes_no_more_though_it_is_the_lightest():
    # greedy without slots would leave 10 alone and put three experts on the other rank
    assert sorted(balanced(np.array([10.0, 1.0, 1.0, 1.0]), 2).tolist()) == [0, 0, 1, 1]


def test_where_greedy_would_be_worse_the_experts_stay():
    # greedy: 3 + 2 + 2 = 7 and 3 + 2 + 0 = 5; contiguous 3 + 3 + 0 and 2 + 2 + 2 is perfect
    load = np.array([3.0, 3.0, 0.0, 2.0, 2.0, 2.0])
    assert by_rank(load, balanced(load, 2), 2).tolist() == [6, 6]


def test_each_layer_is_placed_by_its_own_load():
    owner = balanced(np.array([[4.0, 3.0, 2.0, 1.0], [4.0, 1.0, 2.0, 3.0]]), 2)
    assert owner[0].tolist() == [0, 1, 1, 0]
    assert by_rank(np.array([[4, 3, 2, 1], [4, 1, 2, 3]]), owner, 2).tolist() == [[5, 5], [5, 5]]


@settings(deadline=None)
@given(
    arrays(np.float64, (3, 12), elements=st.floats(0, 1000, allow_subnormal=False)),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
    st.sampled_from(sorted(PLACEMENTS)),
)
def test_every_rank_holds_as_many_experts_and_balanced_is_never_worse(load, ranks, name):
    owner = PLACEMENTS[name](load, ranks)
    assert owner.shape == load.shape
    for layer in owner:
        assert np.bincount(layer, minlength=ranks).tolist() == [12 // ranks] * ranks
    worst = by_rank(load, owner, ranks).max(axis=-1)
    assert (worst <= by_rank(load, contiguous(load, ranks), ranks).max(axis=-1)).all()


@settings(deadline=None)
@given(arrays(np.int64, (2, 3, 4), elements=st.integers(0, 9)))
def test_summing_by_rank_loses_no_token(tokens):
    on_rank = by_rank(tokens, np.array([1, 0, 1, 0]), 2)  # [draw, source, rank]
    assert on_rank[..., 0].tolist() == (tokens[..., 1] + tokens[..., 3]).tolist()
    assert (on_rank.sum(axis=-1) == tokens.sum(axis=-1)).all()


@pytest.mark.parametrize("place", PLACEMENTS.values())
def test_experts_that_do_not_divide_are_refused(place):
    with pytest.raises(MoesimError, match="8 experts do not divide over 3 ranks"):
        place(np.ones(8), 3)
