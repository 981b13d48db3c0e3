"""GEMMs and memory-bound kernels of a step, and their gradients.

A GEMM has three prices (``Part``): "forward", the gradients of its activations ("data") and of its weights
("weights"). Gradients are priced as GEMMs of their own at the forward kernel's efficiency (*estimated* until
measured): the data gradient [m, n] x [n, k] and the weight gradient [k, m] x [m, n] of a forward
[m, k] x [k, n], the latter added to gradients kept in fp32.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Final, Literal

from moesim.compute import gemm, memory_bound
from moesim.cost import ESTIMATED
from moesim.model import Projection
from moesim.profile import sustained_share
from moesim.step.price import NOTHING, Price, both, price, scaled
from moesim.step.scenario import Scenario

BF16_BYTES: Final = 2.0
GRADIENT_TRAFFIC_BYTES: Final = 8.0 - 2.0  # reads and writes an fp32 gradient where the forward GEMM wrote bf16
BACKWARD_ERROR: Final = 0.30  # estimated: forward efficiency carried over to other GEMM shapes
Part = Literal["forward", "data", "weights"]
PASSES: Final[tuple[tuple[Part, ...], ...]] = ("forward",), ("data", "weights")  # forward, backward


def gemms(
    scenario: Scenario, matrices: Iterable[Projection], tokens: float, tp: int, part: Part, dtype: str = ""
) -> Price:
    """One GEMM for each run of projections that share their input (q, k, v; gate, up).

    Those of attention's experts are one grouped GEMM. A group of E [m, k] x [k, n] is priced as one [m, k] x [k, E n]:
    as many FLOPs, weights, results and tiles; the load is taken as even, which costs nothing where a rank has them all.
    """
    total = NOTHING
    for (inputs, shard, experts, top_k), run in groupby(
        matrices, key=lambda p: (p.inputs, p.shard, p.experts, p.top_k)
    ):
        outputs = sum(p.outputs for p in run)
        k = inputs / (tp if shard == "in" else 1)
        n = outputs / (tp if shard == "out" else 1)
        met = min(float(experts), max(1.0, tokens * top_k))
        one = _gemm(scenario, tokens * top_k / met, n, k, dtype or scenario.workload.dtype, part, met)
        total = both(total, one)
    return total


def _gemm(scenario: Scenario, m: float, n: float, k: float, dtype: str, part: Part, group: float = 1.0) -> Price:
    kernels = 2 if dtype.startswith("fp8") else 1  # the table's time holds the cast
    if part == "forward":
        return under_load(scenario, price("dense", gemm(scenario.profile, m, n * group, k, dtype), kernels=kernels))
    shape = (m, k * group, n) if part == "data" else (k, n * group, m)
    one = under_load(scenario, price("dense", gemm(scenario.profile, *shape, dtype), kernels=kernels))
    one = both(one, accumulated(scenario, k * n * group)) if part == "weights" else one
    return scaled(one, 1.0, basis=ESTIMATED, error=BACKWARD_ERROR)


def accumulated(scenario: Scenario, parameters: float) -> Price:
    """What a weight gradient takes longer because it is added to a gradient kept in fp32, after its last product."""
    return price("dense", memory_bound(scenario.profile, parameters * GRADIENT_TRAFFIC_BYTES), kernels=0)


def under_load(scenario: Scenario, one: Price) -> Price:
    """A kernel that computes, at the clocks of a training step: published tables were measured at locked ones."""
    if not scenario.workload.trains or one.basis.measured > 0.5:
        return one
    return scaled(one, 1.0 / sustained_share(scenario.profile.gpu.name))


def elementwise(scenario: Scenario, tokens: float, values: float, kernels: int = 1) -> Price:
    """Kernels that together read and write ``values`` bf16 values per token."""
    each = memory_bound(scenario.profile, tokens * values * BF16_BYTES / kernels)
    return price("dense", each, times=kernels, kernels=kernels if values else 0)
