"""The live layer: what its parts are predicted from, and what is refused."""

import json
import os
import subprocess
import sys

import pytest

from moesim.calibrate.live_costs import live_calls
from moesim.errors import MoesimError
from moesim.validate import DEFAULT, validate

ROW = {
    "model": "live", "dtype": "bf16", "load": "balanced", "tokens": 8, "hidden": 64, "ffn": 32, "experts": 4,
    "top_k": 2, "ep": 2, "part": "layer", "tokens_per_expert": "5;0", "sent_bytes": 1024.0, "time_us": 10.0,
}  # fmt: skip


@pytest.mark.xdist_group("calibrated")
def test_ones_own_expert_layers_are_judged_by_leaving_out_a_shape_or_a_load(calibrated, monkeypatch):
    monkeypatch.setenv("MOESIM_PROFILES", str(calibrated))
    rows = validate(["kernels"]).to_frame()
    for left_out in ("model", "load"):
        own = rows[rows["group"].str.startswith(f"leave-one-{left_out}-out CPU")]
        assert len(own) >= 10
        assert not own["headline"].any()
        assert (own["predicted"] > 0.0).all()


def test_a_layer_is_run_only_where_it_is_asked_for():
    assert "live" not in DEFAULT


def test_without_a_profile_of_this_machine_it_says_how_to_make_one(monkeypatch):
    monkeypatch.delenv("MOESIM_PROFILES", raising=False)
    with pytest.raises(MoesimError, match="run moesim calibrate, set MOESIM_PROFILES to its folder"):
        validate(["live"])


def test_a_folder_of_tables_is_refused_rather_than_ignored(tmp_path):
    with pytest.raises(MoesimError, match="leave out --data"):
        validate(["live"], tmp_path)


def test_each_part_names_the_calibrated_kernels_it_consists_of():
    calls = live_calls(ROW)
    names = {part: [one.op for one in found] for part, found in calls.items()}
    assert names == {
        "router": ["router"],
        "dispatch": ["sort", "permute", "permute"],
        "experts": ["gate_up", "down"],
        "combine": ["permute", "unpermute"],
    }
    assert [one.work.flops for one in calls["experts"]] == [2 * 5 * 64 * 64, 2 * 5 * 32 * 64]


def test_on_one_rank_nothing_is_ordered_twice():
    assert [one.op for one in live_calls(ROW | {"ep": 1})["dispatch"]] == ["sort", "permute"]


@pytest.mark.xdist_group("calibrated")
def test_a_calibrated_cpu_runs_and_judges_a_layer(calibrated):
    command = [sys.executable, "-m", "moesim", "validate", "--group", "live", "--json"]
    done = subprocess.run(
        command, env=os.environ | {"MOESIM_PROFILES": str(calibrated)}, capture_output=True, text=True, check=True
    )
    groups = {one["group"].split(" CPU")[0]: one for one in json.loads(done.stdout)["groups"]}
    assert {"live router", "live dispatch", "live experts", "live combine", "live layer"} <= set(groups)
    assert groups["live layer"]["n"] == 6
    assert groups["all"]["n"] == 30
    assert 0.0 < groups["all"]["median"] < 5.0
