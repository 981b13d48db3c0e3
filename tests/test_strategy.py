"""What is chosen: reading it, its groups of ranks, and why it cannot run."""

import json
from dataclasses import replace
from math import gcd

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moesim.cluster import Group, load_cluster
from moesim.errors import MoesimError
from moesim.metrics import measure
from moesim.model import load_model
from moesim.recompute import PARTS
from moesim.routing import parse_routing
from moesim.schedule import SCHEDULES
from moesim.step.scenario import make_scenario
from moesim.strategy import CHOICES, FIELDS, RECOMPUTE, Strategy, groups, load_strategy, show, why_not
from moesim.workload import make_workload

TWO_NODES = load_cluster("dgx-h100", 2)
MIXTRAL = load_model("mixtral-8x7b")  # 32 heads, 32 layers, 8 experts of width 14,336


def test_text_is_key_equals_value():
    strategy = load_strategy("tp=2 ep=8 micro_batch=4 overlap=chunked chunks=2", 16)
    assert (strategy.tp, strategy.ep, strategy.micro_batch, strategy.chunks) == (2, 8, 4, 2)
    assert strategy.pp == strategy.cp == strategy.etp == 1


def test_dp_is_what_is_left_of_the_gpus():
    assert load_strategy("tp=2 pp=2 cp=2", 16).dp == 2
    assert load_strategy("", 16).dp == 16
    assert load_strategy("dp=4", 16).dp == 4  # given: kept, and why_not says that 4 is not 16


def test_chunks_overlap_unless_told_otherwise():
    assert load_strategy("chunks=2", 8).overlap == "chunked"
    with pytest.raises(MoesimError, match="chunks=2 with overlap=none"):
        load_strategy("chunks=2 overlap=none", 8)


def test_a_yaml_file_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("tp: 2\nep: 8\nrecompute: full\ncapacity_factor: 1.25\n")
    assert load_strategy(str(path), 16) == Strategy(dp=8, tp=2, ep=8, recompute="full", capacity_factor=1.25)
    for layers in ("17,15", "[17, 15]"):
        path.write_text(f"pp: 2\nlayers: {layers}\n")
        assert load_strategy(str(path), 16) == Strategy(dp=8, pp=2, layers=(17, 15))


def test_the_strategy_object_of_a_plan_is_read_unchanged(tmp_path):
    strategy = Strategy(dp=4, tp=2, ep=8, zero=0, chunks=4, overlap="chunked", placement="balanced")
    whole = json.dumps({"strategy": strategy.to_dict(), "metrics": {"step_time_s": 1.0}})
    path = tmp_path / "candidate.json"
    path.write_text(whole)
    assert load_strategy(str(path), 8) == strategy
    assert load_strategy(whole, 8) == strategy
    assert load_strategy(json.dumps(strategy.to_dict()), 8) == strategy
    assert load_strategy(strategy.to_dict(), 8) == strategy


def test_virtual_stages_are_interleaved_and_have_a_short_name():
    assert load_strategy("pp=4 vp=2", 8) == load_strategy("pp=4 virtual=2 schedule=interleaved", 8)
    assert load_strategy("pp=4 vp=2", 8).parts == 8


counts = st.integers(1, 64)
orders = st.sampled_from([*((name, 1) for name in SCHEDULES if name != "interleaved"), ("interleaved", 3)])
strategies = st.builds(
    lambda order, **chosen: Strategy(schedule=order[0], virtual=order[1], **chosen),
    orders,
    **dict.fromkeys(("dp", "tp", "ep", "etp", "pp", "cp", "micro_batch"), counts),
    **{name: st.sampled_from(known) for name, known in CHOICES.items() if name not in ("overlap", "schedule")},
    recompute=st.sampled_from(RECOMPUTE) | st.lists(st.sampled_from(PARTS), min_size=1).map("+".join),
    chunks=counts,
    overlap=st.just("chunked"),
    capacity_factor=st.none() | st.floats(-100, 100),
).flatmap(
    lambda one: st.builds(
        replace, st.just(one), layers=st.none() | st.tuples(*[st.integers(1, 9)] * (one.parts - 1), st.integers(0, 9))
    )
)


@given(strategies)
def test_what_is_shown_is_read_back(strategy):
    assert load_strategy(show(strategy), 7) == strategy
    assert load_strategy(json.loads(json.dumps(strategy.to_dict())), 7) == strategy
    assert strategy.to_dict().keys() == FIELDS.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tpp=2", "unknown strategy key 'tpp'.*tp"),
        ("tp=two", "tp='two': give a whole number"),
        ("tp=1.5", "tp='1.5': give a whole number"),
        ("tp=0", "tp x pp x cp = 0, which does not divide"),
        ("tp=-2", "-2"),
        ("ep=0", "strategy has ep=0: give at least 1"),
        ("tp=3", "tp x pp x cp = 3, which does not divide 16 GPUs"),
        ("tp", "'tp' is not key=value"),
        ("tp=", "'tp=' is not key=value"),
        ("tp=2 tp=4", "gives tp twice"),
        ("zero=4", "unknown strategy zero '4'"),
        ("recompute=some", "unknown strategy recompute 'some': choose from none, .* norms, core"),
        ("recompute=full+norms", "unknown strategy recompute 'full.norms'"),
        ("all_to_all=ring", "unknown strategy all_to_all 'ring'"),
        ("schedule=2f2b", "unknown strategy schedule '2f2b'"),
        ("schedule=1f1b virtual=2", "schedule=1f1b with virtual=2: .* belong to schedule=interleaved"),
        ("schedule=interleaved", "schedule=interleaved with virtual=1: virtual stages, two or more"),
        ("virtual=2 vp=2", "gives virtual twice, once as vp"),
        ("placement=random", "unknown strategy placement 'random'"),
        ("overlap=yes", "unknown strategy overlap 'yes'"),
        ("pp=2 layers=4", "layers=4: give at least 1 for each of the pp x virtual = 2 parts"),
        ("pp=4 layers=4,0,4,4", "layers=4,0,4,4: give at least 1"),
        ("pp=2 layers=4,-1", "layers=4,-1: give at least 1"),
        ("pp=2 layers=4,x", "layers='x': give a whole number"),
        ("pp=2 layers=4,", "layers='': give a whole number"),
        ('{"pp": 2, "layers": [4, true]}', "layers=True: give a whole number"),
        ("capacity_factor=nan", "capacity_factor=nan"),
        ("capacity_factor=inf", "capacity_factor=inf"),
        ("capacity_factor=much", "capacity_factor='much': give a number"),
        ("nowhere.yaml", "cannot read the strategy file nowhere.yaml"),
        ('{"tp": [2]}', r"tp=\[2\]: give a whole number"),
        ('{"tp": true}', "tp=True: give a whole number"),
        ('{"tp": 2', "the strategy is not YAML"),
    ],
)
def test_a_wrong_strategy_is_told_in_one_line(text, said):
    with pytest.raises(MoesimError, match=said) as told:
        load_strategy(text, 16)
    assert "\n" not in str(told.value)


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- tp\n- ep\n")
    with pytest.raises(MoesimError, match=r"list\.yaml holds a list: write key: value"):
        load_strategy(str(path), 8)


def test_micro_batches_are_what_a_data_parallel_rank_has():
    assert Strategy(dp=4, micro_batch=2).micro_batches(64) == 8
    assert Strategy(dp=4, micro_batch=32).micro_batches(64) == 1


def test_tensor_parallelism_fills_a_node_first():
    found = groups(load_strategy("tp=8 ep=8", 16), TWO_NODES)
    assert found["tp"] == Group(size=8, per_node=8)
    assert found["dp"] == Group(size=2, per_node=1)  # ranks 0 and 8
    assert found["ep"] == Group(size=8, per_node=8)
    assert found["expert_dp"] == Group(size=2, per_node=1)


def test_experts_over_all_gpus_have_eight_ranks_a_node():
    found = groups(load_strategy("tp=8 ep=16", 16), TWO_NODES)
    assert found["ep"] == Group(size=16, per_node=8)
    assert found["expert_dp"] == Group(size=1, per_node=1)


def test_expert_tensor_parallelism_is_inside_expert_parallelism():
    # etp 2: ranks 0 and 1; ep 8 every second rank: 4 of them on each node
    found = groups(load_strategy("ep=8 etp=2", 16), TWO_NODES)
    assert found["etp"] == Group(size=2, per_node=2)
    assert found["ep"] == Group(size=8, per_node=4)


def test_context_parallelism_follows_tensor_parallelism():
    found = groups(load_strategy("tp=4 cp=4", 16), TWO_NODES)
    assert found["cp"] == Group(size=4, per_node=2)
    assert found["dp"] == Group(size=4, per_node=2)  # gradients are reduced over cp too


def on_nodes(size, stride, world, gpus_per_node):
    """For every group of that size and stride, how many of its ranks each node holds."""
    block = size * stride
    for first in range(0, world, block):
        for inner in range(stride):
            ranks = [first + inner + stride * j for j in range(size)]
            yield [rank // gpus_per_node for rank in ranks]


@given(
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.sampled_from([1, 2, 3, 4, 6, 8, 16, 32, 48, 64, 72]),
    st.sampled_from([("dgx-h100", 1), ("dgx-h100", 3), ("dgx-h100", 8), ("gb200-nvl72", 1), ("gb200-nvl72", 8)]),
)
def test_ranks_said_to_share_a_node_share_it(etp, ep, where):
    cluster = load_cluster(*where)
    assume(cluster.gpus % (ep * etp) == 0)
    group = groups(Strategy(dp=cluster.gpus, ep=ep, etp=etp), cluster)["ep"]
    for nodes in on_nodes(ep, etp, cluster.gpus, cluster.gpus_per_node):
        for first in range(0, ep, group.per_node):
            assert len(set(nodes[first : first + group.per_node])) == 1
    assert group.size == ep


def test_ranks_that_straddle_nodes_share_them_in_smaller_parts():
    # 64 GPUs in a row on racks of 72: the second group has 8 on the first rack and 56 on the next
    racks = load_cluster("gb200-nvl72", 8)
    assert groups(load_strategy("ep=64", 576), racks)["ep"] == Group(size=64, per_node=8)


REASONS = [
    ("dp=8", {}, "dp x cp x tp x pp differs from the number of GPUs"),
    ("dp=16 ep=8 etp=4", {}, "ep x etp does not divide dp x cp x tp"),
    ("pp=16", {"layers": 8}, "more parts (pp x virtual) than layers"),
    ("pp=2 layers=20,13", {}, "layers= does not add up to 32 layers and 0 of MTP modules"),
    ("dp=16", {"global_batch": 24}, "dp does not divide the sequences of the batch"),
    ("dp=16 micro_batch=3", {}, "micro_batch does not divide the sequences of a data-parallel rank"),
    ("dp=16 zero=2", {"kind": "prefill"}, "ZeRO beyond stage 1 shards training state only"),
    ("dp=16 recompute=full", {"kind": "decode"}, "recompute applies to training only"),
    ("dp=8 cp=2", {"kind": "decode"}, "context parallelism applies to training and prefill"),
    ("tp=2 cp=4", {"seq": 4100}, "cp x tp does not divide the sequence"),
    ("tp=3", {"gpus": 24, "heads": 24, "seq": 3000}, "the ranks of a group fall unevenly on the nodes"),
    ("ep=8", {"model": "llama-3.1-8b"}, "the model has no experts to spread"),
    ("tp=16", {"heads": 8}, "tp does not divide the attention heads"),
    ("ep=16", {}, "ep does not divide the experts"),
    ("etp=16", {"width": 8}, "etp does not divide the expert width"),
    ("tp=16", {"model": "llama-3.1-8b", "width": 8}, "tp does not divide the dense width"),
    ("ep=8 all_to_all=2dh", {}, "2dh needs ranks on more than one node; the group's 8 share one"),
    ("ep=2 etp=8 all_to_all=2dh", {}, "2dh needs more than one rank on a node; without them it is linear"),
]


def smaller(model, *, layers=None, heads=None, width=None):
    """The model with other layers."""
    one = model.layers[0]
    if heads:
        one = replace(one, attention=replace(one.attention, heads=heads))
    if width:
        one = replace(one, ffn=replace(one.ffn, width=width))
    return replace(model, layers=(one,) * (layers or len(model.layers)))


@pytest.mark.parametrize(("text", "case", "reason"), REASONS)
def test_impossible_is_an_answer(text, case, reason):
    model = load_model(case.get("model", "mixtral-8x7b"))
    model = smaller(model, **{k: case.get(k) for k in ("layers", "heads", "width")})
    sizes = {k: case[k] for k in ("global_batch", "seq") if k in case}
    cluster = load_cluster("dgx-h100", case.get("gpus", 16) // 8)
    work = make_workload(case.get("kind", "train"), cluster.gpus, **sizes)
    assert why_not(model, cluster, work, load_strategy(text, cluster.gpus)) == reason


def test_a_possible_strategy_has_no_reason():
    work = make_workload("train", 16)
    assert why_not(MIXTRAL, TWO_NODES, work, load_strategy("tp=2 ep=8 pp=2", 16)) is None


def test_impossible_strategies_are_not_played():
    scenario = make_scenario(MIXTRAL, TWO_NODES, make_workload("train", 16), parse_routing("uniform"))
    with pytest.raises(MoesimError, match=r"this strategy cannot run: ep does not divide the experts \(dp=16"):
        measure(scenario, load_strategy("ep=16", 16))


@given(strategies)
def test_a_reason_or_a_strategy_that_divides_everything(strategy):
    work = make_workload("train", 16)
    if why_not(MIXTRAL, TWO_NODES, work, strategy) is None:
        assert strategy.world == 16
        assert strategy.expert_dp * strategy.ep * strategy.etp == strategy.stage_gpus
        assert gcd(32, strategy.tp) == strategy.tp
        assert strategy.micro_batches(2048) * strategy.micro_batch * strategy.dp == 2048
