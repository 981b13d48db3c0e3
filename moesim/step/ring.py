"""Prices of context parallelism by ring: a rank attends to one slice of keys and values while the next one travels.

    forward    cp steps of core / cp, cp - 1 sends of one slice     (cp - 1) max(core / cp, send) + core / cp
    backward   cp steps, cp sends: a slice, then slices with their gradients, then gradients alone

Ring attention (arXiv:2310.01889), as Transformer Engine runs it for Megatron's ``cp_comm_type=p2p``
(AttnFuncWithCPAndKVP2P). Every rank holds two mirrored slices of the sequence, so all steps of all ranks attend equally
many pairs. Keys and values travel in bf16, gradients too; mla's as projected up, not as latent vectors. The ranks send
at the same time, each to the next one: the ring goes at its slowest hop, which is between nodes where it leaves one.

From the second step on a rank adds what it found to what it had: three values moved for each output, backward for each
gradient of a query, key and value. Slices are attended to at the efficiency of the whole core: *estimated*.
"""

from functools import lru_cache
from typing import Final

from moesim.cluster import Group
from moesim.collectives import point_to_point
from moesim.compute import memory_bound
from moesim.cost import ESTIMATED
from moesim.model import Attention, kv_values
from moesim.step import blocks, sharing
from moesim.step.gemms import BF16_BYTES, Part
from moesim.step.price import Price, both, price, scaled
from moesim.step.scenario import Scenario

ADDED: Final = 3.0  # values that a sum moves for each of its own: reads two, writes one


@lru_cache(maxsize=4096)
def core_step(scenario: Scenario, a: Attention, tp: int, cp: int, micro_batch: float, part: Part) -> Price:
    """One of cp steps of the core; the sums of partial results, which all but the first have, spread over all."""
    whole = blocks.core(scenario, a, tp, cp, micro_batch, part)
    tokens = sharing.tokens_per_tp_group(scenario, micro_batch, cp)
    values = a.heads * a.v_head_dim / tp
    if part == "data":
        values = a.heads * a.head_dim / tp + kv_values(a, tp)
    added = memory_bound(scenario.profile, (cp - 1) * tokens * ADDED * values * BF16_BYTES)
    return scaled(both(whole, price("attention", added)), 1.0 / cp, basis=ESTIMATED)


@lru_cache(maxsize=4096)
def send(scenario: Scenario, a: Attention, group: Group, tp: int, micro_batch: float, slices: int) -> Price:
    """A rank's keys and values (or, in two ``slices``, their gradients with them) to the next rank."""
    tokens = sharing.tokens_per_tp_group(scenario, micro_batch, group.size)
    size = slices * tokens * kv_values(a, tp) * BF16_BYTES
    return price("cp", point_to_point(scenario.cluster, size, same_node=group.nodes == 1))
