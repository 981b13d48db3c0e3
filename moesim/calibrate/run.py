"""The loop: measure what is left, point by point, until all is done or something stops it."""

import time
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from moesim.calibrate.bench import Bench, SkipError
from moesim.calibrate.machine import Clocks
from moesim.calibrate.points import Point
from moesim.calibrate.progress import Bar
from moesim.calibrate.store import LOST, Store

_CLOCKS_EVERY_S: Final = 30.0  # nvidia-smi may hold the driver for half a second
DONE, BUDGET, INTERRUPTED, BROKEN = "done", "budget", "interrupted", "broken"


def measure_all(
    points: Sequence[Point], bench: Bench, store: Store, clocks: Clocks, deadline_s: float, bar: Bar
) -> str:
    """Measure ``points`` into the store until ``deadline_s`` of the monotonic clock; why it ended."""
    sampled = 0.0
    try:
        for point in points:
            if time.monotonic() >= deadline_s:
                return BUDGET
            store.begin(point)
            bench.enter(point.group)
            if not _measure(point, bench, store):
                return BROKEN
            if time.monotonic() - sampled > _CLOCKS_EVERY_S:
                clocks.sample()
                sampled = time.monotonic()
            bar.step(f"{point.table} {point.name}")
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        store.end()
        bar.close()
    return DONE


def _measure(point: Point, bench: Bench, store: Store) -> bool:
    """One point into the store, or the reason why not; False when the device can do no more."""
    try:
        module = import_module(f"moesim.calibrate.{point.table}")
        store.add(point, module.measure(bench, point))
    except SkipError as reason:
        store.skip(point, str(reason))
    except Exception as error:  # a kernel that fails on one shape must not cost the other points
        why = f"{type(error).__name__}: {error}"
        store.skip(point, why)
        if not _alive(bench):
            store.skip(point, f"{LOST}{why}")
            return False
    return True


def _alive(bench: Bench) -> bool:
    """After an error: free what it held; False where the CUDA context is lost."""
    try:
        bench.leave()
        if bench.device == "cuda":
            import torch

            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
