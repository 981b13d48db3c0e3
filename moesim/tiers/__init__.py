"""Weights in GPU, CPU and SSD memory: what fits, what is fetched, what the layer's own time hides (SE-MoE).

    SSD  --a miss-->  CPU cache  --PCIe-->  GPU slot of layer i+1        while layer i computes,
    dense shards      --------- NVLink ------------>                     over links that do not meet

hardware  capacity and bandwidth of CPU memory and SSD by GPU: presets by cluster, or as stated
capacity  what training states need of each tier
cache     which experts the CPU keeps: least frequently used, with decay
fetch     seconds of transfers and of a layer in closed form; the hit rate at which they vanish
ring      layers played with K slots on the GPU
offload   a scenario and a strategy through all of it

Source: SE-MoE (MoESys), arXiv:2205.10034, equation 1, algorithm 2, sections 3.1 to 3.3 and its ring of inference slots.
"""

from moesim.cluster import Tier, Tiers
from moesim.tiers.cache import CacheRule, CacheRun, keep
from moesim.tiers.capacity import Needed, needed, split_parameters, why_not
from moesim.tiers.fetch import early_s, fetch_s, knee, steady_s, transfer_s
from moesim.tiers.hardware import TIERS, tiers_of
from moesim.tiers.offload import Offload, offload
from moesim.tiers.ring import play_ring

__all__ = [
    "TIERS", "CacheRule", "CacheRun", "Needed", "Offload", "Tier", "Tiers", "early_s", "fetch_s", "keep", "knee",
    "needed", "offload", "play_ring", "split_parameters", "steady_s", "tiers_of", "transfer_s", "why_not",
]  # fmt: skip
