"""Bytes that wait under a SimPy clock: the same ends as without it, late ranks, exchanges that compete, jitter."""

from dataclasses import replace

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import Fabric, Group, load_cluster
from moesim.network import Dense, Flows, Route, ends, pair_flows
from moesim.network.events import Exchange, Network, played
from moesim.network.jitter import draw_latest_s, expected_latest_s

BYTES = 7392.0
DGX, RANKS = load_cluster("dgx-h100", 4), Group(size=32, per_node=8)
ONE_LEAF = replace(DGX, fabric=Fabric(between="tree", leaf_nodes=4))


def flows(sizes, capacity=1.0, **more):
    """Flows over one link."""
    sizes = np.array(sizes, dtype=float)
    path, copies = np.zeros((len(sizes), 1), dtype=int), np.ones(len(sizes))
    return Flows(path=path, size_bytes=sizes, copies=copies, capacity_bytes_per_s=np.array([capacity]), **more)


def drawn(skew=0.5, seed=1):
    rng = np.random.default_rng(seed)
    share = np.exp(skew * rng.standard_normal(RANKS.size))
    return Dense(copies=rng.poisson(32768 * np.outer(np.ones(RANKS.size), share / share.sum())).astype(float))


def alone_s(cluster, dense, route: Route):
    return float(ends(pair_flows(cluster, RANKS, dense, route, BYTES)).max())


def together_s(cluster, *exchanges, start_s=None):
    start_s = np.zeros(len(exchanges)) if start_s is None else start_s
    return played(cluster, RANKS, exchanges, start_s).tolist()


def test_a_process_waits_until_its_last_byte_is_there():
    env, told = simpy.Environment(), []
    network = Network(env, np.array([1.0]))

    def first():
        yield network.send(flows([1, 2]))
        told.append(("first", env.now))

    def second():
        yield env.timeout(4.0)
        yield network.send(flows([5]))
        told.append(("second", env.now))

    env.process(first())
    env.process(second())
    env.run()
    assert told == [("first", pytest.approx(3.0)), ("second", pytest.approx(9.0))]


def test_nothing_to_send_is_over_at_once():
    env = simpy.Environment()
    done = Network(env, np.array([1.0])).send(flows([0, 0]))
    env.run(done)
    assert env.now == 0.0


def test_sends_of_the_same_instant_share_from_the_start():
    env = simpy.Environment()
    network = Network(env, np.array([2.0]))
    for done in [network.send(flows([1])), network.send(flows([1]))]:
        env.run(done)
        assert env.now == pytest.approx(1.0)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_under_the_clock_flows_end_as_without_it(seed):
    rng = np.random.default_rng(seed)
    case = Flows(
        path=rng.integers(-1, 5, (12, 3)),
        size_bytes=rng.integers(0, 4, 12).astype(float),
        copies=np.ones(12),
        capacity_bytes_per_s=rng.uniform(0.5, 2.0, 5),
        weight=rng.uniform(0.5, 2.0, 12),
        start_s=rng.integers(0, 3, 12).astype(float),
    )
    env = simpy.Environment()
    network = Network(env, case.capacity_bytes_per_s)
    found = np.zeros(12)

    def one(row):
        yield network.send(
            replace(
                case, path=case.path[[row]], size_bytes=case.size_bytes[[row]], copies=np.ones(1),
                weight=case.weight[[row]], start_s=case.start_s[[row]],
            )
        )  # fmt: skip
        found[row] = env.now

    for row in range(12):
        env.process(one(row))
    env.run()
    moves = (case.size_bytes > 0) & np.any(case.path >= 0, axis=1)
    assert found[moves] == pytest.approx(ends(case)[moves], rel=1e-5)


@pytest.mark.parametrize(("cluster", "route"), [(DGX, "forwarded"), (ONE_LEAF, "direct")])
def test_an_exchange_takes_the_same_time_under_the_clock(cluster, route):
    dense = drawn()
    assert together_s(cluster, Exchange(dense, BYTES, route))[0] == pytest.approx(
        alone_s(cluster, dense, route), rel=1e-5
    )


def late(rank, by_s):
    start_s = np.zeros((1, RANKS.size))
    start_s[0, rank] = by_s
    return start_s


def test_with_a_nic_of_its_own_a_late_rank_delays_the_end_by_almost_as_much():
    even = Dense(copies=np.full((32, 32), 1000.0))
    time_s = alone_s(ONE_LEAF, even, "direct")
    for by in (0.3, 1.0):
        end_s = together_s(ONE_LEAF, Exchange(even, BYTES, "direct"), start_s=late(3, by * time_s))[0]
        assert end_s == pytest.approx((1.0 + by) * time_s, rel=0.01)


def test_on_rails_a_rank_late_by_a_third_costs_nothing():
    # its bytes leave through the 8 NICs of its node: nothing at 0.3 T, and at T a tenth of what a barrier would cost
    dense = drawn()
    time_s = alone_s(DGX, dense, "forwarded")
    a_third, all_of_it = (
        together_s(DGX, Exchange(dense, BYTES, "forwarded"), start_s=late(3, by * time_s))[0] for by in (0.3, 1.0)
    )
    assert a_third == pytest.approx(time_s, rel=1e-6)
    assert 1.05 * time_s < all_of_it < 1.15 * time_s


def ring(share_of):
    """Every rank sends its next node as much as it sends to all others there."""
    copies = np.zeros((32, 32))
    copies[np.arange(32), (np.arange(32) + 8) % 32] = share_of.copies.sum(axis=1).mean() * 24 / 32
    return Dense(copies=copies)


def test_flow_by_flow_fairness_starves_a_ring_beside_an_all_to_all():
    # 24 flows of a NIC against one: the all-to-all hardly notices (1.042 T), the ring ends at the sum of both
    even = Dense(copies=np.full((32, 32), 1000.0))
    time_s = alone_s(ONE_LEAF, even, "direct")
    both = [Exchange(even, BYTES, "direct"), Exchange(ring(even), BYTES, "direct")]
    exchange_s, ring_s = together_s(ONE_LEAF, *both)
    assert exchange_s == pytest.approx(25 / 24 * time_s, rel=1e-3)
    assert ring_s == pytest.approx(2.0 * time_s, rel=1e-3)


def test_with_as_many_channels_two_exchanges_share_alike_and_no_link_idles():
    even = Dense(copies=np.full((32, 32), 1000.0))
    time_s = alone_s(ONE_LEAF, even, "direct")
    both = [Exchange(even, BYTES, "direct"), Exchange(ring(even), BYTES, "direct", weight=24.0)]
    assert together_s(ONE_LEAF, *both) == pytest.approx([2.0 * time_s] * 2, rel=1e-3)


def test_an_exchange_that_starts_after_the_other_s_end_is_alone():
    even = Dense(copies=np.full((32, 32), 1000.0))
    time_s = alone_s(DGX, even, "forwarded")
    one = Exchange(even, BYTES)
    found = together_s(DGX, one, one, start_s=np.array([0.0, 2.0 * time_s]))
    assert found == pytest.approx([time_s, 3.0 * time_s], rel=1e-6)


@pytest.mark.parametrize(("ranks", "deviations"), [(1, 0.0), (64, 2.34), (1024, 3.25)])
def test_the_latest_of_more_ranks_is_later(ranks, deviations):
    assert expected_latest_s(2.0, ranks) == pytest.approx(2.0 * deviations, rel=0.006)


def test_drawing_the_latest_of_a_class_is_as_drawing_all_of_its_ranks():
    rng = np.random.default_rng(0)
    drawn_s = np.mean([draw_latest_s(1.0, np.array([1, 64, 1024]), rng) for _ in range(4000)], axis=0)
    assert drawn_s == pytest.approx([0.0, 2.34, 3.25], abs=0.05)
