"""Rows of kernels.csv: each kernel alone, with the FLOPs and bytes that its own cost states for these loads."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import torch

from moesim.calibrate import torch_layer
from moesim.calibrate.bench import Bench, check_finite
from moesim.calibrate.case import Case, make_case
from moesim.calibrate.points import Point
from moesim.calibrate.timing import Call, figure
from moesim.kernels import backward, baselines, grouped_gemm, low_bit, matvec, router, tiles
from moesim.kernels import permute as permuting
from moesim.kernels.common import Work
from moesim.kernels.fp8 import quantise_fp8_rows

_ROUTERS: Final[dict[str, dict[str, Any]]] = {"deepseek-v3": {"score": "sigmoid", "groups": 8, "groups_kept": 4}}
_GROUPS: Final = 8  # of Pangu's router
READS: Final = {  # share of an expert's weights that a call reads; the other ops read none
    "gate_up": 2 / 3,
    "down": 1 / 3,
    "dgrad": 2 / 3,
    "padded_ffn": 1.0,
    "matvec_int4": 2 / 3,
    "matvec_ternary": 2 / 3,
}
_LOW_BIT: Final = {"int4": low_bit.Int4, "ternary": low_bit.Ternary}


class Job(NamedTuple):
    """The same work on different tensors, what it costs, and its result's rows that must be finite."""

    calls: list[Call]
    work: Work
    rows: torch.Tensor | None = None  # None: all


def measure(bench: Bench, point: Point) -> dict[str, str]:
    """One row."""
    op = point.text["op"]
    jobs = TORCH_JOBS if point.text["kernel"] == "torch_cpu" else TRITON_JOBS
    job = jobs[op](bench, point)
    found = job.calls[0]()
    first = found if isinstance(found, torch.Tensor) else None
    if first is not None:
        check_finite(first if job.rows is None else first.index_select(0, job.rows))
    return {
        "flops": figure(job.work.flops),
        "bytes": figure(job.work.bytes),
        **bench.timer(job.calls).columns(),
    }


class Tokens(NamedTuple):
    """One variant of a case, sorted by expert."""

    experts: Any
    experts_TK: torch.Tensor
    order: Any
    x_RH: torch.Tensor


def _case(bench: Bench, point: Point) -> Case:
    return make_case(bench, point, READS.get(point.text["op"], 0.0))


def _sorted(case: Case) -> list[Tokens]:
    found = []
    for experts, experts_TK in case.variants:
        order = permuting.sort_by_expert(experts_TK, len(case.tokens_E), tiles.block_for(case.load, case.dtype))
        found.append(Tokens(experts, experts_TK, order, permuting.permute(case.x_TH, order)))
    return found


def _used(order: Any) -> torch.Tensor:
    """Rows that hold a copy."""
    return order.row_TK[order.row_TK >= 0].flatten().long()


def _router(bench: Bench, point: Point) -> Job:
    n, model = point.number, point.text["model"]
    logits_TE = bench.randn(n["tokens"], n["experts"], dtype=torch.float32)
    work = router.router_cost(n["tokens"], n["experts"], n["top_k"])
    if point.text["op"] == "router_grouped":
        return Job([lambda: router.grouped_router(logits_TE, n["top_k"], _GROUPS)[0]], work)
    options = dict(_ROUTERS.get(model, {}))
    if options:
        options["bias_E"] = bench.randn(n["experts"], dtype=torch.float32) * 0.01
    return Job([lambda: router.router(logits_TE, n["top_k"], **options)[0]], work)


def _sort(bench: Bench, point: Point) -> Job:
    case, n = _case(bench, point), point.number
    block = tiles.block_for(case.load, case.dtype)
    calls: list[Call] = [
        partial(permuting.sort_by_expert, experts_TK, n["experts"], block) for _, experts_TK in case.variants
    ]
    return Job(calls, permuting.sort_cost(n["tokens"], n["experts"], n["top_k"]))


def _permute(bench: Bench, point: Point) -> Job:
    case, n = _case(bench, point), point.number
    tokens = _sorted(case)
    calls: list[Call] = [partial(permuting.permute, case.x_TH, one.order) for one in tokens]
    return Job(calls, permuting.permute_cost(n["tokens"], n["top_k"], n["hidden"], 2.0), _used(tokens[0].order))


def _unpermute(bench: Bench, point: Point) -> Job:
    case, n = _case(bench, point), point.number
    tokens = _sorted(case)
    calls: list[Call] = [partial(permuting.unpermute, one.x_RH, one.order, case.weights_TK) for one in tokens]
    return Job(calls, permuting.unpermute_cost(n["tokens"], n["top_k"], n["hidden"], 2.0))


def _gemm(bench: Bench, point: Point) -> Job:
    """gate_up: [R, H] to [R, F] with SwiGLU; down: [R, F] to [R, H]."""
    case, n, up = _case(bench, point), point.number, point.text["op"] == "gate_up"
    tokens = _sorted(case)
    width, depth = (2 * case.ffn, n["hidden"]) if up else (n["hidden"], case.ffn)
    activation = "swiglu" if up else "none"

    def call(one: Tokens) -> Call:
        x = one.x_RH if up else bench.randn(one.order.rows, case.ffn)
        weights, scale = (one.experts.w13, one.experts.w13_scale) if up else (one.experts.w2, one.experts.w2_scale)
        x, x_scale = quantise_fp8_rows(x) if case.dtype == "fp8_block" else (x, None)
        options = {"x_scale": x_scale, "w_scale": scale, "activation": activation}
        return partial(grouped_gemm.grouped_gemm, x, weights, one.order, **options)

    work = grouped_gemm.grouped_gemm_cost(case.counts_E, width, depth, case.dtype, activation)
    return Job([call(one) for one in tokens], work, _used(tokens[0].order))


def _backward(bench: Bench, point: Point) -> Job:
    """Of gate and up: dy [R, 2F] to dx [R, H], or to dw [E, 2F, H]."""
    case, n = _case(bench, point), point.number
    width, depth = 2 * case.ffn, n["hidden"]
    tokens = _sorted(case)

    def call(one: Tokens) -> Call:
        dy_RN = bench.randn(one.order.rows, width)
        if point.text["op"] == "dgrad":
            return lambda: backward.grouped_dgrad(dy_RN, one.experts.w13, one.order)
        return lambda: backward.grouped_wgrad(one.x_RH, dy_RN, one.order)

    rows = _used(tokens[0].order) if point.text["op"] == "dgrad" else None
    cost = backward.grouped_dgrad_cost if point.text["op"] == "dgrad" else backward.grouped_wgrad_cost
    return Job([call(one) for one in tokens], cost(case.counts_E, width, depth), rows)


def _baseline(bench: Bench, point: Point) -> Job:
    """Capacity: the mean load times 1.25, and all of it where the load is balanced."""
    case, n, op = _case(bench, point), point.number, point.text["op"]
    tokens, top_k, experts, hidden = (n[name] for name in ("tokens", "top_k", "experts", "hidden"))
    capacity = -(-tokens * top_k * 5 // (experts * 4))
    if op.startswith("dense"):
        bench.require(12.0 * tokens * experts * capacity)  # the mask, and what einsum makes of it
    variant, experts_TK = case.variants[0]
    if op == "padded_ffn":
        work = baselines.padded_ffn_cost(tokens, top_k, experts, capacity, hidden, case.ffn)
        return Job([lambda: baselines.padded_ffn(case.x_TH, variant, experts_TK, case.weights_TK, capacity)], work)
    slots = baselines.capacity_slots(experts_TK, experts, capacity)
    y_ECH = baselines.sparse_encode(case.x_TH, slots)
    calls: dict[str, tuple[Call, Work]] = {
        "dense_dispatch": (
            lambda: baselines.dense_dispatch(case.x_TH, slots),
            baselines.dense_dispatch_cost(tokens, experts, capacity, hidden, 2.0),
        ),
        "dense_combine": (
            lambda: baselines.dense_combine(y_ECH, slots, case.weights_TK),
            baselines.dense_dispatch_cost(tokens, experts, capacity, hidden, 2.0),
        ),
        "sparse_encode": (
            lambda: baselines.sparse_encode(case.x_TH, slots),
            baselines.sparse_encode_cost(tokens, top_k, experts, capacity, hidden, 2.0),
        ),
        "sparse_decode": (
            lambda: baselines.sparse_decode(y_ECH, slots, case.weights_TK),
            baselines.sparse_decode_cost(tokens, top_k, hidden, 2.0),
        ),
    }
    return Job([calls[op][0]], calls[op][1])


def _matvec(bench: Bench, point: Point) -> Job:
    """Gate and up of every copy, its expert's weights read for it alone."""
    case, n = _case(bench, point), point.number
    width, hidden = 2 * case.ffn, n["hidden"]

    def call(experts: Any, experts_TK: torch.Tensor) -> Call:
        weights = _LOW_BIT[case.dtype](experts.w13, experts.w13_scale, hidden)
        chosen_C = experts_TK.flatten()
        return lambda: matvec.matvec_low_bit(case.x_TH, weights, chosen_C, activation="swiglu")

    each = low_bit.weight_bytes(width, hidden, case.dtype)
    work = matvec.matvec_low_bit_cost(int(case.tokens_E.sum()), width, hidden, each, "swiglu")
    return Job([call(*variant) for variant in case.variants], work)


def _torch_router(bench: Bench, point: Point) -> Job:
    n = point.number
    logits_TE = bench.randn(n["tokens"], n["experts"], dtype=torch.float32)
    work = router.router_cost(n["tokens"], n["experts"], n["top_k"])
    return Job([lambda: torch_layer.route(logits_TE, n["top_k"])[0]], work)


def _torch_job(bench: Bench, point: Point) -> Job:
    """One part of the plain layer; its work as the kernel of the same part counts it."""
    case, n, op = _case(bench, point), point.number, point.text["op"]
    tokens, top_k, hidden, experts = (n[name] for name in ("tokens", "top_k", "hidden", "experts"))
    order = torch_layer.sort(case.variants[0][1], experts)
    x_CH, h_CF = torch_layer.gather(case.x_TH, order), bench.randn(tokens * top_k, case.ffn)
    parts: dict[str, Callable[[Any, torch.Tensor], object]] = {
        "sort": lambda _, chosen: torch_layer.sort(chosen, experts),
        "permute": lambda _, chosen: torch_layer.gather(case.x_TH, order),
        "gate_up": lambda weights, _: torch_layer.gate_up(x_CH, weights, order.counts),
        "down": lambda weights, _: torch_layer.down(h_CF, weights, order.counts),
        "unpermute": lambda _, chosen: torch_layer.combine(x_CH, order, case.weights_TK),
    }
    work = {
        "sort": permuting.sort_cost(tokens, experts, top_k),
        "permute": permuting.permute_cost(tokens, top_k, hidden, 2.0),
        "gate_up": grouped_gemm.grouped_gemm_cost(case.counts_E, 2 * case.ffn, hidden, "bf16", "swiglu"),
        "down": grouped_gemm.grouped_gemm_cost(case.counts_E, hidden, case.ffn, "bf16", "none"),
        "unpermute": permuting.unpermute_cost(tokens, top_k, hidden, 2.0),
    }
    calls: list[Call] = [partial(parts[op], *variant) for variant in case.variants]
    return Job(calls, work[op])


TORCH_JOBS: Final[dict[str, Callable[[Bench, Point], Job]]] = {
    "router": _torch_router,
    **dict.fromkeys(("sort", "permute", "gate_up", "down", "unpermute"), _torch_job),
}
TRITON_JOBS: Final[dict[str, Callable[[Bench, Point], Job]]] = {
    "router": _router,
    "router_grouped": _router,
    "sort": _sort,
    "permute": _permute,
    "unpermute": _unpermute,
    "gate_up": _gemm,
    "down": _gemm,
    "dgrad": _backward,
    "wgrad": _backward,
    **dict.fromkeys(("padded_ffn", "dense_dispatch", "dense_combine", "sparse_encode", "sparse_decode"), _baseline),
    "matvec_int4": _matvec,
    "matvec_ternary": _matvec,
}
