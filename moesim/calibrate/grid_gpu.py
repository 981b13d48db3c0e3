"""The points of a GPU: every kernel over tokens x shapes x loads, what surrounds them, and how they disturb each other.

dtype      on which shapes
bf16       all placements, tokens 1 to 65,536 by 2
fp8_block  all but the one that does not fit, where the GPU multiplies fp8; by 4
int4       four placements
ternary    two placements
"""

from collections.abc import Iterator
from typing import Final

from moesim.calibrate.loads import LOADS
from moesim.calibrate.points import Point
from moesim.calibrate.shapes import MODELS, PLACEMENTS, Shape

Placement = tuple[str, int, int]  # model, expert-parallel ranks, tensor-parallel ranks

_ALL_TOKENS: Final = tuple(2**i for i in range(17))
_BY_4: Final = _ALL_TOKENS[::2]
_SKEWED_TOKENS: Final = (16, 256, 2048, 16384)
_QUICK_TOKENS: Final = (16, 1024, 16384)
_QUICK: Final = PLACEMENTS[:3]
_WHOLE: Final = tuple(placement for placement in PLACEMENTS if placement[1:] == (1, 1))
_LOW_BIT: Final = {
    "int4": (("mixtral-8x7b", 1, 1), ("olmoe-1b-7b", 1, 1), ("deepseek-v3", 32, 1), ("gpt-oss-120b", 4, 1)),
    "ternary": (("mixtral-8x7b", 1, 1), ("olmoe-1b-7b", 1, 1)),
}
_OPS: Final = ("sort", "permute", "gate_up", "down", "unpermute")
_BASELINES: Final = ("padded_ffn", "dense_dispatch", "dense_combine", "sparse_encode", "sparse_decode")
_GEMM: Final = (  # (n, k): projections and dense layers of the same models, squares, and at the end gates
    (4096, 4096), (6144, 4096), (8192, 8192), (28672, 4096), (4096, 14336), (2048, 2048), (7168, 2048), (1536, 7168),
    (7168, 16384), (24576, 1536), (1024, 8192), (5120, 2880), (32768, 512), (16384, 2048), (128256, 4096),
    (64, 2048), (32, 2880), (128, 4096), (256, 7168),
)  # fmt: skip
_QUICK_GATE: Final = (64, 2048)
_GEMM_M: Final = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_HEADS: Final = ((32, 8, 128), (16, 16, 128), (64, 8, 128), (64, 8, 64), (8, 1, 128))  # query, kv, width


def gpu_points(fp8: bool, gpus: int) -> Iterator[Point]:
    """All points; ``fp8``: the GPU multiplies it, ``gpus``: visible ones."""
    yield Point("peaks", ("gemm_bf16_flops",), 0, "peaks")
    yield Point("peaks", ("copy_bytes_per_s",), 0, "peaks")
    yield from _experts(fp8)
    yield from _kernels(fp8)
    yield from _gemm(fp8)
    yield from _attention()
    yield from _surroundings()
    for ranks in (r for r in (2, 4, 8) if r <= gpus):
        for op in ("all_gather", "all_reduce", "reduce_scatter", "all_to_all"):
            for size in (2**i for i in range(12, 31, 2)):
                yield Point("collectives", (op, ranks, size, "nccl"), 0 if size in (2**12, 2**20, 2**28) else 1, "nccl")


def expert_group(model: str, ep: int, tp: int, dtype: str) -> str:
    """Points that share the weights of one rank's experts."""
    return f"experts {model} {ep} {tp} {dtype}"


def _experts(fp8: bool) -> Iterator[Point]:
    for placement in PLACEMENTS:
        yield from _bf16(placement, placement in _QUICK)
        if fp8 and placement != ("deepseek-v3", 1, 1):
            yield from _fp8(placement, placement in _QUICK)
    for dtype, placements in _LOW_BIT.items():
        for placement in placements:
            for tokens in _BY_4[:7]:
                quick = placement == PLACEMENTS[0] and tokens in _QUICK_TOKENS
                yield _expert(placement, dtype, "balanced", tokens, 0 if quick else 2)
            for tokens in _SKEWED_TOKENS[:3]:
                yield _expert(placement, dtype, "zipf:1.2", tokens, 2)


def _bf16(placement: Placement, quick: bool) -> Iterator[Point]:
    for tokens in _ALL_TOKENS:
        stratum = 0 if quick and tokens in _QUICK_TOKENS else 1 if tokens in _BY_4 else 2
        yield _expert(placement, "bf16", "balanced", tokens, stratum)
    for tokens in _SKEWED_TOKENS:
        for load in LOADS[1:]:
            first = quick and tokens == _SKEWED_TOKENS[-1] and load == "zipf:1.2"
            yield _expert(placement, "bf16", load, tokens, 0 if first else 1)


def _fp8(placement: Placement, quick: bool) -> Iterator[Point]:
    for tokens in _BY_4:
        yield _expert(placement, "fp8_block", "balanced", tokens, 0 if quick and tokens in _QUICK_TOKENS else 1)
    for tokens in _SKEWED_TOKENS[1:]:
        for load in ("zipf:1.2", "lognormal:1.0", "hot"):
            yield _expert(placement, "fp8_block", load, tokens, 2)


def _expert(placement: Placement, dtype: str, load: str, tokens: int, stratum: int) -> Point:
    shape, ep, tp = MODELS[placement[0]], *placement[1:]
    values = ("moesim_triton", dtype, shape.model, load, 1, tokens, *shape[1:], ep, tp)
    return Point("expert_ffn", values, stratum, expert_group(shape.model, ep, tp, dtype))


def _kernels(fp8: bool) -> Iterator[Point]:
    for model, ep, tp in _WHOLE:
        shape = MODELS[model]
        for tokens in (16, 256, 1024, 4096, 16384):
            quick = (model, ep, tp) in _QUICK and tokens == 1024
            yield _kernel("router", "fp32", shape, "balanced", tokens, 0 if quick else 1)
            for op in _OPS:
                yield _kernel(op, "bf16", shape, "balanced", tokens, 0 if quick else 1)
        for tokens in (256, 4096, 16384) if fp8 and model != "deepseek-v3" else ():
            for op in ("gate_up", "down"):
                yield _kernel(op, "fp8_block", shape, "balanced", tokens, 2)
    for tokens in (16, 1024, 16384):
        yield _kernel("router_grouped", "fp32", MODELS["pangu-pro-moe"], "balanced", tokens, 0 if tokens == 1024 else 1)
    yield from _training_and_baselines()
    for model in ("mixtral-8x7b", "olmoe-1b-7b"):
        for dtype in _LOW_BIT:
            for tokens in (1, 16, 128):
                stratum = 0 if model == "mixtral-8x7b" else 2
                yield _kernel(f"matvec_{dtype}", dtype, MODELS[model], "balanced", tokens, stratum)


def _training_and_baselines() -> Iterator[Point]:
    for model in ("mixtral-8x7b", "olmoe-1b-7b", "deepseek-v2-lite"):
        for tokens in (1024, 4096, 16384):
            for load in ("balanced", "zipf:1.2"):
                quick = (model, tokens, load) == ("olmoe-1b-7b", 4096, "balanced")
                for op in ("gate_up", "down", "dgrad", "wgrad", *_BASELINES):  # a gradient stands beside its forward
                    if not op.startswith("dense") or tokens < 16384:  # one-hot tensors: tokens x experts x capacity
                        yield _kernel(op, "bf16", MODELS[model], load, tokens, 0 if quick else 2)


def _kernel(op: str, dtype: str, shape: Shape, load: str, tokens: int, stratum: int) -> Point:
    values = (op, "moesim_triton", dtype, shape.model, load, tokens, *shape[1:])
    return Point("kernels", values, stratum, expert_group(shape.model, 1, 1, dtype if dtype != "fp32" else "bf16"))


def _gemm(fp8: bool) -> Iterator[Point]:
    for place, (n, k) in enumerate(_GEMM):
        for m in _GEMM_M:
            if m * n <= 2**30:
                stratum = 0 if (place < 3 or (n, k) == _QUICK_GATE) and m in (1, 64, 1024, 8192) else 1
                yield Point("gemm", ("torch_matmul", "bf16", m, n, k), stratum, "gemm")
                if fp8 and m in _GEMM_M[::2] and place < 12:
                    yield Point("gemm", ("torch_scaled_mm", "fp8", m, n, k), min(stratum + place % 2, 2), "gemm")


def _attention() -> Iterator[Point]:
    for place, (heads, kv_heads, width) in enumerate(_HEADS):
        kind = ("gqa", "bf16", "bf16", heads, kv_heads, width, width, 0)
        for batch, context in ((1, 128), (8, 512), (1, 1024), (8, 1024), (1, 4096), (4, 4096), (1, 16384)):
            quick = place == 0 and batch == 1
            yield _attend("prefill", kind, batch, context, context, 0 if quick else 1)
        for batch in (1, 8, 32, 128):
            for context in (128, 1024, 4096, 16384, 65536):
                if batch * context <= 2**21:
                    quick = place == 0 and batch != 8 and context in (1024, 4096)
                    yield _attend("decode", kind, batch, 1, context, 0 if quick else 1)
    for heads in (128, 16):
        mla = ("mla", "bf16", "bf16", heads, 1, 192, 128, 576)
        for batch, context in ((1, 256), (4, 1024), (1, 4096), (1, 16384)):
            yield _attend("prefill", mla, batch, context, context, 0 if context == 4096 else 1)
        for batch in (1, 8, 32, 128):
            for context in (128, 1024, 4096, 16384):
                yield _attend("decode", mla, batch, 1, context, 0 if (batch, context) == (32, 4096) else 1)


def _attend(phase: str, kind: tuple[str | int, ...], batch: int, queries: int, context: int, stratum: int) -> Point:
    values = ("torch", phase, *kind, batch, queries, context)
    return Point("attention", values, stratum, "attention")


def _surroundings() -> Iterator[Point]:
    for direction in ("device_to_device", "host_to_device", "device_to_host"):
        for power in range(12, 31, 2):
            yield Point("copies", (direction, 2**power), 0 if power in (12, 20, 28) else 1, "copies")
    for how in ("stream", "graph"):
        for kernels in (1, 4, 16, 64, 256):
            yield Point("launch", (how, kernels), 0, "launch")
    for kernel in ("gemm", "gemm_large", "memory"):
        for held in (0, 8, 16, 20, 24, 32, 48):
            yield Point("interference", (kernel, held), 0 if held in (0, 20) else 1, "interference")
