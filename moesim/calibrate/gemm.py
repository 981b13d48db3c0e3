"""Rows of gemm.csv: a dense [m, k] x [k, n] through torch, in bf16 or in fp8 with its input quantised on the way."""

import torch

from moesim.calibrate.bench import Bench, check_finite
from moesim.calibrate.points import Point
from moesim.calibrate.timing import Call


def measure(bench: Bench, point: Point) -> dict[str, str]:
    """One row; as many weights in turn as exceed the last-level cache."""
    m, n, k = (point.number[name] for name in "mnk")
    fp8 = point.text["dtype"] == "fp8"
    size = n * k * (1.0 if fp8 else 2.0)
    copies = bench.copies(size + 2.0 * m * k)
    bench.require(copies * (size + 2.0 * m * k) + 4.0 * n * k + 4.0 * m * n)
    first_NK = bench.randn(n, k)
    calls = []
    for i in range(copies):
        a_MK = bench.randn(m, k)
        w_NK = first_NK.clone() if i else first_NK
        calls.append(_fp8(a_MK, w_NK) if fp8 else _bf16(a_MK, w_NK))
    check_finite(calls[0]())
    return bench.timer(calls).columns()


def _bf16(a_MK: torch.Tensor, w_NK: torch.Tensor) -> Call:
    return lambda: torch.matmul(a_MK, w_NK.T)


def _fp8(a_MK: torch.Tensor, w_NK: torch.Tensor) -> Call:
    """One scale for each tensor; that of the input is known, so one kernel quantises it and one multiplies."""
    from moesim.calibrate.static_fp8 import quantise_static  # a CPU without triton multiplies bf16 alone

    largest = torch.finfo(torch.float8_e4m3fn).max
    scale_a, scale_w = ((t.abs().max().float() / largest).reshape(()) for t in (a_MK, w_NK))
    w8_NK = (w_NK / scale_w).to(torch.float8_e4m3fn)

    inverse = 1.0 / scale_a

    def call() -> object:
        a8_MK = quantise_static(a_MK, inverse)
        return torch._scaled_mm(a8_MK, w8_NK.T, scale_a=scale_a, scale_b=scale_w, out_dtype=torch.bfloat16)

    return call
