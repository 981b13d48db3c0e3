"""Passes through a part of the model: sums of layer passes over its layers; the head with the last part, where MTP
modules, whose layers are the last ones, pass it again; in training the embedding with the first.

A layer pass ends with all ranks together (every MoE layer closes with a collective), so the sum over a part's
layers is exact. In a pair the first layer of the forward runs beside the last one of the backward's part, the second
beside the one before that, …: each as long as the pair of the forward's layer with itself. Layers that are left over,
and the head, run alone.
"""

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from moesim.cost import FloatArray
from moesim.model import Layer
from moesim.schedule import SCHEDULES, Pipe
from moesim.stages import Split, part_layers
from moesim.step import outer
from moesim.step.launches import with_gap
from moesim.step.layers import LayerPlayer
from moesim.step.passes import Key, LayerPass, backward_pass, forward_pass, pair_pass, pass_key
from moesim.step.price import Price, both
from moesim.step.scenario import BATCH_CLASSES, Scenario, class_of, layer_classes, split_in
from moesim.strategy import Strategy

HEAD_SHARES: Final = {"data": 0.5, "weights": 0.5}  # of its backward pass: two GEMMs of equal work


class PartPasses(NamedTuple):
    """Seconds of one micro-batch through each part: [..., part, micro-batch class]. Those that the schedule does
    not have are empty: [..., 0, micro-batch class]."""

    forward: FloatArray
    backward: FloatArray
    data: FloatArray
    weights: FloatArray
    pair: FloatArray  # [..., part of the forward, class of the forward, partner of the part, class of the backward]


def kinds(scenario: Scenario, strategy: Strategy) -> tuple[str, ...]:
    """Which passes the steps of a strategy are made of."""
    if not scenario.workload.trains:
        return ("forward",)
    rule = SCHEDULES[strategy.schedule]
    split = ("data", "weights") if rule.splits else ()
    whole = ("backward",) if rule.pairs or not rule.splits else ()
    return ("forward", *whole, *split, *(("pair",) if rule.pairs else ()))


def layer_pass(scenario: Scenario, layer: Layer, key: Key, recompute: str, kind: str) -> LayerPass:
    """The ops of one kind of pass through one layer."""
    if kind == "forward":
        return forward_pass(scenario, layer, key)
    if kind == "pair":
        return pair_pass(scenario, layer, key, recompute)
    return backward_pass(scenario, layer, key, recompute, "all" if kind == "backward" else kind)


def part_passes(scenario: Scenario, strategy: Strategy, play: LayerPlayer) -> PartPasses:
    """Sum layer passes into part passes."""
    key = pass_key(scenario, strategy)
    by_layer: dict[str, list[FloatArray]] = {}
    counts = layer_counts(scenario, split_in(scenario, strategy))  # of each distinct layer: [part, layer class]
    classes = next(iter(counts.values())).shape[1]
    for kind in kinds(scenario, strategy):
        passes = [layer_pass(scenario, layer, key, strategy.recompute, kind) for layer in counts]
        by_layer[kind] = [by_class(play(one), classes) for one in passes]
    return summed(scenario, strategy, by_layer)


def summed(scenario: Scenario, strategy: Strategy, by_layer: dict[str, list[FloatArray]]) -> PartPasses:
    """``by_layer[kind]`` are seconds of the passes of each distinct layer, [..., layer class, micro-batch class]."""
    counts = list(layer_counts(scenario, split_in(scenario, strategy)).values())
    found = {kind: _over_layers(counts, seconds) for kind, seconds in by_layer.items() if kind != "pair"}
    for kind, total in found.items():
        total[..., -1, :] += head_seconds(scenario, strategy, kind)
        total[..., 0, :] += embedding_seconds(scenario, strategy, kind)
    if "pair" in by_layer:
        found["pair"] = _pairs(scenario, strategy, by_layer)
    nothing = np.zeros((*found["forward"].shape[:-2], 0, BATCH_CLASSES))
    empty = {"pair": nothing[..., None, None]}
    return PartPasses(*(found.get(kind, empty.get(kind, nothing)) for kind in PartPasses._fields))


def _pairs(scenario: Scenario, strategy: Strategy, by_layer: dict[str, list[FloatArray]]) -> FloatArray:
    """Seconds of each part's forward beside the backward of each of its partners."""
    meet = partners(strategy)
    every = pair_counts(scenario, split_in(scenario, strategy), meet)
    paired, ahead, behind = (list(counts.values()) for counts in every)
    forward = _over_layers(paired, by_layer["pair"]) + _over_layers(ahead, by_layer["forward"])
    backward = _over_layers(behind, by_layer["backward"])
    last, each = strategy.parts - 1, len(meet[0])
    forward[..., last * each :, :] += head_seconds(scenario, strategy, "forward")
    backward[..., np.ravel(meet) == last, :] += head_seconds(scenario, strategy, "backward")
    forward[..., :each, :] += embedding_seconds(scenario, strategy, "forward")
    backward[..., np.ravel(meet) == 0, :] += embedding_seconds(scenario, strategy, "backward")
    both = forward[..., :, None] + backward[..., None, :]
    shaped = both.reshape(*both.shape[:-3], len(meet), each, *both.shape[-2:])
    return np.asarray(np.moveaxis(shaped, -3, -2))


def partners(strategy: Strategy) -> tuple[tuple[int, ...], ...]:
    """For each part, those whose backward may run beside its forward."""
    return SCHEDULES[strategy.schedule].meetings(Pipe(strategy.pp, 0, strategy.virtual))


def _over_layers(counts: list[FloatArray], seconds: list[FloatArray]) -> FloatArray:
    """[part, layer class] and [..., layer class, micro-batch class] of each layer -> [..., part, micro-batch class]."""
    return np.asarray(sum(count @ one for count, one in zip(counts, seconds, strict=True)))


def head_seconds(scenario: Scenario, strategy: Strategy, kind: str) -> float:
    """Seconds of ``head`` in one kind of pass."""
    whole = float(head(scenario, strategy, backward=kind != "forward").seconds.sum())
    return whole * HEAD_SHARES.get(kind, 1.0)


def head(scenario: Scenario, strategy: Strategy, *, backward: bool) -> Price:
    """What the last part does for one micro-batch beside its layers."""
    whole = _head(scenario, strategy.tp, strategy.cp, strategy.micro_batch, backward)
    return with_gap(scenario, strategy.capacity_factor, whole)


@lru_cache(maxsize=4096)
def _head(scenario: Scenario, tp: int, cp: int, micro_batch: int, backward: bool) -> Price:
    """The output layer; of every MTP module another pass through it, and the module's input."""
    found = once = outer.head(scenario, tp, cp, micro_batch, backward)
    for _ in range(scenario.model.mtp_layers):
        joint = outer.mtp_joint(scenario, tp, cp, micro_batch, backward)
        found = both(both(found, once), both(joint, outer.embedding(scenario, tp, cp, micro_batch, backward)))
    return found


def embedding_seconds(scenario: Scenario, strategy: Strategy, kind: str) -> float:
    """Seconds of the embedding in one kind of pass: nothing before it waits for its gradients."""
    found = embedding(scenario, strategy, kind)
    return float(found.seconds.sum()) if found else 0.0


def embedding(scenario: Scenario, strategy: Strategy, kind: str) -> Price | None:
    """The embedding of one micro-batch, if it is priced (training) and has work in this kind of pass."""
    if not scenario.workload.trains or kind == "weights":
        return None
    return outer.embedding(scenario, strategy.tp, strategy.cp, strategy.micro_batch, kind != "forward")


def by_class(seconds: FloatArray, classes: int) -> FloatArray:
    """[draw] -> [layer class, micro-batch class]; a dense layer has one draw for all."""
    if seconds.size == 1:
        return np.broadcast_to(seconds, (classes, BATCH_CLASSES))
    return seconds.reshape(classes, BATCH_CLASSES)


@lru_cache(maxsize=256)
def layer_counts(scenario: Scenario, split: Split) -> dict[Layer, FloatArray]:
    """For each distinct layer, how many of each class a part holds: count[part, class]."""
    return _counted(scenario, part_layers(split))


@lru_cache(maxsize=64)
def pair_counts(
    scenario: Scenario, split: Split, meet: tuple[tuple[int, ...], ...]
) -> tuple[dict[Layer, FloatArray], ...]:
    """The same of the layers of every part with each of its partners: those that run beside another one; those of
    the forward that are left over; those of the backward."""
    layers = part_layers(split)
    pairs = [(layers[part], layers[partner]) for part, own in enumerate(meet) for partner in own]
    both = [min(len(forward), len(backward)) for forward, backward in pairs]
    return (
        _counted(scenario, [forward[:n] for (forward, _), n in zip(pairs, both, strict=True)]),
        _counted(scenario, [forward[n:] for (forward, _), n in zip(pairs, both, strict=True)]),
        _counted(scenario, [backward[: len(backward) - n] for (_, backward), n in zip(pairs, both, strict=True)]),
    )


def _counted(scenario: Scenario, parts: list[range]) -> dict[Layer, FloatArray]:
    classes = max(1, len(layer_classes(scenario)[1]))
    counts = {kind.layer: np.zeros((len(parts), classes)) for kind in scenario.model.layer_kinds()}
    for part, numbers in enumerate(parts):
        for number in numbers:
            counts[scenario.model.layer(number)][part, class_of(scenario, number)] += 1
    return counts
