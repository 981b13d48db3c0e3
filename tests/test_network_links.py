"""What links carry: loads by hand on every fabric, popularities against drawn copies, damage, and what cannot be."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cluster import Degraded, Fabric, Group, Wire, load_cluster
from moesim.errors import MoesimError
from moesim.network import Dense, Product, families, leaf_of, loads, waits

FOUR = Group(size=4, per_node=2)  # nodes {0, 1} and {2, 3}
HAND = Dense(copies=np.array([[9, 5, 3, 2], [0, 0, 0, 4], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=float))
BOX = replace(load_cluster("pcie-l40s"), scale_out=None, nics_per_node=0)


def cluster(nodes=2, **fabric):
    return replace(load_cluster("dgx-h100", nodes), gpus_per_node=2, nics_per_node=2, fabric=Fabric(**fabric))


def carried(cluster, pairs=HAND, group=FOUR, route="forwarded"):
    return {name: load.tolist() for name, load in loads(cluster, group, pairs, route).items()}


def test_on_rails_bytes_for_another_rail_go_by_nvlink_first():
    # 0 -> 3 (2 copies) goes to rank 1 by NVLink and leaves there, with 1 -> 3 (4 copies)
    found = carried(cluster())
    assert found["nic_out"] == [3, 6, 0, 0]
    assert found["nic_in"] == [0, 0, 3, 6]
    assert found["up_out"] == [5 + 2, 0, 0, 1]
    assert "leaf_up" not in found


def test_without_forwarding_they_climb_to_the_spine():
    found = carried(cluster(between="spine"))
    assert found["nic_out"] == [5, 4, 0, 0]
    assert found["leaf_up"] == [2, 0]  # 0 -> 3 leaves rail 0 ...
    assert found["leaf_down"] == [0, 2]  # ... for rail 1
    assert found["up_out"] == [5, 0, 0, 1]


def test_in_a_tree_all_that_leaves_the_nodes_below_a_leaf_climbs():
    found = carried(cluster(between="tree", leaf_nodes=1))
    assert found["leaf_up"] == [3 + 2 + 4, 0]
    assert found["leaf_down"] == [0, 9]
    assert carried(cluster(between="tree", leaf_nodes=2))["leaf_up"] == [0]


def test_the_way_up_is_as_wide_as_oversubscription_and_hashing_leave_it():
    wide = families(cluster(between="tree"), FOUR)["leaf_up"]
    assert wide.tolist() == [2, 2]  # two ranks below each leaf
    narrow = cluster(between="tree", oversubscription=2.0, ecmp=1.25)
    assert families(narrow, FOUR)["leaf_up"].tolist() == [0.8, 0.8]
    assert waits(narrow, FOUR, HAND)["uplink"] == pytest.approx(9 / 0.8)


def test_in_a_mesh_each_pair_has_a_link_of_its_own():
    found = carried(cluster(inside="mesh"))["mesh"]
    assert found == [0, 5, 0, 0, 0, 0, 1, 0]  # 0 -> 1 and 3 -> 2
    four = replace(BOX, gpus_per_node=4, fabric=Fabric(inside="mesh"))
    assert waits(four, Group(size=4, per_node=4), HAND)["up"] == pytest.approx(5 * 3)  # a third of the bandwidth each


def test_without_peer_access_every_byte_enters_the_host_s_memory_and_leaves_it():
    host = replace(BOX, gpus_per_node=4, fabric=Fabric(inside="host", host_bytes_per_s=40e9))
    found = carried(host, group=Group(size=4, per_node=4))
    assert found["host"] == [2 * 15]
    assert found["up_out"] == [10, 4, 0, 1]


def test_two_gpus_on_a_nic_load_it_together():
    shared = replace(load_cluster("dgx-h100", 2), gpus_per_node=2, nics_per_node=1)
    found = carried(shared)
    assert found["nic_out"] == [9, 0]
    assert families(shared, FOUR)["nic_out"].tolist() == [2, 2]  # each GPU's share counts


@pytest.mark.parametrize(
    ("sides", "cores"), [((4,), 1), ((8,), 1), ((4, 4), 1), ((8, 4), 2), ((4, 4, 4), 1), ((8, 4, 2), 1)]
)
def test_equal_traffic_loads_a_torus_by_its_longest_side(sides, cores):
    # S d / 8 on every link of the longest side: each place has the bytes of its cores
    places = int(np.prod(sides))
    ranks = places * cores
    torus = replace(BOX, gpus_per_node=ranks, fabric=Fabric(inside="torus", torus=sides))
    equal = Dense(copies=np.full((ranks, ranks), 1.0 / ranks))
    assert waits(torus, Group(size=ranks, per_node=ranks), equal)["up"] == pytest.approx(cores * max(sides) / 8)


def test_a_message_takes_the_shorter_way_round_the_torus():
    # 0 -> 3 on a ring of 4: one step down, over the link behind place 0
    ring = replace(BOX, gpus_per_node=4, fabric=Fabric(inside="torus", torus=(4,)))
    copies = np.zeros((4, 4))
    copies[0, 3] = 8.0
    up, down = np.split(loads(ring, Group(size=4, per_node=4), Dense(copies=copies), "direct")["torus"], 2)
    assert up.tolist() == [0, 0, 0, 0]
    assert down.tolist() == [8, 0, 0, 0]


def wired(*ends):
    wires = tuple(Wire(one=one, other=other, bandwidth_bytes_per_s=22e9) for one, other in ends)
    return replace(BOX, gpus_per_node=2, fabric=Fabric(inside="graph", wires=wires))


TWO = Group(size=2, per_node=2)
ONE_WAY = Dense(copies=np.array([[0.0, 6.0], [0.0, 0.0]]))


def test_a_graph_divides_bytes_over_its_shortest_ways():
    # gpu0 - a - gpu1 and gpu0 - b - gpu1: half each; the long way over c and d stays empty
    net = wired(("gpu0", "a"), ("a", "gpu1"), ("gpu0", "b"), ("b", "gpu1"), ("gpu0", "c"), ("c", "d"), ("d", "gpu1"))
    found = loads(net, TWO, ONE_WAY, "direct")["wires"].reshape(-1, 2)
    assert found[:, 0].tolist() == [3, 3, 3, 3, 0, 0, 0]
    assert not found[:, 1].any()


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ([("gpu0", "a"), ("gpu1", "b")], "no way from a to b: connect the 2 parts"),
        ([("gpu0", "a")], "gpu1 has none: connect it"),
    ],
)
def test_a_graph_that_does_not_connect_its_gpus_is_refused(ends, says):
    with pytest.raises(MoesimError, match=says):
        waits(wired(*ends), TWO, ONE_WAY)


def test_a_slow_nic_takes_longer_and_the_others_do_not():
    slow = cluster(degraded=(Degraded(link="nic", node=1, index=1, share=0.5),))
    assert families(slow, FOUR)["nic_in"].tolist() == [1, 1, 1, 0.5]
    assert waits(slow, FOUR, HAND)["nic"] == 12.0  # 6 copies into rank 3 at half speed
    assert waits(slow, FOUR, HAND)["up"] == waits(cluster(), FOUR, HAND)["up"]


def test_a_node_with_half_its_nics_is_slow_on_all_of_them():
    slow = cluster(degraded=(Degraded(link="nic", node=0, share=0.5),))
    assert families(slow, FOUR)["nic_out"].tolist() == [0.5, 0.5, 1, 1]


def test_a_group_stands_for_the_slowest_of_its_kind():
    # a slow NIC of node 3 is in the way of the group on nodes 2 and 3, as one of node 1 is of the group on 0 and 1
    there = cluster(nodes=4, degraded=(Degraded(link="nic", node=3, index=1, share=0.5),))
    here = cluster(nodes=4, degraded=(Degraded(link="nic", node=1, index=1, share=0.5),))
    assert families(there, FOUR)["nic_in"].tolist() == families(here, FOUR)["nic_in"].tolist() == [1, 1, 1, 0.5]


def test_a_leaf_with_fewer_nodes_has_as_wide_a_way_up():
    # three nodes, two below a leaf: the last leaf has one node and room for two
    odd = cluster(nodes=3, between="tree", leaf_nodes=2)
    assert families(odd, Group(size=6, per_node=2))["leaf_up"].tolist() == [4, 4]
    full = cluster(nodes=4, between="tree", leaf_nodes=2)
    assert families(full, Group(size=6, per_node=2))["leaf_up"].tolist() == [4, 2]  # half of the last leaf is others'


FABRICS = [
    Fabric(),
    Fabric(between="spine", oversubscription=2.0),
    Fabric(between="tree", leaf_nodes=2, oversubscription=2.0),
    Fabric(between="tree", leaf_nodes=3),
    Fabric(inside="host", host_bytes_per_s=1e11),
]
weights = st.lists(st.floats(0.01, 10.0), min_size=16, max_size=16).map(np.array)
SIXTEEN = Group(size=16, per_node=2)


@given(sent=weights, share=weights, fabric=st.sampled_from(FABRICS), route=st.sampled_from(["forwarded", "direct"]))
def test_a_popularity_loads_links_like_the_copies_it_stands_for(sent, share, fabric, route):
    share = share / share.sum()
    here = replace(cluster(nodes=8), fabric=fabric)
    drawn = loads(here, SIXTEEN, Dense(copies=sent[:, None] * share), route)
    expected = loads(here, SIXTEEN, Product(sent=sent, share=share), route)
    assert drawn.keys() == expected.keys()
    for name in drawn:
        np.testing.assert_allclose(expected[name], drawn[name], rtol=1e-9, atol=1e-9)


@given(sent=weights, share=weights)
def test_phases_of_a_popularity_are_those_of_its_copies(sent, share):
    share = share / share.sum()
    drawn, expected = Dense(copies=sent[:, None] * share), Product(sent=sent, share=share)
    for one, other in (
        (drawn.to_rails(4), expected.to_rails(4)),
        (drawn.along_rails(4), expected.along_rails(4)),
        (drawn.turned(), expected.turned()),
    ):
        for mine, theirs in zip(one.totals(), other.totals(), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9)


@given(
    sent=weights,
    share=weights,
    classes=st.lists(st.integers(0, 2), min_size=16, max_size=16).map(np.array),
    fabric=st.sampled_from(FABRICS[1:4]),
)
def test_bytes_between_classes_are_sums_over_their_pairs(sent, share, classes, fabric):
    classes = np.unique(classes, return_inverse=True)[1]
    here = replace(cluster(nodes=8), fabric=fabric)
    node, leaf = np.arange(16) // 2, leaf_of(here, SIXTEEN)
    copies = sent[:, None] * (share / share.sum())
    for apart in ((node,), (node, leaf)):
        by_hand = np.zeros((classes.max() + 1, classes.max() + 1))
        for i in range(16):
            for j in range(16):
                if all(label[i] != label[j] for label in apart):
                    by_hand[classes[i], classes[j]] += copies[i, j]
        for pairs in (Dense(copies=copies), Product(sent=sent, share=share / share.sum())):
            np.testing.assert_allclose(pairs.between(classes, classes, apart), by_hand, atol=1e-9)


@given(
    copies=st.lists(st.integers(0, 99), min_size=64, max_size=64).map(lambda x: np.array(x, dtype=float).reshape(8, 8)),
    nodes=st.permutations(range(4)),
    fabric=st.sampled_from([Fabric(), Fabric(between="spine"), Fabric(inside="mesh")]),
)
def test_renumbering_nodes_changes_no_wait(copies, nodes, fabric):
    here = replace(cluster(nodes=4), fabric=fabric)
    group = Group(size=8, per_node=2)
    order = np.array([2 * node + local for node in nodes for local in (0, 1)])
    one, other = waits(here, group, Dense(copies=copies)), waits(here, group, Dense(copies=copies[order][:, order]))
    assert {kind: float(each) for kind, each in one.items()} == {kind: float(each) for kind, each in other.items()}


@pytest.mark.parametrize(
    ("fabric", "says"),
    [
        ({"inside": "ring"}, "unknown fabric inside 'ring'"),
        ({"between": "treee"}, "did you mean tree"),
        ({"inside": "host"}, "host_bytes_per_s belongs to inside=host"),
        ({"oversubscription": 0.0}, "oversubscription 0.0: give 0.001 to 1,000"),
        ({"inside": "torus", "torus": (3, 3)}, "it is one domain, give nodes: 1"),
        ({"degraded": (Degraded(link="nic", node=7),)}, "degraded nic of node 7, index 0: there are 2 with 2 each"),
    ],
)
def test_a_fabric_that_cannot_be_is_refused_in_one_line(fabric, says):
    with pytest.raises(MoesimError, match=says) as error:
        cluster(**fabric)
    assert "\n" not in str(error.value)


def test_two_wires_between_the_same_ends_are_refused():
    with pytest.raises(MoesimError, match="two join the same ends"):
        wired(("gpu0", "gpu1"), ("gpu1", "gpu0"))


@pytest.mark.parametrize("bandwidth", [0.0, -1e9, float("inf")])
def test_a_wire_without_capacity_is_refused(bandwidth):
    with pytest.raises(MoesimError, match="give a number above zero"):
        Wire(one="gpu0", other="sw", bandwidth_bytes_per_s=bandwidth)
