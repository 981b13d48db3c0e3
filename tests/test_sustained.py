"""Clocks under load: what a training step leaves of the speed of published kernel tables."""

import csv

import pytest

from moesim.cluster import GPUS, load_cluster
from moesim.model import load_model
from moesim.profile import shipped_folder, sustained_share
from moesim.routing import parse_routing
from moesim.step import gemms
from moesim.step.scenario import make_scenario
from moesim.workload import make_workload


def scenario(kind):
    cluster = load_cluster("dgx-h100")
    sizes = {"global_batch": 8} if kind == "train" else {"batch": 8}
    return make_scenario(load_model("mixtral-8x7b"), cluster, make_workload(kind, 8, **sizes), parse_routing("uniform"))


def gemm_s(kind, part="forward"):
    return float(gemms._gemm(scenario(kind), 8192, 4096, 4096, "bf16", part).seconds.sum())


def test_training_computes_at_97_percent_of_h100s_tables_and_serving_at_all_of_it():
    assert sustained_share("H100") == 0.97
    assert gemm_s("train") == pytest.approx(gemm_s("prefill") / 0.97)


def test_a_gpu_that_no_dense_run_judges_keeps_its_tables_speed():
    assert sustained_share("A100") == 1.0


def test_a_weight_gradient_is_added_to_one_in_fp32_after_its_product():
    # 6 more bytes for each of 4096 x 4096 parameters: 30 us at H100's 3.35 TB/s, most of which is achieved
    extra_s = gemm_s("train", "weights") - gemm_s("train", "data")
    assert 30e-6 < extra_s < 60e-6


def test_every_share_names_its_gpu_and_its_source():
    with (shipped_folder() / "sustained.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["gpu"] for row in rows} <= set(GPUS)
    assert all(0.5 < float(row["share"]) <= 1.0 and row["basis"] == "estimated" and row["source"] for row in rows)
