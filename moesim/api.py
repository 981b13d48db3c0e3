"""The same commands as functions: names or nouns in, objects with ``to_frame()`` out."""

from typing import TypedDict, Unpack

from moesim.adaptive import Policy, best_ways, layer_of
from moesim.adaptive.layer import PADDED
from moesim.cluster import Cluster, load_cluster
from moesim.goodput import Goodput, Reality
from moesim.goodput import goodput as useful
from moesim.metrics import Result, measure
from moesim.model import Model, load_model
from moesim.planner import Plan
from moesim.planner import plan as search
from moesim.routing import Routing, parse_routing
from moesim.step.scenario import Scenario, make_scenario
from moesim.strategy import Strategy, load_strategy
from moesim.tiers import Offload, Tiers, tiers_of
from moesim.tiers import offload as keep_outside
from moesim.workload import DEFAULT_ROUTING, SEQUENCE_TOKENS, Workload, make_workload


class Question(TypedDict, total=False):
    """What ``scenario`` may be told beside model and cluster."""

    nodes: int | None
    workload: str | Workload
    routing: str | Routing | None
    seed: int
    mtp: int | None


def scenario(
    model: str | Model,
    cluster: str | Cluster,
    *,
    nodes: int | None = None,
    workload: str | Workload = "train",
    routing: str | Routing | None = None,
    seed: int = 0,
    mtp: int | None = None,
) -> Scenario:
    """A question: presets, paths or nouns; a workload given by name has its default size. ``mtp`` replaces the model's
    number of multi-token-prediction modules in training."""
    chosen = load_cluster(cluster, nodes) if isinstance(cluster, str) else cluster
    work = make_workload(workload, chosen.gpus) if isinstance(workload, str) else workload
    asked = routing if routing is not None else DEFAULT_ROUTING[work.kind]
    return make_scenario(
        load_model(model) if isinstance(model, str) else model,
        chosen,
        work,
        parse_routing(asked) if isinstance(asked, str) else asked,
        seed=seed,
        mtp=mtp,
    )


def plan(
    model: str | Model,
    cluster: str | Cluster,
    *,
    objective: str | None = None,
    top: int = 5,
    **question: Unpack[Question],
) -> Plan:
    """Rank configurations: see ``moesim plan``; ``question`` as in ``scenario``."""
    asked = scenario(model, cluster, **question)
    return search(asked, objective=objective, top=top)


def simulate(
    model: str | Model,
    cluster: str | Cluster,
    strategy: str | Strategy,
    **question: Unpack[Question],
) -> Result:
    """Play one configuration: see ``moesim simulate``; ``question`` as in ``scenario``."""
    asked = scenario(model, cluster, **question)
    chosen = load_strategy(strategy, asked.cluster.gpus, asked.workload) if isinstance(strategy, str) else strategy
    return measure(asked, chosen)


def goodput(
    model: str | Model,
    cluster: str | Cluster,
    strategy: str | Strategy,
    *,
    reality: Reality | None = None,
    **question: Unpack[Question],
) -> Goodput:
    """Useful over wall time of a training run: see ``moesim goodput``; ``question`` as in ``scenario``."""
    result = simulate(model, cluster, strategy, **question)
    return useful(result, reality)


def offload(
    asked: Scenario, strategy: str | Strategy, *, tiers: Tiers | None = None, slots: int = 2, cached: float = 1.0
) -> Offload:
    """The experts of ``scenario(...)`` in CPU memory and on SSD: see ``moesim tiers``."""
    chosen = load_strategy(strategy, asked.cluster.gpus, asked.workload) if isinstance(strategy, str) else strategy
    return keep_outside(asked, chosen, tiers or tiers_of(asked.cluster), slots=slots, cached=cached)


def policy(
    model: str | Model,
    cluster: str | Cluster,
    *,
    nodes: int | None = None,
    tokens_per_gpu: int = SEQUENCE_TOKENS,
    capacity_factors: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0),
    algorithms: tuple[str, ...] | None = None,
    dtype: str = "bf16",
    trains: bool = True,
) -> Policy:
    """The best way to run a model's expert layer at each load: see ``moesim policy``."""
    chosen = load_cluster(cluster, nodes) if isinstance(cluster, str) else cluster
    known = load_model(model) if isinstance(model, str) else model
    layer = layer_of(known, tokens_per_gpu, dtype=dtype, trains=trains)
    return best_ways(layer, chosen, capacity_factors, algorithms=algorithms or PADDED)
