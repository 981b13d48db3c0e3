"""A step of a strategy: where its seconds go, and what skewed routing does to it."""

from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from moesim.alltoall import sent_and_received
from moesim.cluster import load_cluster
from moesim.collectives import point_to_point
from moesim.errors import MoesimError
from moesim.metrics import measure
from moesim.model import load_model
from moesim.routing import draw_tokens, imbalance, parse_routing, popularity
from moesim.schedule import SCHEDULES
from moesim.step import experts
from moesim.step.ends import ends
from moesim.step.layers import bounded
from moesim.step.parts import part_passes
from moesim.step.passes import forward_pass, pass_key, spread
from moesim.step.play import passes_of, times_of
from moesim.step.scenario import make_scenario
from moesim.step.times import step_bound
from moesim.strategy import RECOMPUTE, ZERO_STAGES, Strategy, load_strategy, why_not
from moesim.workload import make_workload

SIZES = {
    "train": {"global_batch": 64, "seq": 2048},
    "prefill": {"batch": 4, "isl": 2048},
    "decode": {"batch": 16, "isl": 2048},
}


@lru_cache
def scenario(kind="train", model="mixtral-8x7b", nodes=2, routing="lognormal:1", seed=0, **sizes):
    cluster = load_cluster("dgx-h100", nodes)
    work = make_workload(kind, cluster.gpus, **(sizes or SIZES[kind]))
    return make_scenario(load_model(model), cluster, work, parse_routing(routing), seed=seed)


@pytest.mark.parametrize(
    ("nodes", "text", "inside"),
    [
        (2, "pp=4 ep=4", [True, False, True]),  # 4 GPUs a stage: 0-3 4-7 | 8-11 12-15
        (2, "pp=2 ep=8", [False]),
        (2, "pp=8 ep=2", [True, True, True, False, True, True, True]),
        (3, "pp=2 ep=4", [False]),  # 12 GPUs a stage: rank 0 sends to rank 12
    ],
)
def test_stages_send_over_nvlink_when_both_are_on_one_node(nodes, text, inside):
    given_ = scenario(nodes=nodes, global_batch=48, seq=2048)
    found = ends(given_, load_strategy(text, 8 * nodes)).send[:-1]
    size = 2048 * 4096 * 2.0  # one sequence of bf16 activations
    expected = [float(point_to_point(given_.cluster, size, same).seconds) for same in inside]
    assert [float(one.seconds.sum()) for one in found] == expected


# Strategies, priced.

DEGREES = (1, 2, 4, 8, 16)


@lru_cache
def layouts(kind, model, nodes):
    """Layouts that can run, pp at most 8."""
    given_, gpus = scenario(kind, model, nodes), 8 * nodes
    every = [
        Strategy(dp=gpus // (tp * cp * pp), tp=tp, cp=cp, pp=pp, ep=ep, etp=etp)
        for tp, cp, pp, ep, etp in product(DEGREES, repeat=5)
        if pp <= 8 and tp * cp * pp <= gpus
    ]
    return [one for one in every if reason(given_, one) is None]


def reason(given_, strategy):
    return why_not(given_.model, given_.cluster, given_.workload, strategy)


@st.composite
def configurations(draw):
    """The arguments of ``scenario``, and a strategy that can run in it."""
    kind = draw(st.sampled_from(["train", "prefill", "decode"]))
    model, nodes = draw(st.sampled_from(["mixtral-8x7b", "deepseek-v2-lite"])), draw(st.sampled_from([1, 2]))
    chunks, trains = draw(st.sampled_from([1, 1, 2, 4])), kind == "train"
    schedule = draw(st.sampled_from(sorted(SCHEDULES) if trains else ["1f1b"]))
    strategy = replace(
        draw(st.sampled_from(layouts(kind, model, nodes))),
        micro_batch=draw(st.sampled_from([1, 2, 4])),
        zero=draw(st.sampled_from(ZERO_STAGES)) if trains else 1,
        recompute=draw(st.sampled_from((*RECOMPUTE, "mla_up+moe", "core+mlp+shared_experts"))) if trains else "none",
        schedule=schedule,
        virtual=draw(st.sampled_from([2, 4])) if schedule == "interleaved" else 1,
        chunks=chunks,
        overlap="chunked" if chunks > 1 else draw(st.sampled_from(["none", "chunked"])),
        all_to_all=draw(st.sampled_from(["linear", "2dh", "ag_rs"])),
        placement=draw(st.sampled_from(["contiguous", "balanced"])),
        capacity_factor=draw(st.sampled_from([None, None, 1.0, 1.25])),
    )
    assume(reason(scenario(kind, model, nodes), strategy) is None)
    return (kind, model, nodes), strategy


def measured(where, strategy, events=False):
    try:
        return measure(scenario(*where), strategy, events=events)
    except MoesimError as error:
        if "outside" not in str(error):
            raise
        return reject()  # a kernel's shape that nobody measured


quick = settings(max_examples=60)


@quick
@given(configurations())
def test_where_the_seconds_go_adds_up_to_the_step(case):
    found = measured(*case)
    assert sum(found.breakdown.seconds.values()) == pytest.approx(found.step_s, rel=1e-9)
    assert all(seconds > 0 for seconds in found.breakdown.seconds.values())
    assert 0 <= found.metrics["exposed_comm_fraction"] <= 1
    assert sum(found.breakdown.basis) == pytest.approx(1.0)


@quick
@given(configurations())
def test_a_configuration_takes_no_less_than_its_bound(case):
    given_, strategy = scenario(*case[0]), case[1]
    step_s = measured(*case).step_s
    passes = passes_of(given_, strategy)
    floor = times_of(given_, strategy, part_passes(given_, strategy, bounded))
    assert 0 < float(step_bound(passes, floor, passes.micro_batches)) <= step_s * (1 + 1e-9)


@settings(max_examples=25)
@given(configurations())
def test_simpy_and_the_list_schedule_agree_on_a_configuration(case):
    assert measured(*case, events=True).step_s == pytest.approx(measured(*case).step_s, rel=1e-9)


# What routing does.


def load_of(given_, text):
    strategy = load_strategy(text, given_.cluster.gpus)
    return experts.load(given_, spread(given_, pass_key(given_, strategy)))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25, 4.0])
def test_tokens_in_are_tokens_kept_and_dropped(factor):
    # one sequence of 2048 tokens picks 2 experts per token, on each of 8 ranks
    found = load_of(scenario(), f"ep=8 capacity_factor={factor}")
    came = 8 * 2048 * 2
    kept = found.tokens.sum(axis=(1, 2))
    assert kept.max() <= came
    assert kept.mean() == pytest.approx(came * (1 - found.dropped_share))
    rows = found.by_expert.sum(axis=(1, 2))  # padding among them
    assert kept.sum() == pytest.approx(rows.sum() * (1 - found.padding_share))
    if factor <= 1:
        assert found.dropped_share > 0


def test_dropless_keeps_every_token():
    found = load_of(scenario(), "ep=8")
    assert found.dropped_share == found.padding_share == 0.0
    assert set(found.tokens.sum(axis=(1, 2))) == {8 * 2048 * 2}


@quick
@given(configurations())
def test_every_copy_that_is_sent_is_received_and_computed(case):
    given_, strategy = scenario(*case[0]), case[1]
    key = pass_key(given_, strategy)
    where = spread(given_, key)
    found = experts.load(given_, where)
    came = where.tokens * where.sources * given_.model.moe.top_k
    draws = len(found.tokens)
    kept = found.tokens.sum() / draws
    assert kept == pytest.approx(came * (1 - found.dropped_share), rel=1e-9)
    # sent over all sources = received over all ranks = rows that their experts compute
    np.testing.assert_allclose(found.copies.sum(axis=1), found.by_expert.sum(axis=-1), rtol=1e-9)
    assert found.copies.sum() == pytest.approx((kept * draws) / (1 - found.padding_share), rel=1e-9)
    if key.all_to_all != "none":
        traffic = experts._traffic(given_, where)
        assert traffic.pairs.ranks == strategy.ep
        sent, received = sent_and_received(traffic)
        np.testing.assert_allclose(sent.sum(axis=-1), received.sum(axis=-1), rtol=1e-9)


def test_the_same_seed_gives_the_same_result_and_another_seed_another_draw():
    strategy = load_strategy("ep=8 pp=2 chunks=2", 16)
    first, other = scenario(seed=1), scenario(seed=2)
    fresh = make_scenario(first.model, first.cluster, first.workload, first.routing, seed=1)
    assert measure(fresh, strategy).to_dict() == measure(first, strategy).to_dict()
    assert measure(other, strategy).step_s != measure(first, strategy).step_s
    assert not np.array_equal(load_of(other, "ep=8").tokens, load_of(first, "ep=8").tokens)


# Skew: DeepSeek-V3 over 32 ranks of 8 experts each; 58 MoE layers, 256 experts, 8 per token.

EP32 = load_strategy("ep=32", 32)


@lru_cache
def deepseek(routing, seed):
    return scenario("train", "deepseek-v3", 4, routing, seed, global_batch=32, seq=4096)


def expert_seconds(given_):
    """[draw] seconds of the slowest rank over those of the mean rank."""
    layer = given_.model.layers[-1]
    one = forward_pass(given_, layer, pass_key(given_, EP32)).price("experts")
    weights = experts.class_weights(32, one.seconds.shape[1])
    return one.slowest / (one.seconds @ weights)


@pytest.mark.parametrize("routing", ["lognormal:0.5", "lognormal:1", "zipf:0.5"])
def test_expert_time_grows_by_the_largest_load_over_the_mean(routing):
    for seed in range(3):
        given_ = deepseek(routing, seed)
        by_rank = load_of(given_, "ep=32").by_expert.sum(axis=-1)
        grown = by_rank.max(axis=-1) / by_rank.mean(axis=-1)
        np.testing.assert_allclose(expert_seconds(given_), grown, rtol=0.08)


def test_lognormal_1_makes_the_busiest_of_32_ranks_wait_2_36_times_as_long():
    # every layer of a model, 20 seeds: the mean over layers of max/mean
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shares = popularity(parse_routing("lognormal:1"), 58, 256, rng)
        tokens = draw_tokens(shares, 8, 4096, 32, rng).sum(axis=1)  # [layer, expert]
        found.append(imbalance(tokens.reshape(58, 32, 8).sum(axis=-1)).mean())
    assert np.mean(found) == pytest.approx(2.36, abs=0.15)


def test_four_layer_classes_stand_for_all_58_layers():
    found = [load_of(deepseek("lognormal:1", seed), "ep=32").imbalance for seed in range(20)]
    assert np.mean(found) == pytest.approx(2.36, abs=0.15)


def test_the_step_grows_by_no_more_than_the_experts():
    even = measure(deepseek("uniform", 0), EP32, events=False)
    for seed in range(3):
        skewed = measure(deepseek("lognormal:1", seed), EP32, events=False)
        growth = skewed.step_s / even.step_s
        assert 1 < growth <= skewed.metrics["imbalance"]
