"""All-to-alls beyond linear and 2dh: loads by hand at four ranks, who beats whom, and who cannot run where."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.alltoall import ALGORITHMS, Traffic, all_to_all, unsupported
from moesim.alltoall.bruck import blocks_on_links, largest_block
from moesim.alltoall.leader import leader_links
from moesim.alltoall.pods import pod_links
from moesim.alltoall.shifts import step_waits
from moesim.cluster import Degraded, Fabric, Group, load_cluster
from moesim.errors import MoesimError
from moesim.network import Dense, Product, waits
from tests.alltoall_places import FOUR, PODS, RUNS, TORUS, TREE, TWO, seconds, traffic

pytestmark = pytest.mark.usefixtures("unclamped")

US = 1e-6
HAND = np.array([[9, 5, 3, 2], [0, 0, 0, 4], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=float)


def test_every_algorithm_runs_somewhere():
    assert {name for _, _, name in RUNS} == set(ALGORITHMS)


# -- loads by hand --


def test_pairwise_steps_by_hand():
    # step 1: 0->1 5 by NVLink. step 2: 1->3 4 and 0->2 3 on their rails. step 3: 0->3 2 by NVLink to 1 and its rail,
    # 3->2 1 by NVLink
    sent = HAND[np.arange(4), (np.arange(4) + np.array([[1], [2], [3]])) % 4]
    found = step_waits(TWO, FOUR, sent, np.array([1, 2, 3]))
    assert (found["up"].tolist(), found["nic"].tolist()) == ([5, 0, 2], [0, 4, 2])


@pytest.mark.parametrize(
    "fabric",
    [
        Fabric(), Fabric(between="spine"), Fabric(between="rail_only"), Fabric(between="tree", oversubscription=2.0),
        Fabric(degraded=(Degraded(link="nic", node=1, index=0), Degraded(link="up", node=0, index=1, share=0.25))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nics", [8, 1])
def test_a_step_loads_what_the_network_says_of_its_pairs(fabric, nics):
    cluster = replace(TWO, nics_per_node=nics, fabric=replace(fabric, degraded=fabric.degraded if nics == 8 else ()))
    rng = np.random.default_rng(0)
    group = Group(size=16, per_node=8)
    for shift in (1, 5, 8, 11):
        sent = rng.integers(0, 9, 16).astype(float)
        copies = np.zeros((16, 16))
        copies[np.arange(16), (np.arange(16) + shift) % 16] = sent
        step, whole = (
            step_waits(cluster, group, sent[None], np.array([shift])),
            waits(cluster, group, Dense(copies=copies)),
        )
        assert {kind: each.tolist() for kind, each in step.items()} == {k: [float(v)] for k, v in whole.items()}


def test_pairwise_waits_for_the_heaviest_pair_of_every_step():
    # the heaviest pairs in one step: 3 x 19.9 us and 4 MB over a NIC of 48 GB/s; in different steps both are waited for
    together, apart = np.zeros((4, 4)), np.zeros((4, 4))
    together[0, 2] = together[1, 3] = 4
    apart[0, 2] = apart[1, 2] = 4
    assert seconds(TWO, FOUR, "pairwise", together) == pytest.approx(3 * 19.9 * US + 4e6 / 48e9)
    assert seconds(TWO, FOUR, "pairwise", apart) == pytest.approx(3 * 19.9 * US + 2 * 4e6 / 48e9)
    skewed = np.random.default_rng(0).lognormal(0.0, 1.0, (4, 4))
    links, steps = (all_to_all(TWO, FOUR, traffic(skewed), name).bound_s for name in ("linear", "pairwise"))
    assert steps > 1.1 * links


def test_bruck_moves_half_of_the_blocks_in_each_of_log_steps():
    # 2 of 4 blocks a step. one place on: 0->1 by NVLink, 1->2 by NVLink to 0 and its rail; two places on: the rail
    found = blocks_on_links(TWO, FOUR)
    assert (found["up"].tolist(), found["nic"].tolist()) == ([2, 0], [2, 2])


def test_bruck_pads_all_blocks_to_the_largest_that_leaves_its_rank():
    assert largest_block(Dense(copies=HAND)) == 5
    assert largest_block(Product(sent=np.array([10.0, 2.0]), share=np.array([0.9, 0.1]))) == pytest.approx(1.8)
    even, one_large = np.ones((4, 4)), np.ones((4, 4))
    one_large[0, 3] = 2
    once, twice = (all_to_all(TWO, FOUR, traffic(each), "bruck").bound_s for each in (even, one_large))
    assert twice == pytest.approx(2 * once)


def test_pods_by_hand():
    # 8 ranks send 1 to each: on a rail, a node gives its pod mate 4 (2 senders x 2 pods), then 4 to the other pod (2
    # senders x 2 nodes); a leaf sends 8 a rail, and is worth the NICs of its 2 nodes
    near, far = pod_links(TREE, PODS, traffic(np.ones((8, 8))))
    assert (float(near["nic"]), float(far["nic"]), float(far["uplink"])) == (4, 4, 4)
    narrow = replace(TREE, fabric=replace(TREE.fabric, oversubscription=2.0))
    assert pod_links(narrow, PODS, traffic(np.ones((8, 8))))[1]["uplink"] == 8


def test_pods_pay_when_a_node_has_hundreds_of_peers():
    # 512 nodes in pods of 16: 46 messages instead of 511 of 0.3 us each, for another 60 us and 4 us
    fabric, size = Fabric(between="tree", leaf_nodes=16), Group(size=4096, per_node=8)
    cluster = replace(load_cluster("dgx-h100", 512), fabric=fabric)
    even = Traffic(pairs=Product(sent=np.full(4096, 8.0), share=np.full(4096, 1 / 4096)), tokens=1, token_bytes=1024)
    flat, podded = (float(all_to_all(cluster, size, even, name).seconds) for name in ("2dh", "3dh"))
    assert flat - podded == pytest.approx((511 - 46) * 0.3 * US - 64 * US, rel=0.05)


def test_leader_by_hand():
    # rank 0 sends 19, 1 4, 3 1: rank 1 gives its leader 4. 0 and 1 send 3 + 2 + 4 to the other node, by one NIC; rank 3
    # gets 6 from its leader, rank 1 gets 5; node 0 holds 23
    to_leader, between, from_leader = leader_links(TWO, FOUR, traffic(HAND))
    assert (float(to_leader["up"]), float(between["nic"]), float(from_leader["up"])) == (4, 9, 6)
    assert (float(to_leader["node"]), float(from_leader["node"])) == (23, 14)
    shared = replace(TWO, nics_per_node=1)  # a NIC of both ranks is worth two
    assert leader_links(shared, FOUR, traffic(HAND))[1]["nic"] == 4.5


def test_rail_is_2dh_without_its_two_copies():
    # the largest buffer has 19 MB: read and written at 0.72 x 3.35 TB/s, 4 us each
    copy_s = 4 * US + 2 * 19e6 / (0.72 * 3.35e12)
    found = seconds(TWO, FOUR, "2dh", HAND) - seconds(TWO, FOUR, "rail", HAND)
    assert found == pytest.approx(2 * copy_s)


def test_tiles_take_two_signals_and_the_busiest_link():
    # rank 3 receives 2 + 4 MB from the other node; 1.5 us for the first and the last tile
    assert seconds(TWO, FOUR, "tiles", HAND) == pytest.approx(3 * US + 6e6 / 48e9)


def test_an_even_exchange_on_a_ring_loads_an_eighth_of_the_ring_on_each_link():
    # S d / 8 with S = 4 copies of 1 MB and d = 4 places
    ring = replace(TORUS, gpus_per_node=4, fabric=Fabric(inside="torus", torus=(4,)))
    link = ring.scale_up
    found = seconds(ring, Group(size=4, per_node=4), "torus", np.ones((4, 4)))
    assert found == pytest.approx(link.latency_s + 2e6 / link.bandwidth_bytes_per_s)


# -- who beats whom --


def one_nic(nodes):
    whole = load_cluster("dgx-h100", nodes)
    link = whole.scale_out
    eighth = replace(
        link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / 8, peak_bytes_per_s=link.peak_bytes_per_s / 8
    )
    return replace(whole, nics_per_node=1, scale_out=eighth)


@pytest.mark.parametrize("nodes", [4, 8])
def test_a_leader_wins_for_small_messages_on_one_nic_a_node_and_loses_for_large_ones_or_with_eight(nodes):
    ranks = 8 * nodes
    group, even = Group(size=ranks, per_node=8), np.ones((ranks, ranks))

    def over_linear(cluster, buffer_bytes):
        led, flat = (seconds(cluster, group, name, even, buffer_bytes / ranks) for name in ("leader", "linear"))
        return led / flat

    assert over_linear(one_nic(nodes), 64 * 1024) < 0.85
    assert over_linear(one_nic(nodes), 16 * 2**20) > 1.2
    assert over_linear(load_cluster("dgx-h100", nodes), 64 * 1024) > 1.1
    assert over_linear(load_cluster("dgx-h100", nodes), 16 * 2**20) > 5


@pytest.mark.parametrize(
    ("tokens", "ranks", "expected_us"),
    [
        (128, 8, 159), (128, 16, 728), (128, 32, 907), (128, 64, 1086), (128, 256, 1445), (4096, 8, 3241),
        (4096, 16, 20828), (4096, 32, 25937), (4096, 64, 31046), (4096, 256, 41264),
    ],
)  # fmt: skip
def test_bruck_gives_its_expected_table(tokens, ranks, expected_us):
    # H 7168 bf16, top-8 of 256, uniform, H100: worked out with 20 us a step; here a NIC's 19.9, in a node NCCL's 8.5
    copies = np.full((ranks, ranks), tokens * 8 / ranks)
    group = Group(size=ranks, per_node=8)
    found = seconds(load_cluster("dgx-h100", ranks // 8), group, "bruck", copies, 14336)
    assert found == pytest.approx(expected_us * US, rel=0.10)


def test_few_steps_win_for_tiny_messages_and_many_messages_for_large_ones():
    group, even = Group(size=8, per_node=8), np.ones((8, 8))
    tiny, large = ({n: seconds(TWO, group, n, even, size) for n in ("bruck", "pairwise")} for size in (8, 8e6))
    assert tiny["bruck"] < tiny["pairwise"]
    assert large["pairwise"] < large["bruck"]


# -- who cannot run where --


@pytest.mark.parametrize(
    ("name", "cluster", "group", "why"),
    [
        ("linear", TORUS, Group(size=8, per_node=8), "linear needs a node joined as switch, mesh, host or graph"),
        ("torus", TWO, FOUR, "torus needs a node joined as torus; that of dgx-h100 is a switch"),
        ("bruck", replace(TWO, fabric=Fabric(inside="mesh")), FOUR, "that of dgx-h100 is a mesh"),
        ("3dh", TWO, FOUR, "3dh needs pods, the nodes below a leaf of between=tree; dgx-h100 is rail"),
        ("3dh", TREE, Group(size=6, per_node=2), "3dh needs several whole pods"),
        ("leader", TWO, Group(size=8, per_node=8), "leader needs ranks on more than one node"),
        ("rail", TWO, Group(size=2, per_node=1), "rail needs more than one rank on a node"),
        ("tiles", replace(TWO, fabric=Fabric(between="rail_only")), FOUR, "no spine between its 2 rails"),
        ("deepep_ll", replace(TWO, fabric=Fabric(between="rail_only")), FOUR, "no spine between its 2 rails"),
        ("tiles", load_cluster("pcie-l40s"), Group(size=8, per_node=8), "tiles needs NVLink"),
        ("pairwise", load_cluster("dgx-h100", 256), Group(size=2048, per_node=8), "at most 256 ranks, not 2,048"),
    ],
)
def test_why_an_algorithm_cannot_run(name, cluster, group, why):
    assert why in unsupported(cluster, group, name)


def test_a_rail_only_fabric_is_for_rails_and_forwarding():
    cluster = replace(TWO, fabric=Fabric(between="rail_only"))
    usable = [name for name in ALGORITHMS if unsupported(cluster, FOUR, name) is None]
    assert {"linear", "2dh", "rail", "leader", "deepep"} <= set(usable)
    no_nvlink = replace(load_cluster("pcie-l40s", 2), fabric=Fabric(between="rail_only"))
    spread = Group(size=16, per_node=8)
    assert "no spine" in unsupported(no_nvlink, spread, "linear")
    assert unsupported(no_nvlink, spread, "rail") is None


def test_a_refusal_names_what_can_run():
    with pytest.raises(MoesimError, match=r"all-to-all linear: linear needs .* is a torus; choose torus$"):
        seconds(TORUS, Group(size=8, per_node=8), "linear", np.ones((8, 8)))
