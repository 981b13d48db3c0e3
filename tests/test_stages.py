"""Which part of the model holds which layers, and which stage which parts."""

from hypothesis import given
from hypothesis import strategies as st

from moesim.model import load_model
from moesim.stages import layers_per_part, part_layers, parts_on_stages


def test_layers_divide_evenly_where_they_can():
    assert layers_per_part(8, 4) == (2, 2, 2, 2)
    assert layers_per_part(5, 1) == (5,)


def test_the_ends_are_the_last_to_get_one_more():
    assert layers_per_part(7, 3) == (2, 3, 2)
    assert layers_per_part(8, 3) == (3, 3, 2)
    assert layers_per_part(6, 4) == (1, 2, 2, 1)


def test_stages_hold_consecutive_layers():
    assert part_layers(load_model("mixtral-8x7b"), 3) == [range(0, 11), range(11, 22), range(22, 32)]


def test_chunk_c_of_stage_s_is_part_c_p_plus_s():
    # 3 stages of 2 parts: 0 and 3, 1 and 4, 2 and 5
    assert parts_on_stages("interleaved", 3, 2).tolist() == [
        [1, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 1, 0, 0, 1],
    ]


def test_both_directions_of_dualpipe_meet_in_the_middle():
    assert parts_on_stages("dualpipe", 4, 1).tolist() == [
        [1, 0, 0, 1],
        [0, 1, 1, 0],
        [0, 1, 1, 0],
        [1, 0, 0, 1],
    ]
    assert parts_on_stages("1f1b", 2, 1).tolist() == [[1, 0], [0, 1]]


@given(st.integers(1, 200), st.integers(1, 64))
def test_no_layer_is_lost_and_no_stage_holds_two_more_than_another(layers, stages):
    split = layers_per_part(layers, stages)
    assert len(split) == stages
    assert sum(split) == layers
    assert max(split) - min(split) <= 1
    assert split[-1] <= split[0] <= max(split)
