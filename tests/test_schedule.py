"""The order of micro-batches on pipeline stages."""

from collections import Counter
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moesim.errors import MoesimError
from moesim.player import play_events
from moesim.program import Passes, pipeline
from moesim.schedule import FORWARD, OWES, RUNS, SCHEDULES, WAITS, Pass, Pipe, in_flight, weave
from moesim.schedule.passes import Works

LETTERS = {"forward": "F", "backward": "B", "data": "D", "weights": "W", "pair": "P"}


def order(schedule, stage, stages, micro_batches, virtual=1):
    """``F0 B0``: kind and micro-batch; with virtual stages also the part: ``F0.2``."""
    pipe = Pipe(stages, micro_batches, virtual)
    passes = SCHEDULES[schedule].order(stage, pipe)
    part = {k: f".{k}" if virtual > 1 else "" for k in range(stages * virtual)}
    return " ".join(f"{LETTERS[one.kind]}{one.micro_batch}{part[one.part]}" for one in passes)


def test_gpipe_runs_all_forwards_then_all_backwards():
    assert order("gpipe", 0, 2, 3) == order("gpipe", 1, 2, 3) == "F0 F1 F2 B0 B1 B2"


def test_1f1b_fills_the_pipeline_then_alternates():
    assert order("1f1b", 0, 2, 3) == "F0 F1 B0 F2 B1 B2"
    assert order("1f1b", 1, 2, 3) == "F0 B0 F1 B1 F2 B2"


def test_1f1b_with_fewer_micro_batches_than_stages_is_gpipe_on_the_first():
    assert order("1f1b", 0, 4, 2) == "F0 F1 B0 B1"


def test_interleaved_groups_of_micro_batches_pass_one_chunk_after_the_other():
    # two stages of two chunks: parts 0 and 2 on stage 0, 1 and 3 on stage 1; 2 (2 - 0 - 1) + 2 = 4 ahead on stage 0
    assert order("interleaved", 0, 2, 2, 2) == "F0.0 F1.0 F0.2 F1.2 B0.2 B1.2 B0.0 B1.0"
    assert order("interleaved", 1, 2, 2, 2) == "F0.1 F1.1 F0.3 B0.3 F1.3 B1.3 B0.1 B1.1"


def test_zero_bubble_lets_as_many_weights_wait_as_stages_came_before():
    assert order("zero_bubble", 0, 2, 3) == "F0 F1 D0 W0 F2 D1 W1 D2 W2"
    assert order("zero_bubble", 1, 2, 3) == "F0 D0 F1 D1 W0 F2 D2 W1 W2"


def test_combined_1f1b_runs_the_next_forward_beside_a_backward():
    passes = SCHEDULES["combined_1f1b"].order(0, Pipe(1, 3))
    assert [one.kind for one in passes] == ["forward", "pair", "pair", "backward"]
    assert (passes[1].micro_batch, passes[1].back) == (1, (0, 0))
    # 2 (p - s - 1) + 1 forwards ahead
    assert [[one.kind for one in SCHEDULES["combined_1f1b"].order(s, Pipe(3, 8))].index("pair") for s in range(3)] == [
        5,
        3,
        1,
    ]


def test_dualpipe_takes_micro_batches_from_both_ends():
    # stage 0 of 4 holds parts 0 and 3; micro-batches 0-3 enter here, 4-7 leave here
    passes = SCHEDULES["dualpipe"].order(0, Pipe(4, 8))
    assert [(one.micro_batch, one.part) for one in passes[:4]] == [(0, 0), (1, 0), (2, 0), (4, 3)]
    assert next(one for one in passes if one.kind == "pair") == Pass("pair", 3, 0, (5, 3))
    mirrored = SCHEDULES["dualpipe"].order(3, Pipe(4, 8))
    assert [(one.micro_batch, one.part) for one in mirrored[:4]] == [(4, 0), (5, 0), (6, 0), (0, 3)]


def test_serving_runs_micro_batches_one_after_the_other():
    assert [one.micro_batch for one in FORWARD.order(1, Pipe(2, 3))] == [0, 1, 2]


def test_weaving_two_stages_respects_who_waits_for_whom():
    woven = weave([SCHEDULES["1f1b"].order(stage, Pipe(2, 2)) for stage in range(2)])
    assert [f"{stage}{LETTERS[one.kind]}{one.micro_batch}" for stage, one in woven] == [
        "0F0", "0F1", "1F0", "1B0", "1F1", "1B1", "0B0", "0B1",
    ]  # fmt: skip


@st.composite
def pipes(draw, schedules=tuple(SCHEDULES), most=24):
    """A schedule and a shape that it can run."""
    schedule, stages = draw(st.sampled_from(schedules)), draw(st.integers(1, 8))
    virtual = draw(st.integers(2, 4)) if schedule == "interleaved" else 1
    if schedule == "combined_1f1b" and stages > 1:
        virtual = draw(st.integers(1, 4))
    micro_batches = draw(st.integers(1, most))
    if virtual > 1:
        micro_batches = stages * (1 + micro_batches // stages)
    if schedule == "dualpipe":
        stages, micro_batches = 2 * (1 + stages // 2), 2 * (2 * (1 + stages // 2) + micro_batches // 2)
    pipe = Pipe(stages, micro_batches, virtual)
    assume(SCHEDULES[schedule].why_not(pipe) is None)
    return schedule, pipe


@given(pipes())
def test_no_schedule_ever_blocks_and_each_pass_is_run_once(case):
    schedule, pipe = case
    rule = SCHEDULES[schedule]
    orders = [rule.order(stage, pipe) for stage in range(pipe.stages)]
    works, done = Works(rule.parts(pipe), pipe.micro_batches), Counter()
    for stage, one in weave(orders):
        assert all(done[need] for need in works.needed_by(one))
        assert one.part in rule.holds(stage, pipe)
        done.update(works.done_by(one))
    assert done == Counter(range(works.total))  # forward, data and weights of each micro-batch and part, once


@given(pipes())
def test_all_parts_are_held_as_often_as_the_rule_says(case):
    schedule, pipe = case
    rule = SCHEDULES[schedule]
    held = Counter(part for stage in range(pipe.stages) for part in rule.holds(stage, pipe))
    assert held == dict.fromkeys(range(rule.parts(pipe)), rule.copies)


def test_orders_that_wait_in_a_ring_are_refused():
    # stage 0 wants B0 before F1; stage 1 wants F1 before B0
    def passes(stage, text):
        return [Pass({"F": "forward", "B": "backward"}[one[0]], int(one[1]), stage) for one in text.split()]

    with pytest.raises(MoesimError, match="the schedule blocks after 2 of 8 passes"):
        weave([passes(0, "F0 B0 F1 B1"), passes(1, "F0 F1 B0 B1")])


def test_a_backward_before_its_own_forward_is_refused():
    with pytest.raises(MoesimError, match="blocks after 0 of 2"):
        weave([[Pass("backward", 0, 0), Pass("forward", 0, 0)]])


@pytest.mark.parametrize(
    ("schedule", "pipe", "reason"),
    [
        ("interleaved", Pipe(4, 6, 2), "micro-batches in multiples of pp"),
        ("interleaved", Pipe(1, 6, 2), "more than one pipeline stage"),
        ("interleaved", Pipe(4, 8, 1), "at least two virtual stages"),
        ("combined_1f1b", Pipe(4, 6, 2), "micro-batches in multiples of pp"),
        ("combined_1f1b", Pipe(1, 6, 2), "more than one pipeline stage"),
        ("dualpipe", Pipe(3, 12), "even number of pipeline stages"),
        ("dualpipe", Pipe(4, 6), "at least two for each stage"),
        ("zero_bubble", Pipe(4, 8, 2), "virtual stages need the interleaved schedule"),
    ],
)
def test_what_a_schedule_cannot_run_is_said(schedule, pipe, reason):
    assert reason in SCHEDULES[schedule].why_not(pipe)


# Bubbles: equal stages, no transfers, no optimizer. F, D, W seconds of a whole stage; a chunk takes 1/v of it.


def play(schedule, pipe, forward, data, weights, pair=0.0):
    passes = Passes(stages=pipe.stages, micro_batches=pipe.micro_batches, schedule=schedule, virtual=pipe.virtual)
    seconds = {"forward": forward, "backward": data + weights, "data": data, "weights": weights, "pair": pair}
    each = {name: one / pipe.virtual for name, one in seconds.items()}
    program = pipeline(passes)
    return play_events(program, {op.key: [each.get(op.name, 0.0)] for op in program})


def bubble(schedule, pipe, *seconds):
    """Idle seconds of the stage that idles most, until the last stage has ended."""
    played = play(schedule, pipe, *seconds)
    busy = Counter()
    for span in played.spans:
        busy[span.stream] += (span.end_s - span.start_s) * span.stream.startswith("stage")
    return played.end_s - min(busy[f"stage {stage}"] for stage in range(pipe.stages))


times = st.floats(0.5, 2.0)


@given(pipes(("gpipe", "1f1b", "interleaved")), times, times, times)
def test_gpipe_1f1b_and_interleaved_idle_for_one_round_per_further_stage(case, forward, data, weights):
    # (p - 1)(F + B) / v: Huang et al. 2019; Narayanan et al. 2021
    schedule, pipe = case
    expected = (pipe.stages - 1) * (forward + data + weights) / pipe.virtual
    assert bubble(schedule, pipe, forward, data, weights) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.integers(1, 8), st.integers(0, 16), times, times, st.floats(0.0, 1.0))
def test_zero_bubble_saves_a_weight_gradient_per_stage_on_both_sides(stages, more, forward, data, share):
    # (p - 1)(F + B - W), Qi et al. 2023 table 2, with B without W; W no longer than F and B, which it hides behind
    weights = share * min(forward, data)
    found = bubble("zero_bubble", Pipe(stages, 2 * stages + more), forward, data, weights)
    assert found == pytest.approx((stages - 1) * (forward + data - weights), rel=1e-9, abs=1e-9)


@given(st.integers(1, 5), st.integers(0, 8), times, st.floats(0.1, 1.0), st.floats(0.7, 1.0))
def test_dualpipe_idles_for_half_of_the_stages(half, more, forward, share, overlap):
    # (p/2 - 1)(F&B + B - 3W), DeepSeek-V3 table 2; exact where a forward takes as long as a gradient of data,
    # one of weights no longer, and a pair no less than a backward pass
    pipe, weights = Pipe(2 * half, 4 * half + 2 * more), share * forward
    pair = overlap * (2 * forward + weights)
    assume(pair >= forward + weights)
    found = bubble("dualpipe", pipe, forward, forward, weights, pair)
    assert found == pytest.approx((half - 1) * (pair + forward - 2 * weights), rel=1e-9, abs=1e-9)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(2, 5), times, times, st.floats(0.7, 1.0))
def test_combined_1f1b_saves_in_every_pair_of_the_last_stage(stages, virtual, rounds, forward, backward, overlap):
    # that stage runs (v - 1) p + 1 forwards ahead, all others are in a pair; fill and drain are those of 1F1B
    v, micro_batches = virtual if stages > 1 else 1, 2 * rounds * stages
    pipe, pair = Pipe(stages, micro_batches, v), max(overlap * (forward + backward), forward, backward)
    pairs = micro_batches * v - (v - 1) * stages - 1
    plain = play("interleaved" if v > 1 else "1f1b", pipe, forward, backward, 0.0).end_s
    found = play("combined_1f1b", pipe, forward, backward, 0.0, pair).end_s
    assert found == pytest.approx(plain - pairs * (forward + backward - pair) / v, rel=1e-9)


@settings(max_examples=50)
@given(st.integers(1, 8), st.integers(1, 24), times, times, times)
def test_zero_bubble_is_no_slower_than_1f1b_and_1f1b_than_gpipe(stages, micro_batches, forward, data, weights):
    pipe = Pipe(stages, micro_batches)
    ends = [play(name, pipe, forward, data, weights).end_s for name in ("zero_bubble", "1f1b", "gpipe")]
    assert ends[0] <= ends[1] * (1 + 1e-12)
    assert ends[1] <= ends[2] * (1 + 1e-12)


# What stages hold.


def walked(schedule, stage, pipe):
    """Micro-batches and parts held at every moment of a stage's order: [moment, part of the stage, what]."""
    rule = SCHEDULES[schedule]
    place = {part: slot for slot, part in enumerate(rule.holds(stage, pipe))}
    now, found = np.zeros((len(place), 3)), []
    for one in rule.order(stage, pipe):
        if one.kind in ("forward", "pair"):
            now[place[one.part], WAITS] += 1
        freed = place[one.back[1] if one.back else one.part]
        now[freed, RUNS] = one.kind in ("backward", "data", "pair")
        found.append(now.copy())
        now[freed, RUNS] = 0
        now[freed, WAITS] -= one.kind in ("backward", "data", "pair")
        now[freed, OWES] += one.kind == "data"
        now[freed, OWES] -= one.kind == "weights"
    assert not now.any()
    return np.array(found)


@given(pipes(most=60), st.integers(0, 10**6))
def test_in_flight_has_the_worst_moment_of_every_stage_whatever_each_part_weighs(case, seed):
    schedule, pipe = case
    found = in_flight(schedule, pipe)
    for stage in range(pipe.stages):
        weights = np.random.default_rng([seed, stage]).uniform(0, 1, found.shape[-2:])
        most = (walked(schedule, stage, pipe) * weights).sum(axis=(-2, -1)).max()
        assert (found[stage] * weights).sum(axis=(-2, -1)).max() == pytest.approx(most)


def held(schedule, pipe):
    """Parts that each stage holds at its worst."""
    return in_flight(schedule, pipe)[..., :RUNS].sum(axis=(-2, -1)).max(axis=-1).tolist()


def test_1f1b_holds_as_many_as_stages_follow():
    assert held("1f1b", Pipe(4, 8)) == [4, 3, 2, 1]
    assert held("gpipe", Pipe(4, 8)) == [8, 8, 8, 8]


def test_interleaved_holds_one_more_than_it_runs_ahead():
    # 2 (p - s - 1) + (v - 1) p + 1 chunks: Megatron-LM
    assert held("interleaved", Pipe(4, 16, 2)) == [11, 9, 7, 5]
    assert held("interleaved", Pipe(4, 16, 3)) == [15, 13, 11, 9]


def test_combined_1f1b_holds_one_more_than_it_runs_ahead():
    # 2 (p - s - 1) + (v - 1) p + 2: Megatron-Core runs one more forward ahead
    assert held("combined_1f1b", Pipe(1, 8)) == [2]
    assert held("combined_1f1b", Pipe(4, 16)) == [8, 6, 4, 2]
    assert held("combined_1f1b", Pipe(4, 16, 2)) == [12, 10, 8, 6]


def test_zero_bubble_holds_no_more_than_the_first_stage_of_1f1b():
    assert held("zero_bubble", Pipe(4, 16)) == [4, 4, 4, 4]


@given(st.integers(1, 6), st.integers(0, 20))
def test_dualpipe_holds_one_more_than_stages(half, more):
    # DeepSeek-V3, table 2: p + 1 activations
    found = held("dualpipe", Pipe(2 * half, 4 * half + 2 * more))
    assert max(found) == 2 * half + 1
    assert found == found[::-1]


def test_orders_grow_with_stages_micro_batches_and_virtual_stages_alone():
    for schedule, pipe in (("1f1b", Pipe(4, 8)), ("interleaved", Pipe(4, 8, 2)), ("zero_bubble", Pipe(4, 8))):
        passes = sum(len(SCHEDULES[schedule].order(stage, pipe)) for stage in range(4))
        assert passes == prod(pipe) * (3 if schedule == "zero_bubble" else 2)
