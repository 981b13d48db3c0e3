"""The policy table of an expert layer: Table 4 of Tutel, the best way of each bucket, what a static choice loses."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import api
from moesim.adaptive import BUCKET, MoeLayer, Way, best_ways, capacities, possible, price, why_not
from moesim.adaptive.layer import copies_of, gather_group
from moesim.adaptive.price import _exchange, load_prices
from moesim.adaptive.volume import data_parallel, expert_data_parallel, expert_model_parallel, way
from moesim.cli import main
from moesim.cli.policy_command import read_factors
from moesim.cluster import Cluster, load_cluster
from moesim.errors import MoesimError
from moesim.model import Experts
from moesim.profile import load_profile
from moesim.step.contention import MOVING, NONE

A100 = load_cluster("dgx-a100", 8)
LOADS = tuple(float(factor) for factor in range(1, 9))


def layer(tokens=4096, width=2048, *, experts=16, hidden=2048, top_k=2, trains=True):
    """An expert layer of two matrices, as Tutel's are."""
    return MoeLayer(
        experts=Experts(experts=experts, top_k=top_k, width=width, gated=False), hidden=hidden,
        expert_parameters=2 * hidden * width, tokens=tokens, trains=trains,
    )  # fmt: skip


# --- Table 4 ----------------------------------------------------------------------------------------------------


def test_the_ways_cost_what_table_4_says():
    # 16 experts on 64 GPUs; a GPU sends 10 MB; all experts together are 320 MB, one is 20 MB
    assert [way(r, 10.0, 320.0, 16, 64) for r in (0, 1, 2, 4)] == [320.0, 30.0, 30.0, 40.0]


@given(st.floats(1, 1e9), st.floats(1, 1e9), st.integers(0, 6), st.integers(0, 6))
def test_r_0_1_and_w_over_e_are_dp_ep_dp_and_ep_mp(sent, parameters, log_experts, log_copies):
    experts, copies = 2**log_experts, 2**log_copies
    gpus = experts * copies
    assert way(0, sent, parameters, experts, gpus) == data_parallel(parameters)
    assert way(copies, sent, parameters, experts, gpus) == expert_model_parallel(sent, experts, gpus) == sent * copies
    if copies > 1:
        assert way(1, sent, parameters, experts, gpus) == expert_data_parallel(sent, parameters, experts)


@given(st.integers(1, 6), st.floats(1.0, 1e6))
def test_in_table_4_the_best_r_never_falls_when_tokens_do(log_copies, parameters):
    gpus = 16 * 2**log_copies
    rs = [0, *(2**i for i in range(log_copies + 1))]
    best = [min(rs, key=lambda r, c=sent: (way(r, c, parameters, 16, gpus), r)) for sent in np.geomspace(1e7, 1e-3, 40)]
    assert best == sorted(best)


def test_with_more_experts_than_gpus_a_token_is_sent_once():
    assert expert_model_parallel(10.0, 64, 8) == 10.0


# --- the layer --------------------------------------------------------------------------------------------------


def test_a_gpu_sends_every_expert_its_capacity_and_never_more_than_its_tokens():
    assert capacities(layer(tokens=4096), (1.0, 2.0, 100.0)).tolist() == [512.0, 1024.0, 4096.0]


def test_gpus_with_the_same_part_of_an_expert_gather_its_weights():
    assert copies_of(layer(), A100) == 4
    sizes = {r: gather_group(layer(), A100, r).size for r in (0, 1, 2, 4)}
    assert sizes == {0: 64, 1: 4, 2: 2, 4: 1}


def test_r_is_zero_or_divides_the_gpus_of_an_expert():
    ways, reasons = possible(layer(), A100)
    assert {one.r for one in ways} == {0, 1, 2, 4}
    assert {one.r for one in possible(layer(experts=128), A100)[0]} == {0, 1}
    assert "3dh needs pods" in next(iter(reasons))


def test_a_way_that_cannot_run_says_why():
    assert why_not(layer(width=2049), A100, Way(2, 1, "linear")) == "r does not divide the expert width"
    assert why_not(layer(experts=24), A100, Way(1, 1, "linear")) == "neither of experts and GPUs divides the other"
    huge = layer(width=2**20, experts=64)
    assert why_not(huge, A100, Way(0, 1, "none")) == "the gathered weights of one layer do not fit in GPU memory"


def test_r_times_the_tokens_are_r_times_the_bytes():
    one, two = (_exchange(layer(), A100, Way(r, 1, "linear"), np.array([8192.0]), "dispatch") for r in (1, 2))
    assert two.seconds.item() / one.seconds.item() == pytest.approx(2.0, rel=0.03)


def test_the_played_layer_is_the_sum_of_its_parts_without_chunks():
    found = load_prices(layer(trains=False), A100, load_profile(A100.gpu), [Way(1, 1, "linear")], np.array([512.0]))
    parts = {name: one.seconds.item() for name, one in found[0].parts.items()}
    assert found[0].seconds[0] == pytest.approx(parts["weights"] + 2 * parts["dispatch"] + parts["experts"])


def test_two_chunks_follow_the_closed_form(monkeypatch):
    monkeypatch.setattr(price, "beside", lambda *_: NONE)
    # n equal chunks on two streams: max(n (d + c), d + e + n c, d + n e + c, n d + e + c), weights before the first
    for chunks in (2, 4, 8):
        one = load_prices(
            layer(trains=False), A100, load_profile(A100.gpu), [Way(4, chunks, "linear")], np.array([2048.0])
        )[0]
        d, e = one.parts["dispatch"].seconds.item(), one.parts["experts"].seconds.item()
        closed = max(2 * chunks * d, d + e + chunks * d, 2 * d + chunks * e, chunks * d + e + d)
        assert one.seconds[0] == pytest.approx(closed)


def test_what_overlaps_slows_each_other_down_and_one_chunk_overlaps_nothing(monkeypatch):
    ways = [Way(4, chunks, "linear") for chunks in (1, 2, 8)]

    def seconds():
        found = load_prices(layer(), A100, load_profile(A100.gpu), ways, np.array([512.0, 2048.0]))
        return np.stack([one.seconds for one in found])

    real = seconds()
    monkeypatch.setattr(price, "beside", lambda *_: NONE)
    slower = real / seconds()
    assert slower[0].tolist() == [1.0, 1.0]
    assert (slower[1:] > 1.0).all()
    assert slower.max() < MOVING


def test_block_scaled_fp8_sends_half_the_bytes_there_and_all_of_them_home():
    way_, many = Way(1, 1, "linear"), np.array([8192.0])
    there, home, plain = (
        _exchange(replace(layer(), dtype=dtype), A100, way_, many, direction).seconds.item()
        for dtype, direction in (("fp8_block", "dispatch"), ("fp8_block", "combine"), ("bf16", "dispatch"))
    )
    assert home == plain
    assert there / home == pytest.approx((1 + 4 / 128) / 2, rel=0.03)


# --- the table --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large():
    """Tutel's fig. 12, "Large": 1,024 tokens a GPU, experts of width 32K, 16 experts on 64 GPUs."""
    return best_ways(layer(tokens=1024, width=32768), A100, LOADS)


@pytest.fixture(scope="module")
def base():
    """Tutel's fig. 12, "Base": 4,096 tokens, width 2K."""
    return best_ways(layer(), A100, LOADS)


def test_as_the_load_falls_weights_stay_and_tokens_move(base, large):
    # fig. 12: Base uses r = 0 and 1 only, Large moves tokens at every load and cuts its experts at the lower ones
    for found, rs in ((base, {0, 1}), (large, {1, 4})):
        best = [found.way(load).r for load in range(len(LOADS))]
        assert best == sorted(best, reverse=True)  # r never falls as the capacity factor does
        assert set(best) == rs


def test_no_static_choice_beats_the_table(base, large):
    for found in (base, large):
        assert found.regret.min() >= 0.0
        assert found.statics()["worst_regret"].min() >= 0.0
        assert found.to_frame()["static_regret"].min() >= 0.0
        assert found.regret[found.best_static] == found.statics()["regret"][0]


@settings(max_examples=10)
@given(
    st.sampled_from((256, 1024, 4096)), st.sampled_from((1024, 8192)), st.sampled_from((8, 16, 64, 128)),
    st.lists(st.floats(0.25, 8.0), min_size=1, max_size=5), st.sampled_from((("linear",), ("linear", "2dh"))),
)  # fmt: skip
def test_regret_is_never_negative(tokens, width, experts, factors, algorithms):
    found = best_ways(layer(tokens, width, experts=experts), A100, tuple(factors), algorithms=algorithms)
    assert found.regret.min() >= -1e-12
    assert (found.seconds > 0).all()
    assert found.bucket == tuple(int(rows // BUCKET) for rows in found.capacity)


def test_loads_of_one_bucket_share_a_way():
    found = best_ways(layer(tokens=512), A100, (1.0, 1.2, 1.4))
    assert found.bucket == (0, 0, 0)
    assert len(found.best) == 1
    assert len({found.way(load) for load in range(3)}) == 1


def test_one_gpu_has_nothing_to_exchange():
    found = best_ways(layer(experts=8, tokens=512), load_cluster("dgx-a100"), (1.0,))
    alone = best_ways(layer(experts=8, tokens=512), Cluster(
        name="one", gpu=A100.gpu, nodes=1, gpus_per_node=1, scale_up=A100.scale_up), (1.0,))  # fmt: skip
    assert alone.ways[0].parts["dispatch"].seconds.item() == 0.0
    assert found.ways[1].parts["dispatch"].seconds.item() > 0.0


def test_more_loads_than_rows_in_a_call_are_several_calls():
    many = best_ways(layer(tokens=65536, width=1024), A100, (8.0,), algorithms=("linear",))
    assert np.isfinite(many.seconds).all()


# --- what people type -------------------------------------------------------------------------------------------


def test_factors_are_a_range_or_a_list():
    assert read_factors("1:4") == (1.0, 2.0, 3.0, 4.0)
    assert read_factors("1:2:0.5") == (1.0, 1.5, 2.0)
    assert read_factors("1,1.25") == (1.0, 1.25)


@pytest.mark.parametrize("text", ["", "a", "4:1", "1:2:0", "1:1000", "1:2:3:x"])
def test_other_factors_are_refused(text):
    with pytest.raises(MoesimError, match="--capacity-factors"):
        read_factors(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["llama-3.1-8b"], "has no experts"),
        (["mixtral-8x7b", "--all-to-all", "deepep"], "unknown all-to-all of a policy"),
        (["mixtral-8x7b", "--capacity-factors", "-1"], "capacity factors"),
        (["mixtral-8x7b", "--tokens-per-gpu", "0"], "tokens 0"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(arguments, words, capsys):
    assert main(["policy", *arguments, "--cluster", "dgx-h100"]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_the_command_leaves_a_table_and_a_picture(tmp_path, capsys):
    arguments = [
        "policy",
        "olmoe-1b-7b",
        "--cluster",
        "dgx-h100",
        "--capacity-factors",
        "1,2,4",
        "--out",
        str(tmp_path),
    ]
    assert main(arguments) == 0
    assert "Best static choice: " in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        "policy.csv", "policy.json", "policy.png", "static.csv",
    }  # fmt: skip
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "policy.json").read_text())
    assert document["inputs"]["gpus"] == 8
    rows = next(iter(document["policy"].values()))
    assert rows["capacity_below"] - rows["capacity_from"] == document["bucket_rows"] == 128


def test_the_function_is_the_command():
    found = api.policy("olmoe-1b-7b", "dgx-h100", capacity_factors=(1.0,), algorithms=("linear",), trains=False)
    assert found.layer.hidden == 2048
    assert set(found.to_frame()["all_to_all"]) <= {"linear", "none"}
