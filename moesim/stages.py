"""Which layers each part of the model holds, and which parts each pipeline stage.

A model is cut into as many parts as there are stages, times virtual stages. Parts are contiguous and as even as
it goes; when layers do not divide, the first and the last part, which also hold the embedding and the head, are
the last to get one more. In training the layers of MTP modules (arXiv:2412.19437 section 2.2) are numbered on after
the model's own, and the last part does more than its layers: the head, and of each module a projection and another
pass through the head,

    end  =  forward FLOPs of all that  /  forward FLOPs of a mean layer

so that it gets as many layers fewer as make the largest part least, with many parts none at all. For DeepSeek-V3
with its MTP module in 4, 8 and 16 parts that is the layout of NVIDIA's recipe (Megatron-Bridge,
recipes/deepseek/deepseek_v3.py: 15 x 4 layers, then 1 and the module's). Which stage holds which parts is the
schedule's choice.

Weights that layers share are stored once by a stage that holds several of them. Stages that hold one each have a copy
each, and reduce its gradients among them, as Megatron-LM does with tied embeddings. MTP layers share none.
"""

from collections import Counter
from functools import lru_cache

import numpy as np

from moesim.cost import FloatArray
from moesim.model import Layer, Model, forward_flops, groups_among, layer_flops, mtp_flops, repeats
from moesim.schedule import SCHEDULES, Pipe
from moesim.strategy import Strategy
from moesim.workload import Workload

Split = tuple[int, ...]  # layers of each part, in training those of MTP modules among them


def split_of(model: Model, workload: Workload, strategy: Strategy) -> Split:
    """The strategy's own split, else the most balanced one; serving does not train what the ends do."""
    if strategy.layers is not None:
        return strategy.layers
    if not workload.trains:
        return layers_per_part(len(model.layers), strategy.parts)
    return layers_per_part(len(model.layers) + model.mtp_layers, strategy.parts, end_of(model, workload.queries))


@lru_cache(maxsize=1024)
def end_of(model: Model, sequence: int) -> float:
    """What the last part of a training step does after its layers, in mean layers."""
    layers = forward_flops(model, sequence, outputs=0.0)
    everything = forward_flops(model, sequence) + mtp_flops(model, sequence)
    further = model.mtp_layers * layer_flops(model, model.layers[-1], sequence)
    return (everything - layers - further) * len(model.layers) / layers


@lru_cache(maxsize=1024)
def layers_per_part(layers: int, parts: int, end: float = 0.0) -> Split:
    """``layers_per_part(7, 3) == (2, 3, 2)``; with an ``end`` as long as two layers ``(3, 3, 1)``."""
    if parts == 1:
        return (layers,)
    largest = {last: max(last + end, -(-(layers - last) // (parts - 1))) for last in range(layers // parts, -1, -1)}
    last = min(largest, key=largest.__getitem__)  # of equals the first: most layers
    each, more = divmod(layers - last, parts - 1)
    return (each, *(each + (part <= more) for part in range(1, parts - 1)), last)


def part_layers(split: Split) -> list[range]:
    """Numbers of the layers of each part."""
    ends = np.cumsum(split).tolist()
    return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@lru_cache(maxsize=1024)
def kinds_by_part(model: Model, split: Split) -> tuple[list[Layer], FloatArray]:
    """The kinds of layers, and how many of each a part holds: [kind, part]."""
    kinds = [kind.layer for kind in model.layer_kinds()]
    counts = np.zeros((len(kinds), len(split)))
    for part, numbers in enumerate(part_layers(split)):
        for number in numbers:
            counts[kinds.index(model.layer(number)), part] += 1
    return kinds, counts


@lru_cache(maxsize=1024)
def parts_on_stages(schedule: str, stages: int, virtual: int) -> FloatArray:
    """1 where a stage holds a part: [stage, part]."""
    rule, pipe = SCHEDULES[schedule], Pipe(stages, 0, virtual)
    found = np.zeros((stages, rule.parts(pipe)))
    for stage in range(stages):
        found[stage, list(rule.holds(stage, pipe))] = 1.0
    return found


def layers_on_stages(split: Split, pp: int, schedule: str) -> tuple[float, ...]:
    """How many layers each stage holds."""
    return tuple((parts_on_stages(schedule, pp, len(split) // pp) @ np.array(split, dtype=float)).tolist())


def layers_of_stages(split: Split, pp: int, schedule: str) -> list[tuple[int, ...]]:
    """Numbers of the layers that each stage holds."""
    layers, holds = part_layers(split), parts_on_stages(schedule, pp, len(split) // pp)
    return [tuple(number for part in np.flatnonzero(row) for number in layers[part]) for row in holds]


@lru_cache(maxsize=1024)
def stored_again(model: Model, split: Split, pp: int, schedule: str) -> dict[Layer, FloatArray]:
    """Of each kind of layer that shares weights, how many a stage holds whose weights it has with another: [stage]."""
    if not model.weight_groups:
        return {}
    found = [repeats(model, layers) for layers in layers_of_stages(split, pp, schedule)]
    kinds = {layer for one in found for layer in one}
    return {layer: np.array([float(one.get(layer, 0)) for one in found]) for layer in kinds}


@lru_cache(maxsize=1024)
def stored_elsewhere(model: Model, split: Split, pp: int, schedule: str) -> list[list[tuple[Layer, int]]]:
    """By stage, the groups of weights that other stages store too: a layer of it, and on how many stages it is."""
    there = [groups_among(model, layers) for layers in layers_of_stages(split, pp, schedule)]
    on = Counter(group for groups in there for group in groups)
    return [[(layer, on[group]) for group, (layer, _) in groups.items() if on[group] > 1] for groups in there]
