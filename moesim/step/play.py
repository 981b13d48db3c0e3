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
from moesim.collectives import point_to_point
from moesim.compute import memory_bound
from moesim.cost import FloatArray
from moesim.memory import GRADIENT_BYTES, TRAINING_WEIGHT_BYTES, ends_by_stage, held_by_stage
from moesim.model import Layer
from moesim.player import Played, play_batched, play_events
from moesim.program import Passes, pipeline
from moesim.stages import layers_per_stage, stage_layers
from moesim.step import blocks
from moesim.step.layers import LayerPlayer
from moesim.step.passes import backward_pass, forward_pass, pass_key
from moesim.step.price import NOTHING, Price, both, price
from moesim.step.scenario import BATCH_CLASSES, Scenario, layer_classes
from moesim.strategy import Strategy, groups
from moesim.timeline import Span

DECODE_ROUNDS: Final = 3
# Read gradient, master weight and two moments in fp32; write the last three and the bf16 weight.
OPTIMIZER_TRAFFIC_BYTES: Final = 4 * 4.0 + 3 * 4.0 + 2.0


Parts = tuple[tuple[Group, float], tuple[Group, float]]  # (group, parameters): dense, experts


class StagePasses(NamedTuple):
    """Seconds of one micro-batch through a stage: [stage, micro-batch class]."""

    forward: FloatArray
    backward: FloatArray
    layers: tuple[int, ...]  # on each stage


class Ends(NamedTuple):
    """Prices of what happens once per step and stage; lists over stages."""

    send: list[Price]  # activations to the next stage; also gradients back
    gather: list[Price]  # ZeRO 1: weights before the first forward
    reduce: list[Price]  # gradients after the last backward
    optimizer: list[Price]
    zero: int = 0  # from stage 2 on, passes reduce (3: and gather) their layers themselves


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
    return StagePasses(forward, backward, layers_per_stage(len(scenario.model.layers), strategy.pp))


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
    counts = {kind.layer: np.zeros((stages, max(1, len(shares)))) for kind in scenario.model.layer_kinds()}
    for stage, indices in enumerate(stage_layers(scenario.model, stages)):
        for index in indices:
            counts[scenario.model.layers[index]][stage, class_of[index]] += 1
    return counts


def ends(scenario: Scenario, strategy: Strategy) -> Ends:
    """Prices of transfers between stages and of what a training step adds around its passes."""
    stages = range(strategy.pp)
    rows = blocks.tokens_per_tp_group(scenario, strategy.micro_batch, strategy.cp) / strategy.tp
    node, size = scenario.cluster.gpus_per_node, strategy.stage_gpus
    inside = [s * size // node == ((s + 2) * size - 1) // node for s in stages]  # both stages in one node
    send = [_transfer(scenario, rows, same_node) for same_node in inside]
    nothing = [NOTHING] * strategy.pp
    if not scenario.workload.trains:
        return Ends(send, nothing, nothing, nothing)
    g = groups(strategy, scenario.cluster)
    degrees = strategy.tp, strategy.ep, strategy.etp, strategy.pp
    once = [_once_per_step(scenario, g["dp"], g["expert_dp"], strategy.zero, degrees, stage) for stage in stages]
    gather, reduce, optimizer = (list(column) for column in zip(*once, strict=True))
    return Ends(send, gather, reduce, optimizer, strategy.zero)


@lru_cache(maxsize=4096)
def _transfer(scenario: Scenario, rows: float, same_node: bool) -> Price:
    if scenario.cluster.scale_out is None:
        same_node = True
    size = rows * scenario.model.hidden * blocks.BF16_BYTES
    return price("pp", point_to_point(scenario.cluster, size, same_node))


@lru_cache(maxsize=16384)
def _once_per_step(
    scenario: Scenario, dp: Group, expert_dp: Group, zero: int, degrees: tuple[int, int, int, int], stage: int
) -> tuple[Price, Price, Price]:
    """Weights gathered, gradients reduced, optimizer of one stage; ``degrees`` are tp, ep, etp, pp."""
    tp, ep, etp, pp = degrees
    held = held_by_stage(scenario.model, tp, ep, etp, pp)
    parts = ((dp, held.dense[stage]), (expert_dp, held.expert[stage]))
    ends_here = ends_by_stage(scenario.model, pp)[stage] / tp  # embedding and head
    layers = max(1, layers_per_stage(len(scenario.model.layers), pp)[stage])
    # Stage 3 gathers layers, stages 2 and 3 reduce them inside the passes, each behind its neighbour's compute:
    # all but the first gather and the last reduction of a step, which have no neighbour.
    edge = ((dp, ends_here + (held.dense[stage] - ends_here) / layers), (expert_dp, held.expert[stage] / layers))
    gather = NOTHING
    if zero:
        gather = _over_both(scenario, "all_gather", edge if zero == 3 else parts, TRAINING_WEIGHT_BYTES)
    op = "reduce_scatter" if zero else "all_reduce"
    reduce = _over_both(scenario, op, edge if zero >= 2 else parts, GRADIENT_BYTES)
    kept = sum(n / (g.size if zero else 1) for g, n in parts)
    return gather, reduce, price("optimizer", memory_bound(scenario.profile, kept * OPTIMIZER_TRAFFIC_BYTES))


def _over_both(scenario: Scenario, op: str, parts: Parts, bytes_each: float) -> Price:
    """A collective of the dense parameters, then of the experts'."""
    return both(*(blocks.collective(scenario, "dp", op, g, float(n) * bytes_each) for g, n in parts))


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
        reduces=trains and (strategy.dp * strategy.cp > 1 or strategy.expert_dp > 1),
    )


class StepTimes(NamedTuple):
    """Seconds of every op of the pipeline, for one strategy or a stack of them."""

    forward: FloatArray  # [..., stage, micro-batch class]
    backward: FloatArray
    send: FloatArray  # [..., stage], to the next stage; also a gradient back from it
    gather_first: FloatArray  # [..., stage]: of the first layer's weights
    gather_rest: FloatArray
    reduce_rest: FloatArray
    reduce_last: FloatArray  # of the layer whose backward pass comes last
    optimizer: FloatArray

    def by_key(self) -> dict[str, FloatArray]:
        """[..., 1] by the keys of ``program.pipeline``."""
        found: dict[str, FloatArray] = {}
        for s in range(self.send.shape[-1]):
            for c in range(BATCH_CLASSES):
                found[f"forward {s}.{c}"] = self.forward[..., s, c, None]
                found[f"backward {s}.{c}"] = self.backward[..., s, c, None]
            found[f"send {s}"] = self.send[..., s, None]
            found[f"back {s}"] = self.send[..., max(0, s - 1), None]
            for name in ("gather_first", "gather_rest", "reduce_rest", "reduce_last", "optimizer"):
                found[f"{name.replace('_', ' ')} {s}"] = getattr(self, name)[..., s, None]
        return found


def step_times(stages: StagePasses, end: Ends) -> StepTimes:
    """Join stage passes with what happens once per step."""
    send, gather, reduce, optimizer = (np.array([float(one.seconds.sum()) for one in column]) for column in end[:4])
    one_layer = 1.0 / np.maximum(1, np.array(stages.layers))
    first = one_layer if end.zero < 3 else np.ones_like(one_layer)  # the passes use the dp stream for their layers:
    last = one_layer if end.zero < 2 else np.ones_like(one_layer)  # embedding and head go before or after them
    return StepTimes(
        stages.forward, stages.backward, send,
        gather * first, gather * (1 - first), reduce * (1 - last), reduce * last, optimizer,
    )  # fmt: skip


def turns_of(micro_batches: FloatArray | int) -> FloatArray:
    """How many micro-batches are of each class: [...] -> [..., class]."""
    m = np.asarray(micro_batches)[..., None]
    return np.asarray((m + BATCH_CLASSES - 1 - np.arange(BATCH_CLASSES)) // BATCH_CLASSES, dtype=np.float64)


def stage_work(times: StepTimes, micro_batches: FloatArray | int) -> FloatArray:
    """Busy seconds of each stage in one step, without optimizer: [..., stage]."""
    return np.asarray(((times.forward + times.backward) * turns_of(micro_batches)[..., None, :]).sum(axis=-1))


def step_bound(passes: Passes, times: StepTimes, micro_batches: FloatArray | int) -> FloatArray:
    """Seconds that no order of the passes can beat: the fullest stage, filled and drained; [...].

    A stage starts when the first micro-batch has come through the stages before it, works through all of
    its passes, and what it finishes last still has to go through the others. ``passes`` says which ops the
    stack has; ``micro_batches`` may differ along it.
    """
    least = times.forward.min(axis=-1)
    through = _before(least + times.send)
    worked = through + stage_work(times, micro_batches)
    if not passes.backward:
        if passes.rounds > 1:  # a token cannot start before the one before it has ended
            lap = times.forward.min(axis=-1).sum(axis=-1) + times.send[..., :-1].sum(axis=-1)
            return np.asarray(np.maximum(stage_work(times, micro_batches).max(axis=-1), lap))
        still = through[..., -1:] + least[..., -1:] - through - least
        return np.asarray((worked + still).max(axis=-1))
    home = _before(times.backward.min(axis=-1) + times.send)
    finish = times.optimizer + (times.reduce_last if passes.reduces else 0.0)
    start = times.gather_first[..., 0] if passes.reduces else 0.0
    last = np.maximum((worked + finish).max(axis=-1), (worked + home).max(axis=-1) + finish[..., 0])
    return np.asarray(start + last)


def _before(seconds: FloatArray) -> FloatArray:
    """Sum over the earlier stages: [..., stage]."""
    return np.cumsum(seconds, axis=-1) - seconds


def folded(passes: Passes) -> Passes:
    """The same step with its steady phase cut short, if it is long."""
    shortest = 3 * passes.stages + 2 * BATCH_CLASSES
    extra = passes.micro_batches - shortest
    if extra <= BATCH_CLASSES:
        return passes
    return replace(passes, micro_batches=shortest + extra % BATCH_CLASSES)


def step_seconds(passes: Passes, times: StepTimes, *, events: bool, fold: bool = True) -> FloatArray:
    """Seconds of a step, [...]: the pipeline played by SimPy (``events``, one strategy) or by the list schedule.

    Folded, the steady phase is cut short, and every further round of micro-batch classes taken to last as
    long as the last one that was played. That is exact for GPipe, and for 1F1B unless waits travel round
    several stages: within 0.03 % on priced strategies of DeepSeek-V3, 3 % on random times. Ranked results
    are therefore played in full.
    """
    play = _end_by_events if events else _end_by_list
    durations = times.by_key()
    short = folded(passes) if fold else passes
    end_s = play(short, durations)
    if short != passes:
        less = replace(short, micro_batches=short.micro_batches - BATCH_CLASSES)
        rounds = (passes.micro_batches - short.micro_batches) / BATCH_CLASSES
        listed_s = _end_by_list(short, durations) if events else end_s
        end_s = end_s + rounds * (listed_s - _end_by_list(less, durations))
    return end_s


def _end_by_list(passes: Passes, durations: Mapping[str, FloatArray]) -> FloatArray:
    end_s = play_batched(pipeline(passes), durations)
    if passes.rounds == 1:
        return end_s
    return np.asarray(end_s - play_batched(pipeline(replace(passes, rounds=passes.rounds - 1)), durations))


def _end_by_events(passes: Passes, durations: Mapping[str, FloatArray]) -> FloatArray:
    played = _play(passes, durations)
    if passes.rounds == 1:
        return np.asarray(played.end_s)
    return np.asarray(played.end_s - _play(replace(passes, rounds=passes.rounds - 1), durations).end_s)


def _play(passes: Passes, durations: Mapping[str, FloatArray]) -> Played:
    program = pipeline(passes)
    return play_events(program, {key: durations[key].tolist() for key in program.keys})


def play_pipeline(passes: Passes, times: StepTimes) -> list[Span]:
    """Every pass of the step as a span, by SimPy; the rank of a span is its stage."""
    spans = _play(passes, times.by_key()).spans
    return [span._replace(rank=int(span.stream.split()[-1]), stream=span.stream.split()[0]) for span in spans]
