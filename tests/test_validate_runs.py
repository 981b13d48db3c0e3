"""Training and serving runs: what is judged, what is skipped and why, and the formulas."""

import math

import pytest

from moesim.errors import MoesimError
from moesim.validate import serving, training
from moesim.validate.figures import COLUMNS, SkipError
from moesim.validate.summary import errors

TRAIN = ",".join(training.NEEDED)
RUN = {
    "source": "s", "model": "Qwen3_30B_a3B", "gpu": "H100", "gpus": 8, "precision": "BF16", "tp": 1, "pp": 1,
    "cp": 1, "vp": "", "ep": 8, "mbs": 1, "gbs": 64, "seq": 1024, "token_handling": "dropless",
    "tok_s_gpu": 5000, "tflops_gpu": "",
}  # fmt: skip
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


def trained(tmp_path, *changes):
    write(tmp_path / "e2e_training_mine.csv", *(RUN | change for change in changes))
    return training.judge(tmp_path)


def served(tmp_path, *changes):
    write(tmp_path / serving.SERVERS, *(SERVER | change for change in changes))
    return serving.judge(tmp_path)


def cells(row):
    """A row as the reader hands it on."""
    return {name: None if value == "" else value for name, value in row.items()}


def test_the_cited_training_runs_are_all_judged_and_miss_honestly():
    frame = training.judge(None)
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) >= 4
    assert set(frame["skipped"]) == {""}
    assert (frame["low"] <= frame["predicted"]).all()
    assert (frame["predicted"] <= frame["high"]).all()
    assert errors(frame)["median"] <= 0.45  # where version 0.1 stands; the goal is 0.10
    assert frame["source"].str.len().min() > 10


def test_the_cited_serving_figures_are_all_judged():
    frame = serving.judge(None)
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) >= 10
    assert set(frame["skipped"]) == {""}
    assert errors(frame[frame["headline"]])["median"] <= 0.35  # the goal is 0.10


def test_a_run_is_judged_in_tokens_per_second_and_gpu(tmp_path):
    (line,) = trained(tmp_path, {}).to_dict("records")
    assert line["skipped"] == ""
    assert (line["group"], line["measured"], line["unit"]) == ("H100", 5000, "tokens/s/GPU")
    assert line["block"] == "qwen3-30b-a3b 8 H100 64 x 1024"
    assert 0 < line["low"] < line["predicted"] < line["high"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "Nemotron_3_Nano"}, "no model preset is Nemotron_3_Nano"),
        ({"gpu": "MI300X"}, "no cluster preset has a MI300X"),
        ({"tp": ""}, "tp is not given"),
        ({"tok_s_gpu": 0}, "tok_s_gpu is not above zero"),
        ({"precision": "NVFP4"}, "moesim has no precision NVFP4"),
        ({"ep": 7}, "moesim cannot express it: ep x etp does not divide dp x cp x tp"),
        ({"tok_s_gpu": ""}, "neither tokens/s nor TFLOP/s: the run was out of memory or not reported"),
    ],
)
def test_what_is_not_judged_says_why(tmp_path, change, reason):
    assert trained(tmp_path, change)["skipped"].tolist() == [reason]


def test_tflops_become_tokens_by_the_sources_flop_count(tmp_path):
    flops = {"tok_s_gpu": "", "tflops_gpu": 200}
    counted = trained(tmp_path, flops | {"gflop_per_token": 20})  # 200e12 / 20e9
    assert counted["measured"].tolist() == [10_000]
    (line,) = trained(tmp_path, flops).to_dict("records")
    assert "by moesim's" in line["case"]


def test_of_two_runs_the_newest_container_is_judged(tmp_path):
    frame = trained(tmp_path, {"container": "25.11"}, {"container": "26.02", "tok_s_gpu": 5500})
    assert frame["skipped"].tolist() == ["another run of a configuration that is judged", ""]
    assert "2 runs within 10.0%" in frame["case"][1]


def test_runs_that_differ_too_much_are_shown_and_not_counted(tmp_path):
    frame = trained(tmp_path, {"container": "a"}, {"container": "b", "tok_s_gpu": 8000})
    assert set(frame["skipped"]) == {"repeats of the configuration differ by more than 1.3 x"}
    assert frame["predicted"].notna().all()


def test_dense_models_are_left_out(tmp_path):
    frame = trained(tmp_path, {"is_moe": True}, {"is_moe": False, "model": "LLAMA3_8B"})
    assert len(frame) == 1


def test_dropped_tokens_mean_a_capacity_factor_and_fsdp_means_zero_3():
    run = training.read_run(cells(RUN | {"token_handling": "token drop (capacity)", "fsdp": 1}))
    assert (run.strategy.capacity_factor, run.strategy.zero) == (1.0, 3)
    assert training.read_run(cells(RUN)).strategy.capacity_factor is None


def test_a_folded_framework_splits_experts_apart_from_attention():
    row = cells(RUN | {"tp": 2, "ep": 4, "framework": "MCore (TP+EP+PP+DP)"})
    assert training.read_run(row).strategy.etp == 2
    assert training.read_run(row | {"etp": 1}).strategy.etp == 1


def test_recompute_is_the_least_that_fits():
    small = training.read_run(cells(RUN | {"model": "OLMoE-1B-7B"}))
    large = training.read_run(cells(RUN | {"model": "DeepSeekV3", "seq": 4096}))
    assert (small.strategy.recompute, large.strategy.recompute) == ("none", "full")
    assert "does not fit" in "".join(training.predict(large)[1])


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
        ("e2e_training_mine.csv", RUN, training.judge),
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


@pytest.mark.parametrize("word", ["many", "inf"])
def test_a_word_where_a_number_belongs_is_one_line(tmp_path, word):
    with pytest.raises(MoesimError, match=r"gbs is .* in a table: write a number"):
        trained(tmp_path, {"gbs": word})
