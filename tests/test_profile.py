"""Profiles: finding, reading, refusing, carrying over, fitting."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.cluster import GPUS
from moesim.cost import ESTIMATED, MEASURED, PUBLISHED
from moesim.errors import MoesimError
from moesim.profile import fit, load_profile, profile_folders, read_table, shipped_folder, slug
from moesim.profile.fitting import Kernel, non_negative
from moesim.profile.load import OPERATIONS

HEADER = "kernel,dtype,m,n,k,time_us\n"
ROW = "a,bf16,1,2,3,4.5\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "gemm.csv"
    path.write_text(text)
    return path


def test_a_table_is_columns_of_text_and_numbers_in_seconds(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, HEADER + ROW + "b,fp8,1,2,3,6\n"), "gemm")
    assert table.rows == 2
    assert table.time_s == pytest.approx([4.5e-6, 6e-6])
    assert table.select(dtype="fp8").text["kernel"].tolist() == ["b"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEADER, "no rows"),
        ("", "no rows"),
        ("kernel,dtype,m,n,time_us\na,bf16,1,2,4\n", "no column 'k'"),
        (HEADER + "a,bf16,1,2,x,4\n", "line 2 column 'k': 'x' is not a number"),
        (HEADER + ROW + "a,bf16,1,2,3,0\n", "line 3 column 'time_us': 0 must be above zero"),
        (HEADER + "a,bf16,1,2,3,-4\n", "column 'time_us': -4 must be above zero"),
        (HEADER + "a,bf16,1,2,3,nan\n", "column 'time_us': nan must be above zero"),
        (HEADER + "a,bf16,1,2\n", "line 2 has 4 cells, not 6"),
    ],
)
def test_a_bad_table_is_refused_in_one_line_with_file_and_column(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(MoesimError) as error:
        read_table(path, "gemm")
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoesimError, match="cannot read"):
        read_table(tmp_path / "gemm.csv", "gemm")


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        ("{", "cannot read"),
        ("[]", "no 'tables'"),
        ('{"tables": {}}', "gpu"),
        (json.dumps({"tables": {"gemm": {"basis": "guessed"}}}), "gpu"),
    ],
)
def test_an_unreadable_meta_is_refused(tmp_path: Path, meta: str, says: str) -> None:
    home = tmp_path / "h200"
    home.mkdir()
    write(home, HEADER + ROW)
    (home / "meta.json").write_text(meta)
    with pytest.raises(MoesimError, match=says):
        load_profile(GPUS["H200"], tmp_path)


def test_a_basis_must_be_stated(tmp_path: Path) -> None:
    home = tmp_path / "h200"
    home.mkdir()
    write(home, HEADER + ROW)
    stated = json.loads((shipped_folder() / "h200" / "meta.json").read_text())
    stated["tables"]["gemm"]["basis"] = "guessed"
    (home / "meta.json").write_text(json.dumps(stated))
    with pytest.raises(MoesimError, match=r"tables\.gemm .*guessed.*state basis"):
        load_profile(GPUS["H200"], tmp_path)


def copied(home: Path, basis: str) -> Path:
    """The shipped H200 profile under another folder, its GEMMs with another basis."""
    shutil.copytree(shipped_folder() / "h200", home / "h200")
    path = home / "h200" / "meta.json"
    meta = json.loads(path.read_text())
    meta["tables"]["gemm"]["basis"] = basis
    path.write_text(json.dumps(meta))
    return home


def test_a_profile_of_ones_own_goes_before_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESIM_PROFILES", str(copied(tmp_path, "published")))
    assert profile_folders() == (tmp_path, shipped_folder())
    first, second = load_profile(GPUS["H200"]).tables["gemm"][:2]
    assert (first.table.path.parent.parent, second.table.path.parent.parent) == (tmp_path, shipped_folder())


def test_measured_tables_go_before_published_ones(tmp_path: Path) -> None:
    measured = copied(tmp_path / "measured", "measured")
    tables = load_profile(GPUS["H200"], shipped_folder(), measured).tables["gemm"]
    assert [one.basis for one in tables[:2]] == [MEASURED, PUBLISHED]


@pytest.mark.parametrize(("folder", "says"), [("", r"no <name>/<table>\.csv"), ("nowhere", "is not a folder")])
def test_a_stated_folder_without_profiles_is_refused(
    folder: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOESIM_PROFILES", str(tmp_path / folder))
    with pytest.raises(MoesimError, match=says):
        load_profile(GPUS["H200"])


@pytest.mark.parametrize(
    ("gpu", "folder"), [("H200", "h200"), ("CPU EPYC 7B13", "cpu-epyc-7b13"), ("RTX PRO 6000", "rtx-pro-6000")]
)
def test_a_profile_lies_in_the_folder_of_its_gpus_name(gpu: str, folder: str) -> None:
    assert slug(gpu) == folder


def test_own_tables_are_published_and_loaded_once() -> None:
    profile = load_profile(GPUS["H200"])
    assert profile.limits == ()
    assert all(profile.tables[name][0].basis is PUBLISHED for name in OPERATIONS)
    assert load_profile(GPUS["H200"]) is profile


@pytest.mark.parametrize(("gpu", "source"), [("H800", "H100"), ("A30", "A100")])
def test_a_gpu_without_tables_carries_over_its_architecture_and_says_so(gpu: str, source: str) -> None:
    profile = load_profile(GPUS[gpu])
    assert profile.tables["gemm"][0].gpu.name == source
    assert profile.tables["gemm"][0].basis is ESTIMATED
    assert sum(f"carried over from {source}" in sentence for sentence in profile.limits) == 3


def test_h100_names_the_mla_rows_it_lacks() -> None:
    assert load_profile(GPUS["H100"]).limits == (
        "attention mla: no rows for H100; carried over from H200 by the ratio of their rooflines",
    )


def test_another_architecture_widens_the_band_more() -> None:
    other, same = load_profile(GPUS["B200"]), load_profile(GPUS["H800"])
    assert other.tables["gemm"][0].carried_error > same.tables["gemm"][0].carried_error > 0.0


def test_a_changed_data_sheet_is_another_profile() -> None:
    faster = replace(GPUS["H200"], memory_bytes_per_s=9.6e12)
    assert load_profile(faster) is not load_profile(GPUS["H200"])


def test_non_negative_finds_the_mixture() -> None:
    parts = np.random.default_rng(0).uniform(1.0, 9.0, (50, 3))
    found = non_negative(parts / (parts @ [2.0, 0.0, 3.0])[:, None])
    assert found == pytest.approx([2.0, 0.0, 3.0], abs=0.02)


def test_a_fit_reproduces_its_points_and_opens_away_from_them() -> None:
    x = np.linspace(0.0, 4.0, 21)[:, None]
    parts = np.exp(x)
    groups = np.arange(21) % 3
    family = fit(parts, x, np.exp(x[:, 0]) * (1.0 + 0.3 * np.sin(x[:, 0])), groups, Kernel((1.0,), 0.3, 0.01))
    correction, near = family.correction(x)
    seconds = family.base_s(parts) * np.exp(correction)
    assert seconds == pytest.approx(parts[:, 0] * (1.0 + 0.3 * np.sin(x[:, 0])), rel=0.01)
    _, far = family.correction(np.array([[9.0]]))
    assert far[0] > 2.0 * near.max()
