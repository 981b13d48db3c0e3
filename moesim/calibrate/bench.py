"""Where points are measured: the device, its timer, and the tensors that the points of a group share."""

import math
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from moesim.calibrate.machine import process_cores
from moesim.calibrate.points import Point
from moesim.calibrate.timing import Call, CpuTimer, CudaTimer, Timing
from moesim.errors import MoesimError

MOST_COPIES: Final = 32  # of operands, to exceed the last-level cache
SHARE_OF_MEMORY: Final = 0.8


class SkipError(Exception):
    """This point cannot be measured here; the message is the reason."""


class Timer(Protocol):
    """Seconds of one of some equal calls."""

    events_used: int
    lost: bool

    def __call__(self, calls: Sequence[Call], graph: bool = True) -> Timing: ...


@dataclass(kw_only=True)
class Bench:
    """One device, ready to measure."""

    device: str  # "cuda" or "cpu"
    l2_bytes: float
    timer: Timer
    seed: int
    free_bytes: Callable[[], float]
    group: str = ""
    kept: dict[str, Any] = field(default_factory=dict)

    def enter(self, group: str) -> None:
        """Free what the last group shared when another one begins."""
        if group != self.group:
            self.leave()
            self.group = group

    def leave(self) -> None:
        """Free what the group shared; RuntimeError where this process can time nothing any more."""
        self.close()
        if self.timer.lost:
            raise RuntimeError("no CUDA graph can be captured any more: a new process is needed")
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()

    def close(self) -> None:
        """End the processes that are shared; of memory the end of this process takes care."""
        for one in self.kept.values():
            if hasattr(one, "close"):
                one.close()
        self.kept.clear()

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """Made once for all points of the group."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def require(self, size_bytes: float) -> None:
        """Skip a point whose tensors would take more than 80 % of the free memory."""
        free = self.free_bytes() * SHARE_OF_MEMORY
        if size_bytes > free:
            raise SkipError(f"needs {size_bytes / 2**30:.1f} GiB, 80 % of the free memory is {free / 2**30:.1f} GiB")

    def rng(self, point: Point) -> np.random.Generator:
        """The random numbers of a point: the same whenever it is measured."""
        return np.random.default_rng([self.seed, zlib.crc32(f"{point.table},{point.name}".encode())])

    def randn(self, *shape: int, dtype: Any = None) -> Any:
        """Normal values on the device, in bf16 unless stated."""
        import torch

        from moesim.calibrate.torch_layer import random_values

        dtype = torch.bfloat16 if dtype is None else dtype
        if self.device == "cpu":
            return random_values(*shape, dtype=dtype)
        return torch.randn(*shape, device=self.device, dtype=dtype)

    def copies(self, size_bytes: float) -> int:
        """How many copies of operands of that size exceed twice the last-level cache."""
        return max(1, min(math.ceil(2.0 * self.l2_bytes / max(size_bytes, 1.0)), MOST_COPIES))


def check_finite(found: Any) -> None:
    """Skip a point whose kernel wrote what is not a number: a wrong result is no measurement."""
    if not bool(found.isfinite().all()):
        raise SkipError("the result holds NaN or infinity")


def make_bench(device: str, l2_bytes: float, seed: int) -> Bench:
    """The bench of this machine's GPU or CPU; MoesimError where triton cannot compile for the GPU."""
    import torch

    torch.manual_seed(seed)
    if device == "cpu":
        torch.set_num_threads(process_cores())
        return Bench(device=device, l2_bytes=l2_bytes, timer=CpuTimer(), seed=seed, free_bytes=_free_ram)
    torch.cuda.set_stream(torch.cuda.Stream())
    _check_triton()
    return Bench(device=device, l2_bytes=l2_bytes, timer=CudaTimer(), seed=seed, free_bytes=_free_vram)


def _check_triton() -> None:
    """Compile and run one kernel: better one error now than one for each point."""
    import torch

    from moesim.calibrate.hold_sms import hold_sms

    try:
        one, other = torch.ones(1, device="cuda"), torch.zeros(1, device="cuda")
        hold_sms(one, other, programs=1, rounds=1)
        torch.cuda.synchronize()
    except Exception as error:
        why = (str(error).splitlines() or [""])[0]
        raise MoesimError(
            f"triton cannot run a kernel here ({type(error).__name__}: {why}): "
            "install a C compiler (gcc) and the headers of this Python (python3-dev)"
        ) from error


def _free_vram() -> float:
    import torch

    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return float(torch.cuda.mem_get_info()[0] + unused)


def _free_ram() -> float:
    """MemAvailable, or 4 GiB where the system does not say."""
    with suppress(OSError, ValueError, StopIteration), Path("/proc/meminfo").open(encoding="ascii") as file:
        line = next(line for line in file if line.startswith("MemAvailable"))
        return float(line.split()[1]) * 1024.0
    return 4.0 * 2**30
