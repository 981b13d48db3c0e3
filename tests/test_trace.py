from collections import defaultdict
from functools import lru_cache
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from moesim.cluster import load_cluster
from moesim.metrics import TIME_METRIC, measure
from moesim.model import load_model
from moesim.routing import parse_routing
from moesim.step.layers import by_events, play_draw
from moesim.step.passes import forward_pass, pass_key
from moesim.step.scenario import make_scenario
from moesim.step.trace import layer_spans, step_spans, step_trace
from moesim.strategy import load_strategy, why_not
from moesim.workload import make_workload

SIZES = {
    "train": {"global_batch": 64, "seq": 1024},
    "prefill": {"batch": 16, "isl": 1024},
    "decode": {"batch": 64, "isl": 1024},
}


@lru_cache
def scenario(kind="train", model="deepseek-v2-lite", nodes=2):
    cluster = load_cluster("dgx-h100", nodes)
    workload = make_workload(kind, cluster.gpus, **SIZES[kind])
    return make_scenario(load_model(model), cluster, workload, parse_routing("lognormal:1"))


def lanes(spans):
    found = defaultdict(list)
    for span in spans:
        found[span.rank, span.rank_class, span.stream].append(span)
    return found


def assert_no_stream_does_two_things_at_once(spans):
    for lane, inside in lanes(spans).items():
        inside.sort(key=lambda span: (span.start_s, span.end_s))
        for one, after in pairwise(inside):
            assert one.end_s <= after.start_s * (1 + 1e-12), (lane, one, after)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    kind=st.sampled_from(["train", "prefill", "decode"]),
    tp=st.sampled_from([1, 2]),
    pp=st.sampled_from([1, 2, 4]),
    ep=st.sampled_from([1, 2, 8]),
    chunks=st.sampled_from([1, 3]),
    recompute=st.sampled_from(["none", "selective", "full"]),
    zero=st.sampled_from([0, 1, 3]),
    schedule=st.sampled_from(["1f1b", "gpipe", "zero_bubble", "dualpipe", "interleaved virtual=2"]),
)
def test_the_trace_ends_with_the_step_and_no_stream_does_two_things_at_once(
    kind, tp, pp, ep, chunks, recompute, zero, schedule
):
    given_ = scenario(kind)
    strategy = load_strategy(
        f"tp={tp} pp={pp} ep={ep} chunks={chunks} recompute={recompute} zero={zero} schedule={schedule}", 16
    )
    assume(why_not(given_.model, given_.cluster, given_.workload, strategy) is None)
    trace = step_trace(given_, strategy)
    assert_no_stream_does_two_things_at_once(trace.spans)
    played_s = measure(given_, strategy).metrics[TIME_METRIC[kind]]
    assert trace.step_s == pytest.approx(played_s, rel=1e-9)
    if kind != "decode":
        assert max(span.end_s for span in trace.spans) == pytest.approx(played_s, rel=1e-9)
    assert all(span.end_s >= span.start_s >= 0 for span in trace.spans)


def test_layers_fill_their_pass_from_start_to_end():
    trace = step_trace(scenario(), load_strategy("pp=4 ep=4", 16))
    passes = [s for s in trace.spans if s.what in ("forward", "backward")]
    inside = defaultdict(list)
    for span in trace.spans:
        if span.stream == "layer" and span.rank_class == 0:
            inside[span.rank, span.micro_batch, span.what].append(span)
    for one in passes:
        layers = [
            s
            for what in ("embedding", "layer", "head")
            for s in inside[one.rank, one.micro_batch, what]
            if one.start_s <= s.start_s and s.end_s <= one.end_s
        ]
        assert min(s.start_s for s in layers) == one.start_s
        assert max(s.end_s for s in layers) == pytest.approx(one.end_s, rel=1e-9)
        assert sum(s.end_s - s.start_s for s in layers) == pytest.approx(one.end_s - one.start_s, rel=1e-9)


def test_every_stage_runs_its_own_layers_the_first_the_embedding_and_the_last_the_head():
    spans = step_spans(scenario(), load_strategy("pp=4 ep=4", 16))
    by_stage = defaultdict(list)
    for span in spans:
        if span.stream == "layer" and span.micro_batch == 0 and span.rank_class == 0:
            by_stage[span.rank].append(span.chunk if span.what == "layer" else span.what)
    # 27 layers: 7, 8, 7, 5, the head as long as 2.2 more; forward in order, backward reversed, the head last and first
    assert by_stage[0] == ["embedding", *range(7), *reversed(range(7)), "embedding"]
    assert by_stage[1][:8] == list(range(7, 15))
    assert [s for s in range(4) if "head" in by_stage[s]] == [3]
    assert by_stage[3][5:7] == ["head", "head"]


def test_one_stage_and_micro_batch_shows_all_rank_classes_and_the_slowest_works_longest():
    spans = step_spans(scenario(), load_strategy("pp=2 ep=8", 16))
    others = {(s.rank, s.micro_batch) for s in spans if s.rank_class > 0}
    assert len(others) == 1
    busy = defaultdict(float)
    for span in spans:
        if (span.rank, span.micro_batch) in others and span.what == "experts" and span.turn == 0:
            busy[span.rank_class] += span.end_s - span.start_s
    assert len(busy) == 6  # 8 ranks: the worst two alone, the rest in four classes
    assert [busy[c] for c in range(6)] == sorted(busy.values(), reverse=True)
    assert busy[0] > busy[5]


def test_decode_shows_its_rounds_and_the_step_is_the_distance_of_the_last_two():
    given_ = scenario("decode")
    trace = step_trace(given_, load_strategy("pp=2 ep=8 micro_batch=64", 16))
    assert {span.turn for span in trace.spans} == {0, 1, 2}
    ends = [max(s.end_s for s in trace.spans if s.turn == turn) for turn in range(3)]
    assert trace.step_s == pytest.approx(ends[2] - ends[1], rel=1e-12)


def test_a_step_too_long_for_a_viewer_shows_the_layers_of_its_first_micro_batches_and_says_so():
    given_, strategy = scenario(), load_strategy("pp=2 ep=8", 16)
    whole = step_trace(given_, strategy)
    few = step_trace(given_, strategy, most_spans=len(whole.spans) // 2)
    assert len(few.spans) <= len(whole.spans) // 2
    assert 1 <= few.shown_micro_batches < few.micro_batches == 8
    assert {s.micro_batch for s in few.spans if s.stream == "layer"} == set(range(few.shown_micro_batches))
    passes = [s for s in whole.spans if s.layer < 0 and s.stream != "layer"]
    assert sum(s.what == "forward" for s in few.spans) == sum(s.what == "forward" for s in passes) == 16
    said = few.to_chrome(given_, strategy)["otherData"]["layers_shown_for"]
    assert said == f"the first {few.shown_micro_batches} of 8 micro-batches"
    assert whole.to_chrome(given_, strategy)["otherData"]["layers_shown_for"] == "all micro-batches"


def test_the_chrome_trace_of_a_step_nests_in_time_and_names_every_process_and_thread():
    given_, strategy = scenario(), load_strategy("pp=2 ep=8 chunks=2", 16)
    trace = step_trace(given_, strategy)
    document = trace.to_chrome(given_, strategy)
    assert set(document) == {"traceEvents", "displayTimeUnit", "otherData"}
    events = document["traceEvents"]
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    shown = [e for e in events if e["ph"] == "X"]
    assert {(e["pid"], e["tid"]) for e in shown} == named
    assert {e["pid"] for e in events if e["name"] == "process_name"} == {pid for pid, _ in named}
    assert {"dispatch 0", "dispatch 1", "experts 1", "attention", "optimizer"} <= {e["name"] for e in shown}
    assert max(e["ts"] + e["dur"] for e in shown) == pytest.approx(trace.step_s * 1e6, abs=2e-3)
    free = defaultdict(float)
    for e in shown:  # sorted by time
        assert e["ts"] >= free[e["pid"], e["tid"]] - 1e-3 / 2
        free[e["pid"], e["tid"]] = e["ts"] + e["dur"]


def test_a_layer_alone_is_the_least_balanced_one_as_long_as_its_slowest_draw_says():
    given_, strategy = scenario(), load_strategy("ep=8 chunks=2", 16)
    spans = layer_spans(given_, strategy)
    number = spans[0].layer
    layer_pass = forward_pass(given_, given_.model.layers[number], pass_key(given_, strategy))
    assert given_.model.layers[number].is_moe
    assert max(s.end_s for s in spans) == play_draw(layer_pass, 6).end_s == by_events(layer_pass)[6]
    assert {s.rank for s in spans if s.what == "experts"} == set(range(6))


def test_a_dense_model_has_a_layer_and_a_step_too():
    given_ = scenario(model="llama-3.1-8b", nodes=1)
    strategy = load_strategy("tp=8", 8)
    assert {s.what for s in layer_spans(given_, strategy)} == {"tp gather", "attention", "tp scatter", "ffn"}
    assert {s.what for s in layer_spans(given_, strategy, backward=True)} >= {"attention grad", "ffn grad"}
    assert_no_stream_does_two_things_at_once(step_spans(given_, strategy))
