"""Rows of interference.csv: how much slower a kernel runs beside a copy that holds some SMs.

    side stream   |---- copy kernel of s programs, one an SM ----|
    main stream      wait | start | kernel, several times | end

A sample counts only when the copy ran from before its start to after its end. s = 0: the copy engine instead,
from pinned memory, which holds no SM but takes memory bandwidth.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Final

import torch

from moesim.calibrate.bench import Bench, SkipError
from moesim.calibrate.hold_sms import hold_sms
from moesim.calibrate.points import Point
from moesim.calibrate.timing import Call, Timing, figure, summary

Hold = Callable[[int], object]  # copies a buffer so many times

_CALLS: Final = 4  # kernels in one sample
_REPEATS: Final = 10
_MOST_ROUNDS: Final = 2**14
_VALUES: Final = 2**24  # float32 of the copied buffer: beyond the L2
_SLEEP_CYCLES: Final = 200_000  # about 0.1 ms for the copy to begin


def measure(bench: Bench, point: Point) -> dict[str, str]:
    """One row: the kernel alone, beside the copy, and the factor."""
    held = point.number["sms_held"]
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    if held > sms // 2:
        raise SkipError(f"{held} SMs are more than half of this GPU's {sms}")
    call = KERNELS[point.text["kernel"]](bench)
    alone = samples(call, None)
    beside = samples(call, _sm_copy(held) if held else _engine_copy())
    return row(statistics.median(alone), summary(beside))


def row(alone_s: float, beside: Timing) -> dict[str, str]:
    """The found columns."""
    return {
        "alone_us": figure(alone_s * 1e6),
        "beside_us": figure(beside.time_s * 1e6),
        "factor": figure(beside.time_s / alone_s),
        "spread": figure(beside.spread),
        "repeats": str(beside.repeats),
    }


def samples(call: Call, hold: Hold | None) -> list[float]:
    """Seconds of ``call`` with ``hold`` running all the while on another stream."""
    call()
    side, rounds = torch.cuda.Stream(), 1
    found: list[float] = []
    while len(found) < _REPEATS:
        begun, ended, start, end = (torch.cuda.Event(enable_timing=True) for _ in range(4))
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            begun.record()
            if hold is not None:
                hold(rounds)
            ended.record()
        torch.cuda._sleep(_SLEEP_CYCLES)
        start.record()
        for _ in range(_CALLS):
            call()
        end.record()
        torch.cuda.synchronize()
        if hold is not None and begun.elapsed_time(ended) < begun.elapsed_time(end):
            rounds *= 2
            if rounds > _MOST_ROUNDS:
                raise SkipError("the copy always ended before the kernel beside it")
            continue
        found.append(start.elapsed_time(end) * 1e-3 / _CALLS)
    return found


def _sm_copy(programs: int) -> Hold:
    source, target = (torch.ones(_VALUES, device="cuda") for _ in range(2))
    return lambda rounds: hold_sms(source, target, programs, rounds)


def _engine_copy() -> Hold:
    source = torch.ones(_VALUES, pin_memory=True)
    target = torch.empty(_VALUES, device="cuda")

    def copy(rounds: int) -> None:
        for _ in range(rounds):
            target.copy_(source, non_blocking=True)

    return copy


def _gemm(bench: Bench, side: int) -> Call:
    a, b = bench.randn(side, side), bench.randn(side, side)
    return lambda: torch.matmul(a, b)


def _memory(bench: Bench) -> Call:
    source = bench.randn(2**27)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


KERNELS: Final[dict[str, Callable[[Bench], Call]]] = {
    "gemm": partial(_gemm, side=4096),  # a few waves of tiles: one SM less can cost a whole wave
    "gemm_large": partial(_gemm, side=8192),  # four times as many: closer to the share of SMs that are left
    "memory": _memory,
}
