"""What a played step means."""

import json
from dataclasses import replace
from functools import lru_cache

import pytest

from moesim.cluster import load_cluster
from moesim.metrics import cost_per_million_tokens, measure, model_flops, peak_flops, play, steady_seconds
from moesim.model import Attention, DenseFfn, Layer, Model, load_model
from moesim.routing import parse_routing
from moesim.step.scenario import make_scenario
from moesim.step.times import stage_work
from moesim.strategy import Strategy, load_strategy
from moesim.workload import make_workload

# One layer, hidden 64, one head of 64, a feed-forward part of 64 and a vocabulary of 64.
TINY = Model(
    name="tiny", hidden=64, vocab=64, source="a test",
    layers=(Layer(attention=Attention(heads=1, kv_heads=1, head_dim=64, v_head_dim=64), ffn=DenseFfn(width=64)),),
)  # fmt: skip
SQUARE = 2 * 64 * 64  # FLOPs of one token through one 64 x 64 matrix
MATRICES = 4 + 3  # q, k, v, o; gate, up, down


@lru_cache
def scenario(kind, model="mixtral-8x7b", nodes=1, price=None, **sizes):
    cluster = replace(load_cluster("dgx-h100", nodes), gpu_hour_price=price)
    work = make_workload(kind, cluster.gpus, **sizes)
    chosen = TINY if model == "tiny" else load_model(model)
    return make_scenario(chosen, cluster, work, parse_routing("uniform"))


def test_training_flops_are_three_passes_over_matrices_head_and_attended_pairs():
    # 4 tokens attend to 1 + 2 + 3 + 4 keys, 2 x 2 x 64 FLOPs a pair
    one_pass = 4 * (MATRICES + 1) * SQUARE + 10 * 2 * 2 * 64
    assert model_flops(scenario("train", "tiny", global_batch=8, seq=4)) == 8 * 3 * one_pass


def test_prefill_computes_the_head_once_per_prompt():
    one_prompt = (4 * MATRICES + 1) * SQUARE + 10 * 2 * 2 * 64
    assert model_flops(scenario("prefill", "tiny", global_batch=8, isl=4)) == 8 * one_prompt


def test_a_decoded_token_attends_to_the_cache_and_itself():
    one_token = (MATRICES + 1) * SQUARE + 10 * 2 * 2 * 64  # 9 cached tokens and itself
    assert model_flops(scenario("decode", "tiny", global_batch=8, isl=9)) == 8 * one_token


def test_mfu_is_model_flops_over_the_peak_of_all_gpus():
    given = scenario("train", global_batch=64, seq=2048)
    found = measure(given, load_strategy("ep=8", 8), events=False)
    peak = 989.4e12  # H100 SXM data sheet, dense bf16
    assert peak_flops(given.cluster.gpu, given.workload) == pytest.approx(peak, rel=1e-3)
    assert found.metrics["mfu"] == pytest.approx(model_flops(given) / (8 * peak * found.step_s), rel=1e-3)
    assert 0 < found.metrics["mfu"] < 1


def test_recompute_lowers_mfu_because_its_flops_do_not_count():
    given = scenario("train", global_batch=64, seq=2048)
    plain, full = (measure(given, load_strategy(f"ep=8 recompute={how}", 8)) for how in ("none", "full"))
    assert full.metrics["mfu"] / plain.metrics["mfu"] == pytest.approx(plain.step_s / full.step_s)
    assert full.step_s > plain.step_s


def test_fp8_is_judged_by_the_fp8_peak():
    gpu = load_cluster("dgx-h100").gpu
    fp8 = make_workload("prefill", 8, dtype="fp8_block")
    assert peak_flops(gpu, fp8) == gpu.flops["fp8"] == pytest.approx(2 * gpu.flops["bf16"], rel=1e-2)
    without = replace(gpu, flops={"bf16": 1e12})
    assert peak_flops(without, fp8) == 1e12


def test_a_million_tokens_cost_the_gpus_for_the_time_they_take():
    # 8 GPUs at 4.50 an hour are 0.01 a second; a million tokens at 1000 a second take 1000 s
    assert cost_per_million_tokens(scenario("decode", price=4.5), 1000.0) == pytest.approx(10.0)


def test_without_a_price_there_is_no_cost():
    assert cost_per_million_tokens(scenario("decode"), 1000.0) is None
    found = measure(scenario("decode"), load_strategy("ep=8 micro_batch=128", 8), events=False)
    assert found.metrics["cost_per_million_tokens"] is None
    assert found.interval["cost_per_million_tokens"] is None


@pytest.mark.parametrize(("kind", "time"), [("train", "step_time_s"), ("prefill", "ttft_s"), ("decode", "tpot_s")])
def test_each_workload_names_its_time(kind, time):
    given = scenario(kind, price=4.5)
    found = measure(given, load_strategy("ep=8", 8), events=False)
    assert found.metrics[time] == found.step_s
    assert len({"step_time_s", "ttft_s", "tpot_s"} & found.metrics.keys()) == 1
    speed = found.metrics["tokens_per_s"]
    assert speed == pytest.approx(given.workload.tokens / found.step_s)
    assert found.metrics["tokens_per_s_per_gpu"] == pytest.approx(speed / 8)
    assert found.metrics["cost_per_million_tokens"] == pytest.approx(1e4 / speed)


def test_prefill_batches_follow_one_another_through_the_stages():
    # throughput is set by the fullest stage alone; the first token waits for all of them
    given = scenario("prefill", batch=4, isl=2048)
    one = play(given, load_strategy("pp=4 ep=2", 8), events=False)
    busiest = stage_work(one.passes, one.times, one.passes.micro_batches).max()
    assert steady_seconds(given, one) == busiest < one.step_s
    found = measure(given, load_strategy("pp=4 ep=2", 8), events=False)
    assert found.metrics["tokens_per_s"] == pytest.approx(given.workload.tokens / busiest)
    assert found.metrics["ttft_s"] == one.step_s


def test_bands_enclose_every_time_and_speed():
    found = measure(scenario("train", price=4.5, global_batch=64, seq=2048), load_strategy("ep=8", 8))
    assert found.interval.keys() >= {"step_time_s", "tokens_per_s", "mfu", "cost_per_million_tokens"}
    for name, (low, high) in found.interval.items():
        assert low < found.metrics[name] < high
        if name == "mfu":  # no more than the peak
            assert high <= 1.0
        else:
            assert found.metrics[name] / low == pytest.approx(high / found.metrics[name])


def test_what_does_not_fit_is_measured_and_marked():
    found = measure(scenario("decode", batch=1), Strategy(dp=8), events=False)  # all experts on every GPU
    assert found.infeasible == "does not fit in GPU memory"
    assert found.metrics["memory_bytes_per_gpu"] > 80e9
    fits = measure(scenario("decode", batch=1), load_strategy("ep=8", 8), events=False)
    assert fits.infeasible is None


def test_a_model_without_experts_is_balanced():
    found = measure(scenario("decode", "llama-3.1-8b", batch=64), load_strategy("micro_batch=64", 8), events=False)
    assert found.metrics["imbalance"] == 1.0
    assert found.dropped_share == found.padding_share == 0.0
    assert found.metrics["exposed_comm_fraction"] == 0.0  # eight GPUs that share nothing


def test_a_result_is_json_and_one_row():
    found = measure(scenario("train", global_batch=64, seq=2048), load_strategy("ep=8", 8), events=False)
    again = json.loads(json.dumps(found.to_dict()))
    assert load_strategy(again["strategy"], 8) == found.strategy
    assert again["metrics"] == found.metrics
    assert again["bound_s"] <= again["metrics"]["step_time_s"]
    assert sum(again["basis"].values()) == pytest.approx(1.0)
    assert found.to_frame().shape == (1, len(again["strategy"]) + len(again["metrics"]))


def test_simulation_by_events_and_by_list_mean_the_same():
    given, strategy = scenario("train", global_batch=64, seq=2048), load_strategy("ep=4 pp=2 chunks=2", 8)
    one, other = (measure(given, strategy, events=events) for events in (True, False))
    assert one.step_s == pytest.approx(other.step_s, rel=1e-9)
    assert one.bound_s == pytest.approx(other.bound_s, rel=1e-12)
