"""Every study runs and leaves one table and one picture."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from moesim.errors import MoesimError
from moesim.profile import shipped_folder

STUDIES = Path(__file__).resolve().parent.parent / "studies"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import planner_speed

    yield planner_speed
    sys.modules.pop("planner_speed", None)


def test_the_speed_study_leaves_a_table_and_a_picture(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["planner_speed", "--quick", "--out", str(tmp_path)])
    study.main()
    frame = pd.read_csv(tmp_path / "planner_speed.csv")
    figures = frame.set_index("what")["value"]
    assert figures["plan: played by SimPy"] >= 50
    assert figures["plan: median list schedule / bound"] <= 1.05
    assert (frame["value"] >= 0).all()
    assert (tmp_path / "planner_speed.png").stat().st_size > 10_000
    assert "SimPy" in capsys.readouterr().out


@pytest.fixture
def schedules(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import schedules

    yield schedules
    sys.modules.pop("schedules", None)


def test_the_schedules_study_draws_every_schedule_and_finds_what_its_docstring_says(
    schedules, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(sys, "argv", ["schedules", "--out", str(tmp_path)])
    schedules.main()
    frame = pd.read_csv(tmp_path / "schedules.csv").set_index("schedule")
    assert frame["idle_s"].to_dict() == {
        "gpipe": 9.0, "1f1b": 9.0, "interleaved": 4.5, "zero_bubble": 3.0, "combined_1f1b": 9.0,
        "dualpipe": 1.5,
    }  # fmt: skip
    assert frame["held_micro_batches"].tolist() == [8.0, 4.0, 5.5, 4.0, 8.0, 5.0]
    assert (tmp_path / "schedules.png").stat().st_size > 50_000
    assert "zero_bubble" in capsys.readouterr().out


@pytest.fixture
def baseline(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import expert_baseline

    yield expert_baseline
    sys.modules.pop("expert_baseline", None)


def published(path, models):
    """A table in the layout of docs/validation.md, from the shipped H200 rows of some models."""
    rows = pd.read_csv(shipped_folder() / "h200" / "expert_ffn.csv")
    kernel = "vllm_unquantizedfusedmoe_triton_tritonexperts"
    rows = rows[rows["model"].isin(models) & (rows["kernel"] == kernel) & (rows["dtype"] == "bf16") & (rows["ep"] == 1)]
    layout = {
        "model": "model_hint", "tokens": "num_tokens", "ffn": "inter", "experts": "num_experts", "top_k": "topk",
        "load": "distribution", "time_us": "latency_us",
    }  # fmt: skip
    rows = rows.rename(columns=layout).assign(
        gpu="H200", dtype="bfloat16", measured_scope="fused_moe_rank0", source="shipped",
        distribution=rows["load"].str.replace("power-law:", "power_law_"),
    )  # fmt: skip
    rows.to_csv(path, index=False)


def test_the_baseline_study_sets_both_predictors_side_by_side(baseline, monkeypatch, tmp_path, capsys):
    published(
        tmp_path / "kernel_moe_aic_h200.csv", ["Mixtral-8x7B", "Mixtral-8x22B", "Qwen3-30B-A3B", "Qwen3-235B-A22B"]
    )
    monkeypatch.setattr(sys, "argv", ["expert_baseline", str(tmp_path), "--out", str(tmp_path)])
    baseline.main()
    table = pd.read_csv(tmp_path / "expert_baseline.csv")
    assert {"moesim_median_pct", "boosting_median_pct", "inside_pct"} <= set(table)
    assert table["n"].gt(50).all()
    assert "moesim" in capsys.readouterr().out


def test_the_baseline_study_refuses_a_folder_without_tables(baseline, tmp_path):
    with pytest.raises(MoesimError, match="has no kernel_moe_aic"):
        baseline.read(tmp_path)


def test_the_overlap_study_leaves_a_table_and_a_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(STUDIES))
    import overlap_in_a_layer

    monkeypatch.setattr(sys, "argv", ["overlap_in_a_layer", "--quick", "--out", str(tmp_path)])
    overlap_in_a_layer.main()
    frame = pd.read_csv(tmp_path / "overlap_in_a_layer.csv").set_index("overlap")
    assert frame.index.tolist() == ["none", "dual_batch", "pair"]
    assert frame.loc["none", "hidden_share"] == 0
    assert frame.loc["dual_batch", "layer_ms"] < frame.loc["none", "layer_ms"]
    assert 4 * frame.loc["pair", "layer_ms"] == pytest.approx(129.0, rel=0.10)
    assert (tmp_path / "overlap_in_a_layer.png").stat().st_size > 10_000
    assert "dual_batch" in capsys.readouterr().out
    sys.modules.pop("overlap_in_a_layer", None)


@pytest.fixture
def clocks(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import sustained_clocks

    yield sustained_clocks
    sys.modules.pop("sustained_clocks", None)


def test_the_clock_study_brackets_a_gpus_share_with_dense_runs(clocks, monkeypatch, tmp_path, capsys):
    header = (
        "source,model,is_moe,gpu,gpus,precision,tp,pp,cp,vp,ep,mbs,gbs,seq,token_handling,tok_s_gpu,tflops_gpu,fsdp"
    )
    rows = [
        "s,LLAMA3_8B,False,H100,8,FP8,1,1,1,,,1,128,8192,,14000,,1",
        "s,Qwen3_30B_a3B,True,H100,8,BF16,1,1,1,,8,1,64,1024,,5000,,",
    ]
    (tmp_path / "e2e_training_mine.csv").write_text("\n".join([header, *rows]) + "\n")
    monkeypatch.setattr(sys, "argv", ["sustained_clocks", str(tmp_path), "--out", str(tmp_path / "out")])
    clocks.main()
    (line,) = pd.read_csv(tmp_path / "out" / "sustained_clocks.csv").to_dict("records")
    assert 0.3 < line["least"] <= line["most"] < 2.0
    assert (tmp_path / "out" / "sustained_clocks.png").stat().st_size > 5_000
    assert "gpu_share" in capsys.readouterr().out


def test_the_clock_study_refuses_a_folder_without_dense_runs(clocks, tmp_path):
    with pytest.raises(MoesimError, match="point --data at"):
        clocks.run(tmp_path)
