"""One operation, priced by name: the quick sanity check, and the table of a thousand of them.

    OPERATIONS["gemm"](gpu="H200", m=4096, n=4096, k=4096) -> Cost
    OPERATIONS["gemm"].answer(...)                         -> Answer: the Cost and the inputs as understood

inputs      what people type becomes a checked noun
answer      Answer: a cost, the inputs as understood, the JSON
hardware    the GPU, the cluster and the group that were named
expert_ffn, gemm, attention          on one GPU
all_to_all, collective               between GPUs
exchange_traffic, exchange_picture   what an all-to-all sends, drawn or expected; the load on each link, drawn
loads       tokens of the most loaded rank
table       a CSV of cases: read, priced, written with the answers
"""

from typing import Final

from moesim.costs.all_to_all import AllToAll, price_all_to_all
from moesim.costs.answer import Answer, Operation
from moesim.costs.attention import AttentionCall, price_attention
from moesim.costs.collective import Collective, Send, price_collective, price_send
from moesim.costs.expert_ffn import ExpertFfn, price_expert_ffn
from moesim.costs.gemm import Gemm, price_gemm

__all__ = ["OPERATIONS", "Answer", "Operation"]

OPERATIONS: Final = {
    operation.name: operation
    for operation in (
        Operation(
            name="expert-ffn", inputs=ExpertFfn, price=price_expert_ffn,
            about="The expert layer of one GPU: permutation, its matrices, activation; no communication.",
        ),
        Operation(
            name="gemm", inputs=Gemm, price=price_gemm,
            about="A dense matrix product [m, k] x [k, n] on one GPU.",
        ),
        Operation(
            name="attention", inputs=AttentionCall, price=price_attention,
            about="Scores, softmax and values of one layer on one GPU, without its projections.",
        ),
        Operation(
            name="all-to-all", inputs=AllToAll, price=price_all_to_all,
            about="Dispatch or combine of one expert layer between the GPUs of a cluster.",
        ),
        Operation(
            name="all-reduce", inputs=Collective, price=price_collective("all_reduce"),
            about="The sum of a buffer over a group of GPUs, left on all of them.",
        ),
        Operation(
            name="all-gather", inputs=Collective, price=price_collective("all_gather"),
            about="The parts of a buffer from a group of GPUs, gathered on all of them.",
        ),
        Operation(
            name="reduce-scatter", inputs=Collective, price=price_collective("reduce_scatter"),
            about="The sum of a buffer over a group of GPUs, of which each keeps its part.",
        ),
        Operation(name="send", inputs=Send, price=price_send, about="One message from one GPU to another."),
    )
}  # fmt: skip
"""What ``moesim cost`` prices, by the name people type."""
