"""Histograms, traces and counters that people bring."""

import json
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import MoesimError
from moesim.routing import parse_routing, popularity


def load(path: Path | str) -> list[list[float]]:
    measured = parse_routing(str(path)).load
    assert measured is not None
    return measured.tolist()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("column", ["count", "tokens", "load", "load_share"])
def test_a_csv_histogram_becomes_shares_per_layer(tmp_path, column):
    path = write(tmp_path / "a.csv", f"layer,expert,{column}\n1,0,3\n1,1,1\n2,0,5\n2,1,5\n")
    assert load(path) == [[0.75, 0.25], [0.5, 0.5]]


def test_rows_of_one_expert_add_up_unless_a_part_is_chosen(tmp_path):
    path = write(tmp_path / "a.csv", "task,layer,expert,count\nchat,0,0,4\nchat,0,1,0\ncode,0,0,0\ncode,0,1,12\n")
    assert load(path) == [[0.25, 0.75]]
    assert load(f"{path}#chat") == [[1.0, 0.0]]


def test_a_trace_is_counted_per_layer(tmp_path):
    ids = np.array([[[0, 1], [2, 3]], [[0, 2], [2, 1]]], dtype=np.uint8)  # [token, layer, choice]
    np.savez(tmp_path / "a.npz", chat=ids, chat_seq_len=np.array([2]))
    np.save(tmp_path / "a.npy", ids)
    expected = [[0.5, 0.25, 0.25, 0.0], [0.0, 0.25, 0.5, 0.25]]
    assert load(tmp_path / "a.npz") == load(tmp_path / "a.npy") == expected


def test_a_trace_leaves_unseen_experts_without_load(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[[0, 1]]]))
    routing = parse_routing(str(tmp_path / "a.npy"))
    shares = popularity(routing, 2, 4, np.random.default_rng(0))
    assert shares.tolist() == [[0.5, 0.5, 0.0, 0.0]] * 2
    assert routing.label == str(tmp_path / "a.npy")


def test_one_of_several_traces_is_chosen_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", chat=np.array([[[0, 1]]]), code=np.array([[[1, 2]]]))
    assert load(f"{tmp_path / 'a.npz'}#code") == [[0.0, 0.5, 0.5]]
    with pytest.raises(MoesimError, match=r"holds 2 arrays: choose one with a\.npz#chat or a\.npz#code"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "held",
    [
        [[1, 3], [2, 2]],
        {"logical_count": [[1, 3], [2, 2]]},
        {"rank": 0, "logical_count": [[[1, 1], [0, 2]], [[0, 2], [2, 0]]]},
    ],
)
def test_engine_counters_are_read_from_json(tmp_path, held):
    path = write(tmp_path / "a.json", json.dumps(held))
    assert load(path) == [[0.25, 0.75], [0.5, 0.5]]


def test_counters_of_layers_by_experts_are_read_from_npy(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 3]]))
    assert load(tmp_path / "a.npy") == [[0.25, 0.75]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "layer,count\n0,1\n", "has no column expert"),
        ("a.csv", "layer,expert,popularity\n0,0,1\n", "has no column count or tokens or load or load_share"),
        ("a.csv", "layer,expert,count\n0,0,-1\n", "line 2: count '-1' is not a number from 0 up"),
        ("a.csv", "layer,expert,count\n0,0,nan\n", "line 2: count 'nan'"),
        ("a.csv", "layer,expert,count\n0,0\n", "line 2: count None"),
        ("a.csv", "layer,expert,count\n0,x,1\n", "line 2: expert 'x' is not a whole number"),
        ("a.csv", "layer,expert,count\n0,0,1\n1,0,0\n", "no load in layer 1"),
        ("a.csv", "layer,expert,count\n", "has no rows"),
        ("a.csv", "", "has no column layer"),
        ("a.json", "[[1, 2], [3", "cannot read a.json"),
        ("a.json", "[[1, 2], [3]]", "cannot read a.json"),
        ("a.json", "[[1, -2]]", r"holds -2 at \[0, 1\]"),
        ("a.json", "[[1, NaN]]", r"holds nan at \[0, 1\]"),
        ("a.json", '[["a", "b"]]', "give numbers"),
        ("a.json", "3", "is not a nested list"),
        ("a.json", '{"counts": 3}', "has no 'nested list'"),
        ("a.npz", "not a zip", "cannot read a.npz"),
        ("a.npy", "", "cannot read a.npy"),
        ("a.pt", "", "cannot read a.pt as a routing"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name, text, message):
    with pytest.raises(MoesimError, match=message) as error:
        load(write(tmp_path / name, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[{}]], dtype=object), "cannot read a.npy"),
        (np.array([[[0, 0]]]), "token 0 picks an expert twice in layer 0"),
        (np.array([[[-1, 0]]]), "expert id -1"),
        (np.array([[[0, 70_000]]]), "expert id 70000"),
        (np.array([[[0.5, 1.5]]]), "whole numbers"),
        (np.array([1, 2]), r"has shape \[2\]"),
        (np.zeros((0, 2, 2), dtype=np.int64), r"has shape \[0, 2, 2\]"),
        (np.array([[True]]), "holds bool values"),
    ],
)
def test_a_bad_array_is_refused_in_one_line(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(MoesimError, match=message) as error:
        load(tmp_path / "a.npy")
    assert "\n" not in str(error.value)


def test_a_part_that_is_not_there_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "layer,expert,count\n0,0,1\n")
    with pytest.raises(MoesimError, match="has no rows with 'chat'"):
        load(f"{path}#chat")
    np.savez(tmp_path / "a.npz", chat=np.array([[[0, 1]]]))
    with pytest.raises(MoesimError, match="has no array 'code'"):
        load(f"{tmp_path / 'a.npz'}#code")
