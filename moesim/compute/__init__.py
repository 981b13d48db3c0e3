"""Seconds of GEMMs, attention and expert layers on one GPU.

    seconds = roofline of the data sheet x a correction learned from the profile's measurements

expert        an expert layer, from the tokens of each local expert
gemm          a dense GEMM
attention     the attention core, prefill and decode, GQA and MLA
memory_bound  a kernel that only moves bytes
loads         the loads that published tables were measured under
common        dtypes, refusal, band
"""

from moesim.compute.attention import AttentionShape, attended_pairs, attention
from moesim.compute.common import LAUNCH_GAP_S
from moesim.compute.expert import COVERS, expert_ffn
from moesim.compute.gemm import gemm
from moesim.compute.loads import balanced_load, power_law_load, power_law_loads
from moesim.compute.memory_bound import memory_bound

__all__ = [
    "COVERS", "LAUNCH_GAP_S", "AttentionShape", "attended_pairs", "attention", "balanced_load", "expert_ffn", "gemm",
    "memory_bound", "power_law_load", "power_law_loads",
]  # fmt: skip
