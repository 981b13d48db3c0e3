"""What training adds to a table of an expert kernel.

fp8_block    tables are of serving's kernels; training groups GEMMs that run as a dense GEMM of as many rows does
             (DeepGEMM's README: 1.1 to 1.35 PFLOP/s grouped on H800, 1.3 to 1.5 dense), whichever is faster
biases       gpt-oss: biases and a clamped SwiGLU, op by op where nothing fuses them
weights      each gradient is added to one kept in fp32: ``blocks.accumulated``
"""

from typing import Final, NamedTuple

import numpy as np

from moesim.compute import gemm, memory_bound
from moesim.cost import ESTIMATED, FloatArray
from moesim.model import Experts
from moesim.step.blocks import BACKWARD_ERROR, accumulated
from moesim.step.links import BF16_BYTES
from moesim.step.price import Price, both, price, scaled
from moesim.step.scenario import Scenario

ROW_TILE: Final = 128  # rows of an expert are padded to this: DeepGEMM's alignment of grouped GEMMs
FP8_BYTES: Final = 1.0
# Values of the expert's width that PyTorch ops move for each row: biases added and joined 8, two clamps 4, the
# activation's product, sigmoid, product 7, the offset 2, the gated product 3, fp32 probabilities 6.
BIASED_FORWARD: Final = 30.0
BIASED_BACKWARD: Final = 55.0  # each op's gradient reads its input too; the sums that make biases' gradients read once


class Work(NamedTuple):
    """What the kernels of one chunk have to do."""

    ffn: Experts
    row: int  # values of a token
    width: int  # of an expert on this rank
    rows: FloatArray  # [draw, rank, local expert]


def trained(scenario: Scenario, work: Work, served: Price) -> Price:
    """The kernels as training runs them, where ``served`` is what the table says."""
    if scenario.workload.dtype != "fp8_block":
        return served
    grouped = _grouped(scenario, work)
    if grouped.mean() > served.seconds.mean():
        return served
    one = served._replace(seconds=grouped, slowest=grouped.max(axis=1))
    return scaled(one, 1.0, basis=ESTIMATED, error=BACKWARD_ERROR)


def with_biases(scenario: Scenario, work: Work, one: Price, *, backward: bool) -> Price:
    """``one`` and, in training, the ops around biased experts."""
    if not (scenario.workload.trains and work.ffn.bias):
        return one
    values = (BIASED_BACKWARD if backward else BIASED_FORWARD) * work.width
    moved = memory_bound(scenario.profile, work.rows.sum(axis=-1) * values * BF16_BYTES)
    return both(one, price("experts", moved))


def accumulated_experts(scenario: Scenario, work: Work) -> Price:
    """What adding a chunk's weight gradients to those kept in fp32 takes."""
    matrices = 3 if work.ffn.gated else 2
    return accumulated(scenario, float(work.rows.shape[-1] * matrices * work.row * work.width))


def _grouped(scenario: Scenario, work: Work) -> FloatArray:
    """Seconds of two grouped GEMMs and what moves rows around them: [draw, rank]."""
    profile, dtype = scenario.profile, scenario.workload.dtype
    ffn, hidden, width, rows = work
    padded = np.maximum((np.ceil(rows / ROW_TILE) * ROW_TILE).sum(axis=-1), 1.0)
    seconds = np.zeros(padded.shape)
    for n, k in (((2 if ffn.gated else 1) * width, hidden), (hidden, width)):
        read_s = rows.shape[-1] * n * k * FP8_BYTES / profile.gpu.memory_bytes_per_s
        seconds = seconds + np.maximum(gemm(profile, padded, n, k, dtype).seconds, read_s)
    moved = rows.sum(axis=-1) * (4.0 * hidden + 3.0 * width) * BF16_BYTES  # copied in, activated, copied out
    return np.asarray(seconds + memory_bound(profile, moved).seconds)
