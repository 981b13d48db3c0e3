"""Context parallelism: keys and values gathered before the core, or sent around a ring while it runs."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import load_cluster
from moesim.collectives import point_to_point
from moesim.kv_slices import together_bytes
from moesim.metrics import measure
from moesim.model import kv_values, load_model
from moesim.planner import space
from moesim.player import play_batched
from moesim.program import LayerShape, backward_layer, forward_layer
from moesim.routing import parse_routing
from moesim.step import blocks, ring
from moesim.step.passes import forward_pass, pass_key
from moesim.step.scenario import make_scenario
from moesim.strategy import Strategy
from moesim.workload import make_workload

MIXTRAL = load_model("mixtral-8x7b")
LAYER = MIXTRAL.layers[0]


@lru_cache
def scenario(nodes=1, seq=32768, batch=16, kind="train"):
    cluster = load_cluster("dgx-h100", nodes)
    sizes = {"global_batch": batch, "seq": seq} if kind == "train" else {"batch": batch, "isl": seq}
    return make_scenario(MIXTRAL, cluster, make_workload(kind, cluster.gpus, **sizes), parse_routing("uniform"))


def end_s(program, seconds):
    return float(play_batched(program, {key: np.array([seconds.get(key, 0.0)]) for key in program.keys}))


def shape(steps, overlap="none"):
    return LayerShape(moe=False, ring=steps, overlap=overlap)


milliseconds = st.integers(0, 9)


@given(st.sampled_from([2, 3, 4, 8]), milliseconds, milliseconds, st.sampled_from(["none", "chunked"]))
def test_a_step_of_the_ring_takes_the_longer_of_its_core_and_the_next_slice(steps, core, send, overlap):
    program = forward_layer(shape(steps, overlap))
    assert end_s(program, {"core": core, "kv send": send}) == (steps - 1) * max(core, send) + core


@given(st.sampled_from([2, 3, 4, 8]), milliseconds, milliseconds, st.sampled_from(["none", "chunked"]))
def test_backward_the_gradients_follow_a_slice_and_come_home_last(steps, core, send, overlap):
    program = backward_layer(shape(steps, overlap), recompute="none")
    seconds = {"core grad": core, "kv send": send, "kv send grad": 2 * send}
    assert end_s(program, seconds) == 2 * max(core, send) + (steps - 2) * max(core, 2 * send)


def test_one_rank_exchanges_nothing_either_way():
    one = Strategy(dp=8, ep=8)
    assert measure(scenario(), one).step_s == measure(scenario(), replace(one, cp_exchange="ring")).step_s


def test_a_rank_of_four_sends_34_megabytes_to_the_next_one():
    group = pass_key(scenario(), Strategy(dp=2, cp=4, ep=8)).cp_group
    size = 8192 * 8 * (128 + 128) * 2  # tokens, heads, key and value
    expected = point_to_point(scenario().cluster, size, same_node=True).seconds
    assert ring.send(scenario(), LAYER.attention, group, tp=1, micro_batch=1, slices=1).seconds == expected


def test_a_ring_that_leaves_the_node_goes_at_the_hop_between_nodes():
    given_ = scenario(nodes=2)
    group = pass_key(given_, Strategy(cp=16, ep=8)).cp_group
    expected = point_to_point(given_.cluster, 2048 * 2048 * 2, same_node=False).seconds
    assert ring.send(given_, LAYER.attention, group, tp=1, micro_batch=1, slices=1).seconds == expected


def test_latent_attention_sends_keys_and_values_of_every_head():
    attention = load_model("deepseek-v3").layers[0].attention
    assert kv_values(attention, tp=1) == 128 * (192 + 128)
    assert kv_values(attention, tp=8) == 16 * (192 + 128)
    assert kv_values(LAYER.attention, tp=16) == 128 + 128  # a whole head


def test_the_steps_of_a_ring_are_the_core_and_the_sums_of_what_they_find():
    whole = float(blocks.core(scenario(), LAYER.attention, 1, 4, 1, "forward").seconds.sum())
    steps = 4 * float(ring.core_step(scenario(), LAYER.attention, 1, 4, 1, "forward").seconds.sum())
    moved = 3 * 3 * 8192 * 4096 * 2  # sums, values, tokens, heads x head_dim, bytes
    rate = scenario().cluster.gpu.memory_bytes_per_s
    assert moved / rate < steps - whole < 2 * moved / rate


def test_around_a_free_ring_only_the_core_takes_time():
    given_, chosen = scenario(), Strategy(dp=2, cp=4, ep=8, cp_exchange="ring")
    one = forward_pass(given_, LAYER, pass_key(given_, chosen))
    program, seconds = one.program, {key: float(one.price(key).slowest[0]) for key in one.program.keys}
    assert end_s(program, seconds | {"kv send": 0.0}) == pytest.approx(
        sum(seconds[op.key] for op in program if op.name != "kv send")
    )
    alone = end_s(program, {"kv send": seconds["kv send"]})
    assert alone == pytest.approx(3 * seconds["kv send"])


@pytest.mark.parametrize("cp", [2, 8])
def test_inside_a_node_a_ring_exposes_less_than_an_all_gather(cp):
    chosen = Strategy(dp=8 // cp, cp=cp, ep=8, recompute="full")
    gathers, rings = (
        measure(scenario(), replace(chosen, cp_exchange=name), events=False).breakdown.seconds["cp"]
        for name in ("all_gather", "ring")
    )
    assert rings < gathers


@settings(max_examples=20)
@given(st.sampled_from([2, 4, 8]), st.sampled_from([1, 2]), st.sampled_from(["train", "prefill"]))
def test_a_ring_holds_two_slices_and_an_all_gather_all_but_training_keeps_what_came(cp, tp, kind):
    given_ = scenario(kind=kind)
    chosen = Strategy(cp=cp, tp=tp)
    gathered, ring_ = (
        together_bytes(MIXTRAL, given_.workload, replace(chosen, cp_exchange=name)) for name in ("all_gather", "ring")
    )
    slices = {"prefill": 2, "train": max(4, cp)}[kind]
    assert ring_ * cp * (2 if kind == "train" else 1) == gathered * slices
    assert gathered == 32768 * 2048 / tp * 2 * (2 if kind == "train" else 1)


def test_the_planner_keeps_the_faster_exchange_of_a_layout():
    given_ = scenario(nodes=2, batch=64)
    inside, across = Strategy(dp=8, cp=2, ep=8), Strategy(tp=2, cp=8, ep=8)
    found = space(given_, [inside, across])
    assert {one.cp_exchange for one in found.frames if one.cp == 2} == {"ring"}
    assert {one.cp_exchange for one in found.frames if one.cp == 8} == {"all_gather"}
