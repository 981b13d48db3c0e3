"""Bytes of keys and values that context parallelism brings together on a GPU while one layer attends.

all-gather   cp slices of the sequence; in training, backward, as many gradients, in bf16
ring         2: one is attended to while the next one comes (ring attention, arXiv:2310.01889 section 3); in training
             2 and their gradients backward, and forward all cp of them until the layer is done: what is more
             (Transformer Engine, AttnFuncWithCPAndKVP2P)
"""

from typing import Final

from moesim.model import Model, kv_values
from moesim.strategy import Strategy
from moesim.workload import Workload

KV_BYTES: Final = 2.0


def together_bytes(model: Model, workload: Workload, strategy: Strategy) -> float:
    """Bytes on one GPU, of the layer with the most."""
    if strategy.cp == 1:
        return 0.0
    slices = 2 if strategy.cp_exchange == "ring" else strategy.cp
    if workload.trains:
        slices = max(2 * slices, strategy.cp)
    attentions = (kind.layer.attention for kind in model.layer_kinds())
    values = max((kv_values(a, strategy.tp) for a in attentions if a), default=0.0)
    tokens = strategy.micro_batch * workload.queries / strategy.cp
    return slices * tokens * values * KV_BYTES
