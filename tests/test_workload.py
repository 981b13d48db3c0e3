"""What arrives: defaults, options that do not apply, bad values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import MoesimError
from moesim.workload import WORKLOADS, make_workload


def shape(work):
    return work.sequences, work.queries, work.past


def test_training_is_2048_sequences_of_4096_tokens():
    work = make_workload("train", 16)
    assert shape(work) == (2048, 4096, 0)
    assert work.trains
    assert work.dtype == "bf16"
    assert work.tokens == 8_388_608  # the same on any number of GPUs
    assert shape(make_workload("train", 256)) == (2048, 4096, 0)


def test_prefill_is_4096_tokens_per_gpu():
    assert shape(make_workload("prefill", 16)) == (16, 4096, 0)
    assert shape(make_workload("prefill", 16, isl=1024)) == (64, 1024, 0)


def test_a_prompt_longer_than_all_gpus_share_is_one_prompt():
    assert shape(make_workload("prefill", 2, isl=100_000)) == (1, 100_000, 0)


def test_decode_is_128_sequences_per_gpu_at_4096_tokens():
    work = make_workload("decode", 16)
    assert shape(work) == (2048, 1, 4096)
    assert work.tokens == 2048  # one new token each
    assert not work.trains


def test_decode_is_played_half_way_through_its_output():
    assert make_workload("decode", 8, isl=1000, osl=100).past == 1050
    assert make_workload("decode", 8, isl=1000, osl=0).past == 1000


def test_batch_is_per_gpu_and_global_batch_is_not():
    assert make_workload("decode", 8, batch=3).sequences == 24
    assert make_workload("decode", 8, global_batch=3).sequences == 3
    assert make_workload("train", 8, batch=0.5, seq=10).tokens == 40


def test_a_small_batch_is_one_sequence_at_least():
    assert make_workload("decode", 8, batch=0.01).sequences == 1


@pytest.mark.parametrize(
    ("kind", "option"),
    [("train", "isl"), ("train", "osl"), ("prefill", "seq"), ("prefill", "osl"), ("decode", "seq")],
)
def test_an_option_of_another_workload_is_refused(kind, option):
    with pytest.raises(MoesimError, match=f"--{option} 64 does not apply to a {kind} workload"):
        make_workload(kind, 8, **{option: 64})


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("training", {}, "unknown workload 'training'"),
        ("train", {"dtype": "int4"}, "unknown dtype for train 'int4'"),
        ("decode", {"dtype": "fp7"}, "unknown dtype for decode 'fp7'"),
        ("train", {"seq": 0}, "--seq is 0"),
        ("prefill", {"isl": -5}, "--isl is -5"),
        ("decode", {"osl": -1}, "--osl is -1"),
        ("train", {"global_batch": 0}, "workload has 0 sequences"),
        ("train", {"batch": 0}, "--batch is 0"),
        ("decode", {"batch": -1}, "--batch is -1"),
        ("decode", {"batch": float("nan")}, "--batch is nan"),
        ("decode", {"batch": float("inf")}, "--batch is inf"),
        ("decode", {"batch": 2, "global_batch": 8}, "both --batch and --global-batch"),
    ],
)
def test_a_wrong_value_is_named(kind, options, said):
    with pytest.raises(MoesimError, match=said):
        make_workload(kind, 8, **options)


def test_serving_may_be_quantized():
    assert make_workload("decode", 8, dtype="int4").dtype == "int4"
    assert make_workload("train", 8, dtype="fp8_block").dtype == "fp8_block"


@given(st.sampled_from(WORKLOADS), st.integers(1, 4096), st.floats(1e-3, 1e3))
def test_new_tokens_are_sequences_times_queries(kind, gpus, batch):
    work = make_workload(kind, gpus, batch=batch)
    assert work.tokens == work.sequences * work.queries >= 1
    assert abs(work.sequences - batch * gpus) <= 1
    assert (work.past > 0) == (kind == "decode")
