"""The studies of loads, memory tiers, wall time and scaling run and leave tables and a picture."""

import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

STUDIES = Path(__file__).resolve().parent.parent / "studies"


@pytest.fixture
def leave(monkeypatch, tmp_path, capsys):
    """Run a study quickly; its frame and what it said."""
    monkeypatch.syspath_prepend(str(STUDIES))

    def run(name):
        monkeypatch.setattr(sys, "argv", [name, "--quick", "--out", str(tmp_path)])
        study = import_module(name)
        study.main()
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        sys.modules.pop(name)
        return study, pd.read_csv(tmp_path / f"{name}.csv"), capsys.readouterr().out

    return run


def test_two_chunks_are_the_best_static_choice_on_few_gpus(leave):
    study, losses, said = leave("adaptive_policy")
    linear = losses[losses["all_to_all"] == "linear"].pivot_table(index="gpus", columns="chunks", values="mean_pct")
    assert linear.idxmin(axis=1).to_dict() == {16: 2, 64: 2}  # Tutel's table 6
    assert (losses["mean_pct"] >= 0).all()
    assert (losses["worst_pct"] >= losses["mean_pct"]).all()
    assert study.matches(losses) == 4
    assert "4 of 4" in said


def test_the_knee_moves_to_lower_hit_rates_as_layers_get_longer(leave):
    _, hits, said = leave("memory_tiers")
    shortest, longest = (rows.iloc[0] for _, rows in hits.groupby("sequences"))
    assert pd.isna(shortest["knee"])  # not even from CPU memory
    assert 0.0 < longest["knee"] < 1.0
    assert (hits["with_fetching_ms"] >= hits["layer_ms"] - 1e-9).all()
    assert "slots" in said


def test_more_gpus_lose_more_to_restarts_and_slow_nodes(leave):
    study, sizes, _ = leave("wall_time")
    assert sizes["goodput"].is_monotonic_decreasing
    assert sizes["restarts"].is_monotonic_increasing
    assert sizes["stragglers"].is_monotonic_increasing
    total = sizes["goodput"] + sizes[list(study.LOSSES)].sum(axis=1)
    assert total.tolist() == pytest.approx([1.0] * len(sizes), abs=1e-4)


def test_every_family_loses_speed_on_more_gpus_and_folding_wins(leave):
    study, found, _ = leave("training_scaling")
    speed = found.pivot_table(index="gpus", columns="family", values="tokens_per_s_per_gpu")
    assert set(speed.columns) == set(study.PUBLISHED_MFU)
    assert (speed.diff().iloc[1:] < 0).all(axis=None)
    assert (speed.idxmax(axis=1) == "MCore + MoE Parallel Folding").all()
