"""Every kind of point of a GPU's grid runs here at tiny sizes under the interpreter, with a timer that only runs."""

import numpy as np
import pytest
import torch

from moesim.calibrate import case, gemm, interference, live, live_ranks, static_fp8
from moesim.calibrate.bench import Bench, SkipError
from moesim.calibrate.expert_ffn import measure as measure_layer
from moesim.calibrate.grid_gpu import gpu_points
from moesim.calibrate.kernels import READS, TRITON_JOBS
from moesim.calibrate.kernels import measure as measure_kernel
from moesim.calibrate.points import TABLES, Point, ordered
from moesim.calibrate.shapes import Shape
from moesim.calibrate.timing import Timing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = (128, 64, 8, 2)  # hidden, ffn, experts, top_k


class RunOnly:
    """Runs every call, refuses what is not finite, and says a millisecond."""

    events_used = 0
    lost = False

    def __init__(self):
        self.calls = 0

    def __call__(self, calls, graph=True):
        for call in calls:
            found = call()
            self.calls += 1
            if isinstance(found, torch.Tensor):
                assert found.numel()
        return Timing(1e-3, 0.0, 1)


@pytest.fixture
def bench():
    with torch.random.fork_rng():
        yield Bench(device=DEVICE, l2_bytes=1.0, timer=RunOnly(), seed=0, free_bytes=lambda: 2.0**33)


def kernel_point(op, dtype, load="balanced", tokens=5, model="tiny", sizes=SIZES):
    return Point("kernels", (op, "moesim_triton", dtype, model, load, tokens, *sizes), 0, "tiny")


def layer_point(dtype, load, tokens, ep=1, tp=1):
    return Point("expert_ffn", ("moesim_triton", dtype, "tiny", load, 1, tokens, *SIZES, ep, tp), 0, "tiny")


def asked_on_a_gpu():
    """(op, dtype) of every kernels point."""
    points = [point for point in gpu_points(fp8=True, gpus=1) if point.table == "kernels"]
    return sorted({(point.text["op"], point.text["dtype"]) for point in points})


def test_every_op_of_the_grid_has_a_job():
    assert {op for op, _ in asked_on_a_gpu()} == set(TRITON_JOBS)


@pytest.mark.parametrize("op", ["dgrad", "wgrad"])
def test_every_gradient_of_the_grid_stands_beside_its_forward_pass(op):
    strata = {point.values: point.stratum for point in ordered(gpu_points(True, 1)) if point.table == "kernels"}
    gradients = [values for values in strata if values[0] == op]
    assert {values[4] for values in gradients} == {"balanced", "zipf:1.2"}
    assert min(strata[values] for values in gradients) == 0
    for values in gradients:
        for forward in ("gate_up", "down"):
            assert strata[forward, *values[1:]] <= strata[values]


def test_the_grid_multiplies_as_gates_do_and_disturbs_every_kernel():
    points = list(gpu_points(fp8=True, gpus=1))
    assert {point.values[3] for point in points if point.table == "gemm"} >= {64, 128, 256}
    assert {point.values[0] for point in points if point.table == "interference"} == set(interference.KERNELS)


@pytest.mark.parametrize(("op", "dtype"), asked_on_a_gpu())
def test_each_kernel_gives_a_row_with_its_work(op, dtype, bench):
    sizes = (128, 64, 16, 8) if op == "router_grouped" else SIZES
    found = measure_kernel(bench, kernel_point(op, dtype, sizes=sizes))
    assert set(found) == set(TABLES["kernels"].found)
    assert float(found["bytes"]) > 0.0
    assert float(found["time_us"]) == 1000.0


def test_the_router_of_deepseek_keeps_4_of_8_groups(bench):
    found = measure_kernel(bench, kernel_point("router", "fp32", model="deepseek-v3", sizes=(128, 64, 16, 4)))
    assert float(found["flops"]) > 0.0


@pytest.mark.parametrize("dtype", ["bf16", "fp8_block", "int4", "ternary"])
def test_a_layer_runs_in_each_dtype_and_states_its_loads(dtype, bench):
    found = measure_layer(bench, layer_point(dtype, "hot", 5))
    loads = [int(one) for one in found["tokens_per_expert"].split(";")]
    assert (sum(loads), max(loads), len(loads)) == (10, 5, 8)


def test_a_rank_of_two_runs_its_own_experts_with_half_their_width(bench):
    found = measure_layer(bench, layer_point("bf16", "zipf:1.2", 6, ep=2, tp=2))
    loads = [int(one) for one in found["tokens_per_expert"].split(";")]
    assert len(loads) == 4
    assert 6 <= sum(loads) <= 12


def test_a_layer_that_fits_in_the_cache_uses_other_weights_in_turn(bench):
    bench.l2_bytes = 3 * 128 * 64 * 2.0 * 8  # exactly all eight experts: two copies
    measure_layer(bench, layer_point("bf16", "balanced", 1))
    assert len({id(one) for one in bench.kept.values()}) == 2
    assert bench.timer.calls == 8  # 2 of 16 experts at a time


def test_the_calls_of_every_small_point_read_twice_the_cache_together(bench, monkeypatch):
    bench.l2_bytes, bench.free_bytes = 50 * 2.0**20, lambda: 1e13
    bench.keep = lambda name, make: name
    monkeypatch.setattr(bench, "randn", lambda *shape: torch.empty(1))
    points = [point for point in gpu_points(fp8=True, gpus=1) if point.table in ("expert_ffn", "kernels")]
    checked = 0
    for point in (point for point in points if point.number["tokens"] <= 16):
        share = READS.get(point.text["op"], 0.0) if point.table == "kernels" else 1.0
        found = case.make_case(bench, point, share)
        each = share * 3 * point.number["hidden"] * found.ffn * case.VALUE_BYTES[found.dtype]
        pairs = {(name, e) for name, chosen in found.variants for e in set(chosen.flatten().tolist()) - {-1}}
        assert share == 0.0 or each * len(pairs) >= 2 * bench.l2_bytes, point.name
        checked += share > 0.0
    assert checked > 100


def test_a_gemm_in_fp8_quantises_its_input_in_one_kernel_and_multiplies(bench, monkeypatch):
    launched = []
    launch = static_fp8.quantise_static
    monkeypatch.setattr(
        static_fp8, "quantise_static", lambda x, inverse: launched.append(x.shape) or launch(x, inverse)
    )
    bench.l2_bytes = 32 * (48 + 2 * 5)  # two copies of the operands
    found = gemm.measure(bench, Point("gemm", ("torch_scaled_mm", "fp8", 5, 48, 32), 0, "gemm"))
    assert set(found) == set(TABLES["gemm"].found)
    assert launched == [(5, 32)] * 3  # one is checked, two are timed


def test_fp8_with_a_known_scale_is_exact_where_e4m3_is_and_ends_at_its_largest_value():
    x = torch.tensor([0.5, -1.0, 448.0, 1e4, -1e4, 0.0] * 500, dtype=torch.bfloat16, device=DEVICE).view(60, 50)
    found = static_fp8.quantise_static(x, torch.tensor(2.0, device=DEVICE)).double()
    assert torch.equal(found, (x.double() * 2.0).clamp(-448.0, 448.0))


def test_a_product_of_fp8_is_that_of_its_operands():
    a_MK, w_NK = (torch.randn(n, 64, device=DEVICE).sign().bfloat16() for n in (16, 32))
    assert torch.equal(gemm._fp8(a_MK, w_NK)(), a_MK @ w_NK.T)


def test_evenly_spaced_choices_are_shifted_off_themselves():
    spaced = np.arange(64) % 8 == 0
    calls = case.shifts(spaced, copies=2, wanted_pairs=100)
    assert len(calls) == 13
    assert len({(copy, (e + shift) % 64) for copy, shift in calls for e in range(0, 64, 8)}) == 104
    assert case.shifts(spaced, copies=1, wanted_pairs=1) == [(0, 0)]
    assert len(case.shifts(spaced, copies=1, wanted_pairs=1000)) == 8  # all are read


def test_a_point_that_does_not_fit_is_skipped_with_its_size(bench):
    bench.free_bytes = lambda: 1e5
    with pytest.raises(SkipError, match=r"needs .* GiB, 80 % of the free memory"):
        measure_layer(bench, layer_point("bf16", "balanced", 4096))


def test_a_kernel_that_writes_nan_is_no_measurement(bench, monkeypatch):
    monkeypatch.setitem(bench.kept, "experts 0", nan_experts())
    with pytest.raises(SkipError, match="NaN"):
        measure_layer(bench, layer_point("bf16", "balanced", 5))


def nan_experts():
    from moesim.kernels.expert_ffn import make_experts

    made = make_experts(8, 128, 64, "bf16", device=DEVICE)
    made.w2.fill_(float("nan"))
    return made


def test_the_copy_that_holds_sms_copies_all_of_its_buffer():
    source = torch.randn(20_000, device=DEVICE)
    target = torch.full_like(source, float("nan"))
    interference.hold_sms(source, target, programs=2, rounds=2)
    assert torch.equal(source, target)


def test_a_row_of_interference_holds_the_factor():
    found = interference.row(2e-3, Timing(3e-3, 0.1, 10))
    assert set(found) == set(TABLES["interference"].found)
    assert (found["alone_us"], found["beside_us"], found["factor"]) == ("2000", "3000", "1.5")


def test_the_parts_of_a_live_layer_on_one_gpu_make_the_layer(bench):
    shape = Shape("tiny", *SIZES)
    noise = live.biased_noise("hot", 7, 8, seed=1).to(DEVICE)
    calls, experts_TK = live._triton_parts(bench, shape, noise)
    assert sorted(calls) == sorted(live.PARTS)
    assert torch.bincount(experts_TK.flatten().long(), minlength=8).max() == 7
    calls["router"](), calls["dispatch"](), calls["experts"]()
    assert torch.allclose(calls["combine"]().float(), calls["layer"]().float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("load", live.LOADS)
def test_the_gate_of_a_live_layer_gives_the_logits_of_the_load(load):
    with torch.random.fork_rng():
        wanted_TE = live.biased_noise(load, 50, 8, seed=3)
        gate_EH, x_TH = (torch.randn(n, 128).bfloat16() / 128**0.5 for n in (8, 50))
    found_TE = live_ranks.tokens_for(wanted_TE, gate_EH, x_TH).double() @ gate_EH.double().T
    assert (found_TE - wanted_TE).abs().max() < 0.02 * wanted_TE.abs().max()


def test_rows_of_a_live_layer_on_one_gpu_say_what_was_run(bench):
    rows = live._one_gpu(bench, Shape("tiny", *SIZES), 6, "balanced", seed=0)
    assert [row["part"] for row in rows] == list(live.PARTS)
    assert {row["sent_bytes"] for row in rows} == {0}
    assert sum(int(one) for one in rows[0]["tokens_per_expert"].split(";")) == 12


def test_live_ranks_is_the_same_layer_as_on_one_rank(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=(tmp_path / "meet").as_uri(), rank=0, world_size=1)
    try:
        with torch.random.fork_rng():
            noise = live.biased_noise("zipf:1.2", 9, 8, seed=2)
            layer = live_ranks.LiveLayer(0, 1, Shape("tiny", *SIZES), noise, copies=1, seed=0)
            weights_TK, experts_TK = layer.route()
            weights = next(layer.weights)
        expected = live_ranks.torch_layer.expert_layer(layer.x_TH, weights, experts_TK, weights_TK)
        assert torch.equal(layer.layer(), expected)
    finally:
        dist.destroy_process_group()


class TwoStreams:
    """A main and a side stream without a GPU: each has a clock in ms, events read the current one's."""

    def __init__(self, monkeypatch):
        self.now_ms, self.current = {"main": 0.0, "side": 0.0}, "main"
        clocks = self

        class Event:
            def __init__(self, enable_timing):
                self.at_ms = 0.0

            def record(self):
                self.at_ms = clocks.now_ms[clocks.current]

            def elapsed_time(self, other):
                return other.at_ms - self.at_ms

        class OnSide:
            def __init__(self, stream):
                pass

            def __enter__(self):
                clocks.current = "side"

            def __exit__(self, *_):
                clocks.current = "main"

        fakes = {
            "Event": Event, "Stream": lambda: None, "stream": OnSide, "synchronize": self.meet,
            "_sleep": lambda cycles: self.spend(1.0),
        }  # fmt: skip
        for name, value in fakes.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def meet(self):
        self.now_ms = dict.fromkeys(self.now_ms, max(self.now_ms.values()))

    def spend(self, ms):
        self.now_ms[self.current] += ms


def test_a_sample_counts_only_when_the_copy_outlasts_the_kernel_beside_it(monkeypatch):
    streams = TwoStreams(monkeypatch)
    rounds = []

    def hold(times):
        rounds.append(times)
        streams.spend(2.0 * times)

    found = interference.samples(lambda: streams.spend(3.0), hold)
    assert found == [pytest.approx(3e-3)] * 10
    assert rounds == [1, 2, 4, *[8] * 10]  # 1 ms of waiting and 4 kernels of 3 ms: 16 ms are enough


def test_a_copy_that_never_lasts_is_no_measurement(monkeypatch):
    streams = TwoStreams(monkeypatch)
    with pytest.raises(SkipError, match="the copy always ended before the kernel beside it"):
        interference.samples(lambda: streams.spend(3.0), lambda times: None)


def test_a_kernel_alone_is_timed_without_a_copy(monkeypatch):
    streams = TwoStreams(monkeypatch)
    assert interference.samples(lambda: streams.spend(3.0), None) == [pytest.approx(3e-3)] * 10
