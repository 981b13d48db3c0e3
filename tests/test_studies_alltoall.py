"""The studies of exchanges and networks run, leave a table and a picture, and find what docs/alltoall.md says."""

import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

STUDIES = Path(__file__).resolve().parent.parent / "studies"


@pytest.fixture
def study(monkeypatch, tmp_path):
    """Runs a study by name, quickly, into a folder of its own."""
    monkeypatch.syspath_prepend(str(STUDIES))

    def play(name):
        monkeypatch.setattr(sys, "argv", [name, "--quick", "--out", str(tmp_path)])
        module = import_module(name)
        module.main()
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        return module, pd.read_csv(tmp_path / f"{name}.csv")

    yield play
    for name in ("alltoall_crossover", "alltoall_fabrics", "slow_link"):
        sys.modules.pop(name, None)


def test_the_fewer_and_larger_messages_win_where_messages_are_small(study, capsys):
    module, frame = study("alltoall_crossover")
    first = module.crossovers(frame)
    assert list(first.columns) == list(module.NETWORKS)
    best = module.fastest(frame).set_index(["network", "gpus", "bytes"])["algorithm"]
    assert best["H100 rails", 64, 2.0**28] == "linear"
    assert best["H100 rails", 4096, 2.0**16] != "linear"
    assert "2dh is faster" in capsys.readouterr().out


def test_only_oversubscription_costs_what_rails_save(study):
    _, frame = study("alltoall_fabrics")
    slower = frame.set_index(["network", "routing", "gpus", "algorithm"])["over_rails"]
    for routing in ("uniform", "lognormal:0.5"):
        for network in ("spine 1:1", "tree 1:1"):
            assert slower[network, routing, 256, "linear"] == pytest.approx(1.0, abs=0.01)
        assert slower["tree 4:1", routing, 256, "linear"] > slower["tree 2:1", routing, 256, "linear"] > 1.05
        assert slower["rails", routing, 256, "deepep, best 4 of 8"] < 0.95


def test_one_slow_nic_doubles_an_exchange_and_a_ring(study):
    _, frame = study("slow_link")
    slower = frame.set_index(["network", "slow_link", "work"])["slower"]
    assert slower["rails", "one NIC", "all-to-all, linear"] == pytest.approx(1.92, abs=0.02)
    assert slower["rails", "one NIC", "all-reduce, ring"] == pytest.approx(1.98, abs=0.02)
    assert slower["rails", "one NVLink port", "all-to-all, linear"] == pytest.approx(1.0, abs=0.01)
    assert slower["tree 1:1", "one leaf's way up", "all-reduce, ring"] == 1.0
