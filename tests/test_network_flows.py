"""Max-min fair flows: by hand, golden makespans, folded, and how much longer than the busiest link they take."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import Degraded, Fabric, Group, Wire, load_cluster
from moesim.errors import MoesimError
from moesim.network import Dense, Flows, Product, contention, ends, families, loads, pair_flows, waits
from moesim.network.classes import class_flows, classed
from moesim.network.links import bytes_per_s
from studies import network_speed as study

GOLDEN = [  # network, ranks, skew, makespan in us: numpy's default_rng(1), checked against SimGrid 3.32
    ("a: one switch", 16, 0.0, 510.393), ("a: one switch", 16, 0.5, 713.180),
    ("b: rails, forwarded", 16, 0.0, 2457.692), ("b: rails, forwarded", 16, 0.5, 3445.411),
    ("b': one leaf", 16, 0.0, 2457.692), ("b': one leaf", 16, 0.5, 3445.411),
    ("c: 2:1 tree", 16, 0.0, 2457.692), ("c: 2:1 tree", 16, 0.5, 3445.411),
    ("a: one switch", 64, 0.0, 537.283), ("a: one switch", 64, 0.5, 1449.489),
    ("b: rails, forwarded", 64, 0.0, 4304.066), ("b: rails, forwarded", 64, 0.5, 11596.274),
    ("b': one leaf", 64, 0.0, 4295.196), ("b': one leaf", 64, 0.5, 11596.274),
    ("c: 2:1 tree", 64, 0.0, 7288.643), ("c: 2:1 tree", 64, 0.5, 12231.751),
    ("a: one switch", 128, 0.5, 1773.193), ("c: 2:1 tree", 128, 0.5, 15096.682),
]  # fmt: skip
BOX = replace(load_cluster("pcie-l40s"), scale_out=None, nics_per_node=0)


def flows(paths, sizes, capacity=(1.0, 1.0, 1.0), **more):
    longest = max(map(len, paths))
    path = np.array([[*path, *[-1] * (longest - len(path))] for path in paths])
    sizes = np.array(sizes, dtype=float)
    return Flows(
        path=path, size_bytes=sizes, copies=np.ones(len(sizes)), capacity_bytes_per_s=np.array(capacity), **more
    )


def dgx(nodes=4, gpus=4, **fabric):
    cluster = replace(load_cluster("dgx-h100", nodes), gpus_per_node=gpus, nics_per_node=gpus, fabric=Fabric(**fabric))
    return cluster, Group(size=nodes * gpus, per_node=gpus)


def popular(ranks, skew, seed=3, spread=0.1):
    rng = np.random.default_rng(seed)
    share = np.exp(skew * rng.standard_normal(ranks))
    return Product(sent=1000 * np.exp(spread * rng.standard_normal(ranks)), share=share / share.sum())


def every_pair(product):
    return Dense(copies=np.outer(product.sent, product.share))


def test_two_flows_share_a_link_until_the_smaller_one_ends():
    # half each until 2 s; then the larger one has the link alone: 3 bytes are through at 3 s
    assert ends(flows([[0], [0]], [1, 2])) == pytest.approx([2, 3])


def test_what_a_flow_cannot_use_goes_to_the_others():
    # link 0 is the narrow one for its three flows (1/3 each), so link 1 has 2/3 left for the fourth
    assert ends(flows([[0], [0], [0, 1], [1]], [1, 1, 1, 1])) == pytest.approx([3, 3, 3, 1.5])


def test_a_row_stands_for_as_many_flows_as_it_has_copies():
    one = flows([[0], [0]], [1, 2])
    assert ends(replace(one, copies=np.array([2.0, 1.0]))) == pytest.approx([3, 4])


def test_a_flow_of_three_channels_gets_three_times_the_rate():
    assert ends(flows([[0], [0]], [3, 3], weight=np.array([3.0, 1.0]))) == pytest.approx([4, 6])


def test_a_flow_that_starts_late_shares_from_then_on():
    # alone for 1 s, then half of the link: 2 bytes are through at 3 s; the late one has 1 of 2 left, alone
    assert ends(flows([[0], [0]], [2, 2], start_s=np.array([0.0, 1.0]))) == pytest.approx([3, 4])


def test_a_flow_without_bytes_or_links_ends_when_it_starts():
    assert ends(flows([[0], [0], []], [1, 0, 5], start_s=np.array([0.0, 7.0, 8.0]))) == pytest.approx([1, 7, 8])


@pytest.mark.parametrize(("name", "ranks", "skew", "makespan_us"), GOLDEN)
def test_golden_makespans_are_met(name, ranks, skew, makespan_us):
    assert float(ends(study.flows(name, ranks, skew)).max()) * 1e6 == pytest.approx(makespan_us, rel=1e-5)


WIRES = tuple(Wire(one=a, other=b, bandwidth_bytes_per_s=1e9) for a, b in
              [("gpu0", "s"), ("gpu1", "s"), ("gpu0", "t"), ("gpu1", "t"), ("gpu2", "t"), ("gpu3", "s")])  # fmt: skip
SLOW = (Degraded(link="nic", node=1, index=2), Degraded(link="uplink", node=0))
ALL_OF_A_BOX = Group(size=4, per_node=4)
FABRICS = {
    "rails": dgx(), "rails only": dgx(between="rail_only"), "spine": dgx(between="spine"),
    "tree": dgx(between="tree", leaf_nodes=2, oversubscription=2.0),
    "slow links": dgx(between="tree", degraded=SLOW),
    "mesh": dgx(inside="mesh"), "shared NICs": (replace(dgx()[0], nics_per_node=2), dgx()[1]),
    "host": (replace(BOX, gpus_per_node=4, fabric=Fabric(inside="host", host_bytes_per_s=4e10)), ALL_OF_A_BOX),
    "graph": (replace(BOX, gpus_per_node=4, fabric=Fabric(inside="graph", wires=WIRES)), ALL_OF_A_BOX),
}  # fmt: skip


@pytest.mark.parametrize("route", ["forwarded", "direct"])
@pytest.mark.parametrize("fabric", list(FABRICS))
def test_the_flows_of_all_pairs_load_every_link_as_the_loads_say(fabric, route):
    cluster, group = FABRICS[fabric]
    dense = Dense(copies=np.random.default_rng(0).integers(0, 9, (group.size, group.size)).astype(float))
    found = pair_flows(cluster, group, dense, route, token_bytes=2.0).load_bytes
    said = loads(cluster, group, dense, route)
    first = 0
    for name, worth in families(cluster, group).items():
        load = said.get(name, np.zeros(len(worth)))
        assert found[first : first + len(worth)] / 2.0 == pytest.approx(load), name
        first += len(worth)
    assert first == len(found)
    kinds = waits(cluster, group, dense, route)
    longest_s = max(float(wait) / bytes_per_s(cluster, kind)[0] for kind, wait in kinds.items())
    assert pair_flows(cluster, group, dense, route).bound_s == pytest.approx(longest_s)


random_flows = st.integers(0, 2**32 - 1).map(np.random.default_rng).map(
    lambda rng: Flows(
        path=np.sort(rng.integers(-1, 6, (20, 3)), axis=1)[:, ::-1],
        size_bytes=rng.integers(0, 5, 20).astype(float),
        copies=rng.integers(1, 4, 20).astype(float),
        capacity_bytes_per_s=rng.uniform(0.5, 2.0, 6),
        weight=rng.uniform(0.5, 2.0, 20),
    )
)  # fmt: skip


@settings(max_examples=40)
@given(random_flows, st.sampled_from([0.0, 0.01, 0.1]))
def test_no_schedule_beats_the_busiest_link_and_none_idles_it_for_ever(case, step):
    played_s = ends(case, step).max()
    assert played_s >= case.bound_s * (1.0 - 1e-9 - step)
    assert played_s <= np.sum(case.load_bytes / case.capacity_bytes_per_s) + case.bound_s * step + 1e-9


@settings(max_examples=25)
@given(random_flows, st.floats(0.01, 1e12), st.floats(0.01, 1e12))
def test_time_is_linear_in_bytes_and_in_one_over_capacity(case, more, faster):
    scaled = replace(case, size_bytes=case.size_bytes * more, capacity_bytes_per_s=case.capacity_bytes_per_s * faster)
    assert ends(scaled) == pytest.approx(ends(case) * more / faster, rel=1e-6)


@settings(max_examples=25)
@given(random_flows, st.randoms(use_true_random=False))
def test_the_order_of_flows_and_the_names_of_links_do_not_matter(case, random):
    order, names = random.sample(range(20), 20), np.array([*random.sample(range(6), 6), -1])
    other = replace(
        case, path=names[case.path[order]], size_bytes=case.size_bytes[order], copies=case.copies[order],
        weight=case.weight[order], capacity_bytes_per_s=case.capacity_bytes_per_s[np.argsort(names[:6])],
    )  # fmt: skip
    assert ends(other) == pytest.approx(ends(case)[order], rel=1e-6)


@settings(max_examples=10)
@given(st.permutations(range(4)), st.permutations(range(4)), st.integers(0, 99))
def test_relabelling_ranks_changes_nothing(nodes, locals_, seed):
    # leaves of one node each: any order of nodes, and any order of the ranks in them
    cluster, group = dgx(between="tree", oversubscription=3.0)
    copies = np.random.default_rng(seed).integers(1, 99, (16, 16)).astype(float)
    order = (np.array(nodes)[:, None] * 4 + np.array(locals_)).ravel()
    turned = Dense(copies=copies[np.ix_(order, order)])
    one, other = (pair_flows(cluster, group, each, "direct") for each in (Dense(copies=copies), turned))
    assert ends(other).max() == pytest.approx(ends(one).max(), rel=1e-6)
    folded = [contention(cluster, group, each, "direct") for each in (Dense(copies=copies), turned)]
    assert folded[0] == pytest.approx(folded[1], rel=1e-6)


@pytest.mark.parametrize("hot", [1.0, 3.0])
def test_folding_an_exact_symmetry_changes_nothing(hot):
    # leaves 0 and 1 receive hot times as much as leaves 2 and 3, inside which all ranks are alike
    cluster, group = dgx(8, between="tree", leaf_nodes=2, oversubscription=2.0)
    share = np.repeat([hot, 1.0], 16) / (16 * (hot + 1.0))
    product = Product(sent=np.ones(32), share=share)
    one, other = (
        class_flows(cluster, group, product, "direct"),
        pair_flows(cluster, group, every_pair(product), "direct"),
    )
    far = ends(other)[np.sum(other.path >= 0, axis=1) >= 2]  # pairs of other nodes
    assert len(one.path) < 20
    assert ends(one).max() == pytest.approx(far.max(), rel=1e-6)


@pytest.mark.parametrize("make", [lambda product: product, every_pair])
def test_folding_keeps_all_bytes_and_the_busiest_links(make):
    cluster, group = dgx(8, between="tree", leaf_nodes=2, oversubscription=2.0)
    product = popular(32, 0.5)
    every = pair_flows(cluster, group, every_pair(product), "direct")
    crossing = product.between(np.zeros(32, dtype=int), np.zeros(32, dtype=int), (np.arange(32) // 4,)).sum()
    folded = class_flows(cluster, group, make(product), "direct")
    assert np.sum(folded.size_bytes * folded.copies) == pytest.approx(crossing)
    assert folded.bound_s == pytest.approx(every.bound_s, rel=0.01)


def test_drawn_copies_and_popularities_fold_to_the_same_flows():
    cluster, group = dgx(8, between="spine")
    product = popular(32, 0.5)
    one, other = (class_flows(cluster, group, each, "direct") for each in (product, every_pair(product)))
    assert np.array_equal(one.path, other.path)
    assert one.size_bytes == pytest.approx(other.size_bytes)


@pytest.mark.parametrize("oversubscription", [2.0, 4.0])
@pytest.mark.parametrize("skew", [0.2, 0.5, 1.0])
def test_the_fold_of_64_ranks_is_within_2_percent_of_all_pairs(oversubscription, skew):
    cluster, group = dgx(8, gpus=8, between="tree", leaf_nodes=2, oversubscription=oversubscription)
    product = popular(64, skew)
    every = pair_flows(cluster, group, every_pair(product), "direct")
    folded_s = every.bound_s * contention(cluster, group, product, "direct")
    assert folded_s == pytest.approx(max(every.bound_s, ends(every, 0.002).max()), rel=0.02)


def test_the_busiest_link_and_the_next_stand_alone_and_the_others_in_four_bins():
    # 10 and 9 alone; 5 to 1 in bins of width 1
    assert classed(np.array([9.0, 1.0, 2.5, 3.5, 10.0, 4.5, 5.0, 1.5])).tolist() == [1, 5, 4, 3, 0, 2, 2, 5]
    assert classed(np.array([1.0, 1.0005, 0.9999])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("fabric", ["rails", "rails only", "mesh", "shared NICs"])
def test_where_only_one_kind_of_link_can_bind_the_busiest_link_is_all(fabric):
    cluster, group = FABRICS[fabric]
    group = group if fabric != "mesh" else Group(size=4, per_node=4)
    copies = np.random.default_rng(0).integers(0, 99, (5, group.size, group.size)).astype(float)
    assert contention(cluster, group, Dense(copies=copies), "forwarded").tolist() == [1.0] * 5


def test_a_torus_counts_as_its_busiest_link_and_has_no_flows():
    box = replace(BOX, gpus_per_node=4, fabric=Fabric(inside="torus", torus=(2, 2)))
    group, dense = Group(size=4, per_node=4), Dense(copies=np.ones((4, 4)))
    assert contention(box, group, dense) == 1.0
    with pytest.raises(MoesimError, match="a torus has no flows for each pair"):
        pair_flows(box, group, dense)


def test_nics_and_ways_up_that_are_alike_make_each_other_wait():
    cluster, group = dgx(8, gpus=8, between="tree", leaf_nodes=2, oversubscription=2.0)
    assert contention(cluster, group, popular(64, 0.3), "direct") > 1.05
    assert contention(cluster, group, popular(64, 2.0), "direct") == 1.0  # one hot NIC is slower than all ways up


def test_pcie_and_the_host_s_memory_make_each_other_wait():
    # 8 GPUs of which one receives most, behind a memory that takes as long as its link
    box = replace(BOX, fabric=Fabric(inside="host", host_bytes_per_s=4 * BOX.scale_up.bandwidth_bytes_per_s))
    share = np.array([4, 1, 1, 1, 1, 1, 1, 1]) / 11
    slower = contention(box, Group(size=8, per_node=8), Dense(copies=np.outer(np.ones(8), share)))
    assert 1.0 < slower < 2.0


def test_a_graph_is_played_over_all_its_shortest_ways():
    cluster, group = FABRICS["graph"]
    dense = Dense(copies=np.array([[0, 9, 1, 1], [1, 0, 9, 1], [9, 1, 0, 9], [1, 1, 9, 0]], dtype=float))
    every = pair_flows(cluster, group, dense)
    assert contention(cluster, group, dense) == pytest.approx(ends(every).max() / every.bound_s, rel=0.01)


@settings(max_examples=8)
@given(st.integers(0, 99), st.floats(1e-3, 1e9))
def test_contention_is_at_least_one_and_the_same_for_any_bytes(seed, more):
    cluster, group = dgx(between="spine", oversubscription=2.0)
    copies = np.random.default_rng(seed).exponential(size=(2, 16, 16))
    found = contention(cluster, group, Dense(copies=copies), "direct")
    assert np.all(found >= 1.0)
    assert contention(cluster, group, Dense(copies=copies * more), "direct") == pytest.approx(found, rel=1e-6)


def test_each_traffic_of_a_batch_is_played_by_itself():
    cluster, group = dgx(between="tree", oversubscription=2.0)
    both = [popular(16, 0.3, seed) for seed in (1, 2)]
    batch = Product(sent=both[0].sent, share=np.stack([one.share for one in both]))
    alone = [contention(cluster, group, replace(one, sent=both[0].sent), "direct") for one in both]
    assert contention(cluster, group, batch, "direct") == pytest.approx(np.array(alone))
    assert contention(cluster, group, Dense(copies=np.zeros((3, 16, 16))), "direct").tolist() == [1.0] * 3


@pytest.mark.parametrize("capacity", [0.0, -1.0, float("inf"), float("nan")])
def test_a_link_without_capacity_is_refused(capacity):
    with pytest.raises(MoesimError, match="give every link a number above zero"):
        flows([[0]], [1], capacity=[1.0, capacity])


def test_negative_bytes_and_a_weight_of_zero_are_refused():
    for wrong in ({"size_bytes": np.array([-1.0])}, {"weight": 0.0}, {"copies": np.zeros(1)}):
        with pytest.raises(MoesimError, match="flows: give bytes of at least zero"):
            replace(flows([[0]], [1]), **wrong)
