"""Summary numbers by hand, and what validate() accepts."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import MoesimError
from moesim.validate import GROUPS, TARGETS, validate
from moesim.validate.figures import SkipError, find_cluster, find_model
from moesim.validate.summary import errors, missed, order, summarise

SPEEDS = st.lists(st.integers(1, 9), min_size=2, max_size=8)


def rows(measured, predicted, **columns):
    """Judged figures with a band of a quarter around the prediction."""
    frame = pd.DataFrame({"measured": measured, "predicted": predicted})
    frame = frame.assign(low=frame["predicted"] * 0.75, high=frame["predicted"] * 1.25, skipped="", block="")
    return frame.assign(**columns)


def test_errors_of_three_figures_by_hand():
    found = errors(rows([10.0, 10.0, 10.0], [10.0, 11.0, 15.0]))  # 0, 10 and 50 %
    assert found["median"] == pytest.approx(0.1)
    assert found["mean"] == pytest.approx(0.2)
    assert found["p90"] == pytest.approx(0.1 + 0.8 * 0.4)
    assert found["rms"] == pytest.approx(np.sqrt((np.log(1.1) ** 2 + np.log(1.5) ** 2) / 3))
    assert found["inside"] == pytest.approx(2 / 3)


def test_kendalls_tau_counts_pairs():
    # pairs of 1 2 3 4 against 1 2 4 3: five agree, one does not
    assert order(np.array([1, 2, 3, 4.0]), np.array([1, 2, 4, 3.0])).tau == pytest.approx(4 / 6)


def test_kendalls_tau_b_takes_ties_out_of_the_pairs():
    # of three pairs one is a tie in the prediction: 2 / sqrt(2 x 3)
    assert order(np.array([1, 1, 2.0]), np.array([1, 2, 3.0])).tau == pytest.approx(2 / np.sqrt(6))
    assert order(np.array([1, 1.0]), np.array([1, 2.0])).tau is None


@given(SPEEDS)
def test_tau_of_an_order_with_itself_is_one(speeds):
    values = np.array(speeds, dtype=float)
    assert order(values, values).tau in (None, pytest.approx(1.0))
    assert order(values, -values).tau in (None, pytest.approx(-1.0))


def test_tau_is_pooled_over_blocks_of_four_or_more():
    up, down = [1.0, 2, 3, 4], [4.0, 3, 2, 1]
    measured = up + up + [1.0, 2, 3]
    blocks = ["a"] * 4 + ["b"] * 4 + ["too small"] * 3
    assert errors(rows(measured, up + down + [3.0, 2, 1], block=blocks))["tau"] == pytest.approx(0.0)
    assert errors(rows(measured, up + up + [3.0, 2, 1], block=blocks))["tau"] == pytest.approx(1.0)
    assert errors(rows(up, up))["tau"] is None  # no block


def test_skipped_figures_are_counted_by_reason():
    frame = rows([1.0] * 4, [1.0, 9.0, 9.0, 9.0], skipped=["", "no preset", "no preset", "suspect"])
    line = summarise("serving", "x", frame)
    assert line["n"] == 1
    assert line["skipped"] == {"no preset": 2, "suspect": 1}
    assert line["median"] == 0.0


def test_a_goal_is_missed_from_above_or_from_below():
    goals = {"median": 0.1, "tau": 0.7, "inside": 0.9}
    assert missed({"median": 0.1, "tau": 0.7, "inside": 0.9}, goals) == []
    assert missed({"median": 0.2, "tau": 0.6, "inside": 0.8}, goals) == ["median", "tau", "inside"]
    assert missed({"median": None, "tau": None, "inside": None}, goals) == []


def test_a_group_of_its_own_name_has_its_own_goals():
    own = "deepseek-v3 decode on H800 (estimated)"
    assert summarise("serving", own, rows([1.0], [1.08]))["missed"] == ["median"]
    assert summarise("serving", "x", rows([1.0], [1.08]))["missed"] == []
    assert set(GROUPS) <= set(TARGETS)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("DeepSeekV3 (w/ MTP)", "deepseek-v3"),
        ("DeepSeek-V3/R1", "deepseek-v3"),
        ("nvidia/DeepSeek-R1-NVFP4", "deepseek-v3"),
        ("Qwen3_30B_a3B", "qwen3-30b-a3b"),
        ("Qwen/Qwen3-235B-A22B-FP8", "qwen3-235b-a22b"),
        ("GPT OSS 120B", "gpt-oss-120b"),
    ],
)
def test_published_names_find_their_preset(name, preset):
    assert find_model(name).name == preset


def test_unknown_models_and_gpus_are_skipped_by_name():
    with pytest.raises(SkipError, match="no model preset is DeepSeekV4 Flash"):
        find_model("DeepSeekV4 Flash")
    with pytest.raises(SkipError, match="no cluster preset has a MI300X"):
        find_cluster("MI300X", 64)


@pytest.mark.parametrize(
    ("gpu", "gpus", "nodes", "per_node"),
    [("H100 (Eos)", 16, 2, 8), ("h200_sxm", 4, 1, 4), ("GB200", 256, 4, 64), ("H100", 12, 2, 6)],
)
def test_clusters_have_nodes_as_full_as_they_divide(gpu, gpus, nodes, per_node):
    cluster = find_cluster(gpu, gpus)
    assert (cluster.nodes, cluster.gpus_per_node, cluster.gpus) == (nodes, per_node, gpus)


def test_a_validation_is_a_frame_a_summary_and_json():
    found = validate(["collectives", "serving"])
    assert set(found.to_frame()["part"]) == {"collectives", "serving"}
    summary = found.summary()
    assert summary.groupby("part")["group"].first().to_dict() == {"collectives": "all", "serving": "all"}
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert said["absent"] == []
    assert said["met"] is found.met
    first = said["groups"][0]
    assert {
        "part",
        "group",
        "n",
        "skipped",
        "median",
        "mean",
        "p90",
        "rms",
        "inside",
        "tau",
        "missed",
    } <= set(first)
    assert first["n"] == (found.to_frame()["part"] == "collectives").sum()


def test_figures_of_unmeasured_gpus_stay_out_of_the_headline():
    found = validate(["serving"])
    frame = found.to_frame()
    h800 = frame["group"].str.contains("H800")
    assert h800.any()
    assert not frame.loc[h800, "headline"].any()
    assert found.summary().iloc[0]["n"] == (~h800).sum()


def test_an_unknown_group_is_refused():
    with pytest.raises(MoesimError, match="unknown group 'trainings': did you mean training"):
        validate(["trainings"])


def test_a_folder_without_any_known_table_is_refused(tmp_path):
    with pytest.raises(MoesimError, match=r"has none of e2e_training_\*.csv") as caught:
        validate(["training", "serving"], tmp_path)
    assert "\n" not in str(caught.value)


def test_parts_without_a_table_are_named(tmp_path):
    (tmp_path / "comm_nccl_intranode_aic.csv").write_text(
        "source,gpu,op,library,ranks,nodes,bytes,latency_us\ns,H100,alltoall,NCCL 2.29.2,8,1,1048576,15.61\n"
    )
    found = validate(["training", "collectives"], tmp_path)
    assert found.absent == ("training",)
    assert found.to_dict()["groups"][0]["n"] == 1
