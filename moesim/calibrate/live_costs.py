"""The calibrated calls that each part of a live layer consists of, with what they compute and move.

``loads`` are the copies for each expert of the rank that computes longest, as the row records them.
"""

from typing import Any, NamedTuple

import torch

from moesim.kernels.common import Work
from moesim.kernels.grouped_gemm import grouped_gemm_cost
from moesim.kernels.permute import permute_cost, sort_cost, unpermute_cost
from moesim.kernels.router import router_cost

_BYTES = 2.0  # of a bf16 value


class Called(NamedTuple):
    """One calibrated kernel: its rows in kernels.csv, and how much of it."""

    op: str
    dtype: str
    work: Work


def live_calls(row: dict[str, Any]) -> dict[str, list[Called]]:
    """Kernels of every part of the layer that ``row`` describes; exchanges and the gate's GEMM not among them."""
    hidden, ffn, top_k, experts = (int(row[name]) for name in ("hidden", "ffn", "top_k", "experts"))
    own = int(row["tokens"]) // int(row["ep"])
    loads = torch.tensor([int(count) for count in str(row["tokens_per_expert"]).split(";")])
    counted = Called("sort", "bf16", sort_cost(own, experts, top_k))
    gathered = Called("permute", "bf16", permute_cost(own, top_k, hidden, _BYTES))
    ordered = Called("permute", "bf16", permute_cost(int(loads.sum()), 1, hidden, _BYTES))
    several = [ordered] if int(row["ep"]) > 1 else []  # by sender as they arrive, by expert as they are computed
    return {
        "router": [Called("router", "fp32", router_cost(own, experts, top_k))],
        "dispatch": [counted, gathered, *several],
        "experts": [
            Called("gate_up", "bf16", grouped_gemm_cost(loads, 2 * ffn, hidden, "bf16", "swiglu")),
            Called("down", "bf16", grouped_gemm_cost(loads, hidden, ffn)),
        ],
        "combine": [*several, Called("unpermute", "bf16", unpermute_cost(own, top_k, hidden, _BYTES))],
    }
