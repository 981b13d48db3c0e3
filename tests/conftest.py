"""Hypothesis: no deadline, and the same examples in every run of a CI. A CPU profile that several tests use."""

import os
import subprocess
import sys

import pytest
from hypothesis import settings

import moesim.cost

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory):
    """The folder of a quick calibration of this CPU."""
    folder = tmp_path_factory.mktemp("profiles")
    command = [sys.executable, "-m", "moesim", "calibrate", "--device", "cpu", "--quick", "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def unclamped():
    """Bounds as the models give them, not cut to the time: else no test of ``bound_s <= seconds`` could fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moesim.cost, "at_most", lambda bound_s, _: bound_s)
        yield
