"""Experts in CPU memory and on SSD, by hand; tasks of unequal batches."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import api
from moesim.cli import main
from moesim.cluster import CLUSTERS
from moesim.elastic import StepModel, busiest, fit, share_gpus
from moesim.errors import MoesimError
from moesim.model import Attention, Experts, Layer, Model
from moesim.tiers import (
    TIERS,
    CacheRule,
    Needed,
    Tier,
    Tiers,
    early_s,
    fetch_s,
    keep,
    knee,
    needed,
    play_ring,
    split_parameters,
    steady_s,
    tiers_of,
    transfer_s,
    why_not,
)
from moesim.tiers.capacity import available
from moesim.units import GB


def gpt_moe(experts, layers=12, hidden=4096):
    """SE-MoE's GPT: hidden 4,096, 64 heads, an expert of width 4 h for every GPU in all 12 layers."""
    attention = Attention(heads=64, kv_heads=64, head_dim=hidden // 64, v_head_dim=hidden // 64)
    ffn = Experts(experts=experts, top_k=1, width=4 * hidden, gated=False)
    return Model(
        name=f"gpt-moe-{experts}", hidden=hidden, vocab=50304, tied_embeddings=True,
        layers=(Layer(attention=attention, ffn=ffn),) * layers, source="arXiv:2205.10034",
    )  # fmt: skip


def tier(capacity_bytes=1e12, bytes_per_s=1e9, start_s=0.0):
    return Tier(capacity_bytes=capacity_bytes, bytes_per_s=bytes_per_s, start_s=start_s, source="by hand")


# CPU memory at 10 bytes a second, SSD at 2
SLOW = Tiers(cpu=tier(bytes_per_s=10.0), ssd=tier(bytes_per_s=2.0))


# --- what fits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("experts", "published"), [(8, 13.9), (16, 26.8), (32, 52.6), (64, 104.1), (128, 207.2)])
def test_an_expert_for_every_gpu_in_all_layers_gives_the_published_sizes(experts, published):
    dense, sparse = split_parameters(gpt_moe(experts))
    assert sparse == 12 * experts * 8 * 4096**2
    assert round((dense + sparse) / 1e9, 1) == published


def test_each_tier_holds_its_states():
    # 1 dense and 10 expert parameters in 5 layers, half of the experts active
    assert needed(1.0, 10.0, 5, 0.5) == Needed(gpu=16.0 + 4.0 * 5.0 / 5, cpu=80.0, ssd=120.0)


def test_the_first_tier_that_is_too_small_is_named():
    there = available(100e9, Tiers(cpu=tier(100e9), ssd=tier(1e12)), gpus=2)
    assert there == Needed(gpu=0.94 * 200e9, cpu=200e9, ssd=2e12)
    assert why_not(Needed(1e9, 1e9, 1e9), there) is None
    assert why_not(Needed(1e9, 300e9, 9e12), there) == "CPU memory: 300 GB needed, 200 GB there"
    assert why_not(Needed(1e9, 1e9, 9e12), available(100e9, Tiers(cpu=tier()), 2)) == "SSD: 9,000 GB needed, 0 GB there"


def test_207_billion_parameters_fit_on_16_nodes_of_a100_only_with_the_tiers():
    dense, sparse = split_parameters(gpt_moe(128))
    cluster = CLUSTERS["dgx-a100"]
    there = available(cluster.gpu.memory_bytes, TIERS["dgx-a100"], 128)
    assert why_not(needed(dense, sparse, 12, 1.0), there) is None
    assert 16.0 * (dense + sparse) > 0.3 * there.gpu  # the states alone, without activations


# --- transfers --------------------------------------------------------------------------------------------------


def test_fused_transfers_start_once_and_move_the_same_bytes():
    cpu = tier(bytes_per_s=10.0, start_s=0.5)
    assert transfer_s(100.0, cpu) == 10.5
    assert transfer_s(100.0, cpu, launches=8) == 10.5 + 7 * 0.5


def test_a_miss_is_read_and_then_copied():
    assert fetch_s(100.0, 1.0, SLOW) == 10.0
    assert fetch_s(100.0, 0.5, SLOW) == 10.0 + 25.0
    assert fetch_s(100.0, 0.0, SLOW) == 10.0 + 50.0
    with pytest.raises(MoesimError, match="without an SSD"):
        fetch_s(100.0, 0.5, Tiers(cpu=tier()))


def test_a_layer_hides_its_fetch_from_the_knee_on():
    # 20 s of computing: 10 s of copying leave 10 s for reading, which is 20 of 100 bytes
    found = knee(100.0, 20.0, SLOW)
    assert found == 0.8
    assert steady_s(20.0, fetch_s(100.0, 0.8, SLOW), 0.0, 2) == 20.0
    assert steady_s(20.0, fetch_s(100.0, 0.7, SLOW), 0.0, 2) == 25.0
    assert knee(100.0, 9.0, SLOW) is None
    assert knee(100.0, 100.0, SLOW) == 0.0


@given(st.floats(1, 1e4), st.floats(0.1, 1e3), st.floats(0, 1), st.floats(0, 1))
def test_a_better_hit_rate_is_never_slower(size, layer_s, one, other):
    low, high = sorted((one, other))
    times = [steady_s(layer_s, fetch_s(size, hit, SLOW), 0.0, 2) for hit in (low, high)]
    assert times[0] >= times[1] >= layer_s
    least = knee(size, layer_s, SLOW)
    assert (least is not None and high >= least - 1e-9) == (times[1] <= layer_s * (1 + 1e-9))


def test_a_gate_that_speaks_early_hides_its_window():
    # ScMoE, fig. 13: blocking fetches add 80 % and 240 %; early ones take away 75 % and 25 % of that: 0.6 layers each
    for blocking, removed in ((0.8, 0.75), (2.4, 0.25)):
        assert early_s(1.0, blocking, 0.0) == pytest.approx(1.0 + blocking)
        assert early_s(1.0, blocking, 0.6) == pytest.approx(1.0 + blocking * (1.0 - removed))
    assert early_s(1.0, 0.5, 0.6) == 1.0


# --- ring slots -------------------------------------------------------------------------------------------------


def test_one_slot_waits_and_two_hide():
    # 3 s of computing, 2 s of fetching
    assert play_ring([3.0] * 8, [2.0] * 8, 1).layer_s == 5.0
    assert play_ring([3.0] * 8, [2.0] * 8, 2).layer_s == 3.0
    assert play_ring([3.0] * 8, [2.0] * 8, 2).end_s == 2.0 + 8 * 3.0
    assert play_ring([2.0] * 8, [3.0] * 8, 2).layer_s == 3.0


def test_dense_shards_come_over_another_link_at_the_same_time():
    assert play_ring([3.0] * 8, [2.0] * 8, 1, [2.5] * 8).layer_s == 5.5
    assert play_ring([3.0] * 8, [2.0] * 8, 2, [2.5] * 8).layer_s == 3.0
    assert play_ring([3.0] * 8, [2.0] * 8, 2, [4.0] * 8).layer_s == 4.0


@settings(max_examples=30)
@given(st.floats(0.1, 10), st.floats(0, 10), st.floats(0, 10), st.integers(1, 5))
def test_the_played_ring_is_the_closed_form(layer_s, fetched_s, gather_s, slots):
    played = play_ring([layer_s] * 24, [fetched_s] * 24, slots, [gather_s] * 24)
    assert played.layer_s == pytest.approx(steady_s(layer_s, fetched_s, gather_s, slots))


@settings(max_examples=20)
@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 5)), min_size=4, max_size=20), st.integers(1, 4))
def test_more_slots_are_never_slower(layers, slots):
    compute, fetch = zip(*layers, strict=True)
    fewer, more = play_ring(compute, fetch, slots), play_ring(compute, fetch, slots + 1)
    assert more.end_s <= fewer.end_s + 1e-9
    assert more.end_s >= max(sum(compute), sum(fetch)) - 1e-9


def test_slots_even_out_layers_whose_experts_were_on_ssd():
    # every fourth layer is fetched in 7 s, the others in 1 s: 2.5 s on average, less than 3 s of computing
    fetch = [7.0, 1.0, 1.0, 1.0] * 12
    times = [play_ring([3.0] * 48, fetch, slots).layer_s for slots in (1, 2, 4)]
    assert times[0] == 5.5
    assert times[0] > times[1] > times[2] == 3.0


# --- the cache --------------------------------------------------------------------------------------------------


def test_the_least_used_goes_and_is_written_back():
    # 1 is used twice, 2 once, so 3 replaces 2
    run = keep([[1, 2], [1], [3], [1]], slots=2)
    assert (run.hits, run.misses, run.writebacks) == (2, 3, 1)
    assert run.there == (1, 3)


def test_a_threshold_keeps_what_was_not_yet_used_often_enough():
    run = keep([[1], [2], [2], [1]], slots=1, rule=CacheRule(threshold=2.0))
    assert (run.hits, run.writebacks, run.there) == (1, 0, (1,))


def test_decay_forgets_what_was_hot():
    # 1 is hot for twenty steps, 2 and 3 then take turns: without decay 1 stays for good, with it 1 goes
    steps = [[1]] * 20 + [[2], [3]] * 6
    assert 1 in keep(steps, slots=2).there
    assert 1 not in keep(steps, slots=2, rule=CacheRule(beta=0.25)).there


def test_experts_that_are_all_used_push_each_other_out_unless_only_hotter_ones_come_in():
    steps = [range(10)] * 20
    assert keep(steps, slots=5).hit_rate == 0.0
    assert keep(steps, slots=5, rule=CacheRule(admission="hotter")).hit_rate == pytest.approx(0.5, abs=0.05)


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=6, unique=True), max_size=20), st.integers(0, 10),
    st.sampled_from(("always", "hotter")), st.sampled_from((1.0, 0.5)),
)  # fmt: skip
def test_every_request_is_a_hit_or_a_miss(steps, slots, admission, beta):
    run = keep(steps, slots, CacheRule(admission=admission, beta=beta))
    assert run.hits + run.misses == sum(map(len, steps))
    assert len(run.there) <= slots
    assert run.writebacks <= run.misses
    assert keep(steps, 10, start=range(10)).hit_rate == 1.0
    assert keep(steps, 0).hits == 0


def test_skewed_draws_hit_more_than_their_share_of_slots():
    rng = np.random.default_rng(0)
    popularity = 1.0 / np.arange(1, 101)
    steps = [rng.choice(100, 8, replace=False, p=popularity / popularity.sum()).tolist() for _ in range(300)]
    run = keep(steps, slots=20, rule=CacheRule(beta=0.5, period=50))
    assert 0.4 < run.hit_rate < 0.8


@pytest.mark.parametrize("wrong", [{"threshold": -1.0}, {"beta": 0.0}, {"period": 0}, {"admission": "hottest"}])
def test_impossible_rules_are_refused(wrong):
    with pytest.raises(MoesimError, match="cache"):
        CacheRule(**wrong)


# --- hardware ---------------------------------------------------------------------------------------------------


def test_a_cluster_without_a_preset_asks_for_numbers():
    with pytest.raises(MoesimError, match="no memory tiers are known for cluster pcie-a30"):
        tiers_of(CLUSTERS["pcie-a30"])
    found = tiers_of(CLUSTERS["pcie-a30"], cpu_bytes=64 * GB, cpu_bytes_per_s=20 * GB)
    assert found.ssd is None
    assert found.cpu.bytes_per_s == 20 * GB


def test_what_is_given_replaces_the_preset():
    found = tiers_of(CLUSTERS["dgx-h100"], cpu_bytes_per_s=50 * GB, ssd_bytes=0)
    assert found.cpu.capacity_bytes == TIERS["dgx-h100"].cpu.capacity_bytes
    assert (found.cpu.source, found.ssd) == ("given", None)
    with pytest.raises(MoesimError, match="bytes_per_s -1"):
        tiers_of(CLUSTERS["dgx-h100"], cpu_bytes_per_s=-1.0)
    with pytest.raises(MoesimError, match="size and a bandwidth"):
        tiers_of(CLUSTERS["pcie-a30"], cpu_bytes=1e9, cpu_bytes_per_s=1e9, ssd_bytes=1e12)


# --- a scenario -------------------------------------------------------------------------------------------------


def test_a_training_step_hides_what_a_decode_step_cannot():
    train = api.offload(api.scenario("mixtral-8x7b", "dgx-h100"), "ep=8 zero=3 micro_batch=2")
    decode = api.offload(api.scenario("mixtral-8x7b", "dgx-h100", workload="decode"), "ep=8")
    assert train.slowdown["forward"] == train.slowdown["backward"] == 1.0
    assert decode.slowdown["forward"] > 2.0
    assert train.expert_bytes == decode.expert_bytes == 3 * 4096 * 14336 * 2.0
    assert train.hit_rate == 1.0
    assert train.gather_s > 0.0 == decode.gather_s


def test_fewer_experts_in_cpu_memory_are_fewer_hits():
    asked = api.scenario("olmoe-1b-7b", "dgx-h100", workload="decode")
    rates = [api.offload(asked, "ep=8", cached=cached).hit_rate for cached in (0.0, 0.25, 0.75, 1.0)]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (0.0, 1.0)


def test_a_model_without_experts_is_refused():
    with pytest.raises(MoesimError, match="no experts"):
        api.offload(api.scenario("llama-3.1-8b", "dgx-h100"), "tp=1")


def test_the_command_says_what_fits_and_what_is_hidden(capsys):
    arguments = ["tiers", "olmoe-1b-7b", "--cluster", "dgx-h100", "-w", "prefill", "-s", "ep=8"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Hit rate 100.0%" in out
    assert "GPU memory saved" in out
    assert main([*arguments, "--cpu-memory", "1MB", "--cpu-bandwidth", "1GB/s", "--ssd", "0B", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["why_not"].startswith("CPU memory: ")
    assert main([*arguments, "--slots", "99"]) == 2
    assert "give 1 to 16" in capsys.readouterr().err


# --- elastic tasks ----------------------------------------------------------------------------------------------

TASKS = (512, 256, 128, 128)


def test_the_published_tasks_gain_18_per_cent_a_gpu():
    uneven, even = ([1] * 4, 62.6), ([4, 2, 1, 1], 74.0)
    steps = [(busiest(TASKS, gpus), sum(TASKS) / (sum(gpus) * rate)) for gpus, rate in (uneven, even)]
    assert [round(seconds, 2) for _, seconds in steps] == [4.09, 1.73]
    model = fit(*steps)
    assert model.per_sample_s == pytest.approx(6.15e-3, rel=1e-3)
    assert model.fixed_s == pytest.approx(0.94, abs=5e-3)
    gain = model.samples_per_s_per_gpu(TASKS, even[0]) / model.samples_per_s_per_gpu(TASKS, uneven[0])
    assert gain - 1.0 == pytest.approx(0.182, abs=5e-4)


def test_without_a_fixed_cost_balance_would_double_the_speed():
    model = StepModel(0.0, 1.0)
    gain = model.samples_per_s_per_gpu(TASKS, [4, 2, 1, 1]) / model.samples_per_s_per_gpu(TASKS, [1] * 4)
    assert gain == 2.0


def test_gpus_go_where_the_samples_are():
    assert share_gpus(TASKS, 8) == [4, 2, 1, 1]
    assert share_gpus(TASKS, 4) == [1, 1, 1, 1]
    with pytest.raises(MoesimError, match="4 tasks on 3 GPUs"):
        share_gpus(TASKS, 3)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=3), st.integers(0, 5))
def test_no_other_sharing_is_better(batches, more):
    gpus = len(batches) + more
    best = min(
        busiest(batches, split)
        for split in np.ndindex(*(gpus + 1,) * len(batches))
        if sum(split) == gpus and min(split) >= 1
    )
    assert busiest(batches, share_gpus(batches, gpus)) == best
