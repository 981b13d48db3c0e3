"""Which layers each part of the model holds, and which parts each pipeline stage.

A model is cut into as many parts as there are stages, times virtual stages. Parts are contiguous and as even as
it goes; when layers do not divide, the first and the last part, which also hold the embedding and the head, are
the last to get one more. Which stage holds which parts is the schedule's choice.

Weights that layers share are stored once by a stage that holds several of them. Stages that hold one each have a copy
each, and reduce its gradients among them, as Megatron-LM does with tied embeddings.
"""

from collections import Counter
from functools import lru_cache

import numpy as np

from moesim.cost import FloatArray
from moesim.model import Layer, Model, groups_among, repeats
from moesim.schedule import SCHEDULES, Pipe


@lru_cache(maxsize=1024)
def layers_per_part(layers: int, parts: int) -> tuple[int, ...]:
    """``layers_per_part(7, 3) == (2, 3, 2)``."""
    base, extra = divmod(layers, parts)
    middle_first = sorted(range(parts), key=lambda s: (s in (0, parts - 1), s))
    more = set(middle_first[:extra])
    return tuple(base + (part in more) for part in range(parts))


def part_layers(model: Model, parts: int) -> list[range]:
    """Indices of the layers of each part."""
    split, start = [], 0
    for count in layers_per_part(len(model.layers), parts):
        split.append(range(start, start + count))
        start += count
    return split


@lru_cache(maxsize=1024)
def parts_on_stages(schedule: str, stages: int, virtual: int) -> FloatArray:
    """1 where a stage holds a part: [stage, part]."""
    rule, pipe = SCHEDULES[schedule], Pipe(stages, 0, virtual)
    found = np.zeros((stages, rule.parts(pipe)))
    for stage in range(stages):
        found[stage, list(rule.holds(stage, pipe))] = 1.0
    return found


def layers_on_stages(layers: int, pp: int, schedule: str, virtual: int) -> tuple[float, ...]:
    """How many layers each stage holds."""
    split = np.array(layers_per_part(layers, pp * virtual), dtype=float)
    return tuple((parts_on_stages(schedule, pp, virtual) @ split).tolist())


def layers_of_stages(model: Model, pp: int, schedule: str, virtual: int) -> list[tuple[int, ...]]:
    """Indices of the layers that each stage holds."""
    split = part_layers(model, pp * virtual)
    holds = parts_on_stages(schedule, pp, virtual)
    return [tuple(i for part in np.flatnonzero(row) for i in split[part]) for row in holds]


@lru_cache(maxsize=1024)
def stored_again(model: Model, pp: int, schedule: str, virtual: int) -> dict[Layer, FloatArray]:
    """Of each kind of layer that shares weights, how many a stage holds whose weights it has with another: [stage]."""
    if not model.weight_groups:
        return {}
    found = [repeats(model, layers) for layers in layers_of_stages(model, pp, schedule, virtual)]
    kinds = {layer for one in found for layer in one}
    return {layer: np.array([float(one.get(layer, 0)) for one in found]) for layer in kinds}


@lru_cache(maxsize=1024)
def stored_elsewhere(model: Model, pp: int, schedule: str, virtual: int) -> list[list[tuple[Layer, int]]]:
    """By stage, the groups of weights that other stages store too: a layer of it, and on how many stages it is."""
    there = [groups_among(model, layers) for layers in layers_of_stages(model, pp, schedule, virtual)]
    on = Counter(group for groups in there for group in groups)
    return [[(layer, on[group]) for group, (layer, _) in groups.items() if on[group] > 1] for groups in there]
