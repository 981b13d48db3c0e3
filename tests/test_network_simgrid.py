"""Against SimGrid, where some Python here can import it; and the study that compares times with it."""

import sys

import pandas as pd
import pytest

from moesim.network import ends
from studies import network_speed as study


@pytest.fixture(scope="module")
def python():
    found = study.simgrid_python()
    if found is None:
        pytest.skip("no Python here imports simgrid: apt install python3-simgrid")
    return found


@pytest.mark.parametrize("name", list(study.NETWORKS))
@pytest.mark.parametrize(("ranks", "skew"), [(16, 0.0), (16, 0.5), (64, 0.5)])
def test_simgrid_agrees(python, name, ranks, skew):
    case = study.flows(name, ranks, skew)
    assert float(ends(case).max()) == pytest.approx(study.simgrid(python, case, ranks)["makespan_s"], rel=1e-6)


def test_the_network_study_leaves_a_table_and_a_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["network_speed", "--quick", "--out", str(tmp_path)])
    monkeypatch.setattr(study, "QUICK", study.QUICK._replace(skews=(0.35, 1.0)))
    study.main()
    figures = pd.read_csv(tmp_path / "network_speed.csv").set_index("what")["value"]
    assert figures["2,048 ranks, skew 0.5: time"] < 150  # on a busy machine; alone 10 to 20
    assert figures["64 ranks, 1:1, skew 1.0: fluid / bound, worst"] == pytest.approx(1.0)
    assert figures["64 ranks, 2:1, skew 0.35: fluid / bound, worst"] > 1.1
    assert abs(figures["64 ranks, 2:1, skew 0.2: fold error"]) < 2
    assert (tmp_path / "network_speed.png").stat().st_size > 10_000
    assert "fold error" in capsys.readouterr().out
