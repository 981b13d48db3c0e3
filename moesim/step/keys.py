"""What a layer pass depends on: strategies that agree on it share its price."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from moesim.alltoall import REAL_ROWS
from moesim.cluster import Group
from moesim.compute import SLOT_MULTIPLE
from moesim.step import sharing
from moesim.step.experts import Spread
from moesim.step.scenario import Scenario
from moesim.strategy import Strategy, groups


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Key:
    """The numbers of a strategy that its layer passes depend on.

    Made by the functions below only, which return the same object for the same fields: keys are compared by
    identity, because caches look them up a hundred thousand times per plan.
    """

    tp: int
    cp: int
    micro_batch: float  # sequences; dual_batch prices half a micro-batch
    ep: int
    etp: int
    ring: bool  # keys and values go around the context-parallel group
    zero: int  # 0 where weights and gradients stay whole (stages 0 and 1), else 2 or 3
    capacity_factor: float | None
    permute: str
    tp_group: Group
    cp_group: Group
    ep_group: Group
    etp_group: Group
    splits: bool  # tensor-parallel ranks split the tokens between blocks: see ``splits_tokens``
    dp_group: Group
    expert_group: Group
    all_to_all: str  # "none": nothing is dispatched
    chunks: int
    overlap: str
    placement: str


@lru_cache(maxsize=131072)
def _key(*fields: Any) -> Key:
    return Key(**dict(zip(Key.__slots__, fields, strict=True)))


@lru_cache(maxsize=131072)
def variant_key(key: Key, all_to_all: str, chunks: int, overlap: str, placement: str) -> Key:
    """The same key with another way to communicate; where nothing is dispatched, nothing is."""
    fixed = [getattr(key, name) for name in Key.__slots__[:-4]]
    return _key(*fixed, "none" if key.all_to_all == "none" else all_to_all, chunks, overlap, placement)


@lru_cache(maxsize=131072)
def priced_key(key: Key) -> Key:
    """The key by which its ops are priced: two halves of a micro-batch that overlap are priced as such."""
    if key.overlap != "dual_batch":
        return key
    fields = [getattr(key, name) for name in Key.__slots__]
    fields[Key.__slots__.index("micro_batch")] = key.micro_batch / 2
    return _key(*fields)


def pass_key(scenario: Scenario, strategy: Strategy) -> Key:
    """The part of a strategy that its layer passes depend on."""
    g = groups(strategy, scenario.cluster)
    alone = Group(size=1, per_node=1)
    shards = scenario.workload.trains and strategy.zero > 1
    splits = splits_tokens(scenario, strategy.tp, strategy.ep * strategy.etp)
    return _key(
        strategy.tp, strategy.cp, strategy.micro_batch, strategy.ep, strategy.etp,
        strategy.cp > 1 and strategy.cp_exchange == "ring", strategy.zero if shards else 0, strategy.capacity_factor,
        strategy.permute,
        g["tp"], g["cp"], g["ep"], g["etp"], splits,
        g["dp"] if shards else alone, g["expert_dp"] if shards else alone,
        strategy.all_to_all if strategy.ep > 1 and splits else "none",
        strategy.chunks, strategy.overlap, strategy.placement,
    )  # fmt: skip


def splits_tokens(scenario: Scenario, tp: int, expert_gpus: int) -> bool:
    """Whether tensor-parallel ranks split the tokens between blocks (sequence parallelism).

    Training always does. Serving keeps all tokens on every rank where there are no experts, or where the
    ``expert_gpus`` = ep x etp over which they are spread are exactly these ranks: then nothing is
    dispatched and one all-reduce ends each part.
    """
    replicates = expert_gpus == tp or scenario.model.moe is None
    return scenario.workload.trains or tp == 1 or not replicates


@lru_cache(maxsize=8192)
def spread(scenario: Scenario, key: Key) -> Spread:
    """Where the tokens of the experts come from."""
    per_tp_group = sharing.tokens_per_tp_group(scenario, key.micro_batch, key.cp)
    return Spread(
        ep=key.ep,
        etp=key.etp,
        sources=key.ep if key.splits else 1,
        tokens=per_tp_group / key.tp * key.etp if key.splits else per_tp_group,
        placement=key.placement,
        capacity_factor=key.capacity_factor,
        pads=key.capacity_factor is None or key.all_to_all not in REAL_ROWS,
        multiple=SLOT_MULTIPLE if key.permute == "einsum" else 1,
    )
