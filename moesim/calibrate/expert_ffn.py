"""Rows of expert_ffn.csv: one MoE expert layer on one rank, from the router's choices to the combined tokens."""

from typing import Any

import torch

from moesim.calibrate import torch_layer
from moesim.calibrate.bench import Bench, check_finite
from moesim.calibrate.case import Case, make_case
from moesim.calibrate.points import Point
from moesim.calibrate.timing import Call


def measure(bench: Bench, point: Point) -> dict[str, str]:
    """One row: sort, permute, gate and up, down, combine."""
    case = make_case(bench, point)
    layer = _torch if point.text["kernel"] == "torch_cpu" else _triton
    calls = [layer(case, experts, experts_TK) for experts, experts_TK in case.variants]
    check_finite(calls[0]())
    loads = ";".join(str(tokens) for tokens in case.tokens_E.tolist())
    return {**bench.timer(calls).columns(), "tokens_per_expert": loads}


def _torch(case: Case, experts: Any, experts_TK: torch.Tensor) -> Call:
    return lambda: torch_layer.expert_layer(case.x_TH, experts, experts_TK, case.weights_TK)


def _triton(case: Case, experts: Any, experts_TK: torch.Tensor) -> Call:
    from moesim.kernels.expert_ffn import expert_ffn

    return lambda: expert_ffn(case.x_TH, experts, experts_TK, case.weights_TK, load=case.load)
