"""A kernel that holds SMs: every program copies its share of a buffer, round after round, as communication does."""

from typing import Any, Final

import torch
import triton
import triton.language as tl

from moesim.kernels.grouped_gemm import loop_bound

_BLOCK: Final = 8192
_WARPS: Final = 32  # 1,024 threads hold half of an SM's registers: no tile of a large GEMM fits beside them


def _copy_rounds(  # quoted: triton reads annotations and knows no Any
    from_ptr: "Any", to_ptr: "Any", values: "Any", rounds: "Any", steps: "Any", block: tl.constexpr
) -> None:
    """Every program copies its share of the buffer, ``rounds`` times; ``steps`` blocks a program and round."""
    for _ in range(loop_bound(rounds)):
        for step in range(loop_bound(steps)):
            at = (step * tl.num_programs(0) + tl.program_id(0)) * block + tl.arange(0, block)
            tl.store(to_ptr + at, tl.load(from_ptr + at, mask=at < values), mask=at < values)


copy_rounds: Final = triton.jit(_copy_rounds)


def hold_sms(source: torch.Tensor, target: torch.Tensor, programs: int, rounds: int) -> None:
    """Launch the copy kernel: ``programs`` programs for ``rounds`` rounds."""
    steps = -(-source.numel() // (programs * _BLOCK))
    copy_rounds[(programs,)](source, target, source.numel(), rounds, steps, block=_BLOCK, num_warps=_WARPS)
