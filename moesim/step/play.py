"""One step of a strategy: stage passes put into the pipeline, the pipeline played.

    stage passes   sums of layer passes over the stage's layers; embedding and head at the ends
    pipeline       stage passes, transfers, gradient reduction, optimizer -> the step

A layer pass ends with all ranks together (every MoE layer closes with a collective), so the sum over a
stage's layers is exact. Decode is played for several rounds; a step is the distance of the last two.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from moesim.cluster import Group
from moesim.collectives import all_gather, all_reduce, point_to_point, reduce_scatter
from moesim.compute import memory_bound
from moesim.cost import FloatArray
from moesim.memory import GRADIENT_BYTES, TRAINING_WEIGHT_BYTES, held_by_stage
from moesim.model import Layer
from moesim.program import Passes, Program, pipeline
from moesim.simulate import play_batched, play_events
from moesim.stages import layers_per_stage, stage_layers
from moesim.step import blocks
from moesim.step.layers import LayerPlayer
from moesim.step.passes import backward_pass, forward_pass, pass_key
from moesim.step.price import NOTHING, Price, price
from moesim.step.scenario import BATCH_CLASSES, Scenario, layer_classes
from moesim.strategy import Strategy, groups
from moesim.timeline import Span

DECODE_ROUNDS: Final = 3
# Read gradient, master weight and two moments in fp32; write the last three and the bf16 weight.
OPTIMIZER_TRAFFIC_BYTES: Final = 4 * 4.0 + 3 * 4.0 + 2.0


class StagePasses(NamedTuple):
    """Seconds of one micro-batch through a stage: [stage, micro-batch class]."""

    forward: FloatArray
    backward: FloatArray


class Ends(NamedTuple):
    """Prices of what happens once per step and stage; lists over stages."""

    send: list[Price]  # activations to the next stage; also gradients back
    gather: list[Price]  # ZeRO 1: weights before the first forward
    reduce: list[Price]  # gradients after the last backward
    optimizer: list[Price]


def stage_passes(scenario: Scenario, strategy: Strategy, play: LayerPlayer) -> StagePasses:
    """Sum layer passes into stage passes, with the head on the last stage."""
    key = pass_key(scenario, strategy)
    forward = np.zeros((strategy.pp, BATCH_CLASSES))
    backward = np.zeros((strategy.pp, BATCH_CLASSES))
    for layer, count in layer_counts(scenario, strategy.pp).items():  # count[stage, layer class]
        forward += count @ by_class(play(forward_pass(scenario, layer, key)), count.shape[1])
        if scenario.workload.trains:
            played = play(backward_pass(scenario, layer, key, strategy.recompute))
            backward += count @ by_class(played, count.shape[1])
    forward[-1] += float(head(scenario, strategy, backward=False).seconds.sum())
    if scenario.workload.trains:
        backward[-1] += float(head(scenario, strategy, backward=True).seconds.sum())
    return StagePasses(forward, backward)


def head(scenario: Scenario, strategy: Strategy, *, backward: bool) -> Price:
    """The output layer of one micro-batch."""
    return blocks.head(scenario, strategy.tp, strategy.cp, strategy.micro_batch, backward)


def by_class(seconds: FloatArray, classes: int) -> FloatArray:
    """[draw] -> [layer class, micro-batch class]; a dense layer has one draw for all."""
    if seconds.size == 1:
        return np.broadcast_to(seconds, (classes, BATCH_CLASSES))
    return seconds.reshape(classes, BATCH_CLASSES)


@lru_cache(maxsize=256)
def layer_counts(scenario: Scenario, stages: int) -> dict[Layer, FloatArray]:
    """For each distinct layer, how many of each class a stage holds: count[stage, class]."""
    of_layer, shares = layer_classes(scenario)
    numbers = iter(of_layer)
    class_of = [next(numbers) if layer.is_moe else 0 for layer in scenario.model.layers]
    counts = {
        kind.layer: np.zeros((stages, max(1, len(shares)))) for kind in scenario.model.layer_kinds()
    }
    for stage, indices in enumerate(stage_layers(scenario.model, stages)):
        for index in indices:
            counts[scenario.model.layers[index]][stage, class_of[index]] += 1
    return counts


def ends(scenario: Scenario, strategy: Strategy) -> Ends:
    """Prices of transfers between stages and of what a training step adds around its passes."""
    stages = range(strategy.pp)
    rows = blocks.tokens_per_tp_group(scenario, strategy.micro_batch, strategy.cp) / strategy.tp
    inside = [((s + 1) * strategy.stage_gpus) % scenario.cluster.gpus_per_node != 0 for s in stages]
    send = [_transfer(scenario, rows, same_node) for same_node in inside]
    nothing = [NOTHING] * strategy.pp
    if not scenario.workload.trains:
        return Ends(send, nothing, nothing, nothing)
    g = groups(strategy, scenario.cluster)
    once = [
        _once_per_step(scenario, g["dp"], g["expert_dp"], strategy.zero, strategy.tp, strategy.ep, strategy.etp,
                       strategy.pp, stage)
        for stage in stages
    ]  # fmt: skip
    gather, reduce, optimizer = (list(column) for column in zip(*once, strict=True))
    return Ends(send, gather, reduce, optimizer)


@lru_cache(maxsize=4096)
def _transfer(scenario: Scenario, rows: float, same_node: bool) -> Price:
    if scenario.cluster.scale_out is None:
        same_node = True
    size = rows * scenario.model.hidden * blocks.BF16_BYTES
    return price("pp", point_to_point(scenario.cluster, size, same_node))


@lru_cache(maxsize=16384)
def _once_per_step(  # noqa: PLR0913  # the cache key, field by field
    scenario: Scenario, dp: Group, expert_dp: Group, zero: int, tp: int, ep: int, etp: int, pp: int, stage: int
) -> tuple[Price, Price, Price]:
    """Weights gathered, gradients reduced, optimizer of one stage."""
    held = held_by_stage(scenario.model, tp, ep, etp, pp, stage)
    parts = ((dp, held.dense), (expert_dp, held.expert))
    gather = reduce = NOTHING
    if zero == 1:
        gather = price("dp", *(all_gather(scenario.cluster, g, n * TRAINING_WEIGHT_BYTES) for g, n in parts))
    if zero < 2:
        collective = reduce_scatter if zero else all_reduce
        reduce = price("dp", *(collective(scenario.cluster, g, n * GRADIENT_BYTES) for g, n in parts))
    kept = sum(n / (g.size if zero else 1) for g, n in parts)
    return gather, reduce, price("optimizer", memory_bound(scenario.profile, kept * OPTIMIZER_TRAFFIC_BYTES))


def passes_of(scenario: Scenario, strategy: Strategy) -> Passes:
    """The shape of the pipeline."""
    trains = scenario.workload.trains
    return Passes(
        stages=strategy.pp,
        micro_batches=strategy.micro_batches(scenario.workload.sequences),
        classes=BATCH_CLASSES,
        schedule=strategy.schedule if trains else "forward",
        backward=trains,
        rounds=DECODE_ROUNDS if scenario.workload.kind == "decode" else 1,
        reduces=trains and strategy.zero < 2 and strategy.dp * strategy.cp > 1,
    )


def durations(stage: StagePasses, end: Ends, model_layers: int) -> dict[str, float]:
    """Seconds of every op of the pipeline, by its key."""
    found: dict[str, float] = {}
    for s, layers in enumerate(layers_per_stage(model_layers, len(stage.forward))):
        for c in range(BATCH_CLASSES):
            found[f"forward {s}.{c}"] = float(stage.forward[s, c])
            found[f"backward {s}.{c}"] = float(stage.backward[s, c])
        first = 1.0 / max(1, layers)
        gather, reduce = float(end.gather[s].seconds.sum()), float(end.reduce[s].seconds.sum())
        found[f"gather first {s}"], found[f"gather rest {s}"] = gather * first, gather * (1 - first)
        found[f"reduce last {s}"], found[f"reduce rest {s}"] = reduce * first, reduce * (1 - first)
        found[f"optimizer {s}"] = float(end.optimizer[s].seconds.sum())
        found[f"send {s}"] = float(end.send[s].seconds.sum())
        found[f"back {s}"] = float(end.send[s - 1].seconds.sum()) if s else 0.0
    return found


def step_bound(passes: Passes, times: Mapping[str, float]) -> float:
    """Seconds that no order of the passes can beat: the fullest stage, filled and drained.

    A stage starts when the first micro-batch has come through the stages before it, works through all of
    its passes, and what it finishes last still has to go through the others.
    """
    stages, m = passes.stages, passes.micro_batches

    def column(name: str) -> FloatArray:
        return np.array([[times[f"{name} {s}.{c}"] for c in range(BATCH_CLASSES)] for s in range(stages)])

    turns = np.bincount(np.arange(m) % BATCH_CLASSES, minlength=BATCH_CLASSES)
    forward, backward = column("forward"), column("backward")
    send = np.array([times[f"send {s}"] for s in range(stages)])
    through = _before(forward[:, : min(m, BATCH_CLASSES)].min(axis=1) + send)
    if not passes.backward:
        work = forward @ turns
        if passes.rounds > 1:  # a token cannot start before the one before it has ended
            lap = (forward.sum(axis=0) + send[:-1].sum())[: min(m, BATCH_CLASSES)].max()
            return float(max(work.max(), lap))
        return float((through + work + through[-1] + forward.min(axis=1)[-1] - through - forward.min(axis=1)).max())
    back = np.array([times[f"back {s}"] for s in range(stages)])
    home = _before(backward[:, : min(m, BATCH_CLASSES)].min(axis=1) + np.append(back[1:], 0.0))
    finish = np.array([times[f"optimizer {s}"] for s in range(stages)])
    if passes.reduces:
        finish += [times[f"reduce last {s}"] for s in range(stages)]
        through = through + times["gather first 0"]
    worked = through + (forward + backward) @ turns
    return float(max((worked + finish).max(), (worked + home + finish[0]).max()))


def _before(seconds: FloatArray) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(seconds)[:-1]])


def folded(passes: Passes) -> Passes:
    """The same step with its steady phase cut out, if it is long: see ``unfold``."""
    shortest = 4 * passes.stages + 2 * BATCH_CLASSES
    extra = passes.micro_batches - shortest
    if extra <= BATCH_CLASSES:
        return passes
    return replace(passes, micro_batches=shortest + extra % BATCH_CLASSES)


def unfold(passes: Passes, short: Passes, short_s: float, shorter_s: float) -> float:
    """Seconds of ``passes`` from a step cut short: every further round of micro-batch classes takes as long
    as the last one did (``shorter_s`` is the step with one round less)."""
    rounds = (passes.micro_batches - short.micro_batches) / BATCH_CLASSES
    return short_s + rounds * (short_s - shorter_s)


def step_seconds(passes: Passes, times: Mapping[str, float], *, events: bool, fold: bool = True) -> float:
    """Seconds of a step: the pipeline played by SimPy (``events``) or by the list schedule."""
    play = _end_by_events if events else _end_by_list
    short = folded(passes) if fold else passes
    end_s = play(short, times)
    if short != passes:
        less = replace(short, micro_batches=short.micro_batches - BATCH_CLASSES)
        end_s = unfold(passes, short, end_s, play(less, times))
    return end_s


def _end_by_events(passes: Passes, times: Mapping[str, float]) -> float:
    program = pipeline(passes)
    played = play_events(program, {op.key: [times[op.key]] for op in program})
    return _one_round(passes, played.end_s, played.spans)


def _end_by_list(passes: Passes, times: Mapping[str, float]) -> float:
    program = pipeline(passes)
    durations = {op.key: np.array([times[op.key]]) for op in program}
    end_s = float(play_batched(program, durations))
    if passes.rounds == 1:
        return end_s
    earlier = pipeline(replace(passes, rounds=passes.rounds - 1))
    return end_s - float(play_batched(earlier, durations))


def _one_round(passes: Passes, end_s: float, spans: list[Span]) -> float:
    """The last round of decode; the whole step otherwise."""
    if passes.rounds == 1:
        return end_s
    last = f"stage {passes.stages - 1}"
    ends_s = sorted(span.end_s for span in spans if span.stream == last)
    return end_s - ends_s[-1 - passes.micro_batches]


def play_pipeline(passes: Passes, times: Mapping[str, float]) -> list[Span]:
    """Every pass of the step as a span, by SimPy; the rank of a span is its stage."""
    program: Program = pipeline(passes)
    played = play_events(program, {op.key: [times[op.key]] for op in program})
    return [span._replace(rank=int(span.stream.split()[-1]), stream=span.stream.split()[0]) for span in played.spans]


