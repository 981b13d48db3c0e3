"""Which pipeline stage holds which layers."""

from hypothesis import given
from hypothesis import strategies as st

from moesim.model import load_model
from moesim.stages import layers_per_stage, stage_layers


def test_layers_divide_evenly_where_they_can():
    assert layers_per_stage(8, 4) == (2, 2, 2, 2)
    assert layers_per_stage(5, 1) == (5,)


def test_the_ends_are_the_last_to_get_one_more():
    assert layers_per_stage(7, 3) == (2, 3, 2)
    assert layers_per_stage(8, 3) == (3, 3, 2)
    assert layers_per_stage(6, 4) == (1, 2, 2, 1)


def test_stages_hold_consecutive_layers():
    assert stage_layers(load_model("mixtral-8x7b"), 3) == [range(0, 11), range(11, 22), range(22, 32)]


@given(st.integers(1, 200), st.integers(1, 64))
def test_no_layer_is_lost_and_no_stage_holds_two_more_than_another(layers, stages):
    split = layers_per_stage(layers, stages)
    assert len(split) == stages
    assert sum(split) == layers
    assert max(split) - min(split) <= 1
    assert split[-1] <= split[0] <= max(split)
