"""Collectives on every fabric: rings by hand, degraded links, leaves, tori, and ring, tree and NVLS by name."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import Group, load_cluster
from moesim.cluster.fabric import Degraded, Fabric, Wire
from moesim.collectives import all_gather, all_reduce, in_node, reduce_scatter
from moesim.collectives.hierarchical import slowest_rail
from moesim.collectives.inside import torus_share
from moesim.collectives.steps import ALL_REDUCE, fastest, floor_share
from moesim.cost import ESTIMATED
from moesim.errors import MoesimError

pytestmark = pytest.mark.usefixtures("unclamped")

GB, US = 1e9, 1e-6
H100, L40S = load_cluster("dgx-h100"), load_cluster("pcie-l40s")
NVLINK, PCIE, ICI = 320 * GB, 22 * GB, load_cluster("tpu-v3").scale_up.bandwidth_bytes_per_s
EIGHT = Group(size=8, per_node=8)
COLLECTIVES = (all_reduce, all_gather, reduce_scatter)


def joined(**fabric):
    """Eight H100 or, through a host, L40S."""
    return replace(L40S if fabric.get("inside") == "host" else H100, fabric=Fabric(**fabric))


def pod(*sides, cores=1):
    chips = int(np.prod(sides))
    return replace(
        load_cluster("tpu-v3"), gpus_per_node=cores * chips, fabric=Fabric(inside="torus", torus=tuple(sides))
    )


def ring_of(cables):
    return tuple(
        Wire(one=f"gpu{a}", other=f"gpu{(a + 1) % len(cables)}", bandwidth_bytes_per_s=each)
        for a, each in enumerate(cables)
    )


FABRICS = {
    "mesh": joined(inside="mesh"),
    "host": joined(inside="host", host_bytes_per_s=80 * GB),
    "torus": pod(4, 2),
    "graph": replace(H100, fabric=Fabric(inside="graph", wires=ring_of([100 * GB] * 8))),
}


def moving_s(cluster, collective, size_bytes, group=EIGHT):
    """Seconds above those of an empty message."""
    return float(collective(cluster, group, size_bytes).seconds - collective(cluster, group, 0.0).seconds)


def test_a_mesh_uses_all_its_links_at_once():
    # 8 GPUs: 7 rings over 7 links each: 7/8 of 320 GB at 320 GB/s
    assert moving_s(FABRICS["mesh"], all_gather, 320 * GB) == pytest.approx(7 / 8)
    # four of them have 3 of the 7 links: 3/4 of 320 GB at 3/7 x 320 GB/s
    four = Group(size=4, per_node=4)
    assert moving_s(FABRICS["mesh"], all_gather, 320 * GB, four) == pytest.approx(7 / 4)


def test_through_a_host_every_byte_crosses_its_memory_twice():
    # eight rings' hops in and out at 80 GB/s: 16 x 7/8 of 80 GB
    cost = all_gather(FABRICS["host"], EIGHT, 80 * GB)
    assert moving_s(FABRICS["host"], all_gather, 80 * GB) == pytest.approx(14.0)
    assert cost.limited_by == "host"
    # with a fast memory the GPUs' own PCIe links decide
    fast = joined(inside="host", host_bytes_per_s=8000 * GB)
    assert moving_s(fast, all_gather, 22 * GB) == pytest.approx(7 / 8)
    assert all_gather(fast, EIGHT, 22 * GB).limited_by == "pcie"


def test_a_ring_of_cables_goes_at_its_slowest_one():
    slow = replace(FABRICS["graph"], fabric=Fabric(inside="graph", wires=ring_of([100 * GB] * 7 + [50 * GB])))
    assert moving_s(FABRICS["graph"], all_gather, 100 * GB) == pytest.approx(7 / 8)
    assert moving_s(slow, all_gather, 100 * GB) == pytest.approx(2 * 7 / 8)


@pytest.mark.parametrize(("sides", "links"), [((8,), 2), ((4, 4), 4), ((4, 4, 4), 6)])
def test_a_torus_with_equal_sides_works_on_all_links_of_a_place(sides, links):
    # all-gather of S: every place receives (P-1)/P S over 2k links
    places = int(np.prod(sides))
    assert torus_share(sides) == pytest.approx((places - 1) / places / links)
    group = Group(size=places, per_node=places)
    assert moving_s(pod(*sides), all_reduce, ICI, group) == pytest.approx(2 * (places - 1) / places / links)


def test_cores_on_one_chip_add_up_there():
    one, two = (moving_s(pod(4, 4, cores=n), all_reduce, GB, Group(size=16 * n, per_node=16 * n)) for n in (1, 2))
    assert one == two
    pair = Group(size=2, per_node=2)
    assert moving_s(pod(4, 4, cores=2), all_reduce, GB, pair) == 0.0


def test_a_part_of_a_torus_has_one_ring_both_ways_round():
    half = Group(size=8, per_node=8)
    assert moving_s(pod(4, 4), all_gather, ICI, half) == pytest.approx(7 / 8 / 2)


@pytest.mark.parametrize("inside", FABRICS)
def test_no_fabric_but_a_switch_reads_a_measured_curve(inside):
    cost = all_reduce(FABRICS[inside], EIGHT, 1e9)
    assert cost.basis == ESTIMATED
    assert "NCCL 2" not in cost.source
    with pytest.raises(MoesimError, match=f"in a {inside} has no measured curve"):
        in_node(FABRICS[inside], "all_reduce", 8, 1e9)


def test_half_a_port_doubles_the_time_above_the_launch():
    slow = joined(degraded=(Degraded(link="up", node=0, index=5, share=0.5),))
    assert moving_s(slow, all_reduce, 1e9) == pytest.approx(2 * moving_s(H100, all_reduce, 1e9))
    assert "slowest port at 50%" in all_reduce(slow, EIGHT, 1e9).source
    four = Group(size=4, per_node=4)  # a group stands for all of its kind: another four have GPU 5
    assert moving_s(slow, all_reduce, 1e9, four) == pytest.approx(2 * moving_s(H100, all_reduce, 1e9, four))


def test_a_ring_between_nodes_goes_at_its_slowest_nic():
    cluster, group = load_cluster("dgx-h100", 4), Group(size=4, per_node=1)
    slow = replace(cluster, fabric=Fabric(degraded=(Degraded(link="nic", node=2, index=0, share=0.5),)))
    assert moving_s(slow, all_gather, 48 * GB, group) == pytest.approx(
        2 * moving_s(cluster, all_gather, 48 * GB, group)
    )


def test_each_rail_leaves_each_leaf_once():
    # 4 nodes below a leaf, 8 rails: 8 rings leave it by a way up that is worth 32 / oversubscription NICs
    group = Group(size=64, per_node=8)
    for oversubscription, slower, kind in ((1, 1.0, "nic"), (4, 1.0, "nic"), (8, 2.0, "uplink"), (16, 4.0, "uplink")):
        tree = Fabric(between="tree", leaf_nodes=4, oversubscription=oversubscription)
        assert slowest_rail(replace(load_cluster("dgx-h100", 8), fabric=tree), group) == (slower, kind)


def test_below_one_leaf_no_ring_leaves_it():
    tree = Fabric(between="tree", leaf_nodes=4, oversubscription=16)
    cluster = replace(load_cluster("dgx-h100", 4), fabric=tree)
    assert slowest_rail(cluster, Group(size=32, per_node=8)) == (1.0, "nic")


def test_rails_never_wait_for_a_spine():
    for between in ("rail", "rail_only", "spine"):
        cluster = replace(load_cluster("dgx-h100", 8), fabric=Fabric(between=between, oversubscription=16))
        assert slowest_rail(cluster, Group(size=64, per_node=8)) == (1.0, "nic")


def test_ring_tree_and_nvls_by_hand():
    # 8 ranks: 14 steps of 7/4 S, 6 steps of 2 S, 2 steps of 9/8 S
    assert {name: tuple(moves(8)) for name, moves in ALL_REDUCE.items()} == {
        "ring": (14, 1.75), "tree": (6, 2.0), "nvls": (2, 1.125),
    }  # fmt: skip


def test_nvls_predicts_five_to_seven_gpus_from_eight():
    # H200, NCCL 2.27.7, 8 GiB (stas00/ml-engineering 744d01e): 33.18, 32.87, 32.01, 31.77 ms on 5, 6, 7, 8 GPUs
    at_eight = 31.77 / ALL_REDUCE["nvls"](8).share
    for ranks, measured_ms in ((5, 33.18), (6, 32.87), (7, 32.01)):
        assert ALL_REDUCE["nvls"](ranks).share * at_eight == pytest.approx(measured_ms, rel=0.03)
    # with NVLS off: 35.47, 37.72, 39.21, 40.27, 41.12 ms on 4 to 8: a ring
    ring_at_eight = 41.12 / ALL_REDUCE["ring"](8).share
    for ranks, measured_ms in ((4, 35.47), (5, 37.72), (6, 39.21), (7, 40.27)):
        assert ALL_REDUCE["ring"](ranks).share * ring_at_eight == pytest.approx(measured_ms, rel=0.01)


def test_small_messages_take_the_tree_and_large_ones_the_ring():
    steps_s, bytes_s = fastest("all_reduce", 8, np.array([8.0, 1e9]), 1 * US, 1 / GB)
    assert steps_s == pytest.approx([6 * US, 14 * US])
    assert bytes_s == pytest.approx([16 / GB, 1.75])


def test_only_a_switch_that_sums_sends_less_than_a_ring():
    assert floor_share(H100, "all_reduce", 8) == 9 / 8
    assert floor_share(load_cluster("dgx-a100"), "all_reduce", 8) == 7 / 4
    assert floor_share(FABRICS["mesh"], "all_reduce", 8) == 7 / 4


@settings(max_examples=30)
@given(
    inside=st.sampled_from(sorted(FABRICS)),
    collective=st.sampled_from(COLLECTIVES),
    size=st.floats(1e3, 1e10),
    factor=st.floats(1.0, 100.0),
)
def test_bytes_scale_the_time_above_the_launch_at_most(inside, collective, size, factor):
    cluster = FABRICS[inside]
    once, more, empty = (float(collective(cluster, EIGHT, s).seconds) for s in (size, factor * size, 0.0))
    assert once * (1 - 1e-12) <= more <= empty + factor * (once - empty) * (1 + 1e-9) + 1e-12
    cost = collective(cluster, EIGHT, size)
    assert 0.0 < cost.bound_s <= cost.seconds


@settings(max_examples=30)
@given(inside=st.sampled_from(["mesh", "host", "torus"]), collective=st.sampled_from(COLLECTIVES))
def test_twice_the_capacity_halves_the_time_above_the_launch(inside, collective):
    cluster = FABRICS[inside]
    up, host = cluster.scale_up, cluster.fabric.host_bytes_per_s
    faster = replace(
        cluster,
        scale_up=replace(
            up, bandwidth_bytes_per_s=2 * up.bandwidth_bytes_per_s, peak_bytes_per_s=2 * up.peak_bytes_per_s
        ),
        fabric=replace(cluster.fabric, host_bytes_per_s=host and 2 * host),
    )
    assert moving_s(faster, collective, 1e11) == pytest.approx(moving_s(cluster, collective, 1e11) / 2, rel=1e-3)


@settings(max_examples=40)
@given(
    inside=st.sampled_from(["switch", "mesh", "host", "torus"]),
    collective=st.sampled_from(COLLECTIVES),
    link=st.sampled_from(["up", "nic", "uplink"]),
    share=st.floats(0.05, 1.0),
    size=st.floats(1.0, 1e10),
)
def test_a_degraded_link_never_makes_a_collective_faster(inside, collective, link, share, size):
    nodes = 1 if inside == "torus" else 4
    sound = FABRICS.get(inside, H100) if inside != "switch" else H100
    tree = {} if inside == "torus" else {"between": "tree", "leaf_nodes": 2}
    sound = replace(sound, nodes=nodes, fabric=replace(sound.fabric, **tree))
    if nodes == 1 and link != "up":
        return
    slow = replace(sound, fabric=replace(sound.fabric, degraded=(Degraded(link=link, node=0, index=0, share=share),)))
    group = Group(size=8 * nodes, per_node=8)
    assert collective(slow, group, size).seconds >= collective(sound, group, size).seconds * (1 - 1e-12)
