"""Seconds of GEMMs, attention and expert layers on one GPU.

    seconds = closed form from the data sheet x a correction learned from the profile's rows

expert           an expert layer, from the tokens of each local expert
expert_parts     its closed form and the family fitted to a table
expert_curve     one shape of it as a table
gemm             a dense GEMM
einsum           dense einsums that put tokens in send order
attention        the attention core, prefill and decode, GQA and MLA
attention_shape  one attention call: pairs, bytes
kernel           one of moesim's own kernels by name, where this GPU was calibrated
memory_bound     a kernel that only moves bytes
launch           what lies between kernels, and what the CPU needs for each
scan             the products of Mamba-2's scan
loads            the loads that published tables were measured under
common           dtypes, sources, refusal, band
"""

from moesim.compute.attention import attention
from moesim.compute.attention_shape import AttentionShape, attended_pairs
from moesim.compute.common import DTYPES, joined, peak_flops
from moesim.compute.einsum import KEPT_MASKS, SLOT_MULTIPLE, Einsum, building_bytes, einsum_costs, einsum_flops
from moesim.compute.expert import COVERS, expert_ffn
from moesim.compute.gemm import gemm
from moesim.compute.kernel import gradient, kernel
from moesim.compute.launch import LAUNCH_GAP_S, host_launch
from moesim.compute.loads import balanced_load, power_law_load, power_law_loads
from moesim.compute.memory_bound import memory_bound
from moesim.compute.scan import scan

__all__ = [
    "COVERS", "DTYPES", "KEPT_MASKS", "LAUNCH_GAP_S", "SLOT_MULTIPLE", "AttentionShape", "Einsum", "attended_pairs",
    "attention", "balanced_load", "building_bytes", "einsum_costs", "einsum_flops", "expert_ffn", "gemm", "gradient",
    "host_launch", "joined", "kernel", "memory_bound", "peak_flops", "power_law_load", "power_law_loads", "scan",
]  # fmt: skip
