"""The study of the kernels' speed is ready for a GPU: cases, candidates, summary, a refusal without one."""

import math
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
import torch

STUDIES = Path(__file__).resolve().parents[2] / "studies"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import kernel_speed

    yield kernel_speed
    sys.modules.pop("kernel_speed", None)


def test_rows_of_a_table_become_cases_of_one_gpu(study, tmp_path):
    shape = {"model_hint": "M", "hidden": 64, "inter": 128, "num_experts": 4, "topk": 2, "num_tokens": 8, "tp": 2}
    kinds = ("a", 1, "balanced"), ("b", 1, "balanced"), ("a", 2, "balanced"), ("a", 1, "power_law")
    rows = [
        {**shape, "latency_us": 50.0, **dict(zip(("kernel", "ep", "distribution"), kind, strict=True))}
        for kind in kinds
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    assert study.cases(tmp_path / "rows.csv", "a") == [study.Case("M", 64, 64, 4, 2, 8, 50.0)]


def test_without_a_table_the_known_shapes_run_from_1_to_16384_tokens(study):
    found = study.cases(None, "a")
    assert {case.model for case in found} >= {"Mixtral 8x7B", "Qwen3-30B-A3B", "DeepSeek-V3"}
    assert {1, 16384} <= {case.tokens for case in found}


@pytest.mark.parametrize("dtype", ["bf16", "fp8_block"])
def test_the_tiles_in_use_are_among_those_that_are_tried(study, dtype):
    from moesim.kernels.tiles import BLOCKS, HOPPER

    for block in BLOCKS:
        assert (block, HOPPER[dtype, block]) in set(study.candidates(dtype, block)), block


def test_a_second_run_measures_only_what_is_missing(study, tmp_path):
    wanted = [study.Case("M", 64, 64, 4, 2, tokens, 50.0) for tokens in (1, 2)]
    measured = []

    def row(case, _, dtype):
        measured.append(case.tokens)
        return dict.fromkeys(study.COLUMNS, 1.0) | dict(zip(study.KEY, (*case[:6], dtype), strict=True))

    with mock.patch.multiple(study, _measured=row, _experts=lambda *_: None):
        study.run(wanted[:1], "bf16", tmp_path / "speed.csv")
        frame = study.run(wanted, "bf16", tmp_path / "speed.csv")
    assert measured == [1, 2]
    assert list(frame["tokens"]) == [1, 2]


def test_the_summary_gives_the_geometric_mean_and_the_share_of_the_dense_gemm(study):
    frame = pd.DataFrame(
        {"model": "Mixtral 8x7B", "hidden": 4096, "ffn": 14336, "tokens": [1, 16384], "dtype": "bf16",
         "layer_us": [10.0, 20.0], "dense_us": [1.0, 15.0], "reference_us": [40.0, math.nan], "layer_tflops": 600.0}
    )  # fmt: skip
    assert "4.000 times" in study.summary(frame)
    assert "75.0% of the dense" in study.summary(frame)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_refuses_in_one_line(tmp_path):
    command = [sys.executable, STUDIES / "kernel_speed.py", "--out", tmp_path / "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip() == "no GPU here: this study times kernels on one"
    assert not (tmp_path / "none").exists()
