"""Useful over wall time: closed forms, drawn failures, and what grows with what."""

import json
from math import exp, expm1, sqrt

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moesim import api
from moesim.cli import main
from moesim.errors import MoesimError
from moesim.goodput import (
    FACTS,
    Reality,
    _between_failures,
    checkpoint_bytes,
    daly_s,
    straggling_s,
    useful_share,
    waiting_s,
    young_s,
)
from moesim.model import MODELS
from moesim.network.jitter import expected_latest_s

HOUR = 3600.0


def drawn_share(interval_s, write_s, restart_s, mtbf_s, segments, rng):
    """Play ``segments`` of computing and writing with exponential failures; useful over wall seconds."""
    length = interval_s + write_s
    needed = np.full(segments, length)  # without a failure, until the segment counts
    wall_s, left = 0.0, segments
    while left:
        until = rng.exponential(mtbf_s, left)
        wall_s += np.minimum(until, needed[:left]).sum()
        left = int((until < needed[:left]).sum())
        needed[:left] = restart_s + length
    return segments * interval_s / wall_s


# --- failures and checkpoints -----------------------------------------------------------------------------------


def test_without_failures_only_writing_is_lost():
    assert useful_share(900.0, 100.0, 600.0, 1e12) == pytest.approx(0.9)


def test_half_an_interval_is_repeated_at_each_failure():
    # 1,000 s of computing every 1,000,000 s of MTBF: half of an interval in a thousandth of them
    assert 1.0 - useful_share(1000.0, 1e-9, 0.0, 1e6) == pytest.approx(0.5e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("interval_s", "write_s", "restart_s", "mtbf_s"),
    [(600, 30, 600, 10_000), (1000, 10, 0, 3000), (300, 100, 900, 2000), (5000, 60, 300, 5000)],
)
def test_drawn_failures_cost_what_the_closed_form_says(interval_s, write_s, restart_s, mtbf_s):
    rng = np.random.default_rng(0)
    drawn = drawn_share(interval_s, write_s, restart_s, mtbf_s, 200_000, rng)
    assert drawn == pytest.approx(useful_share(interval_s, write_s, restart_s, mtbf_s), rel=0.01)


@given(st.floats(60, 1e5), st.floats(0.1, 600), st.floats(0, 3600), st.floats(600, 1e7))
def test_all_lost_time_is_named(interval_s, write_s, restart_s, mtbf_s):
    share = useful_share(interval_s, write_s, restart_s, mtbf_s)
    lost = _between_failures(interval_s, write_s, restart_s, mtbf_s)
    assert share + sum(lost.values()) == pytest.approx(1.0)
    assert min(lost.values()) >= -1e-9
    assert 0.0 <= share < 1.0


def test_restarts_take_their_share_of_the_wall_time():
    # restarting is a state of its own: 1 - exp(-r / M) of the time, here 10 minutes of every 3 hours
    assert _between_failures(200.0, 3.0, 600.0, 3 * HOUR)["restarts"] == pytest.approx(1.0 - exp(-1.0 / 18.0))


@given(st.floats(1.0, 300.0), st.floats(1000.0, 1e6))
def test_dalys_interval_wastes_least(write_s, mtbf_s):
    assume(write_s < mtbf_s)
    best = useful_share(daly_s(write_s, mtbf_s), write_s, 600.0, mtbf_s)
    others = [useful_share(x, write_s, 600.0, mtbf_s) for x in np.geomspace(write_s / 10, mtbf_s, 400)]
    assert best >= max(others) * (1.0 - 1e-3)
    assert daly_s(write_s, mtbf_s) <= young_s(write_s, mtbf_s)


def test_youngs_interval_is_the_square_root_of_twice_write_times_mtbf():
    assert young_s(2.0, 10_000.0) == 200.0
    assert daly_s(2.0, 10_000.0) == pytest.approx(200.0 * (1 + 0.01 / 3 + 0.0001 / 9) - 2.0)
    assert daly_s(50.0, 20.0) == 20.0  # writing takes longer than twice the MTBF


@given(st.floats(600, 1e5), st.floats(1.01, 100.0))
def test_a_longer_mtbf_is_never_worse(mtbf_s, times):
    def best(m):
        return useful_share(daly_s(30.0, m), 30.0, 600.0, m)

    assert best(mtbf_s) <= best(mtbf_s * times) + 1e-9


def test_a_job_that_cannot_finish_a_segment_is_worth_nothing():
    assert useful_share(1e6, 1.0, 0.0, 1.0) == 0.0


def test_llama_3_kept_more_than_90_per_cent():
    # 16,384 GPUs, 405 B parameters x 14 bytes at 2 TB/s, ten minutes a restart; published: more than 90 %
    mtbf_s = FACTS["gpu_mtbf_s"].value / 16384
    assert mtbf_s / HOUR == pytest.approx(54 * 24 / 419)
    write_s = 405e9 * 14 / 2e12
    assert useful_share(daly_s(write_s, mtbf_s), write_s, FACTS["restart_s"].value, mtbf_s) > 0.90


# --- barriers and stragglers ------------------------------------------------------------------------------------


def test_a_barrier_waits_for_the_latest_of_its_ranks():
    rng = np.random.default_rng(1)
    for members in (8, 64, 256):  # Blom's formula is 4.5 % high at 2 ranks
        latest = rng.normal(0.0, 1.0, (40_000, members)).max(axis=1).mean()
        assert waiting_s({"tp": 1.0}, {"tp": members}, 1.0) == pytest.approx(latest, rel=0.02)


def test_flashmoes_delay_is_given_back():
    assert waiting_s({"all-to-all": 1.0}, {"all-to-all": 32}, FACTS["deviation"].value) == pytest.approx(0.09)


@given(st.integers(1, 4096), st.floats(0.0, 0.5), st.floats(0.01, 10.0))
def test_more_ranks_wait_longer(members, deviation, exposed_s):
    less, more = (waiting_s({"dp": exposed_s}, {"dp": n}, deviation) for n in (members, members + 1))
    assert 0.0 <= less <= more
    assert waiting_s({"dp": exposed_s}, {"dp": 1}, deviation) == 0.0
    assert less <= expected_latest_s(deviation * exposed_s, max(2, members))


def test_one_slow_node_slows_the_step_by_its_slowness():
    assert straggling_s(10.0, 1, Reality(slow_share=1.0, slowness=0.1)) == pytest.approx(1.0)
    assert straggling_s(10.0, 2, Reality(slow_share=0.5, slowness=0.2)) == pytest.approx(1.5)


@given(st.integers(1, 2000))
def test_more_nodes_are_likelier_to_have_a_slow_one(nodes):
    assert 0.0 < straggling_s(1.0, nodes, Reality()) <= straggling_s(1.0, nodes + 1, Reality()) <= 0.1


# --- a run ------------------------------------------------------------------------------------------------------

TRAIN = ["olmoe-1b-7b", "--cluster", "dgx-h100", "--nodes", "2", "--global-batch", "64", "--seq", "1024"]


@pytest.fixture(scope="module")
def found():
    return api.goodput("olmoe-1b-7b", "dgx-h100", "ep=8 zero=1 recompute=full", nodes=2)


def test_a_checkpoint_holds_weights_master_weights_and_moments(found):
    expected = checkpoint_bytes(MODELS["olmoe-1b-7b"], "bf16")
    assert found.checkpoint_bytes == expected == pytest.approx(6.92e9 * 14, rel=0.01)


def test_useful_and_lost_shares_are_the_wall_time(found):
    assert found.goodput + sum(found.lost.values()) == pytest.approx(1.0)
    assert found.real_step_s >= found.step_s
    assert found.mtbf_s == FACTS["gpu_mtbf_s"].value / 16
    assert found.interval_s == daly_s(found.write_s, found.mtbf_s)
    segment_s = found.interval_s + found.write_s
    share = found.interval_s / (found.mtbf_s * exp(600 / found.mtbf_s) * expm1(segment_s / found.mtbf_s))
    assert found.goodput == pytest.approx(share * found.step_s / found.real_step_s)


def test_nothing_goes_wrong_where_nothing_can():
    perfect = Reality(
        gpu_mtbf_s=1e18, restart_s=0.0, write_bytes_per_s=1e18, slow_share=0.0, deviation=0.0, interval_s=HOUR
    )
    found = api.goodput("olmoe-1b-7b", "dgx-h100", "ep=8 zero=1 recompute=full", reality=perfect)
    assert found.goodput == pytest.approx(1.0)
    assert "given" in found.sources["interval_s"]


@pytest.mark.parametrize(
    "wrong", [{"gpu_mtbf_s": 0.0}, {"restart_s": -1.0}, {"slow_share": 1.5}, {"interval_s": float("nan")}]
)
def test_impossible_inputs_are_refused(wrong):
    with pytest.raises(MoesimError, match=f"goodput {next(iter(wrong))}"):
        Reality(**wrong)


def test_goodput_belongs_to_training():
    with pytest.raises(MoesimError, match="goodput of a decode workload"):
        api.goodput("olmoe-1b-7b", "dgx-h100", "ep=8", workload="decode")


def test_the_command_shows_every_input_with_its_source(capsys):
    assert main(["goodput", *TRAIN, "-s", "ep=8 zero=1 recompute=full"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Goodput 9" in out
    for name in FACTS:
        assert f"Input: {name} " in out


def test_the_command_takes_its_inputs_with_units(capsys):
    more = ["--gpu-mtbf", "1000h", "--restart", "0s", "--write-bandwidth", "1GB/s", "--checkpoint-interval", "10min"]
    assert main(["goodput", *TRAIN, "-s", "ep=8 zero=1 recompute=full", *more, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["mtbf_s"] == 1000 * HOUR / 16
    assert document["interval_s"] == 600.0
    assert document["lost"]["restarts"] == 0.0
    assert document["checkpoint_steps"] == pytest.approx(600.0 / document["real_step_s"])
    assert document["write_s"] * 16e9 == document["checkpoint_bytes"]
    assert sqrt(document["goodput"]) > document["goodput"]
