"""One step as ops: micro-batches over pipeline stages, then gradients and optimizer.

Streams of stage s: ``stage s`` (passes, optimizer), ``send s`` (to the stage after), ``back s`` (to the stage
before; the last and the first are neighbours), ``dp s`` (weights gathered before, gradients reduced after).

Durations are found under "forward k.c", k the part of the model and c = micro-batch modulo ``classes``: routing
differs from micro-batch to micro-batch. A pair is "pair k.c.n.d": its backward is in partner n of part k, of class d.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

from moesim.program.ops import Builder, Program
from moesim.schedule import FORWARD, SCHEDULES, Pass, Pipe, Rule, Works, weave


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """Which ops a step has; durations come later."""

    stages: int
    micro_batches: int
    classes: int = 1  # micro-batches that differ in routing
    schedule: str = "1f1b"
    virtual: int = 1
    backward: bool = True
    rounds: int = 1  # decode: each round produces one token per micro-batch
    reduces: bool = False  # gradients are reduced over data parallelism, weights gathered

    @property
    def rule(self) -> Rule:
        return SCHEDULES[self.schedule] if self.backward else FORWARD

    @property
    def pipe(self) -> Pipe:
        return Pipe(self.stages, self.micro_batches, self.virtual)

    @property
    def parts(self) -> int:
        """Of the model."""
        return self.rule.parts(self.pipe)

    @property
    def partners(self) -> list[tuple[int, ...]]:
        """For each part, those whose backward may run beside its forward."""
        return list(self.rule.meetings(self.pipe))


@lru_cache(maxsize=128)
def pipeline(passes: Passes) -> Program:
    """The ops of one step. The first layer's weights arrive and the last layer's gradients leave exposed:
    "gather first" delays the first forward, "reduce last" follows the last backward; the rest runs beside."""
    orders = [passes.rule.order(stage, passes.pipe) for stage in range(passes.stages)]
    step = _Step(passes)
    if passes.reduces and passes.backward:
        for stage, order in enumerate(orders):
            step.gather(stage, order)
    woven = weave(orders)
    for round_ in range(passes.rounds):
        for stage, one in woven:
            step.add(stage, one, round_)
    if passes.backward:
        for stage, order in enumerate(orders):
            step.finish(stage, order)
    return step.build.program()


class _Step:
    """The ops so far, and where the results of passes are found."""

    def __init__(self, passes: Passes) -> None:
        self.passes, self.build, self.partners = passes, Builder(), passes.partners
        self.works = Works(passes.parts, passes.micro_batches)
        self.done: list[tuple[int, int]] = [(-1, -1)] * self.works.total  # op and stage of each work
        self.ended: list[list[int]] = [[] for _ in range(passes.stages)]  # ops of the passes of each stage
        self.weights: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # gathers, by stage and part

    def add(self, stage: int, one: Pass, round_: int) -> None:
        """A pass with the transfers it waits for."""
        done = self.works.done_by(one)
        waits = [self._arrives(need, stage) for need in self.works.needed_by(one)]
        if round_ and not one.part:  # the next token of a sequence needs the one before it
            waits.append(self.done[done[0] + (self.works.parts - 1) * self.works.micro_batches][0])
        if self.weights:
            waits += self._gathered(stage, one)
        op = self.build.add(one.kind, f"stage {stage}", *waits, chunk=one.micro_batch, key=self._key(one))
        for work in done:
            self.done[work] = op, stage
        self.ended[stage].append(op)

    def _arrives(self, need: int, stage: int) -> int:
        """The op that brings a result to a stage: the pass itself where it ran there, else its transfer."""
        op, source = self.done[need]
        if source == stage:
            return op
        activation = need < self.works.parts * self.works.micro_batches
        up = (stage - source) % self.passes.stages == 1 and (self.passes.stages > 2 or activation)
        name = "send" if up else "back"
        micro_batch = need % self.works.micro_batches
        return self.build.add(name, f"{name} {source}", op, chunk=micro_batch, key=f"{name} {source}")

    def _key(self, one: Pass) -> str:
        key = f"{one.kind} {one.part}.{one.micro_batch % self.passes.classes}"
        if one.back is None:
            return key
        partner = self.partners[one.part].index(one.back[1])
        return f"{key}.{partner}.{one.back[0] % self.passes.classes}"

    def gather(self, stage: int, order: list[Pass]) -> None:
        """Weights of the parts in the order of their first use; the first part's first layer comes alone."""
        for number, part in enumerate(dict.fromkeys(one.part for one in order)):
            for name in ("gather chunk",) if number else ("gather first", "gather rest"):
                self.weights[stage, part].append(self.build.add(name, f"dp {stage}", key=f"{name} {stage}"))

    def _gathered(self, stage: int, one: Pass) -> list[int]:
        """A forward waits for weights that no forward before it waited for; a lone backward for all others."""
        waiting = self.weights[stage, one.part]
        if not waiting:
            return []
        if one.kind in ("forward", "pair"):
            return [waiting.pop(0)]
        return [waiting.pop(0)] if self.passes.micro_batches == 1 else []

    def finish(self, stage: int, order: list[Pass]) -> None:
        """Reduce the gradients of each part after its last pass; of the last part beside its last pass, its
        last layer after it. Then the optimizer."""
        ends = self.ended[stage]
        waits = [ends[-1]]
        if self.passes.reduces:
            for part_ended in sorted(_last_of_parts(order))[:-1]:
                self.build.add("reduce chunk", f"dp {stage}", ends[part_ended], key=f"reduce chunk {stage}")
            beside = self.build.add("reduce rest", f"dp {stage}", ends[-2], key=f"reduce rest {stage}")
            waits.append(self.build.add("reduce last", f"dp {stage}", beside, ends[-1], key=f"reduce last {stage}"))
        self.build.add("optimizer", f"stage {stage}", *waits, key=f"optimizer {stage}")


def _last_of_parts(order: list[Pass]) -> list[int]:
    """Where in a stage's order the last gradients of each of its parts are made."""
    last = {
        one.back[1] if one.back else one.part: place
        for place, one in enumerate(order)
        if one.kind not in ("forward", "data")
    }
    return list(last.values())
