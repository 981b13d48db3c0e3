"""What this device reaches at most: a large bf16 matrix product, and a large copy."""

import torch

from moesim.calibrate.bench import Bench
from moesim.calibrate.points import Point


def measure(bench: Bench, point: Point) -> dict[str, str]:
    """FLOP/s or bytes/s (read plus written)."""
    small = bench.device == "cpu"
    if point.text["what"] == "gemm_bf16_flops":
        side = 1024 if small else 8192
        a, b = bench.randn(side, side), bench.randn(side, side)
        return {"value": repr(2.0 * side**3 / bench.timer([lambda: torch.matmul(a, b.T)]).time_s)}
    size = 2**26 if small else 2**30
    source = torch.ones(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    return {"value": repr(2.0 * size / bench.timer([lambda: target.copy_(source)]).time_s)}
