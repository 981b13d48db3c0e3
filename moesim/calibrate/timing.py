"""Seconds of a call: the median of repeats, their spread, and no wait for the host inside a timed region.

GPU    the calls are captured into one CUDA graph; events around each replay. Calls that cannot be captured
       are timed by events around a loop, which shows launches that the host cannot keep up with
CPU    a clock around a loop long enough to be read

``calls`` do equal work on different tensors, so that together they exceed the last-level cache.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

Call = Callable[[], object]

_REPLAY_S: Final = 1e-3  # shortest timed region: the launch of a graph and the events weigh little in it
_MOST_LAUNCHES: Final = 64  # in one graph; also the most replays of it in one timed region
_CPU_REGION_S: Final = 2e-4
_LONG_S, _VERY_LONG_S = 20e-3, 100e-3


class Timing(NamedTuple):
    """Median seconds of one call, (p90 - p10) / median of the repeats, and their number."""

    time_s: float
    spread: float
    repeats: int

    def columns(self) -> dict[str, str]:
        """As a row of a table holds it."""
        return {"time_us": figure(self.time_s * 1e6), "spread": figure(self.spread), "repeats": str(self.repeats)}


def figure(value: float) -> str:
    """Six significant digits, or all of a large number; never an exponent."""
    text = f"{value:.6g}"
    return text if "e" not in text else f"{value:.12f}".rstrip("0") if abs(value) < 1 else f"{value:.0f}"


def summary(samples_s: Sequence[float]) -> Timing:
    """The median and spread of repeats."""
    middle = statistics.median(samples_s)
    tenths = statistics.quantiles(samples_s, n=10, method="inclusive")
    return Timing(middle, (tenths[8] - tenths[0]) / middle, len(samples_s))


def repeats_for(region_s: float) -> int:
    """Repeats of a timed region: at least 10, fewer where one takes long."""
    if region_s > _VERY_LONG_S:
        return 3
    if region_s > _LONG_S:
        return 5
    return 20 if region_s < 2 * _REPLAY_S else 10


class CpuTimer:
    """Times calls on this CPU."""

    events_used = 0  # calls that were timed without a graph though one was wanted
    lost = False

    def __call__(self, calls: Sequence[Call], graph: bool = True) -> Timing:
        """Seconds of one of ``calls``; ``graph`` is for GPUs."""
        for call in calls[:2]:
            call()
        region_s = _loop_s(calls, 1)
        count = min(max(1, round(_CPU_REGION_S / max(region_s, 1e-9))), 1000)
        samples = []
        for repeat in range(min(repeats_for(region_s * count), 10)):
            shifted = [*calls[repeat % len(calls) :], *calls[: repeat % len(calls)]]
            samples.append(_loop_s(shifted, count) / count)
        return summary(samples)


def _loop_s(calls: Sequence[Call], count: int) -> float:
    start = time.perf_counter()
    for i in range(count):
        calls[i % len(calls)]()
    return time.perf_counter() - start


class CudaTimer:
    """Times calls on the current CUDA stream, which must not be the default one: graphs are captured on it."""

    def __init__(self) -> None:
        self.events_used = 0
        self.lost = False  # no graph can be captured in this process any more

    def __call__(self, calls: Sequence[Call], graph: bool = True) -> Timing:
        """Seconds of one of ``calls``, as a graph if it can be captured."""
        import torch

        for call in calls:
            call()  # compiles, chooses algorithms, allocates
        torch.cuda.synchronize()
        estimate_s = _events_s(lambda: _all(calls)) / len(calls)
        launches = min(max(1, round(_REPLAY_S / estimate_s)), _MOST_LAUNCHES)
        launches = max(launches, min(len(calls), _MOST_LAUNCHES)) if estimate_s < _LONG_S else 1
        sequence = [calls[i % len(calls)] for i in range(launches)]
        captured = self._graph(sequence) if graph else None
        once: Call = captured.replay if captured is not None else lambda: _all(sequence)
        region_s, times = _events_s(once), 1
        if captured is not None and region_s < _REPLAY_S:  # the estimate was the host's time, not the GPU's
            region_s = _events_s(once)  # the first one also brought the graph to the GPU
            times = min(math.ceil(_REPLAY_S / region_s), _MOST_LAUNCHES)
        samples = _replays_s(lambda: _all([once] * times), repeats_for(region_s * times))
        return summary([sample / (launches * times) for sample in samples])

    def _graph(self, calls: Sequence[Call]) -> Any:
        """The calls as a graph, or None where they alone cannot be captured; RuntimeError where nothing can."""
        captured = _captured(calls)
        if captured is None:
            self.events_used += 1
            self.lost = _captured([_tiny()]) is None
        if self.lost:
            raise RuntimeError("a failed capture left this process unable to capture any CUDA graph")
        return captured


def _tiny() -> Call:
    import torch

    tiny: Call = torch.ones(1, device="cuda").neg_
    return tiny


def _all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _captured(calls: Sequence[Call]) -> Any:
    """The calls as a CUDA graph, or None where they cannot be captured."""
    import torch

    free, total = torch.cuda.mem_get_info()
    if free < total / 2:
        torch.cuda.empty_cache()  # nothing can be given back in the middle of a capture
    graph = torch.cuda.CUDAGraph()
    gc.disable()  # a tensor freed by the collector in the middle of a capture would break it
    try:
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            _all(calls)
        finally:
            graph.capture_end()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    finally:
        gc.enable()
    return graph


def _events_s(call: Call) -> float:
    """Seconds of one call between two events."""
    return _replays_s(call, 1)[0]


def _replays_s(call: Call, repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` calls in a row; the host waits only after the last."""
    import torch

    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [max(float(start.elapsed_time(end)) * 1e-3, 1e-9) for start, end in pairs]
