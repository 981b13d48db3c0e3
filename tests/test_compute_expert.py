"""The expert layer: bounds, monotone in tokens, blind to the order of experts, right on and off the table."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import GPUS
from moesim.compute import COVERS, expert_ffn
from moesim.compute.expert_parts import row_loads
from moesim.cost import ESTIMATED, PUBLISHED, FloatArray
from moesim.errors import MoesimError
from moesim.profile import Profile, load_profile, shipped_folder
from moesim.validate.kernels import judge
from moesim.validate.leave_out import leave_one_out

H200 = load_profile(GPUS["H200"])
LOADS = st.lists(st.integers(0, 4000), min_size=8, max_size=8)


def seconds(tokens: FloatArray | list[int], profile: Profile = H200, dtype: str = "bf16") -> FloatArray:
    """Eight experts of Mixtral 8x7B, two ways split."""
    return expert_ffn(profile, np.asarray(tokens, dtype=float), 4096, 7168, dtype, top_k=2).seconds


def test_the_bound_is_flops_at_the_peak_or_weights_at_the_memory_speed() -> None:
    cost = expert_ffn(H200, np.array([[1.0, 0.0], [4096.0, 4096.0]]), 4096, 14336, "bf16", top_k=2)
    weights, flops = 3 * 4096 * 14336 * 2, 8192 * 6 * 4096 * 14336
    assert cost.bound_s == pytest.approx([weights / 4.8e12, flops / 989e12])
    assert cost.limited_by == "compute"
    assert cost.basis == PUBLISHED
    assert "moe_torch_flow_cutlass" in cost.source


def test_it_covers_the_permutations_too() -> None:
    assert {"permute", "unpermute"} <= set(COVERS)


def test_an_idle_rank_costs_nothing() -> None:
    cost = expert_ffn(H200, np.zeros((3, 8)), 4096, 7168, "bf16", top_k=2)
    assert cost.seconds.tolist() == cost.high.tolist() == [0.0, 0.0, 0.0]


@settings(max_examples=80, deadline=None)
@given(LOADS, st.integers(0, 7), st.integers(1, 500))
def test_more_tokens_on_any_expert_never_cost_less(tokens: list[int], expert: int, more: int) -> None:
    heavier = tokens.copy()
    heavier[expert] += more
    assert seconds(heavier) >= seconds(tokens) * (1.0 - 1e-9)


@settings(max_examples=40, deadline=None)
@given(LOADS, st.permutations(range(8)), st.sampled_from(["bf16", "fp8_block", "int4", "ternary"]))
def test_the_order_of_experts_changes_nothing_and_the_bound_holds(
    tokens: list[int], order: list[int], dtype: str
) -> None:
    load = np.asarray(tokens, dtype=float)
    cost = expert_ffn(H200, np.stack([load, load[order]]), 4096, 7168, dtype, top_k=2)
    assert cost.seconds[0] == pytest.approx(cost.seconds[1])
    assert (cost.bound_s <= cost.low).all()
    assert (cost.low <= cost.seconds).all()
    assert (cost.seconds <= cost.high).all()


def test_one_batch_is_the_same_as_one_by_one() -> None:
    load = np.random.default_rng(0).poisson(30.0, (2, 3, 8)).astype(float)
    together = seconds(load)
    assert together.shape == (2, 3)
    assert together[1, 2] == pytest.approx(seconds(load[1, 2]))


def test_when_compute_binds_time_grows_with_the_tokens() -> None:
    assert seconds([4000] * 8) / seconds([2000] * 8) == pytest.approx(2.0, rel=0.05)


def test_a_hot_expert_costs_as_much_compute_as_even_loads() -> None:
    hot, even = seconds([8 * 2000 - 7 * 200] + [200] * 7), seconds([2000] * 8)
    assert hot == pytest.approx(even, rel=0.25)


@pytest.mark.parametrize(
    ("gpu", "kernel", "dtype", "within"),
    [
        ("H200", "moe_torch_flow_cutlass", "bf16", 0.12),
        ("H200", "moe_torch_flow_cutlass", "fp8_block", 0.14),
        ("H100", "vllm_unquantizedfusedmoe_triton_tritonexperts", "bf16", 0.12),
        ("A100", "moe_torch_flow", "bf16", 0.15),
    ],
)
def test_points_of_the_table_come_back(gpu: str, kernel: str, dtype: str, within: float) -> None:
    profile = load_profile(GPUS[gpu])
    rows = profile.tables["expert_ffn"][0].table.select(kernel=kernel, dtype=dtype)
    error, inside = [], []
    for i in range(0, rows.rows, 9):
        n = {name: float(column[i]) for name, column in rows.numbers.items()}
        cost = expert_ffn(
            profile, row_loads(n, str(rows.text["load"][i])), int(n["hidden"]),
            int(n["ffn"] / n["tp"]), dtype,
            top_k=int(n["top_k"]), gated=bool(n["gated"]), kernel=kernel,
        )  # fmt: skip
        error.append(abs(cost.seconds.mean() / rows.time_s[i] - 1.0))
        inside.append(cost.low.mean() <= rows.time_s[i] <= cost.high.mean())
    assert np.quantile(error, 0.9) < within
    assert np.mean(inside) > 0.8


def test_whole_models_that_were_held_out_are_predicted() -> None:
    rows = judge(None)
    assert (rows["skipped"] == "").all()
    hopper = rows[~rows["group"].str.contains("A100")]
    error = (hopper["predicted"] / hopper["measured"] - 1.0).abs()
    assert error.median() < 0.04
    assert error.quantile(0.9) < 0.20
    inside = (hopper["low"] <= hopper["measured"]) & (hopper["measured"] <= hopper["high"])
    assert 0.85 <= inside.mean() <= 0.98


def test_a_gpu_and_a_dtype_without_rows_are_estimated() -> None:
    load = np.full(8, 100.0)
    own = expert_ffn(load_profile(GPUS["H100"]), load, 4096, 7168, "bf16", top_k=2)
    carried = expert_ffn(load_profile(GPUS["H800"]), load, 4096, 7168, "bf16", top_k=2)
    assert carried.seconds == pytest.approx(own.seconds)
    assert carried.basis == ESTIMATED
    assert carried.high > own.high
    assert expert_ffn(H200, load, 4096, 7168, "ternary", top_k=2).basis == ESTIMATED


def test_ternary_reads_fewer_bytes_than_int4() -> None:
    one = [1] + [0] * 7
    assert seconds(one, dtype="ternary") < seconds(one, dtype="int4") < seconds(one)


def test_faster_memory_makes_a_memory_bound_layer_faster() -> None:
    faster = load_profile(replace(GPUS["H200"], name="H300", memory_bytes_per_s=9.6e12))
    assert seconds([1] * 8, faster) == pytest.approx(seconds([1] * 8) / 2.0, rel=0.15)


@pytest.mark.parametrize(
    ("tokens", "hidden", "ffn", "kernel", "says"),
    [
        ([1.0], 100_000, 2048, None, "expert_ffn hidden 100000 is far outside what was measured"),
        ([1.0], 4096, 4, None, "expert_ffn ffn"),
        ([1e7], 4096, 2048, None, "tokens of one expert 1e\\+07 is far outside"),
        ([-1.0], 4096, 2048, None, "negative or not a number"),
        ([float("nan")], 4096, 2048, None, "negative or not a number"),
        ([], 4096, 2048, None, "one number per local expert"),
        (
            [1.0],
            4096,
            2048,
            "moe_torch_flow_cutlas",
            "unknown expert kernel .*did you mean moe_torch_flow_cutlass",
        ),
    ],
)
def test_what_cannot_be_priced_is_refused(
    tokens: list[float], hidden: int, ffn: int, kernel: str | None, says: str
) -> None:
    with pytest.raises(MoesimError, match=says):
        expert_ffn(H200, np.asarray(tokens), hidden, ffn, "bf16", top_k=2, kernel=kernel)


OWN = """kernel,dtype,model,load,gated,tokens,hidden,ffn,experts,top_k,ep,tp,time_us,tokens_per_expert
"""


def own_profile(folder: Path, kernel: str, rows: list[tuple[str, str, float]], model: str = "a") -> Profile:
    """A calibrated H200 with layers of four experts: load, tokens of each expert, us."""
    home = folder / "h200"
    home.mkdir(parents=True)
    lines = [f"{kernel},bf16,{model},{load},1,64,1024,512,4,2,1,1,{us},{stated}" for load, stated, us in rows]
    (home / "expert_ffn.csv").write_text(OWN + "\n".join(lines) + "\n")
    meta = json.loads((shipped_folder() / "h200" / "meta.json").read_text())
    meta["tables"] = {"expert_ffn": {"basis": "measured", "source": "a test"}}
    (home / "meta.json").write_text(json.dumps(meta))
    return load_profile(GPUS["H200"], folder)


def test_a_stated_load_replaces_the_drawn_one_whatever_its_name(tmp_path: Path) -> None:
    profile = own_profile(tmp_path, "moesim_triton", [("hot", "125;1;1;1", 90.0), ("balanced", "", 50.0)])
    loads = np.array([[125.0, 1.0, 1.0, 1.0], [32.0] * 4])
    cost = expert_ffn(profile, loads, 1024, 512, "bf16", top_k=2)
    assert "moesim_triton" in cost.source  # the only kernel of the table is the default one
    assert cost.seconds == pytest.approx([90e-6, 50e-6], rel=0.15)
    assert row_loads({"tokens": 64, "experts": 4, "top_k": 2, "ep": 1}, "hot", "125;1;1;1").tolist() == [[125, 1, 1, 1]]


@pytest.mark.parametrize("stated", ["1;2", "1;2;3;x", "0;0;0;0", "-1;2;3;4", "nan;1;1;1"])
def test_a_stated_load_must_be_one_of_the_rank(tmp_path: Path, stated: str) -> None:
    profile = own_profile(tmp_path, "moesim_triton", [("hot", stated, 90.0)])
    with pytest.raises(MoesimError, match="give 4 numbers, one for each expert of the rank"):
        expert_ffn(profile, np.ones(4), 1024, 512, "bf16", top_k=2)


def test_a_load_that_cannot_be_drawn_needs_its_numbers() -> None:
    with pytest.raises(MoesimError, match="load 'hot': only balanced and power-law"):
        row_loads({"tokens": 64, "experts": 4, "top_k": 2, "ep": 1}, "hot")


def test_a_token_more_on_a_hot_expert_never_costs_less_in_any_family() -> None:
    more = np.arange(1, 2000, 13)
    loads = np.tile([1.0, 40.0, 0.0, 7.0, 7.0, 7.0, 7.0, 300.0], (more.size, 1))
    for expert in (0, 2, 7):
        heavier = loads.copy()
        heavier[:, expert] += more
        for kernel in ("moe_torch_flow_cutlass", "sglang_fused_moe_triton"):
            found = expert_ffn(H200, heavier, 4096, 7168, "bf16", top_k=2, kernel=kernel).seconds
            assert (np.diff(found) >= -1e-12).all()


def test_a_model_is_predicted_from_the_others_only() -> None:
    table = H200.tables["expert_ffn"][0].table.select(kernel="moe_torch_flow_cutlass", dtype="fp8")
    rows = pd.DataFrame(table.text | table.numbers).assign(gpu="H200")
    found = leave_one_out(rows)
    assert len(found) == len(rows)
    assert (found["refused"] == "").all()
    assert (found["low"] <= found["predicted"]).all()
    model = rows["model"].iloc[0]
    wrong = rows.assign(time_us=rows["time_us"].mask(rows["model"] == model, rows["time_us"] * 9.0))
    again = leave_one_out(wrong)
    assert again.loc[again["model"] == model, "predicted"].tolist() == pytest.approx(
        found.loc[found["model"] == model, "predicted"].tolist()
    )


def test_a_family_of_one_model_has_nothing_to_leave_out() -> None:
    table = H200.tables["expert_ffn"][0].table.select(kernel="moe_torch_flow_cutlass", dtype="fp8")
    one = table.take(table.text["model"] == table.text["model"][0])
    assert leave_one_out(pd.DataFrame(one.text | one.numbers).assign(gpu="H200")).empty
