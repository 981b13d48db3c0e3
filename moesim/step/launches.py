"""What launching kernels one by one adds to a training pass.

    an op on the compute stream    + kernels x gap
    a pass                         no shorter than its operations x host: the CPU runs ahead of the GPU, so that only
                                   all of them together can be too many

Kernels are counted where they are priced (``Price.kernels``). A MoE layer has more operations than that: PyTorch's
permutations, and one GEMM for each local expert and matrix (Transformer Engine's GroupedLinear). FlashMoE
(arXiv:2506.04667, table 1; 32 local experts) counted 85 in the forward pass of Megatron-LM's MoE layer with the
experts' GEMMs grouped and 261 with Transformer Engine's. The backward pass is taken to have twice as many: in
DeepSeek's trace the expert layer has 20 kernels forward, 41 backward.

With a positive capacity factor all shapes of a MoE model are fixed, and a pass is taken to be a CUDA graph, as a step
of servers is: neither is paid there (assumed: fixed shapes allow one). Dropless shapes change from step to step.
"""

from functools import lru_cache
from typing import Final

from moesim.compute import LAUNCH_GAP_S, host_launch
from moesim.program import Program
from moesim.step.price import COMMUNICATION, Price, Prices, price
from moesim.step.scenario import Scenario

MOE_LAYER: Final = 85.0
MOE_OPERATIONS: Final = {"route": MOE_LAYER, "route grad": 2.0 * MOE_LAYER}
EACH_EXPERT: Final = (261.0 - 85.0) / 32.0
EXPERTS: Final = ("experts", "experts grad", "experts weight grad")
MOE_FAMILIES: Final = ("gate", "experts", "all-to-all")  # counted by these


def eager(scenario: Scenario, capacity_factor: float | None) -> bool:
    """Whether kernels are launched one by one."""
    fixed = scenario.model.moe is not None and capacity_factor is not None and capacity_factor > 0.0
    return scenario.workload.trains and not fixed


def with_gaps(scenario: Scenario, capacity_factor: float | None, prices: Prices) -> Prices:
    """The same prices, every kernel of the compute stream with the gap to the next."""
    return {name: with_gap(scenario, capacity_factor, one) for name, one in prices.items()}


def with_gap(scenario: Scenario, capacity_factor: float | None, one: Price) -> Price:
    """A price with the gaps of its kernels."""
    gap_s = one.kernels * LAUNCH_GAP_S
    if not gap_s or one.family in COMMUNICATION or not eager(scenario, capacity_factor):
        return one
    return one._replace(seconds=one.seconds + gap_s, slowest=one.slowest + gap_s)


@lru_cache(maxsize=64)
def host(scenario: Scenario) -> Price:
    """CPU time of one operation."""
    return price("host", host_launch(scenario.profile))


def operations(program: Program, prices: Prices, local_experts: float) -> float:
    """What a pass launches; each chunk launches its experts."""
    counts = {name: float(one.kernels) for name, one in prices.items() if one.family not in MOE_FAMILIES}
    counts |= MOE_OPERATIONS | dict.fromkeys(EXPERTS, EACH_EXPERT * local_experts)
    return sum(counts.get(op.key, 0.0) for op in program)
