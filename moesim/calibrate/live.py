"""A real MoE layer, timed part by part, on shapes that are not calibrated.

    router    logits of the gate, top_k of each token
    dispatch  sort and gather; on several ranks the all-to-all of counts and tokens, and their order by expert
    experts   gate and up, down
    combine   the way back, and each token's weighted sum
    layer     all of it in one go

GPU: the Triton kernels on one GPU. CPU: two expert-parallel gloo processes with the plain torch layer. Loads come
about by the logits: a bias and Gumbel noise, so that top-1 draws an expert by its popularity. The tokens are made so
that the gate itself gives those logits: nothing is added to its product, and router is one GEMM and one kernel.
"""

import math
import statistics
from typing import Any, Final

import torch

from moesim.calibrate.bench import Bench, check_finite, make_bench
from moesim.calibrate.live_ranks import LiveLayer, tokens_for
from moesim.calibrate.machine import PROCESSES, find_machine
from moesim.calibrate.shapes import LIVE_CPU, LIVE_GPU, Shape
from moesim.calibrate.timing import Call, summary
from moesim.calibrate.workers import Workers

PARTS: Final = ("router", "dispatch", "experts", "combine", "layer")
LOADS: Final = ("balanced", "zipf:1.2", "hot")
_TOKENS: Final = {"cuda": (4096, 256, 16384), "cpu": (256, 32, 512)}
_HOT: Final = 30.0  # on the logit of one expert: every token chooses it


def run_live(device: str, seed: int, points: int) -> list[dict[str, Any]]:
    """One row per part of each of the first ``points`` layers; MoesimError without that device."""
    machine = find_machine(device, None)
    shapes = LIVE_CPU if device == "cpu" else LIVE_GPU
    asked = [(shape, tokens, load) for tokens in _TOKENS[device] for shape in shapes for load in LOADS]
    bench = make_bench(device, machine.l2_bytes, seed)
    rows = []
    try:
        for number, (shape, tokens, load) in enumerate(asked[:points]):
            measure = _ranks if device == "cpu" else _one_gpu
            rows += measure(bench, shape, tokens, load, seed + number)
    finally:
        bench.leave()
    return rows


def biased_noise(load: str, tokens: int, experts: int, seed: int) -> torch.Tensor:
    """Gumbel noise and the bias of a load: the logits [T, E]."""
    generator = torch.Generator().manual_seed(seed)
    rank_E = torch.randperm(experts, generator=generator).float()
    name, _, text = load.partition(":")
    bias_E = torch.zeros(experts)
    if name == "zipf":
        bias_E = -float(text) * torch.log1p(rank_E)
    elif name == "hot":
        bias_E[int(rank_E[0])] = _HOT
    uniform_TE = torch.rand(tokens, experts, generator=generator).clamp(1e-9, 1.0 - 1e-7)
    return bias_E - torch.log(-torch.log(uniform_TE))


def _row(shape: Shape, tokens: int, load: str, ep: int) -> dict[str, Any]:
    facts = dict(shape._asdict())
    return {"model": facts.pop("model"), "dtype": "bf16", "load": load, "tokens": tokens, **facts, "ep": ep}


def _one_gpu(bench: Bench, shape: Shape, tokens: int, load: str, seed: int) -> list[dict[str, Any]]:
    """The Triton kernels on this GPU, or wherever the bench's device is."""
    noise_TE = biased_noise(load, tokens, shape.experts, seed).to(bench.device)
    bench.enter(f"live {shape.model}")
    calls, experts_TK = _triton_parts(bench, shape, noise_TE)
    check_finite(calls["layer"]())
    counts = torch.bincount(experts_TK.flatten().cpu(), minlength=shape.experts).tolist()
    known = {"tokens_per_expert": ";".join(map(str, counts)), "sent_bytes": 0}
    facts = _row(shape, tokens, load, 1)
    return [{**facts, "part": part, **known, **bench.timer([calls[part]]).columns()} for part in PARTS]


def _triton_parts(bench: Bench, shape: Shape, noise_TE: torch.Tensor) -> tuple[dict[str, Call], torch.Tensor]:
    """Each part as a call, and the choices."""
    from moesim.kernels.expert_ffn import expert_ffn, make_experts
    from moesim.kernels.grouped_gemm import grouped_gemm
    from moesim.kernels.permute import permute, sort_by_expert, unpermute
    from moesim.kernels.router import router
    from moesim.kernels.tiles import block_for

    tokens, count = noise_TE.shape
    experts = bench.keep("experts", lambda: make_experts(count, shape.hidden, shape.ffn, "bf16", device=bench.device))
    gate_EH = bench.keep("gate", lambda: bench.randn(count, shape.hidden) / math.sqrt(shape.hidden))
    x_TH = tokens_for(noise_TE, gate_EH, bench.randn(tokens, shape.hidden))
    load = tokens * shape.top_k / count

    def route() -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = router(x_TH @ gate_EH.T, shape.top_k)
        return found

    weights_TK, experts_TK = route()

    def dispatch() -> tuple[Any, torch.Tensor]:
        order = sort_by_expert(experts_TK, count, block_for(load, "bf16"))
        return order, permute(x_TH, order)

    order, x_RH = dispatch()

    def compute() -> torch.Tensor:
        return grouped_gemm(grouped_gemm(x_RH, experts.w13, order, activation="swiglu"), experts.w2, order)

    def layer() -> torch.Tensor:
        weights, chosen = route()
        return expert_ffn(x_TH, experts, chosen, weights, load=load)

    y_RH = compute()
    calls: dict[str, Call] = {
        "router": route, "dispatch": dispatch, "experts": compute,
        "combine": lambda: unpermute(y_RH, order, weights_TK), "layer": layer,
    }  # fmt: skip
    return calls, experts_TK


def _ranks(bench: Bench, shape: Shape, tokens: int, load: str, seed: int) -> list[dict[str, Any]]:
    """Two processes; the slowest counts, and its loads are the ones recorded."""
    bench.enter("live")
    workers: Workers = bench.keep("workers", lambda: Workers(PROCESSES, "gloo"))
    noise_TE = biased_noise(load, tokens, shape.experts, seed)
    copies = bench.copies(3.0 * shape.hidden * shape.ffn * 2.0 * shape.experts / PROCESSES)
    found = workers.run(f"{__name__}:time_rank", shape=shape, noise=noise_TE.numpy(), copies=copies, seed=seed)
    slowest = max(found, key=lambda rank: statistics.median(rank["experts"]))
    known = {"tokens_per_expert": ";".join(map(str, slowest["counts"])), "sent_bytes": max(r["sent"] for r in found)}
    rows = []
    for part in PARTS:
        timing = summary([max(samples) for samples in zip(*(rank[part] for rank in found), strict=True)])
        rows.append({**_row(shape, tokens, load, PROCESSES), "part": part, **known, **timing.columns()})
    return rows


def time_rank(rank: int, ranks: int, *, shape: Shape, noise: Any, copies: int, seed: int) -> dict[str, Any]:
    """One rank's samples in seconds by part, its copies per local expert, the bytes that it sends one way."""
    tokens = len(noise) // ranks
    noise_TE = torch.from_numpy(noise[rank * tokens : (rank + 1) * tokens])
    return LiveLayer(rank, ranks, shape, noise_TE, copies=copies, seed=seed).samples()
