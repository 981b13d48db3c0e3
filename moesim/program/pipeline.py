"""One step as ops: micro-batches over pipeline stages, then gradients and optimizer.

Streams of stage s: ``stage s`` (passes, optimizer), ``send s`` (activations forward), ``back s``
(gradients backward), ``dp s`` (weights gathered before, gradients reduced after).

Durations are found under "forward s.c" and "backward s.c", where c = micro-batch modulo ``classes``:
routing differs from micro-batch to micro-batch.
"""

from dataclasses import dataclass
from functools import lru_cache

from moesim.program.ops import Builder, Program
from moesim.schedule import SCHEDULES, Pass, forward_only, weave


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """Which ops a step has; durations come later."""

    stages: int
    micro_batches: int
    classes: int = 1  # micro-batches that differ in routing
    schedule: str = "1f1b"
    backward: bool = True
    rounds: int = 1  # decode: each round produces one token per micro-batch
    reduces: bool = False  # gradients are reduced over data parallelism, weights gathered


@lru_cache(maxsize=128)
def pipeline(passes: Passes) -> Program:
    """The ops of one step. The first layer's weights arrive and the last layer's gradients leave exposed:
    "gather first" delays the first forward, "reduce last" follows the last backward; the rest runs beside."""
    build = Builder()
    gathers = [_gather(build, passes, stage) for stage in range(passes.stages)]
    done: dict[tuple[int, Pass, int], int] = {}
    orders = _orders(passes)
    woven = weave(orders)
    for round_ in range(passes.rounds):
        for stage, step in woven:
            waits = _waits(build, passes, done, stage, step, round_)
            if step.forward and step.micro_batch < 2 and not round_:
                waits += gathers[stage][step.micro_batch : step.micro_batch + 1]
            elif not step.forward and passes.micro_batches == 1:
                waits += gathers[stage][1:]
            name = "forward" if step.forward else "backward"
            key = f"{name} {stage}.{step.micro_batch % passes.classes}"
            done[stage, step, round_] = build.add(name, f"stage {stage}", *waits, chunk=step.micro_batch, key=key)
    if passes.backward:
        for stage in range(passes.stages):
            _finish(build, passes, done, orders[stage], stage)
    return build.program()


def _orders(passes: Passes) -> list[list[Pass]]:
    rule = SCHEDULES[passes.schedule] if passes.backward else forward_only
    return [rule(stage, passes.stages, passes.micro_batches) for stage in range(passes.stages)]


def _waits(
    build: Builder,
    passes: Passes,
    done: dict[tuple[int, Pass, int], int],
    stage: int,
    step: Pass,
    round_: int,
) -> list[int]:
    """What a pass needs from another stage, with the transfer that brings it."""
    last = passes.stages - 1
    if step.forward:
        if stage:
            return [_send(build, "send", stage - 1, step, done[stage - 1, step, round_])]
        return [done[last, step, round_ - 1]] if round_ else []
    if stage == last:
        return [done[stage, Pass(True, step.micro_batch), round_]]
    return [
        done[stage, Pass(True, step.micro_batch), round_],
        _send(build, "back", stage + 1, step, done[stage + 1, step, round_]),
    ]


def _send(build: Builder, name: str, stage: int, step: Pass, after: int) -> int:
    return build.add(name, f"{name} {stage}", after, chunk=step.micro_batch, key=f"{name} {stage}")


def _gather(build: Builder, passes: Passes, stage: int) -> list[int]:
    if not (passes.reduces and passes.backward):
        return []
    parts = ("gather first", "gather rest")
    return [build.add(part, f"dp {stage}", key=f"{part} {stage}") for part in parts]


def _finish(
    build: Builder, passes: Passes, done: dict[tuple[int, Pass, int], int], order: list[Pass], stage: int
) -> None:
    """Reduce gradients beside the last backward pass, its last layer after it; then the optimizer."""
    ended = done[stage, order[-1], 0]
    waits = [ended]
    if passes.reduces:
        started = done[stage, order[-2], 0]
        beside = build.add("reduce rest", f"dp {stage}", started, key=f"reduce rest {stage}")
        waits.append(build.add("reduce last", f"dp {stage}", beside, ended, key=f"reduce last {stage}"))
    build.add("optimizer", f"stage {stage}", *waits, key=f"optimizer {stage}")
