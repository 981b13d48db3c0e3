"""Which layers each part of the model holds, and which parts each pipeline stage.

A model is cut into as many parts as there are stages, times virtual stages. Parts are contiguous and as even as
it goes; when layers do not divide, the first and the last part, which also hold the embedding and the head, are
the last to get one more. Which stage holds which parts is the schedule's choice.
"""

from functools import lru_cache

import numpy as np

from moesim.cost import FloatArray
from moesim.model import Model
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
