"""Constants of communication kernels: what the table says, which line a GPU gets, what follows from a constant."""

import numpy as np
import pytest

from moesim.alltoall.deepep import Work, joined, moving, seconds
from moesim.alltoall.libraries import CARRIED_BAND, band, find, kernels, read, sms
from moesim.cluster import load_cluster
from moesim.errors import MoesimError
from moesim.units import US

H100, H800, B200, A100 = (load_cluster(name) for name in ("dgx-h100", "hgx-h800", "hgx-b200", "dgx-a100"))


def line(mechanism="normal", **constants):
    """A kernel that takes no time but what is given, in the table's units."""
    text = dict.fromkeys(("rms_judged", "source"), "")
    names = (
        "start_us", "across_us", "far_us", "expert_ns", "first_ns", "pipe_ns", "across_pipe_ns", "token_ns", "copy_ns",
        "sm_gb_s", "across_sm_gb_s", "nic_gb_s",
    )  # fmt: skip
    stated = {name: str(value) for name, value in constants.items()}
    return read(
        text | dict.fromkeys(names, "")
        | {
            "library": "x", "release": "1", "mechanism": mechanism, "gpus": "H100", "architecture": "hopper",
            "direction": "dispatch", "sms": "10", "up_gb_s": "320", "link_gb_s": "320", "basis": "published",
        } | stated
    )  # fmt: skip


def work(**changes):
    """1,000 tokens of 1,000 bytes, 4,000 copies touched by 10 SMs of one node; links take no time."""
    plain = {
        "tokens": 1000.0, "token_bytes": 1000.0, "handled": 4000.0, "nodes": 1.0, "experts": 8.0, "sms": 10.0,
        "up_s": 0.0, "nic_s": 0.0,
    }  # fmt: skip
    return Work(**{name: np.asarray(value) for name, value in (plain | changes).items()})


def microseconds(kernel, task):
    return float(seconds(kernel, task)) / US


def test_every_line_says_where_it_comes_from_and_how_wrong_it_is():
    for kernel in kernels():
        assert kernel.source
        assert kernel.basis == "published"
        assert 0 < kernel.rms <= 1.4
        assert kernel.direction in ("dispatch", "combine")
        assert 0 < kernel.up_share < 1.5
        assert 0 < kernel.nic_share < 1.05 or kernel.library.startswith("trtllm")  # inside one NVLink domain


def test_lines_come_in_pairs():
    by_direction = {way: [k for k in kernels() if k.direction == way] for way in ("dispatch", "combine")}
    names = [[(k.library, k.release, k.mechanism, k.gpus) for k in found] for found in by_direction.values()]
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0])


def test_a_gpu_gets_its_own_line_before_that_of_its_architecture():
    own, measured = find("deepep", "normal", "dispatch", H800)
    assert measured
    assert own.gpus == ("H800",)
    twin, measured = find("deepep", "normal", "dispatch", B200)
    assert not measured
    assert twin.gpus == ("B300",)
    assert band(twin, measured) >= CARRIED_BAND > band(own, True)


def test_a_release_can_be_asked_for_by_name():
    newest, _ = find("deepep", "low_latency", "combine", H800)
    first, _ = find("deepep", "low_latency", "combine", H800, "V1 2025-02")
    assert (newest.release, first.release) == ("V1 2025-06", "V1 2025-02")


def test_no_line_no_price():
    with pytest.raises(MoesimError, match="no constants of deepep normal for A100: known are B300, H100, H200, H800"):
        find("deepep", "normal", "dispatch", A100)
    with pytest.raises(MoesimError, match="unknown library of 'linear'"):
        sms("linear", H100)


def test_kernels_keep_sms_busy_and_low_latency_none():
    assert [sms(name, H100) for name in ("deepep", "deepep_ll", "hybrid_ep")] == [20, 0, 16]
    assert sms("deepep", B200) == 24


def test_an_sm_needs_time_for_each_copy_and_for_its_bytes():
    # 4,000 copies x (100 ns + 1,000 bytes / 10 GB/s) on 10 SMs
    assert microseconds(line(copy_ns=100, sm_gb_s=10), work()) == pytest.approx(80)
    assert microseconds(line(copy_ns=100, sm_gb_s=10), work(sms=20.0)) == pytest.approx(40)
    assert microseconds(line(token_ns=100), work()) == pytest.approx(10)


def test_between_nodes_an_sm_moves_fewer_bytes():
    kernel = line(sm_gb_s=10, across_sm_gb_s=5)
    assert microseconds(kernel, work(nodes=2.0)) == pytest.approx(2 * microseconds(kernel, work()))


def test_the_first_chunk_and_the_pipe_grow_with_a_tokens_bytes():
    # 2 us + 1,000 bytes x 1 ns + 1,000 bytes x 3 ns x 1,000 / 1,512
    assert microseconds(line(start_us=2, first_ns=1, pipe_ns=3), work()) == pytest.approx(3 + 3 * 1000 / 1512)
    assert microseconds(line(start_us=2, across_us=5), work(nodes=2.0)) == pytest.approx(7)


def test_low_latency_waits_for_every_expert_and_for_the_way_to_other_nodes():
    kernel = line("low_latency", start_us=10, expert_ns=250, across_us=4, far_us=8)
    assert microseconds(kernel, work()) == pytest.approx(12)
    assert microseconds(kernel, work(nodes=2.0)) == pytest.approx(20)
    assert microseconds(kernel, work(nodes=4.0)) == pytest.approx(22)


def test_links_count_by_what_the_kernel_gets_out_of_them():
    assert microseconds(line(up_gb_s=160), work(up_s=10 * US)) == pytest.approx(20)
    assert microseconds(line(nic_gb_s=24), work(nic_s=10 * US)) == pytest.approx(20)


def test_of_near_equal_loads_each_waits_for_the_other():
    one, two = (joined({"sms": np.array(10.0), "up": np.array(load)}) for load in (5.0, 10.0))
    assert float(one) == pytest.approx(10.0, rel=1e-3)
    assert float(two) == pytest.approx(10.0 * 2 ** (1 / 8))
    assert float(joined({"sms": np.array(0.0), "up": np.array(0.0)})) == 0.0


def test_parts_are_told_apart():
    assert set(moving(line(), work())) == {"sms", "up", "nic"}


def test_a_damaged_table_is_refused(monkeypatch, tmp_path):
    (tmp_path / "libraries.csv").write_text("library,release\nx,1\n")
    monkeypatch.setattr("moesim.alltoall.libraries.shipped_folder", lambda: tmp_path)
    kernels.cache_clear()
    with pytest.raises(MoesimError, match=r"cannot read .*libraries.csv: 'mechanism'; restore it"):
        kernels()
    kernels.cache_clear()
    monkeypatch.undo()
    assert kernels()
