"""One played step as spans: the passes of the pipeline, and inside them the ops of every layer.

    stage, send, back, dp    passes, transfers, gradient reduction, optimizer of each stage
    layer                    the layers inside a pass, in the order they run, and the head
    compute, comm, dp        the ops of each layer, on the slowest rank class of the stage

The other rank classes are added for the first micro-batch of the fullest stage: there the wait for the
slowest rank shows. A long step has more ops than a viewer can hold: then only its first micro-batches show
their layers, and the trace says so.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np

from moesim.cost import FloatArray
from moesim.player import Played
from moesim.program import RANK_STREAMS, Passes
from moesim.stages import part_layers
from moesim.step.experts import RANK_CLASSES
from moesim.step.layers import draws_of, play_draw
from moesim.step.parts import embedding_seconds, head_seconds, kinds, layer_pass, part_passes, partners
from moesim.step.passes import LayerPass, backward_pass, forward_pass, pass_key
from moesim.step.play import passes_of, play_pipeline, times_of
from moesim.step.scenario import BATCH_CLASSES, Scenario, class_of, layer_classes, split_in
from moesim.step.times import stage_work
from moesim.strategy import Strategy, show
from moesim.timeline import Span, chrome_trace

MOST_SPANS: Final = 150_000
HEAD, EMBEDDING = -1, -2  # stand where a layer's number would
OUTSIDE: Final = {HEAD: "head", EMBEDDING: "embedding"}


class StepTrace(NamedTuple):
    """The spans of a step, and what a reader of them should know."""

    spans: list[Span]
    step_s: float  # of one step: decode plays several, the distance of the last two
    shown_micro_batches: int  # those whose layers are shown
    micro_batches: int

    def to_chrome(self, scenario: Scenario, strategy: Strategy) -> dict[str, Any]:
        """A document for Perfetto."""
        all_shown = self.shown_micro_batches == self.micro_batches
        return chrome_trace(self.spans, "stage", {
            "model": scenario.model.name,
            "cluster": f"{scenario.cluster.nodes} x {scenario.cluster.name}",
            "workload": scenario.workload.kind,
            "strategy": show(strategy),
            "seed": scenario.seed,
            "step_s": self.step_s,
            "steps_played": 1 + max(span.turn for span in self.spans),
            "layers_shown_for": "all micro-batches" if all_shown
            else f"the first {self.shown_micro_batches} of {self.micro_batches} micro-batches",
            "ranks": "the ops of a stage are those of its slowest rank class",
        })  # fmt: skip


Inside = list[tuple[int, Played]]  # layers of a pass in the order they run: number or one of OUTSIDE, and its ops
PASSING: Final = ("forward", "backward", "data", "weights", "pair", "send", "back")


class _Plays:
    """Plays every draw of a layer pass once, and remembers it with its spans."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[LayerPass, list[Played]]] = {}

    def played(self, layer_pass: LayerPass) -> list[Played]:
        if id(layer_pass) not in self.known:
            plays = [play_draw(layer_pass, draw) for draw in range(draws_of(layer_pass))]
            self.known[id(layer_pass)] = layer_pass, plays
        return self.known[id(layer_pass)][1]

    def seconds(self, layer_pass: LayerPass) -> FloatArray:
        return np.array([one.end_s for one in self.played(layer_pass)])


def step_spans(scenario: Scenario, strategy: Strategy) -> list[Span]:
    """Every span of one played step; ``rank`` is the pipeline stage."""
    return step_trace(scenario, strategy).spans


def step_trace(scenario: Scenario, strategy: Strategy, *, most_spans: int = MOST_SPANS) -> StepTrace:
    """Play the step and keep at most about ``most_spans`` spans; passes are always kept."""
    plays = _Plays()
    passes = passes_of(scenario, strategy)
    times = times_of(scenario, strategy, part_passes(scenario, strategy, plays.seconds))
    inside = _inside(scenario, strategy, plays)
    spans = _with_turns(play_pipeline(passes, times), passes.rounds)
    shown = _shown(passes, inside, most_spans - len(spans))
    fullest = int(np.argmax(stage_work(passes, times, passes.micro_batches)))
    found: list[Span] = []
    for key, one in spans:
        found.append(one)
        if one.stream == "stage" and 0 <= one.micro_batch < shown:
            layers = inside[key]
            first = one.rank == fullest and one.micro_batch == 0 and one.turn == 0
            found += _unfolded(one, layers, _rank_classes(layers) if first else 1)
    return StepTrace(found, _step_s([one for _, one in spans]), shown, passes.micro_batches)


def layer_spans(scenario: Scenario, strategy: Strategy, *, backward: bool = False) -> list[Span]:
    """One pass through the layer whose experts are the least balanced (any layer of a dense model), every
    rank class of it; ``rank`` is the rank class, slowest first."""
    layers = scenario.model.layers
    of_layer, _ = layer_classes(scenario)
    moe = [index for index, layer in enumerate(layers) if layer.is_moe]
    number = moe[int(np.argmax(of_layer))] if moe else 0
    key = pass_key(scenario, strategy)
    one = forward_pass(scenario, layers[number], key)
    if backward:
        one = backward_pass(scenario, layers[number], key, strategy.recompute)
    return [
        span._replace(layer=number, micro_batch=0)
        for span in play_draw(one, max(0, draws_of(one) - BATCH_CLASSES)).spans
    ]


def _with_turns(spans: list[tuple[str, Span]], rounds: int) -> list[tuple[str, Span]]:
    """Micro-batch of each span, and in decode how many times it has come by."""
    seen: Counter[tuple[int, str, int, int]] = Counter()
    numbered = []
    for key, span in spans:
        who = span.rank, span.what, span.chunk, span.part
        micro_batch = span.chunk if span.what in PASSING else -1
        numbered.append((key, span._replace(micro_batch=micro_batch, turn=seen[who] if rounds > 1 else 0)))
        seen[who] += 1
    return numbered


def _step_s(spans: list[Span]) -> float:
    """Seconds of one step; of several, the distance of the last two."""
    last = max(span.turn for span in spans)
    before = max((span.end_s for span in spans if span.turn < last), default=0.0)
    return max(span.end_s for span in spans) - before


def _inside(scenario: Scenario, strategy: Strategy, plays: _Plays) -> dict[str, Inside]:
    """What runs inside a pass, by its key in the pipeline."""
    found: dict[str, Inside] = {}
    parts = part_layers(split_in(scenario, strategy))
    last = strategy.parts - 1

    def layers(what: str, numbers: Iterable[int], turn: int) -> Inside:
        return [(n, _play_of(scenario, strategy, plays, n, what, turn)) for n in numbers]

    def ending(what: str, part: int) -> Inside:
        return [(HEAD, _one(head_seconds(scenario, strategy, what), "head", what))] if part == last else []

    def beginning(what: str, part: int) -> Inside:
        seconds = embedding_seconds(scenario, strategy, what) if part == 0 else 0.0
        return [(EMBEDDING, _one(seconds, "embedding", what))] if seconds else []

    def beside(part: int, turn: int, partner: int, back: int) -> Inside:
        numbers, others = parts[part], parts[partner]
        n = min(len(numbers), len(others))
        both = ending("backward", partner) + layers("pair", numbers[:n], turn)
        ahead = layers("forward", numbers[n:], turn) + ending("forward", part)
        behind = layers("backward", others[: len(others) - n][::-1], back) + beginning("backward", partner)
        return beginning("forward", part) + both + ahead + behind

    meet = partners(strategy)
    for what, part, turn in product(kinds(scenario, strategy), range(len(parts)), range(BATCH_CLASSES)):
        numbers = parts[part]
        if what == "forward":
            found[f"{what} {part}.{turn}"] = beginning(what, part) + layers(what, numbers, turn) + ending(what, part)
        elif what != "pair":
            reversed_ = ending(what, part) + layers(what, numbers[::-1], turn)
            found[f"{what} {part}.{turn}"] = reversed_ + beginning(what, part)
        else:
            for (n, partner), back in product(enumerate(meet[part]), range(BATCH_CLASSES)):
                found[f"{what} {part}.{turn}.{n}.{back}"] = beside(part, turn, partner, back)
    return found


def _play_of(scenario: Scenario, strategy: Strategy, plays: _Plays, number: int, what: str, turn: int) -> Played:
    layer, key = scenario.model.layer(number), pass_key(scenario, strategy)
    played = plays.played(layer_pass(scenario, layer, key, strategy.recompute, what))
    return played[0] if len(played) == 1 else played[class_of(scenario, number) * BATCH_CLASSES + turn]


def _one(end_s: float, name: str, what: str) -> Played:
    """What is played as one op: head or embedding."""
    return Played(end_s, [Span(0, "compute", name if what == "forward" else f"{name} grad", 0, 0.0, end_s)], 1)


def _shown(passes: Passes, inside: dict[str, Inside], room: int) -> int:
    """How many micro-batches can show their layers; at least one."""
    longest: Counter[tuple[str, str]] = Counter()  # by kind and part of a pass
    for key, layers in inside.items():
        spans = sum(1 + sum(1 for _ in _of_class(played, 0)) for _, played in layers)
        kind, where = key.split()
        longest[kind, where.split(".")[0]] = max(longest[kind, where.split(".")[0]], spans)
    room -= 2 * RANK_CLASSES * max(longest.values())  # one forward and one backward pass show all rank classes
    return max(1, min(passes.micro_batches, room // (passes.rounds * longest.total())))


def _rank_classes(layers: Inside) -> int:
    return max(1 + max(span.rank for span in played.spans) for _, played in layers)


def _unfolded(one: Span, layers: Inside, classes: int) -> Iterator[Span]:
    """The layers of a pass, one after the other, for ``classes`` rank classes. Sums of the same seconds in
    another order may differ in the last digit: what would stick out of the pass is cut."""
    start_s = one.start_s
    for number, played in layers:
        end_s = min(start_s + played.end_s, one.end_s)
        what, chunk = (OUTSIDE[number], 0) if number < 0 else ("layer", number)
        whole = one._replace(
            stream="layer", what=what, chunk=chunk, start_s=start_s, end_s=end_s, layer=max(number, -1)
        )
        for rank_class in range(classes):
            yield whole._replace(rank_class=rank_class)
            for span in _of_class(played, rank_class):
                yield whole._replace(
                    stream=span.stream, what=span.what, chunk=span.chunk, rank_class=rank_class,
                    start_s=min(start_s + span.start_s, end_s), end_s=min(start_s + span.end_s, end_s),
                )  # fmt: skip
        start_s = end_s


def _of_class(played: Played, rank_class: int) -> Iterator[Span]:
    """The ops of one rank class: its own compute, and the collectives that all ranks share."""
    ranks = 1 + max(span.rank for span in played.spans)
    own = min(rank_class, ranks - 1)  # a layer in which all ranks are alike has one class
    return (span for span in played.spans if span.stream not in RANK_STREAMS or span.rank == own)
