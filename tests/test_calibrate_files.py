"""Points, loads, and the files of a calibration: what is measured, in which order, and what an interruption leaves."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.calibrate.grid_cpu import cpu_points
from moesim.calibrate.grid_gpu import gpu_points
from moesim.calibrate.loads import LOADS, choices, rank_load, tokens_per_expert
from moesim.calibrate.points import ONLY, TABLES, Point, ordered
from moesim.calibrate.store import Store, skipped_text
from moesim.errors import MoesimError

IDENTITY = {"device": "X", "torch": "1"}
META = {"identity": IDENTITY, "peaks_measured": {}, "skipped": []}
FOUND = {"time_us": "2.5", "spread": "0.1", "repeats": "10"}


def gemm(m, stratum=0):
    return Point("gemm", ("torch_matmul", "bf16", m, 64, 64), stratum, "gemm")


def started(folder, identity=IDENTITY):
    store = Store(folder / "x", identity)
    store.start()
    return store


def lines(path):
    return path.read_text().splitlines()


# --- which points -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["h200", "a100", "cpu"])
def grid(request):
    return {
        "h200": lambda: ordered(gpu_points(fp8=True, gpus=1)),
        "a100": lambda: ordered(gpu_points(fp8=False, gpus=8)),
        "cpu": lambda: ordered(cpu_points()),
    }[request.param]()


def test_an_h200_has_at_least_1500_points():
    assert len(ordered(gpu_points(fp8=True, gpus=1))) >= 1500


def test_every_point_fills_the_columns_of_its_table_and_has_a_name_of_its_own(grid):
    assert all(len(point.values) == len(TABLES[point.table].asked) for point in grid)
    assert len({(point.table, point.name) for point in grid}) == len(grid)


def test_the_quick_points_come_first_and_touch_every_table_of_the_grid(grid):
    strata = [point.stratum for point in grid]
    assert strata == sorted(strata)
    assert {point.table for point in grid if point.stratum == 0} == {point.table for point in grid}
    assert 60 <= strata.count(0) <= 160


def test_points_of_a_group_are_neighbours_inside_a_stratum(grid):
    visits = [(point.stratum, point.group) for point in grid]
    changes = 1 + sum(a != b for a, b in pairwise(visits))
    assert changes == len(set(visits))


def test_only_a_gpu_that_multiplies_fp8_is_asked_for_it():
    dtypes = {point.text.get("dtype", "") for point in gpu_points(fp8=False, gpus=1)}
    assert not any(dtype.startswith("fp8") for dtype in dtypes)
    assert "fp8_block" in {point.text.get("dtype") for point in gpu_points(fp8=True, gpus=1)}


def test_collectives_are_measured_where_there_are_gpus_to_speak_to():
    def ranks(gpus):
        return {p.number["ranks"] for p in gpu_points(fp8=True, gpus=gpus) if p.table == "collectives"}

    assert (ranks(1), ranks(2), ranks(8)) == (set(), {2}, {2, 4, 8})


def test_experts_divide_over_the_ranks_of_every_point(grid):
    layers = [point.number for point in grid if point.table == "expert_ffn"]
    assert all(n["experts"] % n["ep"] == 0 and n["ffn"] % n["tp"] == 0 for n in layers)


def test_only_names_every_table_that_becomes_a_file():
    assert set(ONLY.values()) == set(TABLES) - {"peaks"}


# --- who gets the tokens ----------------------------------------------------------------------------------------


@given(
    st.sampled_from(LOADS), st.integers(1, 60), st.sampled_from([(4, 2), (8, 1), (8, 8), (64, 6)]),
    st.sampled_from([1, 2, 4]), st.integers(0, 2**31),
)  # fmt: skip
def test_choices_give_the_load_and_never_one_expert_twice(load, tokens, shape, ep, seed):
    experts, top_k = shape
    rng = np.random.default_rng(seed)
    wanted = tokens_per_expert(load, tokens, experts, top_k, rng)
    assert wanted.sum() == tokens * top_k
    assert wanted.min() >= 0
    assert wanted.max() <= tokens
    chosen = choices(wanted, tokens, top_k, rng)
    assert all(len(set(row)) == top_k for row in chosen.tolist())
    rank = rank_load(chosen, experts, ep)
    assert rank.tokens_E.sum() == wanted.reshape(ep, -1).sum(axis=1).max()
    here = rank.choices_TK[rank.choices_TK >= 0]
    assert np.bincount(here, minlength=experts // ep).tolist() == rank.tokens_E.tolist()
    assert (rank.choices_TK >= 0).any(axis=1).all()


def test_loads_are_as_skewed_as_their_names():
    rng = np.random.default_rng(0)
    most = {load: tokens_per_expert(load, 1000, 16, 2, rng).max() for load in LOADS}
    assert most["balanced"] == 125
    assert most["hot"] == 1000
    assert 125 < most["uniform"] < 200 < most["zipf:1.2"]
    assert most["lognormal:1.0"] > 200


def test_an_unknown_load_is_refused():
    with pytest.raises(MoesimError, match="unknown load 'flat': choose from balanced"):
        tokens_per_expert("flat", 4, 4, 2, np.random.default_rng(0))


# --- files ------------------------------------------------------------------------------------------------------


def test_a_row_is_on_the_disk_before_the_next_is_measured(tmp_path):
    store = started(tmp_path)
    store.add(gemm(1), FOUND)
    assert lines(store.partial / "gemm.csv") == [
        "kernel,dtype,m,n,k,time_us,spread,repeats", "torch_matmul,bf16,1,64,64,2.5,0.1,10",
    ]  # fmt: skip
    assert Store(store.folder, IDENTITY).done(gemm(1))


@pytest.mark.parametrize("cut", range(1, 38))
def test_half_a_last_line_is_dropped_and_written_again(tmp_path, cut):
    store = started(tmp_path)
    store.add(gemm(1), FOUND)
    store.add(gemm(2), FOUND)
    path = store.partial / "gemm.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = Store(store.folder, IDENTITY)
    assert again.done(gemm(1))
    assert not again.done(gemm(2))
    again.start()
    again.add(gemm(2), FOUND)
    assert path.read_bytes() == whole


def test_half_a_header_is_written_again(tmp_path):
    store = started(tmp_path)
    (store.partial / "gemm.csv").write_text("kernel,dty")
    store.add(gemm(1), FOUND)
    assert len(lines(store.partial / "gemm.csv")) == 2


def test_the_final_files_hold_all_rows_in_order_and_nothing_else_is_left(tmp_path):
    store = started(tmp_path)
    for m in (16, 2, 1):
        store.add(gemm(m), FOUND)
    store.finish({"identity": IDENTITY}, {"cluster.yaml": "name: x\n"})
    assert sorted(path.name for path in store.folder.iterdir()) == ["cluster.yaml", "gemm.csv", "meta.json"]
    assert [line.split(",")[2] for line in lines(store.folder / "gemm.csv")] == ["m", "1", "2", "16"]


def test_a_later_run_goes_on_from_the_final_files(tmp_path):
    store = started(tmp_path)
    store.add(gemm(1), FOUND)
    store.skip(gemm(2), "too: large")
    store.finish(META | {"skipped": skipped_text(store.skipped)}, {})
    again = started(tmp_path)
    assert again.done(gemm(1))
    assert not again.done(gemm(2))
    assert [again.tried(gemm(m)) for m in (1, 2)] == [0, 1]
    assert again.skipped == {("gemm", gemm(2).name): "too: large"}
    again.add(gemm(4), FOUND)
    again.finish(META, {})
    assert len(lines(store.folder / "gemm.csv")) == 3


def test_a_kill_between_the_final_files_loses_nothing(tmp_path, monkeypatch):
    store = started(tmp_path)
    store.add(gemm(1), FOUND)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", stop)  # when meta.json is written, after the tables
    with pytest.raises(KeyboardInterrupt):
        store.finish({}, {})
    assert Store(store.folder, IDENTITY).done(gemm(1))


def test_rows_of_another_torch_are_measured_again_and_said_to_be(tmp_path):
    store = started(tmp_path)
    store.add(gemm(1), FOUND)
    other = Store(store.folder, IDENTITY | {"torch": "2"})
    assert other.dropped == ["torch 1 -> 2"]
    assert not other.done(gemm(1))
    other.start()
    assert not (other.partial / "gemm.csv").exists()
    store.finish(META, {})
    assert Store(store.folder, IDENTITY | {"torch": "2"}).dropped == ["torch 1 -> 2"]


def test_a_skipped_point_that_is_measured_after_all_is_skipped_no_more(tmp_path):
    store = started(tmp_path)
    store.skip(gemm(1), "too large")
    store.add(gemm(1), FOUND)
    assert store.skipped == Store(store.folder, IDENTITY).skipped == {}


def test_a_damaged_run_json_is_refused(tmp_path):
    store = started(tmp_path)
    (store.partial / "run.json").write_text("{")
    with pytest.raises(MoesimError, match=r"run.json is damaged: restore it, or delete \S+.partial to measure afresh"):
        Store(store.folder, IDENTITY)


def test_a_table_without_rows_is_no_file(tmp_path):
    store = started(tmp_path)
    store.add(gemm(1), FOUND)
    store.finish(META, {})
    afresh = started(tmp_path, {"device": "Y"})
    afresh.finish(META, {})
    assert not (store.folder / "gemm.csv").exists()


def test_a_point_in_which_the_process_died_is_tried_last(tmp_path):
    store = started(tmp_path)
    store.begin(gemm(1))
    store.add(gemm(1), FOUND)
    store.begin(gemm(2))  # and the process is gone
    started(tmp_path)  # dies again, before its first point
    again = Store(tmp_path / "x", IDENTITY)
    assert [again.tried(gemm(m)) for m in (2, 3)] == [2, 0]
    assert again.reason(gemm(2)) == "the GPU failed: the process ended in this point"
    assert again.done(gemm(1))


def test_a_run_that_ends_in_order_blames_no_point(tmp_path):
    store = started(tmp_path)
    store.begin(gemm(1))
    store.end()
    assert Store(tmp_path / "x", IDENTITY).skipped == {}
