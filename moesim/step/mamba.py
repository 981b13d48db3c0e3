"""Price of what a Mamba-2 layer does between its two projections: convolution, scan, gated norm.

The kernels are those of mamba_ssm (ops/triton/ssd_combined.py), which Megatron-LM trains with. Forward

    scan          the four products of ``model.ScanFlops``
    memory-bound  convolution (reads and writes its channels); states of the chunks, passed on (read in fp32, written in
                  bf16); gated norm (reads y and z, writes a row)

Backward, data: convolution, scores and states are computed again, for they are not kept, and the gradients are two
products for each of the forward's; that of the decay needs (dY X^T) a second time.

Kernels beside those of convolution and norm: forward cumsum, chunk_state, state_passing, bmm, chunk_scan; backward
these but the last, then dstates, state_passing, dx, dB, dC, dCB, two of bmm, ddA and cumsum of the gradients.
"""

from typing import Final

from moesim.compute.memory_bound import memory_bound
from moesim.compute.scan import scan
from moesim.model import Mamba, ScanFlops, scan_flops
from moesim.step.price import Price, both, price
from moesim.step.scenario import Scenario

BYTES: Final = 2.0  # of a bf16 value
STATE: Final = 3.0  # bf16 values moved for each value of a state: four bytes in, two out
NORM: Final = 3.0
FORWARD: Final = ScanFlops(scores=1, inside=1, states=1, carried=1)
BACKWARD: Final = ScanFlops(scores=3, inside=3, states=3, carried=2)  # again, and two gradients each
SCAN_KERNELS: Final = (3, 10)  # forward, backward: of the products
MOVE_KERNELS: Final = (4, 7)  # of what moves bytes, convolution and norm among them
AGAIN: Final = 3.0  # convolution and states backward: once more, and their gradients, which read two tensors


def inside(scenario: Scenario, mamba: Mamba, tp: int, tokens: float, backward: bool) -> Price:
    """Between the projections, for ``tokens`` of one tensor-parallel group, which splits the heads."""
    queries = scenario.workload.queries
    products = zip(scan_flops(mamba, queries), BACKWARD if backward else FORWARD, strict=True)
    flops = sum(each * times for each, times in products)
    states = STATE * mamba.inner * mamba.state / min(mamba.chunk, queries)
    values = (2.0 * mamba.channels + states) * (AGAIN if backward else 1.0)
    values += NORM * mamba.inner * (2.0 if backward else 1.0)
    share = tokens / tp
    moves = memory_bound(scenario.profile, share * values * BYTES)
    return both(
        price("mamba", scan(scenario.profile, share * flops), kernels=SCAN_KERNELS[backward]),
        price("mamba", moves, kernels=MOVE_KERNELS[backward]),
    )
