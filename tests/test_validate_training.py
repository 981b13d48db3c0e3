"""Training runs: what is judged, what is skipped and why; families, repeats, the baseline and memory's verdicts."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import CLUSTERS
from moesim.errors import MoesimError
from moesim.strategy import RECOMPUTE
from moesim.validate import training
from moesim.validate.figures import COLUMNS, find_model
from moesim.validate.summary import TARGETS, errors, summarise
from moesim.validate.training_beside import BASELINE, FLOOR, ON_HEADLINE, RAN, REFUSED
from moesim.validate.training_families import MEMBERS, best_of_family
from moesim.validate.training_rows import FAMILIES, precision, read_run
from moesim.validate.training_trace import HIDDEN, WALL, judge_trace

RUN = {
    "source": "s", "model": "Qwen3_30B_a3B", "gpu": "H100", "gpus": 8, "precision": "BF16", "tp": 1, "pp": 1,
    "cp": 1, "vp": "", "ep": 8, "mbs": 1, "gbs": 64, "seq": 1024, "token_handling": "dropless",
    "tok_s_gpu": 5000, "tflops_gpu": "",
}  # fmt: skip
BRIDGE = RUN | {"container": "26.02"}
FAMILY = RUN | {"tp": "", "pp": "", "ep": "", "framework": "FSDP+EP", "mbs": "", "mfu_pct": ""}
BESIDE = (BASELINE, FLOOR, ON_HEADLINE, RAN, REFUSED)


def write(path, *rows):
    """A table with the columns of the first row."""
    lines = [",".join(rows[0])] + [",".join(str(row[name]) for name in rows[0]) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def judged(tmp_path, *rows):
    """Every line, and the lines of the runs alone."""
    write(tmp_path / "e2e_training_mine.csv", *rows)
    frame = training.judge(tmp_path)
    return frame, frame[~frame["group"].isin(BESIDE)]


def trained(tmp_path, *changes):
    return judged(tmp_path, *(RUN | change for change in changes))[1]


def cells(row):
    """A row as the reader hands it on."""
    return {name: None if value == "" else value for name, value in row.items()}


def test_the_cited_training_runs_are_all_judged_and_miss_honestly():
    frame = training.judge(None)
    assert tuple(frame.columns) == COLUMNS
    runs = frame[~frame["group"].isin(BESIDE)]
    assert len(runs) >= 4
    assert set(frame["skipped"]) == {""}
    assert (runs["low"] <= runs["predicted"]).all()
    assert (runs["predicted"] <= runs["high"]).all()
    assert errors(runs)["median"] <= 0.55  # where it stands; the goal is 0.10
    assert frame["source"].str.len().min() > 10


def test_a_run_is_judged_in_tokens_per_second_and_gpu(tmp_path):
    (line,) = trained(tmp_path, {}).to_dict("records")
    assert line["skipped"] == ""
    assert (line["group"], line["measured"], line["unit"]) == ("H100", 5000, "tokens/s/GPU")
    assert (line["block"], line["headline"]) == ("", True)
    assert 0 < line["low"] < line["predicted"] < line["high"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "Nemotron_3_Ultra"}, "no model preset is Nemotron_3_Ultra"),
        ({"gpu": "MI300X"}, "no cluster preset has a MI300X"),
        ({"tp": ""}, "tp is not given"),
        ({"tok_s_gpu": 0}, "tok_s_gpu is not above zero"),
        ({"precision": "NVFP4"}, "moesim has no precision NVFP4"),
        ({"ep": 7}, "moesim cannot express it: ep x etp does not divide dp x cp x tp"),
        ({"tok_s_gpu": ""}, "neither tokens/s nor TFLOP/s was reported"),
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


def test_a_source_that_counts_more_than_the_model_says_so(tmp_path):
    (line,) = trained(tmp_path, {"gflop_per_token": 30}).to_dict("records")
    assert "30 GFLOP/token counted, 19 predicted" in line["case"]


def test_a_run_trains_mtp_where_its_source_counts_it():
    # moesim counts 250.5 GFLOP a token without the module and 260.6 with it
    row = cells(BRIDGE | {"model": "DeepSeekV3", "gpus": 256, "gbs": 256, "seq": 4096, "ep": 64})
    assert read_run(row | {"gflop_per_token": 260.0}).model.mtp_layers == 1
    assert read_run(row | {"gflop_per_token": 249.1}).model.mtp_layers == 0
    assert read_run(row | {"tok_s_gpu": 2000, "tflops_gpu": 520}).model.mtp_layers == 1
    assert read_run(row | {"tok_s_gpu": 2000, "tflops_gpu": 500}).model.mtp_layers == 0
    assert read_run(row).model.mtp_layers == 1  # not told: what the model has


def test_layers_that_divide_are_divided_evenly_and_others_balanced():
    divides = read_run(cells(BRIDGE | {"pp": 2, "ep": 4}))
    assert {one.layers for one in divides.strategies} == {(24, 24)}
    row = BRIDGE | {"model": "DeepSeekV3", "gpus": 256, "gbs": 256, "seq": 4096, "pp": 2, "ep": 64}
    assert {one.layers for one in read_run(cells(row)).strategies} == {None}


def test_of_two_runs_the_newest_container_is_judged_and_the_other_is_the_floor(tmp_path):
    frame, runs = judged(tmp_path, RUN | {"container": "25.11"}, BRIDGE | {"tok_s_gpu": 5500})
    assert runs["skipped"].tolist() == ["another run of a configuration that is judged", ""]
    assert "2 runs within 10.0%" in runs["case"].tolist()[1]
    (floor,) = frame[frame["group"] == FLOOR].to_dict("records")
    assert (floor["measured"], floor["predicted"], floor["headline"]) == (5000, 5500, False)


def test_runs_that_differ_too_much_are_shown_and_not_counted(tmp_path):
    frame, runs = judged(tmp_path, RUN | {"container": "a"}, BRIDGE | {"tok_s_gpu": 8000})
    assert set(runs["skipped"]) == {"repeats of the configuration differ by more than 1.3 x"}
    assert runs["predicted"].notna().all()
    assert FLOOR not in set(frame["group"])


def test_dense_models_are_left_out(tmp_path):
    assert len(trained(tmp_path, {"is_moe": True}, {"is_moe": False, "model": "LLAMA3_8B"})) == 1


def test_dropped_tokens_mean_a_capacity_factor_and_fsdp_means_zero_3():
    (strategy,) = read_run(cells(RUN | {"token_handling": "token drop (capacity)", "fsdp": 1})).strategies
    assert (strategy.capacity_factor, strategy.zero) == (1.0, 3)
    assert read_run(cells(RUN)).strategies[0].capacity_factor is None


def test_a_folded_framework_splits_experts_apart_from_attention():
    row = cells(RUN | {"tp": 2, "ep": 4, "framework": "MCore (TP+EP+PP+DP)"})
    assert read_run(row).strategies[0].etp == 2
    assert read_run(row | {"etp": 1}).strategies[0].etp == 1


def test_recompute_is_the_least_that_fits():
    small = read_run(cells(RUN | {"model": "OLMoE-1B-7B"}))
    large = read_run(cells(RUN | {"model": "DeepSeekV3", "seq": 4096}))
    assert (small.strategies[0].recompute, large.strategies[0].recompute) == ("none", "full")
    result = training.predicted(large)
    assert result is not None
    assert "does not fit" in str(result.infeasible)


@pytest.mark.parametrize(
    ("system", "drops", "names"),
    [
        ({}, False, {"linear"}),
        ({"container": "26.02"}, False, {"linear", "deepep", "hybrid_ep"}),
        ({"container": "26.02"}, True, {"linear"}),
        ({"framework": "Megatron-Core"}, False, {"linear", "deepep", "hybrid_ep"}),
        ({"framework": "HAI-LLM (DualPipe)", "pp": 2, "ep": 4}, False, {"deepep"}),
        ({"framework": "MCore (TP+EP+PP+DP)"}, False, {"linear"}),
    ],
)
def test_a_run_has_the_all_to_alls_of_its_software(system, drops, names):
    handling = {"token_handling": "token drop (capacity)" if drops else "dropless"}
    assert {one.all_to_all for one in read_run(cells(RUN | system | handling)).strategies} == names


def test_microscaled_fp8_runs_at_the_rate_of_fp8_where_tensor_cores_apply_the_scales():
    assert precision("MXFP8", CLUSTERS["hgx-b200"]) == "fp8"
    assert precision("MXFP8", CLUSTERS["dgx-h100"]) == "fp8_block"


def test_an_upcycled_model_has_the_dense_one_in_every_expert():
    model, dense = find_model("Llama3-8x70B"), find_model("llama-3.1-70b")
    assert (model.name, model.hidden, len(model.layers)) == ("llama3-8x70b", dense.hidden, len(dense.layers))
    assert (model.moe.experts, model.moe.top_k, model.moe.width) == (8, 2, dense.layers[0].ffn.width)


def test_a_family_is_its_best_configuration(tmp_path):
    _, runs = judged(tmp_path, FAMILY, FAMILY | {"framework": "FSDP", "tok_s_gpu": 4000})
    assert runs["group"].tolist() == ["best of its family on H100"] * 2
    assert runs["headline"].tolist() == [False] * 2
    assert set(runs["block"]) == {"qwen3-30b-a3b 8 H100 64 x 1024"}
    assert "found TP1 PP1 EP" in runs["case"].tolist()[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_member_of_a_family_is_faster_than_its_best(name):
    run = read_run(cells(FAMILY | {"framework": name, "model": "OLMoE-1B-7B"}))
    scenario = training.scenario_of(run)
    best = best_of_family(scenario, run)
    assert MEMBERS[name].holds(best)
    assert (best.zero, best.micro_batch, best.all_to_all, best.overlap) == (MEMBERS[name].zero, 1, "linear", "none")
    fastest = training.predicted(run).step_s
    for recompute in RECOMPUTE:
        other = replace(best, recompute=recompute)
        assert training.predicted(run._replace(strategies=(other,))).step_s >= fastest * (1 - 1e-9)


def test_out_of_memory_is_a_verdict_of_its_own(tmp_path):
    gone = FAMILY | {"tok_s_gpu": "", "mfu_pct": "OOM", "framework": "FSDP", "model": "DeepSeekV3"}
    frame, runs = judged(tmp_path, gone, FAMILY)
    assert runs["skipped"].tolist() == ["the run was out of memory", ""]
    verdicts = frame[frame["group"].isin((RAN, REFUSED))].set_index("group")
    assert verdicts.loc[REFUSED, ["measured", "predicted"]].tolist() == [0.0, 0.0]  # 671 B on 8 GPUs
    assert verdicts.loc[RAN, ["measured", "predicted"]].tolist() == [1.0, 1.0]
    assert summarise("training", REFUSED, frame[frame["group"] == REFUSED])["mean"] == 0.0


def test_the_baseline_is_the_median_rate_of_the_other_models(tmp_path):
    rows = [
        BRIDGE | {"tflops_gpu": rate, "model": model, "gbs": 64 * (i + 1)}
        for i, (model, rate) in enumerate([("OLMoE-1B-7B", 90), ("OLMoE-1B-7B", 110), ("Qwen3_30B_a3B", 200)])
    ]
    frame, _ = judged(tmp_path, *rows)
    baseline = frame[frame["group"] == BASELINE]
    assert baseline["measured"].tolist() == [90, 110, 200]
    assert baseline["predicted"].tolist() == [200, 200, 100]


def test_a_trace_is_judged_where_there_is_one(tmp_path):
    assert judge_trace(tmp_path) == []
    names = "source,group,component,busy_us,overlap_pct"
    rows = ["s,deepseek_trace,chunk pair wall time,129012,", "s,deepseek_trace,all communication,114521,96.3"]
    (tmp_path / "overlap.csv").write_text("\n".join([names, *rows]) + "\n")
    wall, hidden = judge_trace(tmp_path)
    assert wall["group"] == f"{WALL} on H800 (estimated)"
    assert hidden["group"] == f"{HIDDEN} on H800 (estimated)"
    assert (wall["measured"], hidden["measured"]) == (pytest.approx(129.012), 96.3)
    assert 0.85 < wall["predicted"] / 129.012 < 1.15
    assert 90 < hidden["predicted"] <= 100


@settings(max_examples=10)
@given(st.permutations(["25.09", "25.11", "26.02", "26.06"]))
def test_the_newest_of_several_runs_is_judged_in_whatever_order_they_come(releases):
    lines = [(name, {"measured": 100.0 + i, "skipped": "", "case": name}) for i, name in enumerate(releases)]
    training.merge_repeats(lines)
    assert [name for name, one in lines if not one["skipped"]] == ["26.06"]


def test_a_missing_column_and_a_missing_table_are_one_line(tmp_path):
    with pytest.raises(MoesimError, match="point --data at"):
        training.judge(tmp_path)
    write(tmp_path / "e2e_training_mine.csv", {key: value for key, value in RUN.items() if key != "gpus"})
    with pytest.raises(MoesimError, match="has no column 'gpus'") as caught:
        training.judge(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["many", "inf"])
def test_a_word_where_a_number_belongs_is_one_line(tmp_path, word):
    with pytest.raises(MoesimError, match=r"gbs is .* in a table: write a number"):
        trained(tmp_path, {"gbs": word})


def test_what_stands_beside_the_runs_has_goals_of_its_own_or_none():
    assert set(BESIDE) <= set(TARGETS)
    assert {name for name in BESIDE if TARGETS[name]} == {RAN, REFUSED}
    assert {f"{WALL} on H800 (estimated)", f"{HIDDEN} on H800 (estimated)"} <= set(TARGETS)
