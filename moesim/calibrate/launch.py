"""Rows of launch.csv: a chain of tiny kernels in a stream or in a CUDA graph; the slope is the gap between kernels."""

from moesim.calibrate.bench import Bench
from moesim.calibrate.points import Point


def measure(bench: Bench, point: Point) -> dict[str, str]:
    """One row: the whole chain."""
    x = bench.randn(256)
    kernels = point.number["kernels"]

    def chain() -> None:
        for _ in range(kernels):
            x.neg_()

    return bench.timer([chain], graph=point.text["how"] == "graph").columns()
