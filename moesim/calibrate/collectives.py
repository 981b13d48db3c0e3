"""Rows of collectives.csv: processes that exchange bytes, as nccl-tests counts them.

    all_gather       bytes of the gathered output of a rank
    the others       bytes of the send buffer of a rank

A sample is a loop between two barriers; the slowest rank counts.
"""

import time
from collections.abc import Callable
from typing import Any, Final

from moesim.calibrate.bench import Bench, SkipError
from moesim.calibrate.points import Point
from moesim.calibrate.timing import figure, summary
from moesim.calibrate.workers import Workers

_SAMPLE_S: Final = 5e-3
_REPEATS: Final = 7


def measure(bench: Bench, point: Point) -> dict[str, str]:
    """One row, from processes that all points of these ranks share."""
    ranks, backend = point.number["ranks"], point.text["library"]
    workers: Workers = bench.keep(f"workers {ranks} {backend}", lambda: Workers(ranks, backend))
    try:
        found = workers.run(f"{__name__}:seconds", op=point.text["op"], size=point.number["bytes"], backend=backend)
    except SkipError:
        bench.leave()  # a group that has lost a rank answers no more
        raise
    timing = summary([max(samples) for samples in zip(*found, strict=True)])
    source = f"moesim calibrate, {backend} between {ranks} processes of this machine"
    return {"time_us": figure(timing.time_s * 1e6), "basis": "measured", "source": source}


def seconds(rank: int, ranks: int, op: str, size: int, backend: str) -> list[float]:
    """Samples of one rank, in seconds of one operation."""
    import torch
    import torch.distributed as dist

    call = _call(op, size, ranks, "cpu" if backend == "gloo" else f"cuda:{rank}")
    wait = torch.cuda.synchronize if backend == "nccl" else _nothing
    call()
    once = torch.tensor([_loop_s(call, 1, wait)], device="cpu" if backend == "gloo" else f"cuda:{rank}")
    dist.all_reduce(once, dist.ReduceOp.MAX)
    count = max(1, min(round(_SAMPLE_S / float(once)), 100))
    return [_loop_s(call, count, wait) for _ in range(_REPEATS)]


def _nothing() -> None:
    """A CPU has nothing to wait for."""


def _loop_s(call: Callable[[], Any], count: int, wait: Callable[[], None]) -> float:
    import torch.distributed as dist

    dist.barrier()
    wait()
    start = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return (time.perf_counter() - start) / count


def _call(op: str, size: int, ranks: int, device: str) -> Callable[[], Any]:
    import torch
    import torch.distributed as dist

    whole = torch.ones(size, dtype=torch.bfloat16 if op in ("all_reduce", "reduce_scatter") else torch.uint8)
    whole = whole[: size // whole.element_size()].to(device)
    part = torch.empty_like(whole[: len(whole) // ranks])
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
    reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    calls: dict[str, Callable[[], Any]] = {
        "all_gather": lambda: gather(whole, part),
        "all_reduce": lambda: dist.all_reduce(whole),
        "reduce_scatter": lambda: reduce_scatter(part, whole),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty_like(whole), whole),
    }
    return calls[op]
