"""One rank of an expert-parallel MoE layer in plain torch: its tokens go to the ranks of their experts and return.

    x_TH --route--> choices --sort by expert--> copies --all-to-all--> rows of my experts --compute--> all-to-all back

The rows of a rank arrive by sender, then by expert; they are put in the order of the experts before the products.
"""

import time
from itertools import cycle
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist

from moesim.calibrate import torch_layer
from moesim.calibrate.shapes import Shape

_PASSES: Final = 7


class Arrived(NamedTuple):
    """What dispatch leaves for the experts and for the way back."""

    order: torch_layer.Order  # of my own copies, by expert of all ranks
    x_CH: torch.Tensor  # rows for my experts, in their order
    back_C: torch.Tensor  # place of each arrived row in that order
    counts: list[int]  # rows of each of my experts
    sent: list[int]  # my copies to each rank
    received: list[int]  # rows from each rank


def tokens_for(logits_TE: torch.Tensor, gate_EH: torch.Tensor, x_TH: torch.Tensor) -> torch.Tensor:
    """Tokens near ``x_TH`` whose product with the gate is ``logits_TE``, up to the rounding of bf16; E below H."""
    gate, x = gate_EH.float(), x_TH.float()
    missing_TE = logits_TE - x @ gate.T
    return (x + torch.linalg.solve(gate @ gate.T, missing_TE.T).T @ gate).to(x_TH.dtype)


class LiveLayer:
    """The layer of one rank with its tokens."""

    def __init__(self, rank: int, ranks: int, shape: Shape, noise_TE: torch.Tensor, *, copies: int, seed: int) -> None:
        torch.manual_seed(seed + rank)
        self.rank, self.ranks, self.shape = rank, ranks, shape
        self.local = shape.experts // ranks
        made = [torch_layer.make_weights(self.local, shape.hidden, shape.ffn) for _ in range(copies)]
        self.weights = cycle(made)  # as the layers of a model: none is in the cache when its turn comes
        self.gate_EH = torch_layer.random_values(shape.experts, shape.hidden, scale=shape.hidden**-0.5)
        self.x_TH = tokens_for(noise_TE, self.gate_EH, torch_layer.random_values(len(noise_TE), shape.hidden))

    def route(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and experts of each token."""
        return torch_layer.route((self.x_TH @ self.gate_EH.T).float(), self.shape.top_k)

    def dispatch(self, experts_TK: torch.Tensor) -> Arrived:
        """Send each copy to the rank of its expert, and order what arrives by expert."""
        order = torch_layer.sort(experts_TK, self.shape.experts)
        sent_RE = torch.tensor(order.counts).view(self.ranks, self.local)
        received_RE = torch.empty_like(sent_RE)
        dist.all_to_all_single(received_RE, sent_RE)
        sent, received = sent_RE.sum(1).tolist(), received_RE.sum(1).tolist()
        arrived = self._exchange(torch_layer.gather(self.x_TH, order), received, sent)
        expert_C = torch.arange(self.local).repeat(self.ranks).repeat_interleave(received_RE.flatten())
        by_expert_C = torch.argsort(expert_C, stable=True)
        back_C = torch.empty_like(by_expert_C)
        back_C[by_expert_C] = torch.arange(len(by_expert_C))
        return Arrived(order, arrived[by_expert_C], back_C, received_RE.sum(0).tolist(), sent, received)

    def compute(self, arrived: Arrived) -> torch.Tensor:
        """My experts on what arrived."""
        weights = next(self.weights)
        h_CF = torch_layer.gate_up(arrived.x_CH, weights, arrived.counts)
        return torch_layer.down(h_CF, weights, arrived.counts)

    def combine(self, arrived: Arrived, y_CH: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """Send the results back and add them up."""
        home = self._exchange(y_CH[arrived.back_C], arrived.sent, arrived.received)
        return torch_layer.combine(home, arrived.order, weights_TK)

    def layer(self) -> torch.Tensor:
        """All of it: y_TH."""
        weights_TK, experts_TK = self.route()
        arrived = self.dispatch(experts_TK)
        return self.combine(arrived, self.compute(arrived), weights_TK)

    def samples(self) -> dict[str, Any]:
        """Seconds of each part in each pass, after one pass that does not count; every part starts together."""
        found: dict[str, Any] = {part: [] for part in ("router", "dispatch", "experts", "combine", "layer")}
        weights_TK, experts_TK = self.route()
        arrived = self.dispatch(experts_TK)
        y_CH = self.compute(arrived)
        if not bool(self.combine(arrived, y_CH, weights_TK).isfinite().all()):
            raise ValueError("the layer's result holds NaN or infinity")
        calls = {
            "router": self.route,
            "dispatch": lambda: self.dispatch(experts_TK),
            "experts": lambda: self.compute(arrived),
            "combine": lambda: self.combine(arrived, y_CH, weights_TK),
            "layer": self.layer,
        }
        for _ in range(_PASSES):
            for part, call in calls.items():
                dist.barrier()
                start = time.perf_counter()
                call()
                found[part].append(time.perf_counter() - start)
        away = sum(arrived.sent) - arrived.sent[self.rank]
        return {**found, "counts": arrived.counts, "sent": away * self.shape.hidden * self.x_TH.element_size()}

    def _exchange(self, rows: torch.Tensor, received: list[int], sent: list[int]) -> torch.Tensor:
        out = rows.new_empty(sum(received), rows.shape[1])
        dist.all_to_all_single(out, rows.contiguous(), received, sent)
        return out
