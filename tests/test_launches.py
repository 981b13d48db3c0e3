"""Kernels launched one by one: gaps between them, and a CPU that may not keep up."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from moesim.cluster import GPUS, load_cluster
from moesim.compute import LAUNCH_GAP_S, host_launch
from moesim.compute.launch import HOST_S
from moesim.cost import MEASURED
from moesim.metrics import measure
from moesim.model import load_model
from moesim.profile import Measured, load_profile, read_table
from moesim.program import Builder
from moesim.routing import parse_routing
from moesim.step.launches import operations, with_gap
from moesim.step.layers import batched, bounded, by_events, play_draw, play_many
from moesim.step.passes import LayerPass
from moesim.step.price import NOTHING
from moesim.step.scenario import make_scenario
from moesim.strategy import load_strategy
from moesim.tiers import tiers_of
from moesim.workload import make_workload

US = 1e-6


def scenario(kind="train"):
    cluster = load_cluster("dgx-h100", 1)
    work = make_workload(kind, 8, **({"global_batch": 64, "seq": 1024} if kind == "train" else {"batch": 8}))
    return make_scenario(load_model("qwen3-30b-a3b"), cluster, work, parse_routing("uniform"))


def op(seconds, kernels=1, family="dense"):
    return NOTHING._replace(
        seconds=np.full((1, 1), seconds), slowest=np.full(1, seconds), kernels=kernels, family=family
    )


def program(*names):
    build = Builder()
    for name in names:
        build.add(name, "compute")
    return build.program()


@pytest.mark.parametrize(("launch_us", "lasts_us"), [(5.0, 50.0), (0.5, 10.0)])
def test_ten_kernels_of_1_us_end_no_sooner_than_they_are_launched(launch_us, lasts_us):
    ten, prices = program(*["attention"] * 10), {"attention": op(1.0 * US)}
    one = LayerPass(ten, prices, {}, host_s=operations(ten, prices, 0) * launch_us * US)
    for found in (batched(one), bounded(one), by_events(one)):
        assert found == pytest.approx([lasts_us * US])
    assert play_many([one, one._replace(host_s=0.0)]).ravel() == pytest.approx([lasts_us * US, 10 * US])
    assert any(span.stream == "host" for span in play_draw(one, 0).spans) == (launch_us > 1)


def test_megatrons_moe_layer_with_32_local_experts_launches_261_operations_and_twice_as_many_backward():
    prices = {"route": op(US, family="gate"), "experts": op(US, 5, "experts"), "attention": op(US, 3)}
    assert operations(program("route", "experts"), prices, 32) == 261
    assert operations(program("attention", "route", "experts"), prices, 0) == 85 + 3
    backward = program("experts grad", "experts weight grad", "route grad")
    assert operations(backward, prices, 32) == 2 * 261


def test_three_kernels_in_training_wait_three_gaps_and_in_a_cuda_graph_none():
    three, train = op(10 * US, 3), scenario()
    assert with_gap(train, None, three).slowest[0] == pytest.approx(10 * US + 3 * LAUNCH_GAP_S)
    assert with_gap(train, 0.0, three) is not three  # capacity follows the load: shapes change
    assert with_gap(train, 1.25, three) is three
    assert with_gap(scenario("decode"), None, three) is with_gap(scenario("prefill"), None, three) is three
    assert with_gap(train, None, three._replace(family="tp")).slowest[0] == 10 * US


def test_a_small_micro_batch_waits_for_its_host_and_one_of_fixed_shapes_does_not():
    train = scenario()
    dropless, fixed = (measure(train, load_strategy(f"ep=8{more}", 8)) for more in ("", " capacity_factor=1"))
    assert dropless.breakdown.seconds["host"] > 0.2 * dropless.step_s
    assert sum(dropless.breakdown.seconds.values()) == pytest.approx(dropless.step_s)
    assert "host" not in fixed.breakdown.seconds
    assert fixed.step_s < dropless.step_s


# --- measured -------------------------------------------------------------------------------------------------


def measured(tmp_path, kind, header, rows):
    """A profile of H100 with one more table."""
    path = tmp_path / f"{kind}.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    shipped = load_profile(GPUS["H100"])
    gpu = shipped.tables["gemm"][0].gpu
    one = Measured(table=read_table(path, kind), gpu=gpu, basis=MEASURED, source="here", carried_error=0.0)
    return replace(shipped, tables=shipped.tables | {kind: (one,)}, memo={})


@pytest.mark.parametrize(("slope_us", "costs_us"), [(4, HOST_S / US), (40, 40)])
def test_an_operation_takes_no_less_than_the_slope_of_a_measured_chain_of_tiny_kernels(tmp_path, slope_us, costs_us):
    rows = [("stream", n, slope_us * n + 6) for n in (1, 4, 16, 64)] + [("graph", n, n) for n in (1, 64)]
    found = host_launch(measured(tmp_path, "launch", ("how", "kernels", "time_us"), rows))
    assert float(found.seconds) == pytest.approx(costs_us * US, rel=1e-3)
    assert (found.basis == MEASURED) == (slope_us == 40)


def test_measured_copies_from_host_memory_price_the_link_of_cpu_memory(tmp_path, monkeypatch):
    # 20 us and 40 GB/s; the other way and on the device something else
    rows = [("host_to_device", 2**n, 20 + 2**n / 40e3) for n in (12, 20, 28)] + [("device_to_host", 4096, 1)]
    profile = measured(tmp_path, "copies", ("direction", "bytes", "time_us"), rows)
    monkeypatch.setattr("moesim.tiers.hardware.load_profile", lambda gpu: profile)
    cluster = load_cluster("dgx-h100", 1)
    found = tiers_of(cluster).cpu
    assert found.bytes_per_s == pytest.approx(40e9, rel=1e-3)
    assert found.start_s == pytest.approx(20 * US, rel=1e-3)
    assert found.capacity_bytes == 2e12 / 8
    assert tiers_of(cluster, cpu_bytes_per_s=1e9).cpu.bytes_per_s == 1e9
