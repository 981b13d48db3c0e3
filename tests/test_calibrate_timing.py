"""How a call is timed on a GPU and on a CPU: no GPU is needed."""

import pytest
import torch

from moesim.calibrate import timing
from moesim.calibrate.bench import Bench, make_bench
from moesim.calibrate.timing import CpuTimer, CudaTimer, Timing, figure, repeats_for, summary
from moesim.errors import MoesimError


def test_a_timing_is_the_median_and_its_spread():
    assert summary([1.0, 2.0, 3.0, 4.0, 5.0]) == Timing(3.0, pytest.approx(3.2 / 3.0), 5)


def test_long_calls_are_repeated_less():
    assert [repeats_for(s) for s in (1e-3, 1e-2, 5e-2, 1.0)] == [20, 10, 5, 3]


class FakeCuda:
    """Graphs and events without a GPU: every call takes a millisecond, in a graph ``captured_ms``.

    ``refuses`` captures: those of the calls, or all; then that of the timer's own tiny kernel fails too.
    """

    def __init__(self, monkeypatch, refuses="none", captured_ms=1.0):
        self.now_ms, self.replays, self.calls, self.refuses = 0.0, 0, 0, refuses
        fake = self

        class Event:
            def __init__(self, enable_timing):
                self.at_ms = None

            def record(self):
                self.at_ms = fake.now_ms

            def elapsed_time(self, other):
                return other.at_ms - self.at_ms

        class Graph:
            def capture_begin(self, capture_error_mode):
                self.first = fake.calls

            def capture_end(self):
                self.length = fake.calls - self.first
                fake.now_ms -= self.length  # a capture computes nothing
                if fake.refuses == "all" or (fake.refuses == "calls" and self.length):
                    raise RuntimeError("operation not permitted when stream is capturing")

            def replay(self):
                fake.replays += 1
                fake.now_ms += self.length * captured_ms

        self.emptied = 0
        self.free = 10
        fakes = {
            "Event": Event, "CUDAGraph": Graph, "synchronize": lambda: None, "empty_cache": self.empty,
            "mem_get_info": lambda: (fake.free, 10),
        }  # fmt: skip
        for name, value in fakes.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(timing, "_tiny", lambda: lambda: None)

    def empty(self):
        self.emptied += 1

    def call(self):
        self.calls += 1
        self.now_ms += 1.0


@pytest.mark.parametrize("variants", [1, 3])
def test_a_gpu_timing_replays_a_graph_of_all_variants(monkeypatch, variants):
    fake = FakeCuda(monkeypatch)
    timer = CudaTimer()
    assert timer([fake.call] * variants) == Timing(pytest.approx(1e-3), 0.0, 10 if variants > 1 else 20)
    assert timer.events_used == 0
    assert fake.replays == (10 if variants > 1 else 20) + 1
    assert fake.calls == 3 * variants  # once to compile, once to estimate, once captured


@pytest.mark.parametrize(("free", "emptied"), [(10, 0), (4, 1)])
def test_memory_is_given_back_before_a_capture_that_may_need_it(monkeypatch, free, emptied):
    fake = FakeCuda(monkeypatch)
    fake.free = free
    CudaTimer()([fake.call])
    assert fake.emptied == emptied


def test_what_cannot_be_captured_is_timed_by_events_and_counted(monkeypatch):
    fake = FakeCuda(monkeypatch, refuses="calls")
    timer = CudaTimer()
    assert timer([fake.call]).time_s == pytest.approx(1e-3)
    assert (timer.events_used, fake.replays, timer.lost) == (1, 0, False)


def test_a_process_that_can_capture_nothing_any_more_says_so_and_ends(monkeypatch):
    fake = FakeCuda(monkeypatch, refuses="all")
    timer = CudaTimer()
    with pytest.raises(RuntimeError, match="unable to capture any CUDA graph"):
        timer([fake.call])
    bench = Bench(device="cuda", l2_bytes=1.0, timer=timer, seed=0, free_bytes=lambda: 1e9)
    with pytest.raises(RuntimeError, match="a new process"):
        bench.leave()


def test_a_graph_that_the_host_was_too_slow_for_is_replayed_for_a_millisecond(monkeypatch):
    fake = FakeCuda(monkeypatch, captured_ms=1 / 16)
    timer = CudaTimer()
    assert timer([fake.call]) == Timing(pytest.approx(1e-3 / 16), 0.0, 20)
    assert fake.replays == 2 + 20 * 16
    assert fake.calls == 3  # and captured once


def test_a_stream_is_timed_without_a_graph(monkeypatch):
    fake = FakeCuda(monkeypatch)
    timer = CudaTimer()
    assert timer([fake.call], graph=False).time_s == pytest.approx(1e-3)
    assert (timer.events_used, fake.replays) == (0, 0)


def test_a_cpu_timing_takes_the_calls_in_turn():
    taken = []
    timing = CpuTimer()([lambda: taken.append(1), lambda: taken.append(2)])
    assert 0.0 < timing.time_s < 1e-3
    assert abs(taken.count(1) - taken.count(2)) <= 2
    assert timing.repeats == 10


@pytest.mark.parametrize(("value", "text"), [(1234567.0, "1234567"), (0.000012, "0.000012"), (2.5, "2.5"), (0.0, "0")])
def test_figures_have_no_exponent(value, text):
    assert figure(value) == text


def test_without_a_c_compiler_the_gpu_is_refused_in_one_line_before_any_point(monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    for name in ("Stream", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("ones", "zeros"):
        monkeypatch.setattr(torch, name, lambda *_, device: None)
    monkeypatch.setattr("moesim.calibrate.hold_sms.hold_sms", no_compiler)
    with (
        torch.random.fork_rng(),
        pytest.raises(MoesimError, match=r"Failed to find C compiler.*python3-dev") as refusal,
    ):
        make_bench("cuda", l2_bytes=1.0, seed=0)
    assert "\n" not in str(refusal.value)
