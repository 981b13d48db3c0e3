"""Every study runs and leaves one table and one picture."""

import sys
from pathlib import Path

import pandas as pd
import pytest

STUDIES = Path(__file__).resolve().parent.parent / "studies"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    import planner_speed

    yield planner_speed
    sys.modules.pop("planner_speed", None)


def test_the_speed_study_leaves_a_table_and_a_picture(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["planner_speed", "--quick", "--out", str(tmp_path)])
    study.main()
    frame = pd.read_csv(tmp_path / "planner_speed.csv")
    figures = frame.set_index("what")["value"]
    assert figures["plan: played by SimPy"] >= 50
    assert figures["plan: median played / bound"] <= 1.3
    assert (frame["value"] > 0).all()
    assert (tmp_path / "planner_speed.png").stat().st_size > 10_000
    assert "SimPy" in capsys.readouterr().out
