"""What overlaps with what: ops on streams.

    ops.py          Op, Program, Builder
    parts.py        pieces of a layer: attention, dense parts, the way to the experts and home
    layer.py        one layer, forward or backward, for every overlap choice; a pair of both
    routed.py       overlap none, chunked, shared, tiles: experts after their own attention
    shortcut.py     overlap shortcut: experts that read an earlier representation
    interleaved.py  overlap dual_batch, and pairs: two micro-batches at once
    pipeline.py     one step: micro-batches over pipeline stages, gradient reduction, optimizer

A program is a list of ops in an order that respects their dependencies. A stream plays its ops one at a
time, in list order. An op starts when its stream is free and every op it waits for has ended. The same
list is bounded, played by the batched list schedule and played by SimPy (``player``).

A *rank* stream ("compute" of a layer) runs once per rank class: its durations differ from rank to rank.
A *group* stream holds collectives: one starts when the last rank is ready and ends for all at once.
"""

from moesim.program.layer import LAYERS, backward_layer, forward_layer, pair_layer
from moesim.program.ops import RANK_STREAMS, Builder, Op, Program
from moesim.program.parts import LayerShape
from moesim.program.pipeline import Passes, pipeline
from moesim.program.shortcut import slots

__all__ = [
    "LAYERS",
    "RANK_STREAMS",
    "Builder",
    "LayerShape",
    "Op",
    "Passes",
    "Program",
    "backward_layer",
    "forward_layer",
    "pair_layer",
    "pipeline",
    "slots",
]
