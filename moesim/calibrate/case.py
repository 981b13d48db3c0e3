"""One rank's expert layer with its tokens, as tensors: what expert_ffn and kernels points start from.

Where the weights that a call reads would fit in the last-level cache, the calls use different ones, until all
together are twice that cache: the choices are shifted to other experts, and where all of them would fit, copies of
the weights are used in turn.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moesim.calibrate.bench import MOST_COPIES, Bench
from moesim.calibrate.loads import IntArray, choices, rank_load, tokens_per_expert
from moesim.calibrate.points import Point
from moesim.calibrate.torch_layer import make_weights

VALUE_BYTES = {"bf16": 2.0, "fp8_block": 1.0, "int4": 0.53125, "ternary": 0.25, "fp32": 2.0}
_WORK_VALUES = 6  # bf16 tensors as large as the rows of hidden and ffn that may live at a time


class Case(NamedTuple):
    """The tensors of one point."""

    x_TH: torch.Tensor
    weights_TK: torch.Tensor
    variants: list[tuple[Any, torch.Tensor]]  # experts, and the choices [T, K] that go to them
    tokens_E: IntArray  # copies per local expert
    ffn: int  # on this rank
    dtype: str

    @property
    def load(self) -> float:
        """Mean copies of a local expert: what a launcher chooses its tile by."""
        return float(self.tokens_E.mean())

    @property
    def counts_E(self) -> torch.Tensor:
        """Copies per local expert, as the kernels' costs take them."""
        return torch.from_numpy(self.tokens_E)


def make_case(bench: Bench, point: Point, reads: float = 1.0) -> Case:
    """The case of an expert_ffn or kernels point; ``reads``: the share of an expert's weights that a call reads."""
    n, rng = point.number, bench.rng(point)
    ep, tp = n.get("ep", 1), n.get("tp", 1)
    dtype = point.text["dtype"].replace("fp32", "bf16")
    wanted = tokens_per_expert(point.text["load"], n["tokens"], n["experts"], n["top_k"], rng)
    rank = rank_load(choices(wanted, n["tokens"], n["top_k"], rng), n["experts"], ep)
    local, ffn, hidden = n["experts"] // ep, n["ffn"] // tp, n["hidden"]
    each = 3.0 * hidden * ffn * VALUE_BYTES[dtype]
    made = 3.0 * hidden * ffn * local * 2.0 * (1.2 if dtype == "bf16" else 3.0)  # quantising works in wider numbers
    rows = int(rank.tokens_E.sum()) + 128 * local
    bench.require(_WORK_VALUES * 2.0 * rows * (hidden + ffn) + (0.0 if "experts 0" in bench.kept else made))
    copies = bench.copies(reads * each * local) if reads else 1
    weights = [bench.keep("experts 0", lambda: _experts(bench, point, local, ffn))]
    weights += [bench.keep(f"experts {i}", lambda: _clone(weights[0])) for i in range(1, copies)]
    wanted_pairs = math.ceil(2.0 * bench.l2_bytes / (reads * each)) if reads else 1
    experts_TK = torch.from_numpy(rank.choices_TK).to(torch.int32 if point.text["kernel"] != "torch_cpu" else None)
    variants = []
    for copy, shift in shifts(rank.tokens_E > 0, copies, wanted_pairs):
        shifted = torch.where(experts_TK >= 0, (experts_TK + shift) % local, -1).to(experts_TK.dtype)
        variants.append((weights[copy], shifted.to(bench.device)))
    random_TK = torch.from_numpy(rng.random(rank.choices_TK.shape, dtype="float32")).to(bench.device)
    return Case(
        x_TH=bench.randn(len(rank.choices_TK), hidden),
        weights_TK=random_TK / random_TK.sum(1, keepdim=True),
        variants=variants,
        tokens_E=rank.tokens_E,
        ffn=ffn,
        dtype=dtype,
    )


def shifts(active_E: NDArray[np.bool_], copies: int, wanted_pairs: int) -> list[tuple[int, int]]:
    """(copy of the weights, shift of the choices) of each call; together they read ``wanted_pairs`` experts.

    An expert of another copy is another one. Each call takes the shift that reads most experts not yet read;
    fewer where all are read before, or after MOST_COPIES calls.
    """
    shifted_SE = np.stack([np.roll(active_E, shift) for shift in range(len(active_E))])
    read_CE = np.zeros((copies, len(active_E)), dtype=bool)
    found: list[tuple[int, int]] = []
    while not found or (int(read_CE.sum()) < wanted_pairs and len(found) < MOST_COPIES and not read_CE.all()):
        copy = len(found) % copies
        shift = int((shifted_SE & ~read_CE[copy]).sum(axis=1).argmax())
        read_CE[copy] |= shifted_SE[shift]
        found.append((copy, shift))
    return found


def _experts(bench: Bench, point: Point, local: int, ffn: int) -> Any:
    """Random weights of one rank's experts."""
    hidden, dtype = point.number["hidden"], point.text["dtype"].replace("fp32", "bf16")
    if point.text["kernel"] == "torch_cpu":
        return make_weights(local, hidden, ffn)
    from moesim.kernels.expert_ffn import make_experts

    return make_experts(local, hidden, ffn, dtype, gated=True, activation="swiglu", device=bench.device)


def _clone(one: Any) -> Any:
    """The same values elsewhere in memory: tensors inside named tuples, at any depth."""
    if isinstance(one, torch.Tensor):
        return one.clone()
    return type(one)(*(_clone(part) for part in one)) if isinstance(one, tuple) else one
