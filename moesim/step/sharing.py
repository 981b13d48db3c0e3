"""What ranks that work on the same tokens send each other: collectives of tensor and context parallelism."""

from functools import lru_cache
from typing import Final

from moesim.cluster import Group
from moesim.collectives import all_gather, all_reduce, reduce_scatter
from moesim.model import Attention, kv_values
from moesim.step.gemms import BF16_BYTES
from moesim.step.price import Price, price
from moesim.step.scenario import Scenario
from moesim.strategy import Strategy, groups

COLLECTIVES: Final = {"all_gather": all_gather, "all_reduce": all_reduce, "reduce_scatter": reduce_scatter}


def tokens_per_tp_group(scenario: Scenario, micro_batch: float, cp: int) -> float:
    """New tokens of a micro-batch that one tensor-parallel group works on."""
    return micro_batch * scenario.workload.queries / cp


@lru_cache(maxsize=65536)
def collective(scenario: Scenario, family: str, op: str, group: Group, size_bytes: float) -> Price:
    """One of ``COLLECTIVES`` over a group."""
    return price(family, COLLECTIVES[op](scenario.cluster, group, size_bytes))


def tp_gather(scenario: Scenario, group: Group, tokens: float) -> Price:
    """Sequence-parallel tokens come together before a block: all-gather."""
    return collective(scenario, "tp", "all_gather", group, _rows(scenario, tokens))


def latent_gather(scenario: Scenario, a: Attention, group: Group, tokens: float) -> Price:
    """mla's latent vectors, kept in slices as all tokens are, come together to be projected up again."""
    size = tokens * ((a.q_lora_rank or 0) + a.cached_values) * BF16_BYTES
    return collective(scenario, "tp", "all_gather", group, size)


def tp_scatter(scenario: Scenario, group: Group, tokens: float, *, splits_tokens: bool) -> Price:
    """Partial sums leave a block: reduce-scatter, or all-reduce where every rank keeps all tokens."""
    op = "reduce_scatter" if splits_tokens else "all_reduce"
    return collective(scenario, "tp", op, group, _rows(scenario, tokens))


def kv_exchange(scenario: Scenario, a: Attention, group: Group, tp: int, micro_batch: float) -> Price:
    """Context parallelism: every rank sees all keys and values (all-gather of them over cp)."""
    whole = micro_batch * scenario.workload.queries * kv_values(a, tp) * BF16_BYTES
    return collective(scenario, "cp", "all_gather", group, whole)


def _rows(scenario: Scenario, tokens: float) -> float:
    return tokens * scenario.model.hidden * BF16_BYTES


def over_tp(scenario: Scenario, tp: int, tokens: float, *, leave: bool) -> Price:
    """Tokens gathered over tensor parallelism, or gradients of them that leave."""
    group = groups(Strategy(tp=tp), scenario.cluster)["tp"]
    return tp_scatter(scenario, group, tokens, splits_tokens=True) if leave else tp_gather(scenario, group, tokens)
