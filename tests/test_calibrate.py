"""The command: resumption, skipped points, budget, interruption, kill -9. No GPU is needed."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from moesim.calibrate import command, lock, machine, main, run
from moesim.calibrate.bench import SkipError
from moesim.calibrate.grid_cpu import cpu_points

FOUND = {
    "value": "1e9", "time_us": "2.5", "spread": "0.1", "repeats": "10", "tokens_per_expert": "1;2", "flops": "1",
    "bytes": "1", "basis": "measured", "source": "test",
}  # fmt: skip


class Measures:
    """Stands in for every table's module: counts the points, and does what it is told at one of them."""

    def __init__(self, at=None, error=None):
        self.seen, self.at, self.error = [], at, error

    def measure(self, bench, point):
        self.seen.append(point)
        if len(self.seen) == self.at:
            raise self.error
        return FOUND


@pytest.fixture
def stub(monkeypatch):
    """No point takes any time; ``stub(at, error)`` makes one fail."""

    def install(at=None, error=None):
        measures = Measures(at, error)
        monkeypatch.setattr(run, "import_module", lambda name: measures)
        return measures

    threads = torch.get_num_threads()
    yield install
    torch.set_num_threads(threads)


def call(out, *options):
    return main(["--device", "cpu", "--out", str(out), *options], "moesim calibrate")


def folder(out):
    [found] = out.iterdir()
    return found


# --- the loop ---------------------------------------------------------------------------------------------------


def test_a_full_run_after_a_quick_one_measures_only_the_rest(stub, tmp_path, capsys):
    first = stub()
    assert call(tmp_path, "--quick") == 0
    second = stub()
    assert call(tmp_path) == 0
    names = [(point.table, point.name) for point in (*first.seen, *second.seen)]
    assert len(first.seen) > 60
    assert len(second.seen) > 200
    assert len(names) == len(set(names))
    third = stub()
    assert call(tmp_path) == 0
    assert third.seen == []
    assert "go on:" not in capsys.readouterr().err


def test_the_budget_stops_cleanly_and_the_same_command_goes_on(stub, tmp_path, capsys, monkeypatch):
    stub()
    now = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    assert call(tmp_path, "--quick", "--budget", "30") == 0
    said = capsys.readouterr().err
    assert re.search(r"[1-9]\d* points measured, 0 skipped, [1-9]\d* left", said)
    assert f"go on: moesim calibrate --device cpu --out {tmp_path} --quick --budget 30" in said
    assert (folder(tmp_path) / "meta.json").is_file()
    monkeypatch.undo()
    stub()
    assert call(tmp_path, "--quick") == 0


def test_ctrl_c_keeps_what_was_measured(stub, tmp_path, capsys):
    stub(at=5, error=KeyboardInterrupt())
    assert call(tmp_path, "--quick", "--json") == 130
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["measured"], document["ended"]) == (4, "interrupted")
    assert "go on: moesim calibrate" in err
    assert not (folder(tmp_path) / ".partial").exists()


@pytest.mark.parametrize("error", [SkipError("too large"), ValueError("bad\nshape"), RuntimeError("out of memory")])
def test_a_point_that_fails_is_skipped_with_its_reason(stub, tmp_path, error, capsys):
    measures = stub(at=7, error=error)
    assert call(tmp_path, "--quick") == 0
    point = measures.seen[6]
    [sentence] = json.loads((folder(tmp_path) / "meta.json").read_text())["skipped"]
    assert sentence.startswith(f"{point.table} {point.name}: ")
    assert " ".join(str(error).split()) in sentence
    said = capsys.readouterr().err
    assert re.search(r"\d+ points measured, 1 skipped, 0 left", said)
    assert f"skipped 1: {sentence.partition(': ')[2]}\nthe same command tries them again" in said


def test_a_skipped_point_is_listed_and_tried_again_by_the_next_run(stub, tmp_path, capsys):
    measures = stub(at=7, error=SkipError("too large"))
    assert call(tmp_path, "--quick") == 0
    capsys.readouterr()
    assert call(tmp_path, "--quick", "--list") == 0
    assert len(re.findall(r"^\w+ +\d+ measured +1 skipped +0 left$", capsys.readouterr().out, re.MULTILINE)) == 1
    again = stub()
    assert call(tmp_path, "--quick") == 0
    assert again.seen == [measures.seen[6]]
    assert json.loads((folder(tmp_path) / "meta.json").read_text())["skipped"] == []


def test_a_lost_gpu_ends_the_process_and_the_next_tries_that_point_last(stub, tmp_path, monkeypatch, capsys):
    measures = stub(at=4, error=RuntimeError("CUDA error: an illegal memory access was encountered"))
    monkeypatch.setattr(run, "_alive", lambda bench: False)
    assert call(tmp_path, "--quick") == 2
    said = capsys.readouterr().err
    assert "skipped 1: the GPU failed: RuntimeError: CUDA error" in said
    assert "the GPU failed and can do no more in this process; go on, that point last: moesim calibrate" in said
    again = stub()
    assert call(tmp_path, "--quick") == 0
    assert len(again.seen) > 60
    assert again.seen[-1] == measures.seen[-1]


def test_without_triton_a_cpu_leaves_out_its_table_and_measures_it_once_triton_is_there(
    stub, monkeypatch, tmp_path, capsys
):
    first = stub()
    find_spec = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(machine, "find_spec", lambda name: None if name == "triton" else find_spec(name))
        assert call(tmp_path, "--only", "kernels") == 2
        assert "triton is not installed: pip install 'moesim[calibrate]'" in capsys.readouterr().err
        assert call(tmp_path, "--quick") == 0
    assert "kernels" not in {point.table for point in first.seen}
    assert "kernels.csv is left out; for it: pip install 'moesim[calibrate]'" in capsys.readouterr().err
    second = stub()
    assert call(tmp_path, "--quick") == 0
    assert {point.table for point in second.seen} == {"kernels"}


def test_list_counts_and_measures_nothing(stub, tmp_path, capsys):
    measures = stub()
    assert call(tmp_path, "--quick", "--only", "gemm,copies", "--list", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["tables"]) == {"peaks", "gemm", "copies"}
    assert document["tables"]["gemm"]["measured"] == 0 < document["tables"]["gemm"]["left"]
    assert call(tmp_path, "--quick", "--list") == 0
    out, err = capsys.readouterr()
    assert re.search(r"gemm +0 measured +0 skipped +\d+ left", out)
    assert err == ""
    assert measures.seen == []
    assert list(tmp_path.iterdir()) == []


def test_only_measures_what_it_names(stub, tmp_path):
    measures = stub()
    assert call(tmp_path, "--quick", "--only", "launch") == 0
    assert {point.table for point in measures.seen} == {"launch", "peaks"}
    assert set(json.loads((folder(tmp_path) / "meta.json").read_text())["tables"]) == {"launch"}


def test_another_torch_starts_over_and_says_so(stub, tmp_path, monkeypatch, capsys):
    stub()
    assert call(tmp_path, "--quick") == 0
    monkeypatch.setattr("moesim.calibrate.machine.installed", lambda package: "9.9")
    again = stub()
    assert call(tmp_path, "--quick") == 0
    assert len(again.seen) > 60
    assert "measuring afresh, earlier points cannot be mixed: torch " in capsys.readouterr().err


def test_another_seed_starts_over_and_says_so(stub, tmp_path, capsys):
    stub()
    assert call(tmp_path, "--quick", "--only", "launch") == 0
    again = stub()
    assert call(tmp_path, "--quick", "--only", "launch", "--seed", "1") == 0
    assert again.seen
    assert "measuring afresh, earlier points cannot be mixed: seed 0 -> 1" in capsys.readouterr().err


def test_the_end_says_how_to_plan_with_the_profile(stub, tmp_path, capsys):
    stub()
    assert call(tmp_path, "--quick") == 0
    plan = f"MOESIM_PROFILES={tmp_path} moesim plan MODEL --cluster {folder(tmp_path) / 'cluster.yaml'}"
    assert capsys.readouterr().err.splitlines()[-1] == f"plan with it: {plan}"


def test_ctrl_c_before_the_first_point_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "find_machine", interrupt)
    assert call(tmp_path, "--quick") == 130
    said = f"moesim: interrupted; go on: moesim calibrate --device cpu --out {tmp_path} --quick\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is damaged: restore it, or delete"), ("[1]", "is damaged"), ('{"gpu": {}}', "no calibration wrote this")],
)
def test_a_damaged_meta_json_is_refused_and_left_as_it_is(stub, tmp_path, capsys, text, said):
    measures = stub()
    path = tmp_path / "box" / "meta.json"
    path.parent.mkdir()
    path.write_text(text)
    for more in ([], ["--list"]):
        assert call(tmp_path, "--quick", "--name", "box", *more) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"moesim: {path}")
        assert said in err
        assert err.count("\n") == 1
    assert (measures.seen, path.read_text()) == ([], text)


def test_two_runs_into_one_folder_at_once_are_refused_and_the_lock_of_a_dead_one_is_not(stub, tmp_path, capsys):
    stub()
    home = tmp_path / "box"
    with lock.locked(home):
        assert call(tmp_path, "--quick", "--name", "box") == 2
    assert f"another calibration (process {os.getpid()}) writes there: wait" in capsys.readouterr().err
    assert list(home.iterdir()) == []
    (home / ".lock").write_text("1\n")  # as kill -9 leaves it
    assert call(tmp_path, "--quick", "--name", "box") == 0
    assert not (home / ".lock").exists()


def test_the_name_is_the_folder(stub, tmp_path):
    stub()
    assert call(tmp_path, "--only", "launch", "--quick", "--name", "Lab box 3") == 0
    assert folder(tmp_path).name == "lab-box-3"
    assert json.loads((folder(tmp_path) / "meta.json").read_text())["gpu"]["name"] == "Lab box 3"


def test_kill_9_in_the_middle_loses_no_finished_point(tmp_path):
    arguments = ["--device", "cpu", "--out", str(tmp_path), "--only", "gemm", "--quick"]
    child = subprocess.Popen([sys.executable, "-m", "moesim.calibrate", *arguments], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(rows := partial_rows(tmp_path)) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    kept = partial_rows(tmp_path)
    assert len(kept) >= len(rows) >= 4
    assert main(arguments) == 0
    final = (folder(tmp_path) / "gemm.csv").read_text().splitlines()
    assert set(kept) <= set(final)
    assert len(final) == 1 + sum(point.table == "gemm" and point.stratum == 0 for point in cpu_points())


def partial_rows(out):
    """Whole lines of the table in progress, without its header."""
    found = [path.read_text() for path in out.glob("*/.partial/gemm.csv")]
    return [line for text in found for line in text[: text.rfind("\n") + 1].splitlines()[1:]]
