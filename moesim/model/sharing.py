"""Weights that layers share: the layers of a group are computed one by one, but store their matrices once.

stored once         attention, feed-forward part, routed experts
each layer's own    norms and routers (parameter-efficient conformers, arXiv:2209.08326; with the descents of BigMac,
                    which count as routers); activations, KV cache and FLOPs are as without sharing
"""

from collections import Counter
from functools import lru_cache

from moesim.model.config import Config
from moesim.model.layers import Layer, Model


@lru_cache(maxsize=1024)
def groups_among(model: Model, layers: tuple[int, ...]) -> dict[int, tuple[Layer, int]]:
    """Of each group that some of these layers are in: what a layer of it is, and how many of them it has. MTP layers,
    whose numbers come after the model's own, are in none."""
    if not model.weight_groups:
        return {}
    own = [i for i in layers if i < len(model.layers)]
    return {
        group: (next(model.layers[i] for i in own if model.weight_groups[i] == group), count)
        for group, count in Counter(model.weight_groups[i] for i in own).items()
    }


def repeats(model: Model, layers: tuple[int, ...]) -> dict[Layer, int]:
    """Of each kind, how many of these layers find their weights stored with another one of them."""
    found: Counter[Layer] = Counter()
    for layer, count in groups_among(model, layers).values():
        found[layer] += count - 1
    return +found


def shared_layers(config: Config, layers: int) -> tuple[int, tuple[int, ...]]:
    """How often a config runs each layer, one time after the other (MobileLLM, arXiv:2402.14905), and the
    group of weights that each run belongs to; in ALBERT's form (arXiv:1909.11942) equal groups of neighbours."""
    times = config.integer("layer_sharing_repeats", default=2) if config.flag("layer_sharing", False) else 1
    config.ignore("layer_sharing_repeats")
    count = config.integer("num_hidden_groups", default=layers)
    if count < 1 or layers % count:
        raise config.wrong("num_hidden_groups", f"give a divisor of the {layers} layers")
    if times < 1:
        raise config.wrong("layer_sharing_repeats", "give 1 or more")
    if times == 1 and count == layers:
        return 1, ()
    return times, tuple(i * count // layers for i in range(layers) for _ in range(times))
