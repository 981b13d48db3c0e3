"""The order of micro-batches on a pipeline stage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import MoesimError
from moesim.player import play_events
from moesim.program import Passes, pipeline
from moesim.schedule import SCHEDULES, Pass, forward_only, gpipe, in_flight, one_forward_one_backward, weave

FORWARD, BACKWARD = 2.0, 3.0


def order(passes):
    return " ".join(f"{'F' if one.forward else 'B'}{one.micro_batch}" for one in passes)


def test_gpipe_runs_all_forwards_then_all_backwards():
    assert order(gpipe(0, 2, 3)) == order(gpipe(1, 2, 3)) == "F0 F1 F2 B0 B1 B2"


def test_1f1b_fills_the_pipeline_then_alternates():
    assert order(one_forward_one_backward(0, 2, 3)) == "F0 F1 B0 F2 B1 B2"
    assert order(one_forward_one_backward(1, 2, 3)) == "F0 B0 F1 B1 F2 B2"


def test_1f1b_with_fewer_micro_batches_than_stages_is_gpipe_on_the_first():
    assert order(one_forward_one_backward(0, 4, 2)) == "F0 F1 B0 B1"


def test_serving_runs_micro_batches_one_after_the_other():
    assert order(forward_only(0, 2, 3)) == "F0 F1 F2"


def test_weaving_two_stages_respects_who_waits_for_whom():
    woven = weave([one_forward_one_backward(stage, 2, 2) for stage in range(2)])
    assert [f"{stage}{order([one])}" for stage, one in woven] == [
        "0F0", "0F1", "1F0", "1B0", "1F1", "1B1", "0B0", "0B1",
    ]  # fmt: skip


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@given(st.integers(1, 12), st.integers(1, 24))
def test_a_woven_schedule_never_blocks_and_waits_come_first(schedule, stages, micro_batches):
    orders = [SCHEDULES[schedule](stage, stages, micro_batches) for stage in range(stages)]
    woven = weave(orders)
    place = {one: index for index, one in enumerate(woven)}
    assert len(place) == 2 * stages * micro_batches
    for stage in range(stages):
        assert [one for where, one in woven if where == stage] == orders[stage]
    for stage, one in woven:
        here = place[stage, one]
        if not one.forward:
            assert place[stage, Pass(True, one.micro_batch)] < here
        before = stage - 1 if one.forward else stage + 1
        if 0 <= before < stages:
            assert place[before, one] < here


def test_orders_that_wait_in_a_ring_are_refused():
    # stage 0 wants B0 before F1; stage 1 wants F1 before B0
    ring = [
        [Pass(True, 0), Pass(False, 0), Pass(True, 1), Pass(False, 1)],
        [Pass(True, 0), Pass(True, 1), Pass(False, 0), Pass(False, 1)],
    ]
    with pytest.raises(MoesimError, match="the schedule blocks after 2 of 8 passes"):
        weave(ring)


def test_a_backward_before_its_own_forward_is_refused():
    with pytest.raises(MoesimError, match="blocks after 0 of 2"):
        weave([[Pass(False, 0), Pass(True, 0)]])


def play(stages, micro_batches, schedule):
    """A step of equal stages, without transfers and optimizer."""
    program = pipeline(Passes(stages=stages, micro_batches=micro_batches, schedule=schedule))
    seconds = {"forward": [FORWARD], "backward": [BACKWARD]}
    return play_events(program, {op.key: seconds.get(op.name, [0.0]) for op in program})


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@given(st.integers(1, 8), st.integers(1, 12))
def test_equal_stages_lose_one_round_per_further_stage(schedule, stages, micro_batches):
    # (m + p - 1)(F + B): Huang et al. 2019; the same for 1F1B, Narayanan et al. 2021
    step_s = (micro_batches + stages - 1) * (FORWARD + BACKWARD)
    assert play(stages, micro_batches, schedule).end_s == pytest.approx(step_s, rel=1e-12)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@given(st.integers(1, 8), st.integers(1, 12))
def test_in_flight_is_what_a_stage_holds_at_its_worst(schedule, stages, micro_batches):
    for stage in range(stages):
        held, most = 0, 0
        for one in SCHEDULES[schedule](stage, stages, micro_batches):
            held += 1 if one.forward else -1
            most = max(most, held)
        assert held == 0
        assert in_flight(schedule, stage, stages, micro_batches) == most


def test_1f1b_holds_as_many_as_stages_follow():
    assert [in_flight("1f1b", stage, 4, 8) for stage in range(4)] == [4, 3, 2, 1]
    assert [in_flight("gpipe", stage, 4, 8) for stage in range(4)] == [8, 8, 8, 8]
