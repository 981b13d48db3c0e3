"""Prices of the collectives of tensor and context parallelism that stand around the blocks of a layer."""

from functools import lru_cache
from typing import Final

from moesim.cluster import Group
from moesim.collectives import all_gather, all_reduce, reduce_scatter
from moesim.model import Layer
from moesim.step.price import Price, price
from moesim.step.scenario import Scenario

BF16_BYTES: Final = 2.0
COLLECTIVES: Final = {"all_gather": all_gather, "all_reduce": all_reduce, "reduce_scatter": reduce_scatter}


@lru_cache(maxsize=65536)
def collective(scenario: Scenario, family: str, op: str, group: Group, size_bytes: float) -> Price:
    """One of ``COLLECTIVES`` over a group."""
    return price(family, COLLECTIVES[op](scenario.cluster, group, size_bytes))


def tp_gather(scenario: Scenario, group: Group, tokens: float) -> Price:
    """Sequence-parallel tokens come together before a block: all-gather."""
    return collective(scenario, "tp", "all_gather", group, _rows(scenario, tokens))


def latent_gather(scenario: Scenario, layer: Layer, group: Group, tokens: float) -> Price:
    """mla's latent vectors, kept in slices as all tokens are, come together to be projected up again."""
    a = layer.attention
    assert a is not None
    size = tokens * ((a.q_lora_rank or 0) + a.cached_values) * BF16_BYTES
    return collective(scenario, "tp", "all_gather", group, size)


def tp_scatter(scenario: Scenario, group: Group, tokens: float, *, splits_tokens: bool) -> Price:
    """Partial sums leave a block: reduce-scatter, or all-reduce where every rank keeps all tokens."""
    op = "reduce_scatter" if splits_tokens else "all_reduce"
    return collective(scenario, "tp", op, group, _rows(scenario, tokens))


def kv_exchange(scenario: Scenario, layer: Layer, group: Group, tp: int, micro_batch: float) -> Price:
    """Context parallelism: every rank sees all keys and values (all-gather of them over cp)."""
    a = layer.attention
    assert a is not None
    mla = a.kind == "mla"
    values = a.heads * (a.head_dim + a.v_head_dim) if mla else a.cached_values
    whole = micro_batch * scenario.workload.queries * values / min(tp, a.heads if mla else a.kv_heads) * BF16_BYTES
    return collective(scenario, "cp", "all_gather", group, whole)


def _rows(scenario: Scenario, tokens: float) -> float:
    return tokens * scenario.model.hidden * BF16_BYTES
