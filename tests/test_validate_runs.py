"""Serving runs: what is judged, what is skipped and why, and the formulas."""

import math

import pytest

from moesim.errors import MoesimError
from moesim.validate import serving
from moesim.validate.figures import COLUMNS, SkipError
from moesim.validate.summary import errors

SERVER = {
    "source": "s", "model": "Qwen/Qwen3-30B-A3B", "system": "h100_sxm", "framework": "vllm",
    "precision": "bf16", "gemm_quant": "bf16", "moe_quant": "bf16", "mode": "agg", "isl": 512, "osl": 128,
    "concurrency": 16, "agg_batch": 16, "agg_tp": 2, "agg_pp": 1, "agg_attn_dp": 1, "agg_moe_tp": 2,
    "agg_moe_ep": 1, "tpot_ms": 10.0, "gpus": 2,
}  # fmt: skip
PHASE = {
    "source": "s", "model": "Qwen3-30B-A3B", "gpu": "H100 SXM", "gpus": 8, "precision": "bf16",
    "phase": "decode", "ep": 8, "batch_per_gpu": 16, "isl": 512, "features": "",
    "metric": "output throughput", "value": 8000, "unit": "tok/s/node", "note": "",
}  # fmt: skip


def write(path, *rows):
    """A table with the columns of the first row."""
    lines = [",".join(rows[0])] + [",".join(str(row[name]) for name in rows[0]) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def served(tmp_path, *changes):
    write(tmp_path / serving.SERVERS, *(SERVER | change for change in changes))
    return serving.judge(tmp_path)


def cells(row):
    """A row as the reader hands it on."""
    return {name: None if value == "" else value for name, value in row.items()}


def test_the_cited_serving_figures_are_all_judged():
    frame = serving.judge(None)
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) >= 10
    assert set(frame["skipped"]) == {""}
    assert errors(frame[frame["headline"]])["median"] <= 0.35  # the goal is 0.10


def test_a_server_is_judged_in_ms_per_token(tmp_path):
    (line,) = served(tmp_path, {}).to_dict("records")
    assert line["skipped"] == ""
    assert (line["group"], line["measured"], line["unit"]) == ("vllm on H100", 10.0, "ms/token")
    assert 0 < line["low"] < line["predicted"] < line["high"]


def test_a_lone_request_meets_no_other_prompt():
    alone = SERVER | {"concurrency": 1, "agg_batch": 1}
    short, _ = serving.predict_tpot(cells(alone | {"osl": 2}))
    busy, _ = serving.predict_tpot(cells(SERVER | {"osl": 2}))
    assert serving.predict_tpot(cells(alone | {"osl": 2, "framework": "sglang"}))[0] == short
    assert busy.predicted > short.predicted


def test_a_server_that_stops_for_prompts_is_slower_by_what_the_others_share():
    mixed, _ = serving.predict_tpot(cells(SERVER))
    stopping, _ = serving.predict_tpot(cells(SERVER | {"framework": "sglang"}))
    assert mixed.predicted < stopping.predicted < 2 * mixed.predicted


def test_two_workers_share_the_requests():
    one, _ = serving.predict_tpot(cells(SERVER))
    two, _ = serving.predict_tpot(cells(SERVER | {"gpus": 4, "concurrency": 32}))
    assert math.isclose(one.predicted, two.predicted)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mode": "disagg"}, "disaggregated"),
        ({"ttft_ms": 99_999}, "most requests wait in a queue"),
        ({"concurrency": ""}, "concurrency is not given"),
        ({"system": "b200_sxm", "moe_quant": "nvfp4"}, "moesim has no 4-bit float arithmetic"),
        ({"moe_quant": "fp6"}, "moesim has no number format fp6"),
        ({"agg_moe_ep": 3}, "moesim cannot express it"),
    ],
)
def test_servers_that_are_not_judged_say_why(tmp_path, change, reason):
    (said,) = served(tmp_path, change)["skipped"]
    assert said.startswith(reason)


def test_a_phase_is_judged_per_gpu(tmp_path):
    write(tmp_path / serving.PHASES, PHASE, PHASE | {"unit": "tok/s/GPU", "value": 1000})
    frame = serving.judge(tmp_path)
    assert frame["measured"].tolist() == [1000, 1000]
    assert frame["skipped"].tolist() == ["", "another run of a configuration that is judged"]
    assert frame["group"][0] == "qwen3-30b-a3b decode on H100"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"unit": "percent"}, "unit percent"),
        ({"metric": "TTFT"}, "not a throughput of one phase"),
        ({"features": "simulated MTP"}, "multi-token prediction"),
        ({"phase": "prefill"}, "tokens per GPU of a batch are not given"),
        ({"phase": "e2e"}, "both phases together"),
        ({"quality": "approximate"}, "quality of the figure: approximate"),
    ],
)
def test_phases_that_are_not_judged_say_why(change, reason):
    with pytest.raises(SkipError, match=reason):
        serving.predict_phase(cells(PHASE | change))


def test_tokens_per_gpu_are_read_from_the_remarks():
    (_, _, prompts, _), _ = serving.predict_phase(
        cells(PHASE | {"phase": "prefill", "features": "1K tokens per GPU", "metric": "input throughput"})
    )
    assert (prompts.sequences, prompts.queries) == (8 * 2, 512)


@pytest.mark.parametrize(
    ("name", "row", "judge"),
    [
        (serving.SERVERS, SERVER, serving.judge),
        (serving.PHASES, PHASE, serving.judge),
    ],
)
def test_a_missing_column_and_a_missing_table_are_one_line(tmp_path, name, row, judge):
    with pytest.raises(MoesimError, match="point --data at"):
        judge(tmp_path)
    write(tmp_path / name, {key: value for key, value in row.items() if key != "gpus"})
    with pytest.raises(MoesimError, match="has no column 'gpus'") as caught:
        judge(tmp_path)
    assert "\n" not in str(caught.value)
