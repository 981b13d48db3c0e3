"""One step of a strategy: part passes put into the pipeline, the pipeline played.

    parts.py    sums of layer passes over each part's layers; embedding and head at the ends
    ends.py     transfers, gradient reduction, optimizer
    times.py    all of them by op; the bound
    here        the pipeline played -> the step

Decode is played for several rounds; a step is the distance of the last two.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle
from typing import Final

import numpy as np

from moesim.cost import FloatArray
from moesim.player import Played, play_batched, play_events
from moesim.program import Passes, pipeline
from moesim.schedule import SCHEDULES, Pipe
from moesim.stages import layers_on_stages
from moesim.step.ends import Ends, ends, shares_embedding
from moesim.step.parts import PartPasses
from moesim.step.scenario import BATCH_CLASSES, Scenario, split_in
from moesim.step.times import StepTimes, step_bound, step_times
from moesim.step.turns import period
from moesim.strategy import Strategy
from moesim.timeline import Span

DECODE_ROUNDS: Final = 3


def passes_of(scenario: Scenario, strategy: Strategy) -> Passes:
    """The shape of the pipeline."""
    trains = scenario.workload.trains
    copies = SCHEDULES[strategy.schedule].copies
    replicas = max(strategy.dp * strategy.cp, strategy.expert_dp) * copies
    return Passes(
        stages=strategy.pp,
        micro_batches=strategy.micro_batches(scenario.workload.sequences),
        classes=BATCH_CLASSES,
        schedule=strategy.schedule if trains else "1f1b",
        virtual=strategy.virtual,
        backward=trains,
        rounds=DECODE_ROUNDS if scenario.workload.kind == "decode" else 1,
        reduces=trains and (replicas > 1 or shares_embedding(scenario, strategy)),
    )


def times_of(scenario: Scenario, strategy: Strategy, parts: PartPasses, end: Ends | None = None) -> StepTimes:
    """Seconds of every op of a strategy's pipeline; ``end`` if known."""
    schedule = strategy.schedule if scenario.workload.trains else "1f1b"
    layers = layers_on_stages(split_in(scenario, strategy), strategy.pp, schedule)
    parts_of_stage = len(SCHEDULES[schedule].holds(0, Pipe(strategy.pp, 0, strategy.virtual)))
    return step_times(parts, layers, end or ends(scenario, strategy), parts_of_stage)


def folded(passes: Passes) -> Passes:
    """The same step with its steady phase cut short, if it is long."""
    shortest = (3 if passes.rule.pairs else 2) * passes.stages + 2 * BATCH_CLASSES
    extra = passes.micro_batches - shortest
    each = period(passes)
    if extra <= each:
        return passes
    return replace(passes, micro_batches=shortest + extra % each)


def step_seconds(passes: Passes, times: StepTimes, *, events: bool, fold: bool = True) -> FloatArray:
    """Seconds of a step, [...]: the pipeline played by SimPy (``events``, one strategy) or by the list schedule.

    Folded, the steady phase is cut short, every further ``period`` taken to last as long as the last one that was
    played, and the step no less than its bound. That is exact for GPipe, and for the others unless waits travel
    round several stages: on priced strategies of DeepSeek-V3 and Mixtral within 1 %, with uneven virtual stages 1.2 %.
    Ranked results are therefore played in full.
    """
    play = _end_by_events if events else _end_by_list
    durations = times.by_key()
    short = folded(passes) if fold else passes
    end_s = play(short, durations)
    if short != passes:
        each = period(passes)
        less = replace(short, micro_batches=short.micro_batches - each)
        rounds = (passes.micro_batches - short.micro_batches) / each
        listed_s = _end_by_list(short, durations) if events else end_s
        end_s = end_s + rounds * (listed_s - _end_by_list(less, durations))
        end_s = np.maximum(end_s, step_bound(passes, times, passes.micro_batches))
    return end_s


def _end_by_list(passes: Passes, durations: Mapping[str, FloatArray]) -> FloatArray:
    end_s = play_batched(pipeline(passes), durations)
    if passes.rounds == 1:
        return end_s
    return np.asarray(end_s - play_batched(pipeline(replace(passes, rounds=passes.rounds - 1)), durations))


def _end_by_events(passes: Passes, durations: Mapping[str, FloatArray]) -> FloatArray:
    played = _play(passes, durations)
    if passes.rounds == 1:
        return np.asarray(played.end_s)
    return np.asarray(played.end_s - _play(replace(passes, rounds=passes.rounds - 1), durations).end_s)


def _play(passes: Passes, durations: Mapping[str, FloatArray]) -> Played:
    program = pipeline(passes)
    return play_events(program, {key: durations[key].tolist() for key in program.keys})


def play_pipeline(passes: Passes, times: StepTimes) -> list[tuple[str, Span]]:
    """Every op of the step as a span, by SimPy, under its key; the rank of a span is its stage, part and back
    those of its pass."""
    program = pipeline(passes)
    ops = {stream: iter(own) for stream, own in program.streams.items()}
    orders = [cycle(passes.rule.order(stage, passes.pipe)) for stage in range(passes.stages)]  # decode: over again
    found = []
    for span in _play(passes, times.by_key()).spans:
        _, op = next(ops[span.stream])  # a stream plays its ops in order
        stream, stage = span.stream.split()
        span = span._replace(rank=int(stage), stream=stream)
        if stream == "stage" and op.name != "optimizer":
            one = next(orders[span.rank])
            back, back_part = one.back or (-1, -1)
            span = span._replace(part=one.part, back=back, back_part=back_part)
        found.append((op.key, span))
    return found
