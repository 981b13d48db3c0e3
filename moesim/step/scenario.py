"""The question: this model, on this cluster, with this work and this routing.

A price depends on the scenario and on a few numbers of the strategy, so prices are cached by them: a
thousand strategies share a few dozen.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moesim.cluster import Cluster
from moesim.cost import FloatArray
from moesim.errors import MoesimError
from moesim.model import Model, with_mtp
from moesim.profile import Profile, load_profile
from moesim.routing import Routing, imbalance, popularity
from moesim.stages import Split, split_of
from moesim.strategy import Strategy
from moesim.workload import Workload

LAYER_CLASSES = 4
BATCH_CLASSES = 2


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Scenario:
    """What is given; a strategy is what is chosen.

    MoE layers are sorted by the imbalance of their experts' popularity into ``LAYER_CLASSES`` classes of
    equal size; the middle layer of a class stands for it, in ``BATCH_CLASSES`` micro-batches. A *draw* is
    one of the LAYER_CLASSES x BATCH_CLASSES (layer, micro-batch) pairs. ``average`` replaces the draws by
    the mean load: an average-load answer.
    """

    model: Model
    cluster: Cluster
    workload: Workload
    routing: Routing
    profile: Profile
    seed: int = 0
    average: bool = False


def make_scenario(
    model: Model,
    cluster: Cluster,
    workload: Workload,
    routing: Routing,
    *,
    seed: int = 0,
    average: bool = False,
    mtp: int | None = None,
) -> Scenario:
    """Join the parts and find the GPU's profile. Training has the MTP modules of the model, or ``mtp`` of them;
    serving has none."""
    if mtp is not None and not workload.trains:
        raise MoesimError(f"{mtp} multi-token-prediction modules in a {workload.kind} workload: they are for training")
    depths = mtp if mtp is not None else model.mtp_layers
    return Scenario(
        model=with_mtp(model, depths if workload.trains else 0), cluster=cluster, workload=workload, routing=routing,
        profile=load_profile(cluster.gpu), seed=seed, average=average,
    )  # fmt: skip


@lru_cache(maxsize=64)
def layer_classes(scenario: Scenario) -> tuple[tuple[int, ...], FloatArray]:
    """Class of each MoE layer, and the popularity [class, expert] that stands for it."""
    ffn = scenario.model.moe
    layers = scenario.model.moe_layers
    if ffn is None:
        return (), np.zeros((0, 0))
    rng = np.random.default_rng([scenario.seed, 1])
    shares = popularity(scenario.routing, layers, ffn.experts, rng)  # [layer, expert]
    classes = min(LAYER_CLASSES, layers)
    order = np.argsort(imbalance(shares), kind="stable")
    members = np.array_split(order, classes)
    middle = [group[len(group) // 2] for group in members]
    of_layer = np.empty(layers, dtype=int)
    for number, group in enumerate(members):
        of_layer[group] = number
    return tuple(int(c) for c in of_layer), shares[middle]


def class_of(scenario: Scenario, number: int) -> int:
    """Class of a layer by its number; an MTP layer is like the last one. A dense layer is alike in all classes."""
    number = min(number, len(scenario.model.layers) - 1)
    if not scenario.model.layers[number].is_moe:
        return 0
    return layer_classes(scenario)[0][sum(layer.is_moe for layer in scenario.model.layers[:number])]


def split_in(scenario: Scenario, strategy: Strategy) -> Split:
    """How many layers each part of a strategy has."""
    return split_of(scenario.model, scenario.workload, strategy)


def draws(scenario: Scenario) -> int:
    """How many (layer class, micro-batch class) pairs are drawn."""
    return max(1, len(layer_classes(scenario)[1])) * BATCH_CLASSES
