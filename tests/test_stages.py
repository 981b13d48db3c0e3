"""Which part of the model holds which layers, and which stage which parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.model import load_model, with_mtp
from moesim.stages import (
    end_of,
    kinds_by_part,
    layers_on_stages,
    layers_per_part,
    part_layers,
    parts_on_stages,
    split_of,
)
from moesim.strategy import load_strategy
from moesim.workload import make_workload

DEEPSEEK = load_model("deepseek-v3")  # 61 layers and an MTP module


def test_layers_divide_evenly_where_they_can():
    assert layers_per_part(8, 4) == (2, 2, 2, 2)
    assert layers_per_part(5, 1) == (5,)


def test_the_ends_are_the_last_to_get_one_more():
    assert layers_per_part(7, 3) == (2, 3, 2)
    assert layers_per_part(8, 3) == (3, 3, 2)
    assert layers_per_part(6, 4) == (1, 2, 2, 1)


def test_a_last_part_that_does_more_has_fewer_layers():
    assert layers_per_part(8, 4, end=0.3) == (2, 2, 2, 2)  # 2.3 in the last part; 3 in another one without
    assert layers_per_part(8, 4, end=1.0) == (2, 2, 2, 2)  # 3 either way
    assert layers_per_part(9, 4, end=1.0) == (2, 3, 2, 2)
    assert layers_per_part(8, 4, end=2.0) == (2, 3, 2, 1)
    assert layers_per_part(8, 4, end=9.0) == (2, 3, 3, 0)


def test_deepseek_v3_is_laid_out_as_in_nvidias_recipe():
    # Megatron-Bridge, recipes/deepseek/deepseek_v3.py: "decoder" layers before "mtp" and "loss" in the last part
    def split(text, model=DEEPSEEK):
        return split_of(model, make_workload("train", 256), load_strategy(text, 256))

    assert split("pp=4") == (16, 16, 16, 13 + 1)
    assert split("pp=8") == split("pp=4 vp=2") == (*[8] * 7, 5 + 1)
    assert split("pp=16") == split("pp=4 vp=4") == split("pp=16 schedule=dualpipe") == (*[4] * 15, 1 + 1)
    assert split("pp=8 vp=4") == (*[2] * 31, 0)  # the head as long as both layers of another part
    assert split("pp=16", with_mtp(DEEPSEEK, 0)) == (3, *[4] * 14, 2)


def test_serving_divides_evenly():
    assert split_of(DEEPSEEK, make_workload("decode", 16), load_strategy("pp=4", 16)) == (15, 16, 15, 15)


def test_the_end_is_head_and_mtp_module_over_a_mean_layer():
    # matrix weights that a token meets, millions: head 927 twice, projection 103; layers 585 on average
    # and at 4,096 tokens 84 more of attention
    assert end_of(DEEPSEEK, 4096) == pytest.approx((2 * 927 + 103) / (585 + 84), rel=0.01)
    assert end_of(with_mtp(DEEPSEEK, 0), 4096) == pytest.approx(927 / (585 + 84), rel=0.01)


def test_mtp_layers_follow_the_last_layer():
    two = with_mtp(DEEPSEEK, 2)
    assert part_layers((31, 32)) == [range(31), range(31, 63)]
    assert two.layer(62) == two.layers[60]
    assert layers_on_stages((31, 32), 2, "1f1b") == (31, 32)
    _, counts = kinds_by_part(two, (31, 32))
    assert counts.tolist() == [[3, 0], [28, 32]]  # dense, MoE


def test_a_strategy_may_say_how_many_layers_each_part_has():
    work = make_workload("train", 16)
    assert split_of(DEEPSEEK, work, load_strategy("pp=2 layers=40,22", 16)) == (40, 22)


def test_stages_hold_consecutive_layers():
    assert part_layers((11, 11, 10)) == [range(0, 11), range(11, 22), range(22, 32)]


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


@given(st.integers(1, 60), st.integers(2, 16), st.floats(0, 12))
def test_no_other_last_part_makes_the_largest_part_smaller(layers, parts, end):
    split = layers_per_part(layers, parts, end)
    assert sum(split) == layers
    assert max(split[:-1]) - min(split[:-1]) <= 1
    largest = max(*split[:-1], split[-1] + end)
    for last in range(layers // parts + 1):
        assert largest <= max(last + end, -(-(layers - last) // (parts - 1)))
