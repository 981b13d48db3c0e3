"""The pipeline of a step, its seconds drawn and not priced: bound, folding, decode, what happens once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.program import Passes, pipeline
from moesim.schedule import SCHEDULES
from moesim.step.play import folded, step_seconds
from moesim.step.times import StepTimes, stage_work, step_bound

KINDS = ("forward", "backward", "data", "weights")


def times(stages, *, pair=None, send=0.0, once=0.0, **passes):
    """[part, micro-batch class] seconds of passes; the rest by stage. What is not given, the step does not have."""
    given_ = {kind: np.asarray(passes.get(kind, np.zeros((0, 2))), dtype=float) for kind in KINDS}
    once = np.broadcast_to(np.asarray(once, dtype=float), (7, stages))
    send = np.broadcast_to(np.asarray(send, dtype=float), (stages,))
    return StepTimes(*given_.values(), np.zeros((0, 2, 2)) if pair is None else pair, send, *once)


def equal(stages, forward, **more):
    """Stages that are all alike."""
    whole = {kind: np.full((stages, 2), more.pop(kind)) for kind in KINDS if kind in more}
    return times(stages, forward=np.full((stages, 2), forward), **whole, **more)


def drawn(rng, passes, passing):
    """Part passes around F = D = W = 1, and pairs that save something."""
    shape = (passes.parts, 2)
    found = {"forward": rng.uniform(1 - passing, 1 + passing, shape)}
    if passes.backward:
        found |= {kind: rng.uniform(1 - passing, 1 + passing, shape) for kind in ("data", "weights")}
        found["backward"] = rng.uniform(2 - passing, 2 + passing, shape)
    if passes.backward and passes.rule.pairs:
        apart = found["forward"][:, :, None, None] + found["backward"][passes.partners][:, None]
        found["pair"] = apart * rng.uniform(0.7, 1.0, apart.shape)
    elif passes.backward and passes.rule.splits:
        del found["backward"]
    if passes.backward and not passes.rule.splits:
        del found["data"], found["weights"]
    return found


@st.composite
def pipelines(draw, kinds=(*SCHEDULES, "forward", "decode"), most=40):
    """Passes and seconds for them."""
    kind, stages, micro_batches = draw(st.sampled_from(kinds)), draw(st.integers(1, 6)), draw(st.integers(1, most))
    if kind == "interleaved":
        stages = max(2, stages)
        micro_batches = stages * (1 + micro_batches // stages)
    virtual = draw(st.integers(2, 3)) if kind == "interleaved" else 1
    if kind == "combined_1f1b" and stages > 1 and micro_batches % stages == 0:
        virtual = draw(st.integers(1, 3))
    if kind == "dualpipe":
        stages = 2 * (1 + stages // 2)
        micro_batches = 2 * (stages + micro_batches // 2)
    trains = kind in SCHEDULES
    passes = Passes(
        stages=stages, micro_batches=micro_batches, classes=2, schedule=kind if trains else "1f1b",
        virtual=virtual, backward=trains,
        rounds=3 if kind == "decode" else 1, reduces=trains and draw(st.booleans()),
    )  # fmt: skip
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    passing, sending = draw(st.sampled_from([(0.1, 0.0), (0.1, 0.2), (0.9, 2.0)]))  # even, usual, wild
    once = rng.uniform(0, 1, (7, stages)) if trains else 0.0
    return passes, times(stages, send=rng.uniform(0, sending, stages), once=once, **drawn(rng, passes, passing))


def seconds(passes, priced, **how):
    return float(step_seconds(passes, priced, **({"events": False, "fold": False} | how)))


@given(pipelines())
def test_simpy_and_the_list_schedule_play_the_same_step(case):
    assert seconds(*case, events=True) == pytest.approx(seconds(*case), rel=1e-9)


@given(pipelines())
def test_no_step_ends_before_its_bound(case):
    passes, priced = case
    assert float(step_bound(passes, priced, passes.micro_batches)) <= seconds(*case) * (1 + 1e-9)


@given(pipelines())
def test_the_work_of_a_stage_is_what_it_plays(case):
    passes, priced = case
    durations, busy_s = priced.by_key(), np.zeros(passes.stages)
    for op in pipeline(passes):
        if op.stream.startswith("stage") and op.name != "optimizer":
            busy_s[int(op.stream.split()[1])] += float(durations[op.key][0])
    np.testing.assert_allclose(stage_work(passes, priced, passes.micro_batches), busy_s / passes.rounds, rtol=1e-9)


@given(pipelines(kinds=("gpipe", "forward"), most=120))
def test_folding_is_exact_where_stages_wait_in_one_direction_at_a_time(case):
    assert seconds(*case, fold=True) == pytest.approx(seconds(*case), rel=1e-9)


@given(st.integers(1, 8), st.integers(1, 200), st.integers(0, 7), st.floats(0.0, 0.1))
def test_folding_1f1b_is_exact_where_one_stage_is_the_slowest(stages, micro_batches, slow, send):
    forward = np.ones((stages, 2))
    forward[slow % stages] = 2.0
    priced = times(stages, forward=forward, backward=2 * forward, send=send)
    case = Passes(stages=stages, micro_batches=micro_batches, classes=2), priced
    assert seconds(*case, fold=True) == pytest.approx(seconds(*case), rel=1e-9)


@given(st.integers(2, 6), st.integers(20, 120), st.integers(0, 10**6))
def test_folding_1f1b_is_close_where_several_stages_are_about_as_slow(stages, micro_batches, seed):
    # waits then travel around several stages, and rounds of two micro-batches are not all alike
    rng = np.random.default_rng(seed)
    forward, backward = (rng.uniform(mean - 0.1, mean + 0.1, (stages, 2)) for mean in (1, 2))
    priced = times(stages, forward=forward, backward=backward, send=0.05)
    case = Passes(stages=stages, micro_batches=micro_batches, classes=2), priced
    assert seconds(*case, fold=True) == pytest.approx(seconds(*case), rel=0.02)


@given(
    st.sampled_from(["interleaved", "combined_1f1b", "zero_bubble", "dualpipe"]),
    st.integers(1, 4),
    st.integers(3, 12),
    st.integers(0, 10**6),
)
def test_folding_the_others_is_as_close(schedule, half, rounds, seed):
    virtual = 2 if schedule == "interleaved" else 1
    passes = Passes(stages=2 * half, micro_batches=2 * half * 2 * rounds, classes=2, schedule=schedule, virtual=virtual)
    priced = times(2 * half, send=0.05, **drawn(np.random.default_rng(seed), passes, 0.1))
    assert seconds(passes, priced, fold=True) == pytest.approx(seconds(passes, priced), rel=0.03)


def test_a_folded_step_is_short_whatever_the_number_of_micro_batches():
    short = folded(Passes(stages=4, micro_batches=1001, classes=2))
    assert short.micro_batches < 20
    assert short.micro_batches % 2 == 1
    assert folded(Passes(stages=4, micro_batches=8)).micro_batches == 8


@given(st.integers(1, 9))
def test_one_stage_decodes_a_token_in_the_time_of_its_passes(micro_batches):
    passes = Passes(stages=1, micro_batches=micro_batches, backward=False, rounds=3)
    assert seconds(passes, equal(1, 5.0)) == 5.0 * micro_batches


def test_as_many_micro_batches_as_stages_keep_every_stage_busy():
    # 4 stages of 1 s: each micro-batch gets its next token after 4 s, and so do 4 of them
    for micro_batches in (1, 4):
        passes = Passes(stages=4, micro_batches=micro_batches, backward=False, rounds=3)
        assert seconds(passes, equal(4, 1.0)) == 4.0
    # with 8, a token waits for the 7 others
    assert seconds(Passes(stages=4, micro_batches=8, backward=False, rounds=3), equal(4, 1.0)) == 8.0


def test_transfers_add_to_the_time_between_tokens():
    passes = Passes(stages=4, micro_batches=4, backward=False, rounds=3)
    assert seconds(passes, equal(4, 1.0, send=0.5)) == 4 * 1.0 + 3 * 0.5


def test_weights_delay_the_first_pass_and_gradients_follow_the_last():
    # once: gather first, gather rest, gather chunk, reduce chunk, reduce rest, reduce last, optimizer
    passes = Passes(stages=1, micro_batches=4, reduces=True)
    once = [[1.0], [1.0], [1.0], [1.0], [1.0], [10.0], [100.0]]
    assert seconds(passes, equal(1, 1.0, backward=2.0, once=once)) == 1 + 4 * 3 + 10 + 100


def test_virtual_stages_gather_and_reduce_part_by_part():
    # two stages of two parts, passes of 1 s: the second part's weights come behind the first two forwards, and its
    # gradients leave behind the last two backwards of the first part
    passes = Passes(stages=2, micro_batches=2, schedule="interleaved", virtual=2, reduces=True)
    passing = {kind: np.ones((4, 2)) for kind in ("forward", "backward")}
    free_s = seconds(passes, times(2, **passing))
    hidden = np.array([[0.0], [0.0], [2.0], [2.0], [0.0], [0.0], [0.0]])
    assert seconds(passes, times(2, once=np.tile(hidden, 2), **passing)) == free_s == 8 + 2
