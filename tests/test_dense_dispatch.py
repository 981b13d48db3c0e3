"""Dense einsums that put tokens in send order: FLOPs, masks, time, what cannot run, and the study about them."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cluster import load_cluster
from moesim.compute import Einsum, building_bytes, einsum_costs, einsum_flops, peak_flops
from moesim.memory import memory
from moesim.metrics import play
from moesim.model import load_model
from moesim.profile import load_profile
from moesim.routing import dispatch, parse_routing
from moesim.step import experts
from moesim.step.passes import backward_pass, forward_pass, pass_key, spread
from moesim.step.scenario import make_scenario
from moesim.strategy import load_strategy, why_not
from moesim.workload import make_workload

STUDIES = Path(__file__).resolve().parent.parent / "studies"


def scenario(**sizes):
    cluster = load_cluster("dgx-h100")
    return make_scenario(
        load_model("olmoe-1b-7b"), cluster, make_workload("train", 8, **sizes), parse_routing("uniform"), average=True
    )


def order_s(given_, text):
    """Seconds of what puts tokens in order: [forward, backward]."""
    key, layer = pass_key(given_, load_strategy(f"ep=8 capacity_factor=1 {text}", 8)), given_.model.layers[0]
    forward, backward = forward_pass(given_, layer, key), backward_pass(given_, layer, key, "none")
    names = ("route", "merge")
    return [sum(float(p.price(n + s).seconds.mean()) for n in names) for p, s in ((forward, ""), (backward, " grad"))]


def test_an_einsum_multiplies_every_token_with_every_slot():
    """T = 8 tokens, E = 4 experts of C = 2 slots, M = 10: 2 T E C M."""
    assert einsum_flops(Einsum(tokens=8, slots=4 * 2, row=10, top_k=1)) == 2 * 8 * 8 * 10


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 64))
def test_at_one_capacity_factor_the_flops_do_not_depend_on_experts_and_are_quadratic_in_tokens(tokens, top_k, row):
    def flops(many):
        return einsum_flops(Einsum(tokens=many, slots=top_k * many, row=row, top_k=top_k))

    assert flops(tokens) == 2 * top_k * tokens**2 * row
    assert flops(3 * tokens) == 9 * flops(tokens)


def test_forward_is_two_gemms_of_these_flops_and_backward_three():
    profile, one = load_profile(load_cluster("dgx-h100").gpu), Einsum(tokens=4096, slots=8192, row=2048, top_k=2)
    gemms = {
        backward: [
            each for way in ("dispatch", "combine") for each in einsum_costs(profile, one, way, backward=backward)[0]
        ]
        for backward in (False, True)
    }
    assert (len(gemms[False]), len(gemms[True])) == (2, 3)
    floor = einsum_flops(one) / peak_flops(profile.gpu, "bf16")
    for each in gemms[False] + gemms[True]:
        assert float(each.bound_s) == pytest.approx(floor, rel=1e-6)


def test_slots_come_in_fours():
    tokens = np.full((1, 1, 8), 5)
    assert dispatch(tokens, 2, 1.0).capacity == 5
    assert dispatch(tokens, 2, 1.0, 4).capacity == 8
    assert dispatch(tokens, 2, 1.0, 4).padding.sum() == 8 * 3


def test_einsums_take_longer_the_more_tokens_there_are_and_a_permute_does_not():
    """Twice the tokens: einsums near four times as long, a permute twice."""
    short, long = scenario(seq=4096, global_batch=8), scenario(seq=8192, global_batch=8)
    for way in (0, 1):
        dense = order_s(long, "permute=einsum")[way] / order_s(short, "permute=einsum")[way]
        sparse = order_s(long, "permute=sparse")[way] / order_s(short, "permute=sparse")[way]
        assert 3.0 < dense <= 4.2
        assert 1.5 < sparse < 2.1
        assert order_s(short, "permute=einsum")[way] > 2 * order_s(short, "permute=sparse")[way]


def test_masks_fill_memory_with_tokens_times_slots():
    """A layer keeps two bf16 masks of T x E C; while they are made: k fp32 products, their sum, a bool, a copy."""
    given_ = scenario(seq=1024, global_batch=8)
    found = [
        memory(given_.model, given_.workload, load_strategy(f"ep=8 capacity_factor=1 permute={how}", 8))
        for how in ("sparse", "einsum")
    ]
    slots = 8 * 1024
    assert found[1].activations - found[0].activations == 16 * 1024 * slots * 2 * 2
    assert (
        found[1].buffers - found[0].buffers
        == building_bytes(given_.model, 1024 * 1024)
        == 1024 * slots * (8 * 4 + 4 + 1 + 2)
    )


def test_einsums_change_nothing_of_what_travels_and_a_step_takes_longer():
    given_ = scenario(seq=2048, global_batch=64)
    strategies = [load_strategy(f"ep=8 capacity_factor=1.25 permute={how}", 8) for how in ("sparse", "einsum")]
    sent = [experts.load(given_, spread(given_, pass_key(given_, one))).copies.sum() for one in strategies]
    assert sent[0] == sent[1]
    assert play(given_, strategies[0], events=False).step_s < play(given_, strategies[1], events=False).step_s


@pytest.mark.parametrize("text", ["permute=einsum", "permute=einsum capacity_factor=1 all_to_all=deepep"])
def test_einsums_need_fixed_slots(text):
    given_ = scenario()
    assert "permute=einsum fills fixed slots" in why_not(
        given_.model, given_.cluster, given_.workload, load_strategy(f"ep=8 {text}", 8)
    )


def test_the_study_finds_what_its_docstring_says(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(STUDIES))
    monkeypatch.setattr(sys, "argv", ["dense_dispatch", "--quick", "--out", str(tmp_path)])
    import dense_dispatch

    dense_dispatch.main()
    sys.modules.pop("dense_dispatch", None)
    ratios = pd.read_csv(tmp_path / "dense_dispatch.csv").set_index("tokens")["ratio"]
    assert ratios.is_monotonic_increasing
    assert ratios[1024] < 1.3 < 8 < ratios[65536]
    masks = pd.read_csv(tmp_path / "dense_dispatch_memory.csv")
    assert (masks["gib"] / masks["tutel_gib"] - 1).between(-0.3, 0.0).all()
    gate = pd.read_csv(tmp_path / "dense_dispatch_gshard.csv")
    assert (gate["us"] / gate["gshard_roofline_us"] - 1).abs().max() < 0.025
    assert (tmp_path / "dense_dispatch.png").stat().st_size > 10_000
