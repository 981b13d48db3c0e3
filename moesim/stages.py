"""Which pipeline stage holds which layers.

Contiguous and as even as it goes; when layers do not divide, the first and last stage, which also hold
the embedding and the head, are the last to get one more.
"""

from functools import lru_cache

from moesim.model import Model


@lru_cache(maxsize=1024)
def layers_per_stage(layers: int, stages: int) -> tuple[int, ...]:
    """``layers_per_stage(7, 3) == (2, 3, 2)``."""
    base, extra = divmod(layers, stages)
    middle_first = sorted(range(stages), key=lambda s: (s in (0, stages - 1), s))
    more = set(middle_first[:extra])
    return tuple(base + (stage in more) for stage in range(stages))


def stage_layers(model: Model, stages: int) -> list[range]:
    """Indices of the layers of each stage."""
    split, start = [], 0
    for count in layers_per_stage(len(model.layers), stages):
        split.append(range(start, start + count))
        start += count
    return split
