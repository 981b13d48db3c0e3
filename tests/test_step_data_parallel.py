"""What data parallelism sends once per step."""

import moesim
from moesim.memory import memory
from moesim.model import load_model
from moesim.planner.why import loses
from moesim.step.ends import ends
from moesim.step.play import passes_of
from moesim.strategy import load_strategy
from moesim.workload import make_workload


def dp_seconds(zero):
    """Seconds of the weights' and gradients' collectives of one step: (gather, reduce), stage 0."""
    asked = moesim.scenario("mixtral-8x7b", "dgx-h200", nodes=2)
    end = ends(asked, load_strategy(f"tp=1 ep=8 zero={zero}", asked.cluster.gpus))
    return float(end.gather[0].seconds.sum()), float(end.reduce[0].seconds.sum())


def test_sharded_optimizers_gather_the_weights_they_updated():
    assert dp_seconds(0)[0] == 0.0
    assert dp_seconds(1)[0] == dp_seconds(2)[0] > 0.0
    assert 0.0 < dp_seconds(3)[0] < dp_seconds(1)[0]  # embedding and head; layers are gathered in every pass


def test_experts_are_reduced_even_where_attention_has_no_replica():
    asked = moesim.scenario("mixtral-8x7b", "dgx-h200")
    strategy = load_strategy("tp=8 ep=4", asked.cluster.gpus)
    assert strategy.dp * strategy.cp == 1
    assert strategy.expert_dp == 2
    assert passes_of(asked, strategy).reduces


def test_expert_tensor_parallel_ranks_each_hold_all_rows_that_come_together():
    model, work = load_model("mixtral-8x7b"), make_workload("train", 16)
    activations = [memory(model, work, load_strategy(f"ep=8 etp={e}", 16)).activations for e in (1, 2)]
    assert 1.05 < activations[1] / activations[0] < 1.3


def test_a_prefill_runner_up_loses_by_what_it_was_ranked_by():
    plan = moesim.plan("qwen3-30b-a3b", "dgx-h200", nodes=2, workload="prefill")
    winner = plan.results[0]
    losses = [loses(other, winner, steady=True).share for other in plan.results[1:]]
    assert losses == sorted(losses)
    assert min(losses) >= 0.0
