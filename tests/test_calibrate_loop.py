"""The whole loop on this CPU: calibrate, plan with the profile, and run a live layer."""

import csv
import json
import re

import pytest
import torch

from moesim.calibrate.live import PARTS, run_live
from moesim.calibrate.points import TABLES
from moesim.cli import main as moesim
from moesim.cluster import load_cluster
from moesim.profile.load import read_meta, sheet
from moesim.profile.table import read_table

pytestmark = pytest.mark.xdist_group("calibrated")  # one worker measures, once


@pytest.fixture
def measured(calibrated):
    """(folder of the profiles, folder of this CPU's)."""
    [home] = calibrated.iterdir()
    return calibrated, home


def rows(home, table):
    with (home / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_table_of_a_cpu_is_there_and_nothing_is_skipped(measured):
    _, home = measured
    meta = json.loads((home / "meta.json").read_text())
    files = {path.stem for path in home.glob("*.csv")}
    assert files == set(meta["tables"]) == set(TABLES) - {"peaks", "interference"}
    assert meta["skipped"] == []
    assert {one["basis"] for one in meta["tables"].values()} == {"measured"}
    assert re.fullmatch(r"moesim \S+ calibrate on CPU .+, \d{4}-\d\d-\d\d", meta["tables"]["gemm"]["source"])
    assert meta["torch"] == torch.__version__
    assert home.name.startswith("cpu-")


def test_a_plan_reads_the_tables_and_the_cluster_file(measured, monkeypatch):
    out, home = measured
    monkeypatch.setenv("MOESIM_PROFILES", str(out))
    for table in ("expert_ffn", "gemm", "attention"):
        assert read_table(home / f"{table}.csv", table).rows >= 10
    stated = sheet(read_meta(home / "meta.json"), home)
    cluster = load_cluster(home / "cluster.yaml")
    assert cluster.gpu.name == stated.name
    assert cluster.gpu.flops["bf16"] == pytest.approx(stated.flops["bf16"], rel=1e-6)
    assert (cluster.gpus, cluster.scale_up.basis) == (2, "measured")


def test_loads_stand_beside_the_times_they_were_measured_with(measured):
    for row in rows(measured[1], "expert_ffn"):
        loads = [int(one) for one in row["tokens_per_expert"].split(";")]
        assert sum(loads) == int(row["tokens"]) * int(row["top_k"])
        assert len(loads) == int(row["experts"])
        assert float(row["time_us"]) > 0.0


def test_more_bytes_take_two_processes_longer(measured):
    for op in ("all_to_all", "all_gather", "all_reduce", "reduce_scatter"):
        times = {
            int(row["bytes"]): float(row["time_us"]) for row in rows(measured[1], "collectives") if row["op"] == op
        }
        assert times[max(times)] > times[min(times)] > 0.0


def test_no_measured_gemm_is_faster_than_the_peak(measured):
    _, home = measured
    gpu = json.loads((home / "meta.json").read_text())["gpu"]
    for row in rows(home, "gemm"):
        m, n, k, seconds = int(row["m"]), int(row["n"]), int(row["k"]), float(row["time_us"]) * 1e-6
        assert 2.0 * m * n * k / seconds <= gpu["flops"]["bf16"] * (1.0 + 1e-5)
        assert 2.0 * (m * n + n * k + m * k) / seconds <= gpu["memory_bytes_per_s"] * (1.0 + 1e-5)


def test_a_plan_is_priced_from_this_cpus_measurements(measured, monkeypatch, capsys, tmp_path):
    out, home = measured
    monkeypatch.setenv("MOESIM_PROFILES", str(out))
    cluster = tmp_path / "cluster.yaml"  # with memory for the model, whatever this machine has
    text = (home / "cluster.yaml").read_text()
    cluster.write_text(re.sub(r"memory: \S+GiB", "memory: 64GiB", text))
    options = ["--workload", "decode", "--batch", "4", "--isl", "512", "--top", "1", "--json"]
    assert moesim(["plan", "olmoe-1b-7b", "--cluster", str(cluster), *options]) == 0
    document = json.loads(capsys.readouterr().out)
    [best] = document["configurations"]
    assert best["rank"] == 1
    said = json.dumps(document)
    assert "carried over" not in said


def test_a_live_layer_sends_its_tokens_between_two_processes():
    threads = torch.get_num_threads()
    layers = run_live("cpu", seed=0, points=1)
    torch.set_num_threads(threads)
    assert [row["part"] for row in layers] == list(PARTS)
    times = {row["part"]: float(row["time_us"]) for row in layers}
    assert times["layer"] > times["experts"] > 0.0
    first = layers[0]
    assert (first["ep"], first["load"]) == (2, "balanced")
    away = first["sent_bytes"] / (first["hidden"] * 2)  # about half of a rank's copies
    assert 0.3 < away / (first["tokens"] * first["top_k"] / 2) < 0.7
    loads = [int(one) for one in first["tokens_per_expert"].split(";")]
    assert len(loads) == first["experts"] / 2
