"""GShard, Tutel, HetuMoE, FlashMoE and pplx: what moesim says of published exchanges, from one set of constants.

hardware_profiles/exchanges_published.csv holds the figures; role "fit" went into a constant, "judge" did not.
"""

import csv
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.alltoall import Traffic, all_to_all, busiest_bytes
from moesim.alltoall.linear import CROWD, HDR_CROWD, PER_PEER_S, START_S, connections, nic_share
from moesim.cluster import Group, load_cluster
from moesim.cluster.fabric import Degraded, Fabric
from moesim.collectives import all_reduce
from moesim.network import Dense, Product
from moesim.profile import shipped_folder

US, MIB = 1e-6, 2.0**20
POD = load_cluster("tpu-v3")
CHIPS = {16: (4, 2), 32: (4, 4), 64: (8, 4), 128: (8, 8), 256: (16, 8), 512: (16, 16), 1024: (32, 16), 2048: (32, 32)}


def published(case, op, role=None):
    """``(ranks, bytes, algorithm) -> value`` of one case."""
    with (shipped_folder() / "exchanges_published.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["case"] == case and row["op"] == op]
    return {
        (int(row["ranks"]), float(row["bytes"]), row["algorithm"]): float(row["value"])
        for row in rows
        if role in (None, row["role"])
    }


def even(ranks, size_bytes):
    """Every rank sends ``size_bytes`` in all, equally to everybody."""
    pairs = Product(sent=np.ones(ranks), share=np.full(ranks, 1.0 / ranks))
    return Traffic(pairs=pairs, tokens=1.0, token_bytes=size_bytes)


def seconds(cluster, ranks, size_bytes, algorithm):
    group = Group(size=ranks, per_node=min(ranks, cluster.gpus_per_node))
    return float(all_to_all(cluster, group, even(ranks, size_bytes), algorithm).seconds)


def pod(cores):
    """A part of the TPU v3 pod: two cores a chip, the torus is of chips."""
    return replace(POD, gpus_per_node=cores, fabric=replace(POD.fabric, torus=CHIPS[cores]))


def nd96(ranks):
    """Azure ND96amsr A100 v4 with NCCL 2.10, which has no PXN: bytes for another rail climb to the spine."""
    return replace(load_cluster("dgx-a100", ranks // 8), fabric=Fabric(between="spine"))


def one_nic(nodes):
    """Eight A100 on NVLink that share one 100 Gb/s NIC, at the same share of its data sheet as HDR."""
    cluster = load_cluster("dgx-a100", nodes)
    link = replace(cluster.scale_out, bandwidth_bytes_per_s=11.5e9 / 8, peak_bytes_per_s=12.5e9 / 8)
    return replace(cluster, scale_out=link, nics_per_node=1)


def test_gshard_s_16_exchanges_come_out_within_25_percent():
    # latency and bandwidth from the two points at 16 cores; the other 14 are judged: -23 to +3 %
    found = published("gshard", "all_to_all")
    assert len(found) == 16
    errors = {key: seconds(pod(key[0]), key[0], key[1], "torus") / (us * US) - 1 for key, us in found.items()}
    assert max(abs(error) for error in errors.values()) < 0.25
    assert sum(abs(error) < 0.15 for error in errors.values()) >= 13


def test_gshard_s_time_rises_in_stairs_of_two():
    # the longest side doubles from a square to the next rectangle: 16 = 32 < 64 = 128 < 256 = 512 < 1024 = 2048 cores
    times = {cores: seconds(pod(cores), cores, 32 * MIB, "torus") for cores in CHIPS}
    assert [times[n] / times[16] for n in CHIPS] == pytest.approx([1, 1, 2, 2, 4, 4, 8, 8], rel=0.02)
    for size in (8 * MIB, 32 * MIB):
        assert 7.5 <= seconds(pod(2048), 2048, size, "torus") / seconds(pod(16), 16, size, "torus") <= 10.5


def test_gshard_s_all_reduce_stays_flat():
    found = published("gshard", "all_reduce")
    for size in (8 * MIB, 32 * MIB):
        times = {n: float(all_reduce(pod(n), Group(size=n, per_node=n), size).seconds) for n in CHIPS}
        assert max(times.values()) < 2 * min(times.values())
        for cores, predicted_s in times.items():  # squares -31 to 0 %, rectangles -44 to +9 %
            assert 0.5 < predicted_s / (found[cores, size, "torus"] * US) < 2.0


@settings(max_examples=20)
@given(sides=st.lists(st.sampled_from([2, 4, 8]), min_size=1, max_size=3), size=st.floats(1e3, 1e9))
def test_a_torus_takes_the_longest_side_over_eight(sides, size):
    # an even exchange of S a place puts S d/8 on every link of the longest side, in each direction
    places = int(np.prod(sides))
    cluster = replace(POD, gpus_per_node=places, fabric=Fabric(inside="torus", torus=tuple(sides)))
    link = cluster.scale_up
    expected_s = link.latency_s + size * max(sides) / 8 / link.bandwidth_bytes_per_s
    assert seconds(cluster, places, size, "torus") == pytest.approx(expected_s, rel=1e-9)


def test_tutel_table_2():
    # 16, 64, 256 A100: 0, +9, -2 %
    found = published("tutel-table-2", "all_to_all")
    for (ranks, size, name), us in found.items():
        assert seconds(nd96(ranks), ranks, size, name) == pytest.approx(us * US, rel={256: 0.30}.get(ranks, 0.15))


def test_connections_that_halve_a_nic_are_those_of_tutel_s_figure(monkeypatch):
    # a step has four exchanges: linear minus 2dh, at 16 to 1,024 A100s, by least squares
    steps = published("tutel-figure", "step", "fit")
    ranks = sorted({key[0] for key in steps})
    size = 256 * MIB
    measured_s = np.array([(steps[n, size, "linear"] - steps[n, size, "2dh"]) * US / 4 for n in ranks])

    def rms_s(crowd):
        monkeypatch.setitem(CROWD, "ampere", crowd)
        return np.sqrt(np.mean((np.array([apart_s(n, size) for n in ranks]) - measured_s) ** 2))

    tried = np.arange(600.0, 901.0, 20.0)
    errors_s = [rms_s(crowd) for crowd in tried]
    assert tried[int(np.argmin(errors_s))] == HDR_CROWD
    assert min(errors_s) == pytest.approx(1.9e-3, rel=0.05)


def apart_s(ranks, size):
    """By how much a linear exchange is slower than 2dh."""
    return seconds(nd96(ranks), ranks, size, "linear") - seconds(nd96(ranks), ranks, size, "2dh")


def test_two_dimensions_overtake_linear_between_128_and_512_gpus():
    # Tutel fig. 18 (text) and issue 214 ("at least over 256"): 32 MiB
    assert apart_s(128, 32 * MIB) < 0 < apart_s(256, 32 * MIB)
    # earlier at 1 MiB; ahead at 2,048 and 4,096 with every size of the figure
    assert apart_s(64, 1 * MIB) > 0
    for ranks in (2048, 4096):
        assert all(apart_s(ranks, size * MIB) > 0 for size in (1, 32, 256))


def test_with_pxn_the_same_gpus_stay_linear_for_longer():
    # NCCL 2.12 and later reach the other rails by NVLink: a NIC talks to N-1 others, not to R-8
    modern, old, group = load_cluster("dgx-a100", 128), nd96(1024), Group(size=1024, per_node=8)
    assert (connections(modern, group), connections(old, group)) == (127, 1016)
    assert nic_share(modern, 0) == 1.0
    assert seconds(modern, 1024, 32 * MIB, "linear") < seconds(old, 1024, 32 * MIB, "linear") / 1.5


def test_the_start_of_a_linear_exchange_lies_between_its_two_sources():
    # torch's all-to-all of one token on H100, net of its payload at 48 GB/s; SimAI's half-size of 6 MB at 48.5 GB/s
    rows = published("pplx-torch", "all_to_all", "fit")
    torch_s = np.mean([us * US - size * (n - 8) / n / 48e9 - PER_PEER_S * (n - 1) for (n, size, _), us in rows.items()])
    simai_s = 6e6 / 48.5e9 - PER_PEER_S * 47  # 4 to 8 nodes
    assert torch_s == pytest.approx(63 * US, rel=0.02)
    assert simai_s == pytest.approx(110 * US, rel=0.02)
    assert pytest.approx(np.sqrt(torch_s * simai_s), rel=0.02) == START_S


def test_torch_s_large_exchanges_on_h100_are_up_to_a_quarter_slower():
    # 235 MB a rank on 16, 32, 64, 128 H100 (payload inferred): -21, -11, -19, -5 %; none of them fitted
    for (ranks, size, name), us in published("pplx-torch", "all_to_all", "judge").items():
        found_s = seconds(load_cluster("dgx-h100", ranks // 8), ranks, size, name)
        assert 0.75 < found_s / (us * US) < 1.0


def test_a_leader_pays_for_small_messages_on_one_shared_nic():
    # HetuMoE: wins on one NIC a node at 4 and 8 nodes, loses for large messages and with eight NICs
    for nodes in (4, 8):
        ranks, shared = 8 * nodes, one_nic(nodes)
        assert seconds(shared, ranks, 2.0**14, "leader") < seconds(shared, ranks, 2.0**14, "linear")
        assert seconds(shared, ranks, 64 * MIB, "leader") > seconds(shared, ranks, 64 * MIB, "linear")
        rails = load_cluster("dgx-a100", nodes)
        for size in (2.0**14, MIB, 64 * MIB):
            assert seconds(rails, ranks, size, "leader") > seconds(rails, ranks, size, "linear")


def test_hetumoe_s_gain_at_16_mb_is_not_reproduced():
    # second-hand 1.66x and 2x on PCIe nodes of an Ethernet NIC: here the leader loses, even with NVLink inside
    for (ranks, size, _), gain in published("hetumoe", "speedup").items():
        found = seconds(one_nic(ranks // 8), ranks, size, "linear") / seconds(
            one_nic(ranks // 8), ranks, size, "leader"
        )
        assert found < 1.0 < gain


def test_flashmoe_sends_real_rows_only():
    # 58.7, 117.4, 234.9 MB a GPU and direction at 4K, 8K, 16K tokens
    node, group = load_cluster("dgx-h100"), Group(size=8, per_node=8)
    for (_, size, name), expected_bytes in published("flashmoe", "bytes").items():
        sent = busiest_bytes(node, group, even(8, size), name)
        assert sent["nvlink"] == pytest.approx(expected_bytes, rel=1e-3)


@settings(max_examples=20)
@given(skew=st.lists(st.integers(1, 9), min_size=16, max_size=16), between=st.sampled_from(["rail", "spine", "tree"]))
def test_a_degraded_nic_never_makes_an_exchange_faster(skew, between):
    copies = Dense(copies=np.outer(np.ones(16), skew).astype(float))
    traffic = Traffic(pairs=copies, tokens=1.0, token_bytes=1e6)
    slow = (Degraded(link="nic", node=1, index=3, share=0.5),)
    sound_s, slow_s = (
        float(
            all_to_all(
                replace(load_cluster("dgx-h100", 2), fabric=Fabric(between=between, degraded=damage)),
                Group(size=16, per_node=8), traffic, "linear",
            ).seconds
        )
        for damage in ((), slow)
    )  # fmt: skip
    assert slow_s >= sound_s
