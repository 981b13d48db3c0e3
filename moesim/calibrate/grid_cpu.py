"""The points of a CPU: the torch references, small enough for minutes on two cores, in reach of small models.

All in bf16 (torch multiplies it natively or through fp32, whichever this CPU has): labelled as computed.
"""

from collections.abc import Iterator
from typing import Final

from moesim.calibrate.grid_gpu import expert_group
from moesim.calibrate.machine import PROCESSES
from moesim.calibrate.points import Point
from moesim.calibrate.shapes import CPU_SHAPES, Shape

_QUICK_SHAPES: Final = CPU_SHAPES[:5]
_TOKENS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_QUICK_TOKENS: Final = (1, 8, 64, 256)
_GEMM: Final = ((512, 512), (1024, 1024), (2048, 512), (512, 2048), (2048, 1024), (1024, 4096), (4096, 1024))  # (n, k)
_HEADS: Final = ((8, 8, 64), (8, 2, 64), (16, 4, 128), (4, 4, 128))  # query, kv, width
_OPS: Final = ("router", "sort", "permute", "gate_up", "down", "unpermute")


def cpu_points() -> Iterator[Point]:
    """All points."""
    yield Point("peaks", ("gemm_bf16_flops",), 0, "peaks")
    yield Point("peaks", ("copy_bytes_per_s",), 0, "peaks")
    yield from _experts()
    yield from _kernels()
    for place, (n, k) in enumerate(_GEMM):
        for m in (1, 4, 16, 64, 256, 1024):
            values = ("torch_matmul", "bf16", m, n, k)
            yield Point("gemm", values, 0 if place < 5 and m in (1, 16, 256) else 1, "gemm")
    yield from _attention()
    for power in range(12, 27, 2):
        yield Point("copies", ("device_to_device", 2**power), 0 if power in (12, 20, 26) else 1, "copies")
    for kernels in (1, 16, 256):
        yield Point("launch", ("stream", kernels), 0, "launch")
    for op in ("all_to_all", "all_gather", "all_reduce", "reduce_scatter"):
        for power in range(10, 25, 2):
            quick = power in (10, 16, 22)
            yield Point("collectives", (op, PROCESSES, 2**power, "gloo"), 0 if quick else 1, "gloo")


def _experts() -> Iterator[Point]:
    for shape in CPU_SHAPES:
        for tokens in _TOKENS:
            quick = shape in _QUICK_SHAPES and tokens in _QUICK_TOKENS
            yield _expert(shape, "balanced", tokens, 0 if quick else 1)
        for tokens in (16, 128, 512):
            for load in ("zipf:1.2", "lognormal:1.0", "hot", "uniform"):
                quick = shape in _QUICK_SHAPES and tokens == 128 and load == "zipf:1.2"
                yield _expert(shape, load, tokens, 0 if quick else 2)


def _kernels() -> Iterator[Point]:
    for shape in CPU_SHAPES[:4]:
        for op in _OPS:
            for tokens in (16, 128, 512):
                quick = shape is CPU_SHAPES[0] and tokens == 128
                dtype = "fp32" if op == "router" else "bf16"
                values = (op, "torch_cpu", dtype, shape.model, "balanced", tokens, *shape[1:])
                yield Point("kernels", values, 0 if quick else 2, expert_group(shape.model, 1, 1, "bf16"))


def _expert(shape: Shape, load: str, tokens: int, stratum: int) -> Point:
    values = ("torch_cpu", "bf16", shape.model, load, 1, tokens, *shape[1:], 1, 1)
    return Point("expert_ffn", values, stratum, expert_group(shape.model, 1, 1, "bf16"))


def _attention() -> Iterator[Point]:
    for place, (heads, kv_heads, width) in enumerate(_HEADS):
        kind = ("gqa", "bf16", "bf16", heads, kv_heads, width, width, 0)
        for batch, context in ((1, 32), (4, 64), (1, 128), (4, 128), (1, 512)):
            yield _attend("prefill", kind, batch, context, context, place < 3 and batch == 1)
        for batch in (1, 8):
            for context in (64, 256, 1024, 2048):
                yield _attend("decode", kind, batch, 1, context, place < 3 and context in (64, 1024))
    for heads in (4, 16):
        mla = ("mla", "bf16", "bf16", heads, 1, 192, 128, 576)
        for context in (32, 128, 512):
            yield _attend("prefill", mla, 1, context, context, heads == 4 or context < 512)
        for batch in (1, 8):
            for context in (64, 256, 1024):
                yield _attend("decode", mla, batch, 1, context, context != 256 and (batch == 1 or context == 64))


def _attend(phase: str, kind: tuple[str | int, ...], batch: int, queries: int, context: int, quick: bool) -> Point:
    return Point("attention", ("torch", phase, *kind, batch, queries, context), 0 if quick else 1, "attention")
