"""What a calibration knows of the machine, and what a person sees: no GPU is needed."""

import os
import sys
import time
from types import SimpleNamespace

import pytest

from moesim.calibrate import progress
from moesim.calibrate.bench import Bench
from moesim.calibrate.machine import Clocks, _gpu, find_machine, short_name
from moesim.calibrate.meta import cluster_file
from moesim.calibrate.store import Store
from moesim.calibrate.timing import CpuTimer
from moesim.cluster import CLUSTERS, GPUS, load_cluster

# --- the machine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("full", "short"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 PCIe", "H100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("NVIDIA GH200 480GB", "GH200"),
    ],
)
def test_a_gpu_is_called_by_its_short_name(full, short):
    assert short_name(full) == short


def properties(name, sms, chip=(9, 0), **more):
    return SimpleNamespace(
        name=name, multi_processor_count=sms, major=chip[0], minor=chip[1], total_memory=80 * 2**30, **more
    )


def test_a_known_gpu_has_its_data_sheet():
    machine = _gpu(properties("NVIDIA H200", 132), None, 8)
    assert (machine.name, machine.slug, machine.gpus, machine.fp8) == ("H200", "h200", 8, True)
    assert machine.flops == GPUS["H200"].flops
    assert machine.memory_bytes_per_s == GPUS["H200"].memory_bytes_per_s


def test_a_gpu_with_fewer_sms_than_its_data_sheet_goes_by_its_properties():
    clocks = {"clock_rate": 1_755_000, "memory_clock_rate": 1_593_000, "memory_bus_width": 5120, "L2_cache_size": 2**25}
    machine = _gpu(properties("NVIDIA H100 PCIe", 114, **clocks), None, 1)
    assert (machine.name, machine.slug, machine.l2_bytes) == ("H100 114 SMs", "h100-114-sms", 2.0**25)
    assert machine.flops["bf16"] == pytest.approx(114 * 1.755e9 * 4096)
    assert machine.memory_bytes_per_s == pytest.approx(2 * 1.593e9 * 5120 / 8)


def test_what_the_properties_do_not_say_is_measured(tmp_path):
    machine = _gpu(properties("NVIDIA X9", 10, (12, 1)), None, 1)
    assert (machine.flops, machine.memory_bytes_per_s) == (None, None)
    store = measured(tmp_path, machine)
    assert "GFLOP/s" in cluster_file(machine, store)
    cluster = read_back(tmp_path, machine, store)
    assert cluster.gpu.flops == {"bf16": 1e9}
    assert cluster.gpu.memory_bytes_per_s == 1e9
    assert cluster.scale_up.basis == "estimated"


def measured(tmp_path, machine):
    """A store with its peaks, and no rows."""
    store = Store(tmp_path / machine.slug, {})
    for what in ("gemm_bf16_flops", "copy_bytes_per_s"):
        store.rows["peaks"][what] = [what, "1e9"]
    return store


def read_back(tmp_path, machine, store):
    path = tmp_path / "cluster.yaml"
    path.write_text(cluster_file(machine, store))
    return load_cluster(path)


def test_the_cluster_of_a_known_gpu_has_its_link(tmp_path):
    machine = _gpu(properties("NVIDIA H200", 132), None, 4)
    cluster = read_back(tmp_path, machine, measured(tmp_path, machine))
    assert (cluster.gpus_per_node, cluster.gpu.name) == (4, "H200")
    assert cluster.scale_up == CLUSTERS["dgx-h200"].scale_up
    assert cluster.gpu.flops == GPUS["H200"].flops


def test_the_cpu_is_two_processes():
    machine = find_machine("cpu", None)
    assert machine.name.startswith("CPU ")
    assert (machine.gpus, machine.architecture) == (2, "cpu")
    assert machine.sms >= 1
    assert machine.l2_bytes >= 2.0**20
    assert machine.memory_bytes >= 2.0**28


def test_clocks_are_read_from_nvidia_smi_and_its_absence_is_tolerated(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '1980, 3201, 580.1'\n")
    program.chmod(0o755)
    machine = _gpu(properties("NVIDIA H200", 132, uuid="abc"), None, 1)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    clocks = Clocks(machine)
    clocks.sample()
    assert clocks.command[1:3] == ["-i", "GPU-abc"]
    assert clocks.driver == "580.1"
    assert clocks.summary() == {
        "sm_mhz": {"min": 1980.0, "median": 1980.0, "max": 1980.0}, "memory_mhz": 3201.0, "samples": 1,
    }  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    absent = Clocks(machine)
    absent.sample()
    assert absent.summary() == {}


# --- the bar and the bench --------------------------------------------------------------------------------------


def test_the_bar_says_what_is_done_and_left(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    now = iter((0.0, 10.0, 20.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    bar = progress.Bar(2, 10)
    bar.step("gemm 1")
    assert "3 of 10 points, 1:10 left, gemm 1" in capsys.readouterr().err
    bar.close()


def test_the_next_group_frees_what_the_last_one_shared():
    closed = []
    bench = Bench(device="cpu", l2_bytes=1.0, timer=CpuTimer(), seed=0, free_bytes=lambda: 1e9)
    bench.enter("a")
    bench.keep("one", lambda: SimpleNamespace(close=lambda: closed.append(1)))
    assert bench.keep("one", lambda: None) is not None
    bench.enter("a")
    assert closed == []
    bench.enter("b")
    assert closed == [1]
    assert bench.kept == {}
