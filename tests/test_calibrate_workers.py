"""Processes that speak to each other: they end with their parent, whatever ends it, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moesim.calibrate import workers
from moesim.calibrate.bench import SkipError

pytestmark = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks at processes in /proc")
STARTS = "from moesim.calibrate.workers import Workers; made = Workers(2, 'gloo'); print('made', flush=True); "


def children(pid):
    """Processes whose parent is ``pid``."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def ended(pids):
    """Whether all of them end in ten seconds."""
    deadline = time.monotonic() + 10
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(runs, pids))


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent(code, home):
    """A process that starts two workers, with its temporary folders under ``home``."""
    child = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(home)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(found := children(child.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(found) == 2
    return child, found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("delay_s", [0.0, 1.0])
def test_workers_that_are_still_starting_end_quietly_with_their_parent(number, delay_s, tmp_path):
    child, pids = parent(STARTS, tmp_path)
    time.sleep(delay_s)
    child.send_signal(number)
    assert ended(pids)
    _, err = child.communicate(timeout=20)
    assert "serve" not in err
    assert err.count("Traceback") == (number == signal.SIGINT)  # the parent's own
    assert list(tmp_path.iterdir()) == []


def test_workers_end_when_their_parent_is_killed_and_ctrl_c_does_not_touch_them(tmp_path):
    child, pids = parent(f"{STARTS}import time; time.sleep(60)", tmp_path)
    assert child.stdout.readline() == "made\n"
    for pid in pids:
        assert os.getsid(pid) == pid  # a terminal's Ctrl-C goes to another session
        os.kill(pid, signal.SIGINT)
    time.sleep(0.3)
    assert all(map(runs, pids))
    child.kill()
    assert ended(pids)
    _, err = child.communicate(timeout=20)
    assert err == ""
    assert list(tmp_path.iterdir()) == []


def test_a_closed_group_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    group = workers.Workers(2, "gloo")
    with pytest.raises(SkipError, match="ModuleNotFoundError: No module named 'nowhere'"):
        group.run("nowhere:function")
    group.close()
    assert [process.returncode for process in group.processes] == [0, 0]
    assert list(tmp_path.iterdir()) == []
