"""The commands as Python functions."""

import moesim
from moesim.cluster import load_cluster
from moesim.workload import make_workload


def test_a_plan_is_a_frame_with_the_best_layout_first():
    found = moesim.plan("olmoe-1b-7b", "dgx-a100", workload="decode", top=3)
    frame = found.to_frame()
    assert list(frame.index) == [1, 2, 3]
    assert frame["tpot_s"].is_monotonic_increasing


def test_a_simulated_strategy_has_the_same_step_as_its_row_in_the_plan():
    best = moesim.plan("olmoe-1b-7b", "dgx-a100", workload="decode", top=1).best
    again = moesim.simulate("olmoe-1b-7b", "dgx-a100", best.strategy, workload="decode")
    assert abs(again.step_s / best.step_s - 1) < 1e-9


def test_nouns_are_taken_where_names_are():
    cluster = load_cluster("dgx-h200", 2)
    work = make_workload("prefill", cluster.gpus, isl=2048)
    asked = moesim.scenario("mixtral-8x7b", cluster, workload=work, routing="zipf:0.5")
    assert asked.cluster.gpus == 16
    assert asked.workload.queries == 2048
    assert asked.routing.label == "zipf:0.5"


def test_serving_is_skewed_unless_told_otherwise():
    assert moesim.scenario("olmoe-1b-7b", "dgx-a100", workload="decode").routing.label == "lognormal:0.5"
    assert moesim.scenario("olmoe-1b-7b", "dgx-a100").routing.label == "uniform"
