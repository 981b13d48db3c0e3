"""Three ways to play a program: the bound, the list schedule over arrays, SimPy."""

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.player import lower_bound, play_batched, play_events
from moesim.program import LAYERS, RANK_STREAMS, Builder, LayerShape, backward_layer, forward_layer, pair_layer


def chunked(chunks):
    """D1..Dn C1..Cn on comm, E1..En on compute."""
    build = Builder()
    dispatched = [build.add("D", "comm", chunk=j) for j in range(chunks)]
    computed = [build.add("E", "compute", dispatched[j], chunk=j) for j in range(chunks)]
    for j in range(chunks):
        build.add("C", "comm", computed[j], chunk=j)
    return build.program()


def closed_form(n, d, e, c):
    """The end of n equal chunks: one of the streams is never idle, or neither end hides."""
    return np.maximum.reduce([n * (d + c), d + e + n * c, d + n * e + c, n * d + e + c])


def test_two_chunks_hide_communication_behind_experts():
    # comm     D0 | D1 | C0 | C1        six phases of 1 s in 4 s
    # compute     | E0 | E1 |
    one = np.ones(1)
    assert float(play_batched(chunked(2), {"D": one, "E": one, "C": one})) == 4.0
    played = play_events(chunked(2), {"D": [1.0], "E": [1.0], "C": [1.0]})
    assert played.end_s == 4.0
    starts = {(span.what, span.chunk): span.start_s for span in played.spans}
    assert starts == {("D", 0): 0, ("D", 1): 1, ("E", 0): 1, ("E", 1): 2, ("C", 0): 2, ("C", 1): 3}


def test_a_collective_waits_for_the_slowest_rank():
    played = play_events(chunked(1), {"D": [1.0], "E": [1.0, 5.0], "C": [1.0]})
    assert played.end_s == 7.0
    assert [span.end_s for span in played.spans if span.what == "E"] == [2.0, 6.0]


def test_one_slow_rank_costs_its_own_seconds_in_every_chunk():
    # ranks 1 and 3 s, two chunks: D0 D1, then rank 1 computes 3 + 3, then C1
    durations = {"D": np.ones(1), "E": np.array([1.0, 3.0]), "C": np.ones(1)}
    assert float(play_batched(chunked(2), durations)) == 1 + 3 + 3 + 1


@pytest.mark.parametrize("chunks", range(1, 9))
def test_the_list_schedule_is_the_closed_form_of_equal_chunks(chunks):
    rng = np.random.default_rng(chunks)
    d, e, c = rng.exponential(size=(3, 2000))
    played = play_batched(chunked(chunks), {"D": d[:, None], "E": e[:, None], "C": c[:, None]})
    np.testing.assert_allclose(played, closed_form(chunks, d, e, c), rtol=1e-12)


def test_simpy_is_the_closed_form_of_equal_chunks():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, (d, e, c) = int(rng.integers(1, 9)), rng.exponential(size=3)
        played = play_events(chunked(n), {"D": [d], "E": [e], "C": [c]})
        assert played.end_s == pytest.approx(closed_form(n, d, e, c), rel=1e-12)


seconds = st.sampled_from([0.0, 1.0]) | st.floats(1e-6, 10.0)


@st.composite
def programs(draw):
    """Random ops on two group streams and one rank stream, each waiting for some earlier ones."""
    build = Builder(serial=draw(st.booleans()))
    for index in range(draw(st.integers(1, 14))):
        waits = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        build.add(f"op {index}", draw(st.sampled_from(["compute", "comm", "dp"])), *waits)
    return build.program()


flags = dict.fromkeys(
    ("moe", "tp", "cp", "ep", "etp", "shared", "latent", "replicated", "gathers_weights", "reduces_gradients"),
    st.booleans(),
) | {"mixer": st.just("attention"), "ffn": st.just(True), "ring": st.sampled_from([0, 2, 3]), "empty": st.just(False)}
shapes = st.builds(
    LayerShape, chunks=st.sampled_from([1, 2, 4]), overlap=st.sampled_from(["none", "chunked"]), slot=st.just(0),
    before=st.just(False), **flags,
)  # fmt: skip
others = st.builds(
    LayerShape, chunks=st.sampled_from([1, 2]), overlap=st.sampled_from(sorted(LAYERS)), before=st.booleans(),
    slot=st.integers(0, 1), **flags,
).filter(lambda shape: not shape.before or shape.overlap in ("shortcut2", "shortcut3"))  # fmt: skip
recomputes = st.sampled_from(["none", "selective", "full"])
layers = (
    shapes.map(forward_layer)
    | others.map(forward_layer)
    | st.builds(backward_layer, others, recompute=recomputes, part=st.sampled_from(["all", "data", "weights"]))
    | st.builds(pair_layer, shapes, recompute=recomputes)
)


anything = programs() | layers


@st.composite
def priced(draw, some=anything):
    """A program and seconds for its ops; those of a rank stream by rank class."""
    program, ranks = draw(some), draw(st.integers(1, 4))
    streams = {op.key: op.stream for op in program}
    return program, {
        key: [draw(seconds) for _ in range(ranks if stream in RANK_STREAMS else 1)] for key, stream in streams.items()
    }


def as_arrays(durations):
    return {key: np.array(each) for key, each in durations.items()}


def op_spans(program, played):
    """The span of each op by rank: spans of a lane come in the order of its stream."""
    lanes = defaultdict(list)
    for span in played.spans:
        lanes[span.rank, span.stream].append(span)
    return {
        (index, rank): span
        for (rank, stream), spans in lanes.items()
        for (index, _), span in zip(program.streams[stream], spans, strict=True)
    }


@given(priced())
def test_the_list_schedule_and_simpy_end_together_and_never_below_the_bound(case):
    program, durations = case
    listed = float(play_batched(program, as_arrays(durations)))
    played = play_events(program, durations)
    assert played.end_s == pytest.approx(listed, rel=1e-9)
    assert float(lower_bound(program, as_arrays(durations))) <= listed * (1 + 1e-12)
    assert played.end_s == max(span.end_s for span in played.spans)


@given(priced())
def test_no_stream_does_two_things_at_once_and_no_op_starts_too_early(case):
    program, durations = case
    spans = op_spans(program, play_events(program, durations))
    lanes = defaultdict(list)
    for (index, rank), span in spans.items():
        op = program[index]
        assert span.end_s - span.start_s == pytest.approx(durations[op.key][rank], abs=1e-9)
        lanes[rank, op.stream].append(span)
        for other in op.waits:
            same = program[other].stream == op.stream
            ranks = [rank] if same else range(len(durations[program[other].key]))
            assert all(spans[other, r].end_s <= span.start_s for r in ranks)
    for lane in lanes.values():
        assert all(first.end_s <= second.start_s for first, second in pairwise(lane))


@given(priced())
def test_no_op_waits_without_a_reason(case):
    # work-conserving: it starts when its stream was freed, or when the last of what it waits for ended
    program, durations = case
    spans = op_spans(program, play_events(program, durations))
    for stream, ops in program.streams.items():
        for rank in {r for (_, r), span in spans.items() if span.stream == stream}:
            free = 0.0
            for index, op in ops:
                ready = [spans[i, r].end_s for i in op.across for r in range(len(durations[program[i].key]))]
                assert spans[index, rank].start_s == max([free, *ready])
                free = spans[index, rank].end_s


@given(shapes, st.sampled_from(["forward", "none", "selective", "full"]), st.data())
def test_overlap_is_never_slower_than_one_op_at_a_time(shape, what, data):
    def made(overlap):
        of = shape._replace(overlap=overlap)
        return forward_layer(of) if what == "forward" else backward_layer(of, recompute=what)

    _, durations = data.draw(priced(some=st.just(made("chunked"))))
    together, alone = (float(play_batched(made(on), as_arrays(durations))) for on in ("chunked", "none"))
    assert together <= alone * (1 + 1e-12)
    slowest = sum(max(durations[op.key]) for op in made("none"))
    assert alone <= slowest * (1 + 1e-12)  # ranks that differ meet at collectives only
    beside = shape.tp or shape.ring or shape.gathers_weights or shape.reduces_gradients
    if not beside and all(len(each) == 1 for each in durations.values()):
        assert alone == pytest.approx(slowest, rel=1e-12)  # serial: everything adds up


@given(priced())
def test_a_batch_is_played_as_each_of_its_rows(case):
    program, durations = case
    rows = np.array([1.0, 2.0, 0.5])
    batch = {key: rows[:, None] * np.array(each) for key, each in durations.items()}
    for play in (play_batched, lower_bound):
        alone = float(play(program, as_arrays(durations)))
        np.testing.assert_allclose(play(program, batch), rows * alone, rtol=1e-12)
