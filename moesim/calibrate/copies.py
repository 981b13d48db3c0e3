"""Rows of copies.csv: bytes from one place to another."""

import torch

from moesim.calibrate.bench import Bench
from moesim.calibrate.points import Point
from moesim.calibrate.timing import Call


def measure(bench: Bench, point: Point) -> dict[str, str]:
    """One row: device to device, or between the device and pinned host memory."""
    size = point.number["bytes"]
    copies = bench.copies(2.0 * size)
    bench.require(2.0 * size * copies)
    return bench.timer([_copy(bench, point.text["direction"], size) for _ in range(copies)]).columns()


def _copy(bench: Bench, direction: str, size: int) -> Call:
    source, _, target = direction.partition("_to_")
    from_, to = (
        torch.ones(size, dtype=torch.uint8, device=bench.device)
        if place == "device"
        else torch.ones(size, dtype=torch.uint8, pin_memory=True)
        for place in (source, target)
    )
    return lambda: to.copy_(from_, non_blocking=True)
