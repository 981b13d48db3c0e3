"""What a step adds around its passes: transfers between stages, weights gathered, gradients reduced, optimizer."""

from functools import lru_cache
from typing import NamedTuple

from moesim.cluster import Group
from moesim.collectives import point_to_point
from moesim.compute import memory_bound
from moesim.memory import (
    GRADIENT_BYTES,
    TRAINING_WEIGHT_BYTES,
    embedding_copies,
    ends_by_stage,
    held_by_stage,
    layer_on_gpu,
    optimizer_bytes,
)
from moesim.model import embedding_parameters
from moesim.stages import Split, layers_on_stages, stored_elsewhere
from moesim.step import gemms, sharing
from moesim.step.price import NOTHING, Price, both, price
from moesim.step.scenario import Scenario, split_in
from moesim.strategy import Strategy, groups, spaced

Parts = tuple[tuple[Group, float], tuple[Group, float]]  # (group, parameters): dense, experts


class Ends(NamedTuple):
    """Prices of what happens once per step and stage; lists over stages."""

    send: list[Price]  # activations to the next stage, from the last to the first; also gradients back
    gather: list[Price]  # ZeRO 1: weights before the first forward
    reduce: list[Price]  # gradients after the last backward
    optimizer: list[Price]
    tie: list[Price]  # gradients of an embedding that the first and the last stage share, after these
    zero: int = 0  # from stage 2 on, passes reduce (3: and gather) their layers themselves


class _Layout(NamedTuple):
    """What the parameters of a stage depend on."""

    tp: int
    ep: int
    etp: int
    pp: int
    split: Split
    schedule: str


def ends(scenario: Scenario, strategy: Strategy) -> Ends:
    """Prices of transfers between stages and of what a training step adds around its passes."""
    stages = range(strategy.pp)
    rows = sharing.tokens_per_tp_group(scenario, strategy.micro_batch, strategy.cp) / strategy.tp
    send = [_transfer(scenario, rows, same) for same in _same_node(strategy, scenario.cluster.gpus_per_node)]
    nothing = [NOTHING] * strategy.pp
    if not scenario.workload.trains:
        return Ends(send, nothing, nothing, nothing, nothing)
    g = groups(strategy, scenario.cluster)
    split = split_in(scenario, strategy)
    layout = _Layout(strategy.tp, strategy.ep, strategy.etp, strategy.pp, split, strategy.schedule)
    once = [_once_per_step(scenario, g["dp"], g["expert_dp"], strategy.zero, layout, stage) for stage in stages]
    gather, reduce, optimizer = (list(column) for column in zip(*once, strict=True))
    return Ends(send, gather, reduce, optimizer, _tie(scenario, strategy), strategy.zero)


def shares_embedding(scenario: Scenario, strategy: Strategy) -> bool:
    """Whether a stage has a copy of the embedding."""
    return bool(embedding_copies(scenario.model, strategy.pp, strategy.virtual, strategy.schedule).any())


def _tie(scenario: Scenario, strategy: Strategy) -> list[Price]:
    """The first and the last stage sum the gradients of their embeddings (Megatron-Core's finalize_model_grads)."""
    found = [NOTHING] * strategy.pp
    if shares_embedding(scenario, strategy):
        pair = Group(size=2, per_node=2 if strategy.world <= scenario.cluster.gpus_per_node else 1)
        size = embedding_parameters(scenario.model) / strategy.tp * GRADIENT_BYTES
        found[0] = found[-1] = sharing.collective(scenario, "dp", "all_reduce", pair, size)
    return found


def _same_node(strategy: Strategy, node: int) -> list[bool]:
    """Whether a stage and the next one (of the last: the first one) are both in one node."""
    size, last = strategy.stage_gpus, strategy.pp - 1
    return [s * size // node == ((s + 2) * size - 1) // node for s in range(last)] + [strategy.world <= node]


@lru_cache(maxsize=4096)
def _transfer(scenario: Scenario, rows: float, same_node: bool) -> Price:
    if scenario.cluster.scale_out is None:
        same_node = True
    size = rows * scenario.model.hidden * gemms.BF16_BYTES
    return price("pp", point_to_point(scenario.cluster, size, same_node))


@lru_cache(maxsize=16384)
def _once_per_step(
    scenario: Scenario, dp: Group, expert_dp: Group, zero: int, layout: _Layout, stage: int
) -> tuple[Price, Price, Price]:
    """Weights gathered, gradients reduced, optimizer of one stage."""
    held = held_by_stage(scenario.model, *layout)
    parts = ((dp, held.dense[stage]), (expert_dp, held.expert[stage]))
    virtual = len(layout.split) // layout.pp
    outside = ends_by_stage(scenario.model, layout.pp, virtual, layout.schedule)[stage] / layout.tp
    layers = max(1.0, layers_on_stages(layout.split, layout.pp, layout.schedule)[stage])
    # Stage 3 gathers layers, stages 2 and 3 reduce them inside the passes, each behind its neighbour's compute:
    # all but the first gather and the last reduction of a step, which have no neighbour.
    edge = ((dp, outside + (held.dense[stage] - outside) / layers), (expert_dp, held.expert[stage] / layers))
    gather = NOTHING
    if zero:
        gather = _over_both(scenario, "all_gather", edge if zero == 3 else parts, TRAINING_WEIGHT_BYTES)
    op = "reduce_scatter" if zero else "all_reduce"
    reduce = _over_both(scenario, op, edge if zero >= 2 else parts, GRADIENT_BYTES)
    if scenario.model.weight_groups:
        reduce = both(reduce, _among_stages(scenario, layout, stage))
    kept = sum(n / (g.size if zero else 1) for g, n in parts)
    # reads gradient, master weight and two moments; writes the last three and the weight
    traffic = GRADIENT_BYTES + 2.0 * optimizer_bytes(scenario.workload.dtype) + TRAINING_WEIGHT_BYTES
    return gather, reduce, price("optimizer", memory_bound(scenario.profile, kept * traffic))


def _among_stages(scenario: Scenario, layout: _Layout, stage: int) -> Price:
    """Gradients of weights that layers on several stages share: all-reduced among these, whole, as Megatron-LM
    does for tied embeddings (megatron/core/distributed/finalize_model_grads.py)."""
    cluster, total = scenario.cluster, NOTHING
    found: dict[int, float] = {}  # parameters by number of stages
    for layer, stages in stored_elsewhere(scenario.model, layout.split, layout.pp, layout.schedule)[stage]:
        held = layer_on_gpu(scenario.model, layer, *layout[:3], shared=True)
        found[stages] = found.get(stages, 0.0) + float(sum(held))
    for stages, size in found.items():
        group = spaced(stages, cluster.gpus // layout.pp, cluster)
        total = both(total, sharing.collective(scenario, "dp", "all_reduce", group, size * GRADIENT_BYTES))
    return total


def _over_both(scenario: Scenario, op: str, parts: Parts, bytes_each: float) -> Price:
    """A collective of the dense parameters, then of the experts'."""
    return both(*(sharing.collective(scenario, "dp", op, g, float(n) * bytes_each) for g, n in parts))
