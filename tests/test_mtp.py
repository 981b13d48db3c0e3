"""Multi-token prediction in a training step: a layer, an input and a pass through the head more, in the last part."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

import moesim
from moesim.cli import main
from moesim.cluster import Group, load_cluster
from moesim.collectives import all_reduce
from moesim.errors import MoesimError
from moesim.metrics import measure, model_flops
from moesim.model import load_model, mtp_flops, mtp_parameters, parameters, training_flops, with_mtp
from moesim.routing import parse_routing
from moesim.step import outer
from moesim.step.ends import ends
from moesim.step.launches import with_gap
from moesim.step.layers import batched
from moesim.step.parts import head_seconds, kinds, layer_pass, part_passes
from moesim.step.passes import pass_key
from moesim.step.price import both
from moesim.step.scenario import make_scenario
from moesim.strategy import load_strategy
from moesim.tiers.capacity import split_parameters
from moesim.workload import make_workload

DEEPSEEK = load_model("deepseek-v3")
EVEN = "pp=4 ep=8 layers=15,16,15,15"


def with_modules(text, modules):
    """The strategy with as many more layers in its last part."""
    found = load_strategy(text, 32)
    return replace(found, layers=(*found.layers[:-1], found.layers[-1] + modules))


@lru_cache
def scenario(mtp=None, kind="train", model="deepseek-v3"):
    """Four nodes; all experts equally loaded, so that a layer is as long as the next one."""
    cluster = load_cluster("dgx-h200", 4)
    work = make_workload(kind, cluster.gpus, **({"global_batch": 64} if kind == "train" else {}))
    return make_scenario(load_model(model), cluster, work, parse_routing("uniform"), average=True, mtp=mtp)


@pytest.mark.parametrize("text", [EVEN, f"{EVEN} schedule=zero_bubble", f"{EVEN} schedule=dualpipe recompute=full"])
def test_the_last_part_has_one_layer_one_input_and_one_pass_through_the_head_more(text):
    strategy = load_strategy(text, 32)
    key, layer = pass_key(scenario(), strategy), DEEPSEEK.layers[-1]
    inputs = {
        b: both(outer.mtp_joint(scenario(), 1, 1, 1, b), outer.embedding(scenario(), 1, 1, 1, b)) for b in (False, True)
    }
    joint = {b: float(with_gap(scenario(), None, one).seconds.sum()) for b, one in inputs.items()}
    for kind in set(kinds(scenario(), strategy)) - {"pair"}:
        with_, without = (getattr(part_passes(scenario(n), with_modules(text, n), batched), kind) for n in (1, 0))
        np.testing.assert_allclose(with_[:-1], without[:-1], rtol=1e-9)
        passing = batched(layer_pass(scenario(), layer, key, strategy.recompute, kind))[0]
        head = head_seconds(scenario(0), strategy, kind)
        share = 1.0 if kind in ("forward", "backward") else 0.5
        more = passing + head + share * joint[kind != "forward"]
        np.testing.assert_allclose(with_[-1] - without[-1], more, rtol=1e-9)


def test_the_module_s_layer_is_paired_like_another_one():
    text = "pp=4 ep=8 layers=17,15,15,14 schedule=dualpipe"
    strategy = load_strategy(text, 32)
    with_, without = (part_passes(scenario(n), with_modules(text, n), batched).pair for n in (1, 0))
    key = pass_key(scenario(), strategy)
    paired = batched(layer_pass(scenario(), DEEPSEEK.layers[-1], key, "none", "pair"))[0]
    alone = batched(layer_pass(scenario(), DEEPSEEK.layers[2], key, "none", "backward"))[0]
    head = head_seconds(scenario(1), strategy, "forward") - head_seconds(scenario(0), strategy, "forward")
    # 14 of part 0's 17 layers had a partner, the three dense ones none; with the module one more has
    np.testing.assert_allclose(with_[-1] - without[-1], paired - alone + head, rtol=1e-9)


def test_a_second_module_costs_as_much_as_the_first():
    step = [part_passes(scenario(n), with_modules(EVEN, n), batched).forward[-1] for n in (0, 1, 2)]
    np.testing.assert_allclose(step[2] - step[1], step[1] - step[0], rtol=1e-9)


def test_flops_per_token_are_those_that_nvidia_counts():
    # DeepSeekV3 in Megatron-Bridge's tables: 259.8 to 260.4 GFLOP a token; "w/o MTP" 249.1 and 249.6
    for model, counted in ((DEEPSEEK, 260.1), (with_mtp(DEEPSEEK, 0), 249.4)):
        assert training_flops(model, 4096) / 4096 / 1e9 == pytest.approx(counted, rel=0.005)
    assert model_flops(scenario()) - model_flops(scenario(0)) == pytest.approx(64 * 3 * mtp_flops(DEEPSEEK, 4096))


def test_the_first_and_the_last_stage_sum_the_gradients_of_their_embeddings():
    def tie(text, mtp=None):
        return [float(one.seconds.sum()) for one in ends(scenario(mtp), load_strategy(text, 32)).tie]

    embedding = 4 * 129280 * 7168  # fp32
    both = float(all_reduce(scenario().cluster, Group(size=2, per_node=1), embedding).seconds)
    assert tie("pp=4 ep=8") == pytest.approx([both, 0, 0, both])
    assert tie("pp=4 ep=8", mtp=0) == [0, 0, 0, 0]  # embedding and head are two matrices
    assert tie("pp=4 ep=8 schedule=dualpipe") == [0, 0, 0, 0]  # both are on one stage
    assert tie("ep=8") == [0]


def test_where_the_time_goes_names_the_head():
    last = measure(scenario(), load_strategy("pp=4 ep=8 layers=16,16,15,15", 32), events=False)
    seconds = last.breakdown.seconds
    assert sum(seconds.values()) == pytest.approx(last.step_s)
    passes = sum(head_seconds(scenario(), last.strategy, kind) for kind in ("forward", "backward"))
    assert seconds["head"] == pytest.approx(8 * passes)  # 64 sequences over 8 ranks


def test_experts_outside_gpu_memory_are_those_of_the_module_too():
    dense, experts = split_parameters(DEEPSEEK)
    assert dense + experts == parameters(DEEPSEEK) + mtp_parameters(DEEPSEEK)
    assert experts == 59 * 256 * 3 * 7168 * 2048


def test_serving_has_no_module():
    assert scenario(kind="decode").model.mtp_layers == 0
    with pytest.raises(MoesimError, match="in a decode workload: they are for training"):
        scenario(1, "decode")


def test_the_choice_replaces_the_models_own():
    asked = {"workload": make_workload("train", 32, global_batch=64), "nodes": 4}
    assert moesim.scenario("deepseek-v3", "dgx-h200", **asked).model.mtp_layers == 1
    without = moesim.simulate("deepseek-v3", "dgx-h200", EVEN, mtp=0, **asked)
    assert without.scenario.model.mtp_layers == 0
    assert moesim.scenario("mixtral-8x7b", "dgx-h200", mtp=2, **asked).model.mtp_layers == 2
    for wrong in (-1, 8):
        with pytest.raises(MoesimError, match=f"{wrong} multi-token-prediction modules: give 0 to 7"):
            moesim.scenario("deepseek-v3", "dgx-h200", mtp=wrong, **asked)


def test_the_command_says_how_many_modules_were_trained(capsys):
    question = "simulate mixtral-8x7b -c dgx-h200 --global-batch 8 --seq 1024 --batched --json -s ep=8"
    main([*question.split(), "--mtp", "1"])
    assert '"mtp": 1' in capsys.readouterr().out
