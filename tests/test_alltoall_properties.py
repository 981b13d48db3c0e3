"""What holds for every all-to-all on every kind of cluster: bounds, symmetry, scaling, skew, expected and drawn."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moesim.alltoall import ALGORITHMS, Traffic, all_to_all, busiest_bytes, unsupported
from moesim.cluster import Group, load_cluster
from moesim.network import Dense, Product
from tests.alltoall_places import FOUR, PLACES, RUNS, TWO, seconds, traffic

pytestmark = pytest.mark.usefixtures("unclamped")


def near(cluster, expected):
    """Where flows contend they are played in steps of a hundredth; ties fall either way."""
    return pytest.approx(expected, rel=0.01 if cluster.fabric.climbs else 1e-9)


def some_copies(ranks, batch=()):
    return arrays(float, (*batch, ranks, ranks), elements=st.integers(0, 1000).map(float))


@given(run=st.sampled_from(RUNS), data=st.data(), direction=st.sampled_from(["dispatch", "combine"]))
@settings(max_examples=60)
def test_the_bound_is_never_above_the_time(run, data, direction):
    cluster, group, name = run
    found = all_to_all(cluster, group, traffic(data.draw(some_copies(group.size, (2,)))), name, direction)
    assert found.seconds.shape == (2,)
    assert np.all(found.bound_s >= 0.0)
    assert np.all(found.bound_s <= found.seconds)


@given(run=st.sampled_from(RUNS), data=st.data())
@settings(max_examples=60)
def test_swapping_the_halves_of_the_group_changes_nothing(run, data):
    cluster, group, name = run
    copies = data.draw(some_copies(group.size))
    order = np.roll(np.arange(group.size), group.size // 2)
    moved = copies[np.ix_(order, order)]
    assert seconds(cluster, group, name, copies) == near(cluster, seconds(cluster, group, name, moved))


@given(run=st.sampled_from([run for run in RUNS if run[2] not in ("leader", "torus")]), data=st.data())
@settings(max_examples=60)
def test_the_mirror_image_of_the_ranks_changes_nothing(run, data):
    # rank i becomes R - 1 - i: nodes and rails change places; only a leader is who it is
    cluster, group, name = run
    copies = data.draw(some_copies(group.size))
    mirrored = copies[::-1, ::-1]
    assert seconds(cluster, group, name, copies) == near(cluster, seconds(cluster, group, name, mirrored))


@given(copies=some_copies(4), name=st.sampled_from(["tiles", "deepep_ll"]))
@settings(max_examples=20)
def test_without_forwarding_ranks_may_change_places_on_one_node_alone(copies, name):
    order = [1, 0, 2, 3]
    moved = copies[np.ix_(order, order)]
    assert seconds(TWO, FOUR, name, copies) == pytest.approx(seconds(TWO, FOUR, name, moved), rel=1e-9)


@given(run=st.sampled_from(RUNS), data=st.data())
@settings(max_examples=60)
def test_twice_the_bytes_take_longer_but_not_twice_as_long(run, data):
    cluster, group, name = run
    copies = data.draw(some_copies(group.size))
    once, twice = (seconds(cluster, group, name, copies, size) for size in (1e4, 2e4))
    slack = 1.15 if cluster.gpu.name == "A30" else 1.0 + 1e-9  # NCCL's curve on L40S has steps
    assert once <= twice <= 2 * once * slack


@given(
    run=st.sampled_from(RUNS),
    sent=st.lists(st.integers(1, 9), min_size=8, max_size=8),
    weight=st.lists(st.integers(1, 9), min_size=8, max_size=8),
)
@settings(max_examples=60)
def test_expected_traffic_costs_the_same_written_out_or_not(run, sent, weight):
    cluster, group, name = run
    if cluster.fabric.inside == "mesh" and name == "linear":
        return  # drawn routing only
    sources, share = (np.array(each[: group.size], dtype=float) for each in (sent, weight))
    share = share / share.sum()
    both = (
        Traffic(pairs=pairs, tokens=9.0, token_bytes=1e6, share=share)
        for pairs in (Product(sent=sources, share=share), Dense(copies=np.outer(sources, share)))
    )
    one, other = (float(all_to_all(cluster, group, each, name).seconds) for each in both)
    assert one == near(cluster, other)


@given(run=st.sampled_from(RUNS), hot=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2))
@settings(max_examples=60)
def test_more_skew_is_never_faster(run, hot):
    # a share of all copies goes to the last rank, the rest to all alike
    cluster, group, name = run
    even, last = np.full(group.size, 1.0 / group.size), np.eye(group.size)[-1]
    times = []
    for x in sorted(hot):
        share = (1 - x) * even + x * last
        both = Traffic(
            pairs=Dense(copies=np.tile(100 * share, (group.size, 1))), tokens=100.0, token_bytes=1e6, share=share
        )
        times.append(float(all_to_all(cluster, group, both, name).seconds))
    assert times[0] <= times[1] or times[0] == near(cluster, times[1])


@given(run=st.sampled_from(RUNS), data=st.data())
@settings(max_examples=60)
def test_no_kind_of_link_is_faster_than_its_busiest_bytes(run, data):
    cluster, group, name = run
    loaded = traffic(data.draw(some_copies(group.size)))
    found = busiest_bytes(cluster, group, loaded, name)
    peaks = {cluster.scale_up.kind: cluster.scale_up, "nic": cluster.scale_out, "uplink": cluster.scale_out}
    for kind, size in found.items():
        if kind != "host":
            assert size / peaks[kind].peak_bytes_per_s <= all_to_all(cluster, group, loaded, name).seconds


@given(copies=some_copies(8))
@settings(max_examples=20)
def test_what_leaves_arrives_in_every_phase_along_rails_and_over_pods(copies):
    rails = Dense(copies=copies).along_rails(2)
    for phase in (Dense(copies=copies).to_rails(2), rails, rails.to_rails(2), rails.along_rails(2)):
        sent, received = phase.totals()
        assert sent.sum() == pytest.approx(received.sum())
    crossing = copies.sum() - sum(copies[n : n + 2, n : n + 2].sum() for n in (0, 2, 4, 6))
    assert rails.totals()[0].sum() == pytest.approx(crossing)


@pytest.mark.parametrize("fabric", [each.fabric for each, _ in PLACES[:-1]])
@pytest.mark.parametrize(("nodes", "per_node"), [(3, 1), (3, 3), (2, 5), (6, 8), (1, 7)])
def test_groups_of_any_shape_are_priced_with_tokens_or_none(fabric, nodes, per_node):
    cluster, group = (
        replace(load_cluster("pcie-l40s", 6), fabric=fabric),
        Group(size=nodes * per_node, per_node=per_node),
    )
    rng = np.random.default_rng(0)
    share = rng.random(group.size)
    share /= share.sum()
    for sent in (rng.random((2, group.size)) * 99, np.zeros((2, group.size))):
        both = Traffic(pairs=Product(sent=sent, share=np.tile(share, (2, 1))), tokens=9.0, token_bytes=1e5, share=share)
        for name in ALGORITHMS:
            if unsupported(cluster, group, name) is None and not (fabric.inside == "mesh" and name == "linear"):
                found = all_to_all(cluster, group, both, name)
                assert np.all(np.isfinite(found.seconds))
                assert np.all(found.bound_s <= found.seconds)
