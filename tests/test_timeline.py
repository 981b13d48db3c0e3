import json
from itertools import pairwise

import pytest

from moesim.errors import MoesimError
from moesim.timeline import Span, chrome_trace, to_frame, write_json, write_whole

SPANS = [
    Span(0, "stage", "forward", 0, 0.0, 2e-6, micro_batch=0),
    Span(0, "stage", "forward", 1, 2e-6, 4e-6, micro_batch=1),
    Span(0, "compute", "experts", 0, 1e-6, 2e-6, micro_batch=0, layer=7),
    Span(0, "compute", "experts", 0, 1e-6, 1.5e-6, micro_batch=0, layer=7, rank_class=2),
    Span(1, "stage", "forward", 0, 2e-6, 4e-6, micro_batch=0),
]


def test_a_frame_has_one_row_per_span_and_one_column_per_field():
    frame = to_frame(SPANS)
    assert list(frame.columns) == list(Span._fields)
    assert len(frame) == 5
    assert frame["layer"].tolist() == [-1, -1, 7, 7, -1]


def test_a_frame_of_nothing_still_has_the_columns():
    assert list(to_frame([]).columns) == list(Span._fields)


def test_a_trace_has_one_process_per_stage_and_one_more_per_further_rank_class():
    events = chrome_trace(SPANS, "stage")["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert list(names.values()) == ["stage 0", "stage 1", "stage 0, rank class 2 (slowest first)"]


def test_threads_carry_the_name_of_their_stream_and_only_where_something_runs():
    events = chrome_trace(SPANS, "stage")["traceEvents"]
    threads = {(e["pid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"}
    assert threads == {(0, "passes"), (0, "compute"), (1, "passes"), (2, "compute")}


def test_times_are_microseconds():
    one = chrome_trace([Span(0, "stage", "forward", 0, 1.5, 3.5)], "stage")["traceEvents"][-1]
    assert (one["ph"], one["ts"], one["dur"]) == ("X", 1.5e6, 2e6)


def test_events_are_sorted_and_whole_numbers_name_their_place():
    events = [e for e in chrome_trace(reversed(SPANS), "stage")["traceEvents"] if e["ph"] == "X"]
    assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)
    assert all(isinstance(e["pid"], int) and isinstance(e["tid"], int) and e["dur"] >= 0 for e in events)


def test_an_op_with_several_chunks_is_numbered_and_one_with_a_single_chunk_is_not():
    names = {e["name"] for e in chrome_trace(SPANS, "stage")["traceEvents"] if e["ph"] == "X"}
    assert names == {"forward 0", "forward 1", "experts"}


def test_arguments_leave_out_what_does_not_apply():
    events = [e for e in chrome_trace(SPANS, "stage")["traceEvents"] if e["ph"] == "X"]
    assert events[0]["args"] == {"chunk": 0, "micro_batch": 0}
    assert {"chunk": 0, "micro_batch": 0, "layer": 7} in [e["args"] for e in events]


def test_spans_that_touch_still_touch_after_rounding():
    third = 1 / 3
    spans = [Span(0, "comm", "dispatch", n, n * third, (n + 1) * third) for n in range(50)]
    events = [e for e in chrome_trace(spans, "rank")["traceEvents"] if e["ph"] == "X"]
    for one, after in pairwise(events):
        assert round(1e3 * (one["ts"] + one["dur"])) == round(1e3 * after["ts"])


def test_a_span_without_duration_is_left_out():
    assert chrome_trace([Span(0, "comm", "dispatch", 0, 1.0, 1.0)], "rank")["traceEvents"] == []


def test_metadata_goes_along():
    assert chrome_trace([], "stage", {"seed": 3})["otherData"] == {"seed": 3}


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half(partial):
        partial.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_whole(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(MoesimError, match="cannot write"):
        write_json(tmp_path / "nowhere" / "a.json", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(MoesimError, match="cannot write"):
        write_json(tmp_path / "file" / "a.json", {})
