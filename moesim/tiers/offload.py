"""A scenario and a strategy with their experts in CPU memory and on SSD: what fits, and what a layer then takes.

    layer     one played pass through the least balanced MoE layer, as ``simulate`` prices it
    fetch     all experts of the layer that the GPU holds, fused into one transfer
    gather    training: the dense weights of the layer from the shards of all data-parallel ranks (ZeRO 3)
    hit rate  drawn: the experts that get tokens in each of ``STEPS`` micro-batches, through ``cache.keep``, which
              starts with the most popular ones and lets in only hotter ones
    update    training: master weights and moments of what is not in CPU memory go from SSD and back, once a step

A layer with its prefetch takes ``fetch.steady_s``. The closed form and ``ring`` agree for equal layers.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from moesim.cluster import Tiers
from moesim.collectives import all_gather
from moesim.errors import MoesimError
from moesim.memory import WEIGHT_BYTES, layer_on_gpu
from moesim.model import Experts, Layer, expert_projections
from moesim.routing import draw_tokens
from moesim.stages import part_layers, parts_on_stages
from moesim.step.passes import pass_key, spread
from moesim.step.scenario import Scenario, class_of, layer_classes, split_in
from moesim.step.trace import layer_spans
from moesim.strategy import Strategy, groups
from moesim.tiers.cache import CacheRule, CacheRun, keep
from moesim.tiers.capacity import MASTER_BYTES, Needed, available, needed, split_parameters, why_not
from moesim.tiers.fetch import fetch_s, knee, steady_s

STEPS: Final = 32  # micro-batches drawn for the hit rate
RULE: Final = CacheRule(admission="hotter")


@dataclass(frozen=True, kw_only=True, slots=True)
class Offload:
    """What the tiers cost one GPU of the fullest stage."""

    slots: int
    moe_layers: int  # of one stage
    expert_bytes: float  # of one layer on one GPU
    launches: int  # matrices among them: transfers without fusion
    hit_rate: float
    active_share: float  # of the experts, in a micro-batch
    layer_s: dict[str, float]  # by pass: "forward", "backward"
    fetch_s: float
    unfused_s: float
    gather_s: float
    steady_s: dict[str, float]
    knee: dict[str, float | None]  # the hit rate from which the pass hides its fetch
    update_s: float  # of a step
    saved_bytes: float  # of GPU memory: the layers that are not in a slot
    needed: Needed  # over the cluster
    available: Needed
    why_not: str | None

    @property
    def slowdown(self) -> dict[str, float]:
        """Seconds of a layer over its seconds with everything in GPU memory."""
        return {name: self.steady_s[name] / seconds for name, seconds in self.layer_s.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return found | {
            "needed": self.needed._asdict(), "available": self.available._asdict(), "slowdown": self.slowdown,
        }  # fmt: skip


def offload(
    scenario: Scenario, strategy: Strategy, tiers: Tiers, *, slots: int = 2, cached: float = 1.0,
    hit: float | None = None,
) -> Offload:  # fmt: skip
    """Keep the experts outside GPU memory but for ``slots`` layers; CPU memory holds the share ``cached`` of them."""
    layer, layers = _moe_layer(scenario, strategy)
    if not 0 <= cached <= 1:
        raise MoesimError(f"share of the experts in CPU memory {cached}: give 0 to 1")
    if not 1 <= slots <= layers:
        raise MoesimError(f"{slots} layer slots: a stage has {layers} MoE layers, give 1 to {layers}")
    run, active = hits(scenario, strategy, cached)
    rate = run.hit_rate if hit is None else hit
    size = _bytes_each(scenario) * _held(scenario, strategy, layer)[1]
    launches = len(expert_projections(scenario.model, layer)) * _local_experts(layer, strategy)
    passes = {name: _layer_s(scenario, strategy, name == "backward") for name in _passes(scenario)}
    fetched, gathered = fetch_s(size, rate, tiers), _gather_s(scenario, strategy, layer)
    want, have = _capacities(scenario, tiers, active, cached)
    return Offload(
        slots=slots, moe_layers=layers, expert_bytes=size, launches=launches, hit_rate=rate, active_share=active,
        layer_s=passes, fetch_s=fetched, unfused_s=fetch_s(size, rate, tiers, launches), gather_s=gathered,
        steady_s={name: steady_s(seconds, fetched, gathered, slots) for name, seconds in passes.items()},
        knee={name: knee(size, seconds, tiers) for name, seconds in passes.items()},
        update_s=_update_s(scenario, tiers, cached), saved_bytes=(layers - slots) * size,
        needed=want, available=have, why_not=why_not(want, have),
    )  # fmt: skip


def hits(scenario: Scenario, strategy: Strategy, cached: float) -> tuple[CacheRun, float]:
    """The cache of one GPU's experts over ``STEPS`` micro-batches, and the mean share of experts with tokens."""
    ffn = scenario.model.moe
    assert ffn is not None  # checked by ``_moe_layer``
    _, layers = _moe_layer(scenario, strategy)
    where = spread(scenario, pass_key(scenario, strategy))
    classes, shares = _classes(scenario)[:layers], layer_classes(scenario)[1]
    local = ffn.experts // strategy.ep
    rng = np.random.default_rng([scenario.seed, 3])
    tokens = max(1, round(where.tokens * where.sources))
    popular = np.repeat(shares[classes], STEPS, axis=0)  # [layer x step, expert]
    drawn = draw_tokens(popular, ffn.top_k, tokens, 1, rng)[:, 0, :local]
    used = (drawn > 0).reshape(layers, STEPS, local)
    steps = [np.flatnonzero(used[:, step].ravel()).tolist() for step in range(STEPS)]
    popularity = shares[classes][:, :local].ravel()
    start = np.argsort(-popularity, kind="stable").tolist()
    return keep(steps, int(cached * layers * local + 1e-9), RULE, start=start), float(used.mean())


def _classes(scenario: Scenario) -> list[int]:
    """Class of every MoE layer, those of MTP modules among them."""
    model = scenario.model
    numbers = range(len(model.layers) + model.mtp_layers)
    return [class_of(scenario, number) for number in numbers if model.layer(number).is_moe]


def _moe_layer(scenario: Scenario, strategy: Strategy) -> tuple[Layer, int]:
    """An expert layer, and how many of them the fullest stage has."""
    model = scenario.model
    layer = next((one for one in model.layers if one.is_moe), None)
    if layer is None:
        raise MoesimError(f"model {model.name!r} has no experts: there is nothing to keep outside GPU memory")
    on_stage = parts_on_stages(strategy.schedule, strategy.pp, strategy.virtual)  # [stage, part]
    parts = part_layers(split_in(scenario, strategy))
    sparse = [sum(model.layer(number).is_moe for number in part) for part in parts]
    return layer, int((on_stage @ sparse).max())


def _passes(scenario: Scenario) -> tuple[str, ...]:
    return ("forward", "backward") if scenario.workload.trains else ("forward",)


def _local_experts(layer: Layer, strategy: Strategy) -> int:
    assert isinstance(layer.ffn, Experts)
    return layer.ffn.experts // strategy.ep


def _bytes_each(scenario: Scenario) -> float:
    return WEIGHT_BYTES["bf16" if scenario.workload.trains else scenario.workload.dtype]


def _layer_s(scenario: Scenario, strategy: Strategy, backward: bool) -> float:
    """A pass with whole weights: their gathering is priced apart."""
    whole = replace(strategy, zero=min(1, strategy.zero))
    return max(span.end_s for span in layer_spans(scenario, whole, backward=backward))


def _held(scenario: Scenario, strategy: Strategy, layer: Layer) -> tuple[float, float]:
    """Dense and expert parameters of a layer on one GPU."""
    held = layer_on_gpu(scenario.model, layer, strategy.tp, strategy.ep, strategy.etp)
    return float(held.dense), float(held.expert)


def _gather_s(scenario: Scenario, strategy: Strategy, layer: Layer) -> float:
    group = groups(strategy, scenario.cluster)["dp"]
    if not scenario.workload.trains or group.size == 1:
        return 0.0
    dense, _ = _held(scenario, strategy, layer)
    return float(all_gather(scenario.cluster, group, dense * _bytes_each(scenario)).seconds)


def _capacities(scenario: Scenario, tiers: Tiers, active: float, cached: float) -> tuple[Needed, Needed]:
    """Training: equation 1, the CPU holding what is cached. Serving: the weights alone, one copy of the experts."""
    cluster = scenario.cluster
    dense, sparse = split_parameters(scenario.model)
    have = available(cluster.gpu.memory_bytes, tiers, cluster.gpus)
    if scenario.workload.trains:
        return needed(dense, sparse, len(_classes(scenario)), active)._replace(cpu=16.0 * cached * sparse), have
    each = _bytes_each(scenario)
    layer_bytes = each * sparse / len(_classes(scenario))
    return Needed(each * dense + layer_bytes, each * cached * sparse, each * (1.0 - cached) * sparse), have


def _update_s(scenario: Scenario, tiers: Tiers, cached: float) -> float:
    """Both ways between SSD and CPU memory, every GPU its share."""
    if not scenario.workload.trains or tiers.ssd is None:
        return 0.0
    share = split_parameters(scenario.model)[1] / scenario.cluster.gpus
    return 2.0 * (1.0 - cached) * MASTER_BYTES * share / tiers.ssd.bytes_per_s
