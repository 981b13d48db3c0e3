"""All-to-all: loads by hand, conservation, skew, and the expected table of the models."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moesim.alltoall import ALGORITHMS, Traffic, all_to_all, copies_by_rank, sent_and_received, unsupported
from moesim.cluster import Group, load_cluster
from moesim.collectives import in_node, reduce_scatter
from moesim.errors import MoesimError
from moesim.network import Dense, inside_loads, longest, waits

pytestmark = pytest.mark.usefixtures("unclamped")

US = 1e-6
TWO_NODES = load_cluster("dgx-h100", 2)
FOUR = Group(size=4, per_node=2)  # nodes {0, 1} and {2, 3}
USABLE = [name for name in ALGORITHMS if unsupported(TWO_NODES, FOUR, name) is None]


def traffic(copies, token_bytes=1e6, tokens=4.0):
    sent = np.asarray(copies, dtype=float)
    to = sent.sum(axis=-2) + 1e-9  # one expert a rank, each token to one of them
    share = to / to.sum(axis=-1, keepdims=True)
    return Traffic(pairs=Dense(copies=sent), tokens=tokens, token_bytes=token_bytes, share=share)


def uniform(tokens, ranks, top_k=8, token_bytes=14336):
    copies = np.full((ranks, ranks), tokens * top_k / ranks)
    return Traffic(pairs=Dense(copies=copies), tokens=tokens, token_bytes=token_bytes)


some_copies = arrays(float, (4, 4), elements=st.integers(0, 1000).map(float))


def test_copies_follow_the_owners_of_the_experts():
    # 2 ranks; expert 0 and 2 on rank 0, expert 1 on rank 1
    tokens = np.array([[5, 1, 2], [0, 3, 4]])
    assert copies_by_rank(tokens, np.array([0, 1, 0]), 2).tolist() == [[7, 1], [4, 3]]


def test_a_rank_without_experts_receives_nothing():
    tokens = np.array([[5, 1], [2, 3], [1, 1]])
    assert copies_by_rank(tokens, np.array([2, 0]), 3).tolist() == [[1, 0, 5], [3, 0, 2], [1, 0, 1]]


@given(
    tokens=arrays(int, (2, 3, 6), elements=st.integers(0, 99)),
    owner=arrays(int, 6, elements=st.integers(0, 3)) | st.permutations([0, 0, 1, 1, 2, 2]).map(np.array),
)
def test_copies_are_the_tokens_summed_over_each_rank_s_experts(tokens, owner):
    ranks = int(owner.max()) + 1
    summed = np.stack([tokens[..., owner == rank].sum(axis=-1) for rank in range(ranks)], axis=-1)
    assert np.array_equal(copies_by_rank(tokens, owner, ranks), summed)


HAND = Dense(copies=np.array([[9, 5, 3, 2], [0, 0, 0, 4], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=float))


def test_linear_loads_by_hand():
    # rank 3 receives 2 + 4 from the other node; rank 0 sends 5 to its neighbour 1, and 2 more that leave on 1's rail
    found = waits(TWO_NODES, FOUR, HAND)
    assert (float(found["up"]), float(found["nic"])) == (7.0, 6.0)


def test_without_forwarding_each_rank_uses_its_own_nic():
    # by NVLink 5 from rank 0 to 1; rank 0 sends 3 + 2 by its NIC, rank 3 receives 2 + 4
    found = waits(TWO_NODES, FOUR, HAND, "direct")
    assert (float(found["up"]), float(found["nic"])) == (5.0, 6.0)


def test_rails_by_hand():
    # 2dh: what rank 0 sends to 1 and 3 leaves on rail 1 (by NVLink to rank 1: 5 + 2); 3 gets 2 + 4 on rail 1
    out, into = HAND.to_rails(2).totals()
    inside = longest(TWO_NODES, FOUR, inside_loads(TWO_NODES, FOUR, out.ravel(), into.ravel()))
    along = [float(side.max()) for side in HAND.along_rails(2).totals()]
    assert (float(inside["up"]), along) == (7.0, [6.0, 6.0])


def test_one_busy_nic_decides():
    # 1 GB from rank 0 to rank 2 over one NIC of 48 GB/s, whatever the others do
    copies = np.zeros((4, 4))
    copies[0, 2] = 1000
    busy = all_to_all(TWO_NODES, FOUR, traffic(copies), "linear")
    start_s = 83 * US + 3 * 0.3 * US
    assert busy.seconds == pytest.approx(start_s + 1e9 / 48e9)
    assert busy.limited_by == "nic"
    assert busy.bound_s == pytest.approx(1e9 / 50e9)
    copies[1, 3] = 1000
    assert all_to_all(TWO_NODES, FOUR, traffic(copies), "linear").seconds == busy.seconds
    copies[1, 2] = 1000  # now rank 2 receives twice as much
    assert all_to_all(TWO_NODES, FOUR, traffic(copies), "linear").bound_s == pytest.approx(2e9 / 50e9)


def test_what_stays_on_its_rank_is_free():
    stay = traffic(np.diag([1e6] * 4))
    assert all_to_all(TWO_NODES, FOUR, stay, "linear").bound_s == 0.0
    assert [side.tolist() for side in sent_and_received(stay)] == [[0.0] * 4] * 2


def test_inside_a_node_an_even_exchange_takes_the_measured_time():
    # 512 MiB a rank on 8 H100: 1490.42 us, NCCL 2.29.2 (aiconfigurator-core 0.12.0, nccl-tests)
    all_equal = Dense(copies=np.full((8, 8), 8192.0))  # 8 x 8192 x 8 KiB = 512 MiB
    even = Traffic(pairs=all_equal, tokens=8192, token_bytes=8192)
    cost = all_to_all(load_cluster("dgx-h100"), Group(size=8, per_node=8), even, "linear")
    assert cost.seconds == pytest.approx(1490.42 * US)


def test_ag_rs_is_an_all_gather_out_and_a_reduce_scatter_home():
    group = Group(size=16, per_node=8)
    there, home = (all_to_all(TWO_NODES, group, uniform(128, 16), "ag_rs", d) for d in ("dispatch", "combine"))
    assert home.seconds == reduce_scatter(TWO_NODES, group, 16 * 128 * 14336).seconds
    assert there.seconds != home.seconds


@pytest.mark.parametrize(
    ("algorithm", "tokens", "ranks", "expected_us"),
    [
        ("linear", 128, 16, 240), ("linear", 128, 256, 456), ("linear", 4096, 8, 1297),
        ("linear", 4096, 16, 5028), ("linear", 4096, 256, 9687), ("2dh", 128, 16, 298), ("2dh", 128, 64, 412),
        ("2dh", 128, 256, 441), ("2dh", 4096, 16, 7041), ("2dh", 4096, 256, 11628),
    ],
)  # fmt: skip
def test_the_models_give_their_expected_table(algorithm, tokens, ranks, expected_us):
    # H 7168 bf16, top-8 of 256, uniform, H100: worked out with NVLink 320 GB/s, NIC 48 GB/s, 83 us and
    # 0.3 us a peer for linear, 12 and 60 us for the phases of 2dh. Here NVLink phases follow NCCL's curve.
    cluster = load_cluster("dgx-h100", ranks // 8)
    cost = all_to_all(cluster, Group(size=ranks, per_node=8), uniform(tokens, ranks), algorithm)
    assert cost.seconds == pytest.approx(expected_us * US, rel=0.10)


@pytest.mark.parametrize(("nodes", "busbw_gb_s"), [(2, 90.0), (4, 62.0), (8, 54.0)])
def test_bus_bandwidth_counts_local_peers_as_if_they_crossed_the_nic(nodes, busbw_gb_s):
    # busbw = B_n (R-1)/(R-G): 48 GB/s -> 90, 62, 54 at 2, 4, 8 nodes; DeepEP low latency gives 88, 61, 53
    ranks, size_bytes = 8 * nodes, 1e12
    all_equal = Dense(copies=np.full((ranks, ranks), 1e6))
    even = Traffic(pairs=all_equal, tokens=1.0, token_bytes=size_bytes / ranks / 1e6)
    cost = all_to_all(load_cluster("dgx-h100", nodes), Group(size=ranks, per_node=8), even, "linear")
    busbw = size_bytes * (ranks - 1) / ranks / cost.seconds
    assert busbw == pytest.approx(48e9 * (ranks - 1) / (ranks - 8), rel=0.001)
    assert busbw == pytest.approx(busbw_gb_s * 1e9, rel=0.01)


def test_small_messages_at_scale_favour_two_dimensions():
    cluster, group = load_cluster("dgx-h100", 256), Group(size=2048, per_node=8)
    small = Traffic(pairs=Dense(copies=np.full((2048, 2048), 1.0)), tokens=256, token_bytes=512)  # 1 MiB a rank
    linear, two_d = (all_to_all(cluster, group, small, name).seconds for name in ("linear", "2dh"))
    assert two_d < linear / 3


@given(copies=some_copies)
def test_bytes_sent_are_bytes_received(copies):
    sent, received = sent_and_received(traffic(copies))
    assert sent.sum() == received.sum()
    assert sent.sum() == (copies.sum() - np.trace(copies)) * 1e6


@given(
    copies=some_copies,
    algorithm=st.sampled_from(USABLE),
    direction=st.sampled_from(["dispatch", "combine"]),
)
def test_the_bound_is_never_above_the_time(copies, algorithm, direction):
    cost = all_to_all(TWO_NODES, FOUR, traffic(copies), algorithm, direction)
    assert 0.0 <= cost.bound_s <= cost.seconds


@given(copies=some_copies, algorithm=st.sampled_from(["linear", "2dh"]))
def test_combine_is_the_dispatch_of_the_transposed_copies(copies, algorithm):
    home = all_to_all(TWO_NODES, FOUR, traffic(copies), algorithm, "combine")
    turned = all_to_all(TWO_NODES, FOUR, traffic(copies.T), algorithm, "dispatch")
    assert home.seconds == turned.seconds


@given(copies=some_copies)
def test_relabelling_the_ranks_of_a_node_changes_nothing(copies):
    swap = [1, 0, 2, 3]  # ranks 0 and 1 share a node
    moved = copies[np.ix_(swap, swap)]
    one, other = (all_to_all(TWO_NODES, FOUR, traffic(c), "linear").seconds for c in (copies, moved))
    assert one == other


@given(copies=some_copies, algorithm=st.sampled_from(["linear", "2dh"]))
def test_swapping_the_nodes_or_both_rails_changes_nothing(copies, algorithm):
    for order in ([2, 3, 0, 1], [1, 0, 3, 2]):
        moved = copies[np.ix_(order, order)]
        one, other = (all_to_all(TWO_NODES, FOUR, traffic(c), algorithm).seconds for c in (copies, moved))
        assert one == pytest.approx(other, rel=1e-12)


@given(copies=some_copies, factor=st.integers(2, 50))
def test_the_bound_is_linear_in_bytes(copies, factor):
    for algorithm in ("linear", "2dh"):
        once, more = (
            all_to_all(TWO_NODES, FOUR, traffic(copies, token_bytes=size), algorithm).bound_s
            for size in (1e5, factor * 1e5)
        )
        assert more == pytest.approx(factor * once)


@given(
    batch=arrays(float, (3, 4, 4), elements=st.integers(0, 100).map(float)),
    algorithm=st.sampled_from(USABLE),
)
def test_a_batch_is_priced_like_its_members(batch, algorithm):
    together = all_to_all(TWO_NODES, FOUR, traffic(batch), algorithm).seconds
    alone = [float(all_to_all(TWO_NODES, FOUR, traffic(each), algorithm).seconds) for each in batch]
    assert together == pytest.approx(alone, rel=1e-12)


def test_skew_makes_the_busiest_link_slower():
    even, skewed = np.full((16, 16), 100.0), np.full((16, 16), 100.0)
    skewed[:, 3] *= 3  # rank 3 owns popular experts
    group = Group(size=16, per_node=8)
    times = [all_to_all(TWO_NODES, group, traffic(c), "linear").bound_s for c in (even, skewed)]
    assert times[1] == pytest.approx(3 * times[0])


def test_a_group_of_one_exchanges_nothing():
    cost = all_to_all(load_cluster("dgx-h100"), Group(size=1, per_node=1), traffic([[7.0]]), "linear")
    assert cost.seconds == 0.0


def test_why_an_algorithm_cannot_run():
    one, spread = Group(size=8, per_node=8), Group(size=2, per_node=1)
    assert unsupported(TWO_NODES, one, "linear") is None
    assert unsupported(TWO_NODES, FOUR, "2dh") is None
    assert "more than one node" in unsupported(TWO_NODES, one, "2dh")
    assert "more than one rank on a node" in unsupported(TWO_NODES, spread, "2dh")
    with pytest.raises(MoesimError, match="all-to-all 2dh: 2dh needs ranks on more than one node"):
        all_to_all(TWO_NODES, one, uniform(4, 8), "2dh")


def test_wrong_inputs_are_named():
    with pytest.raises(MoesimError, match="unknown all-to-all algorithm 'lineer': did you mean linear"):
        all_to_all(TWO_NODES, FOUR, traffic(np.ones((4, 4))), "lineer")
    with pytest.raises(MoesimError, match="copies of 3 ranks in a group of 4"):
        all_to_all(TWO_NODES, FOUR, traffic(np.ones((3, 3))), "linear")
    with pytest.raises(MoesimError, match="copies of shape"):
        traffic(np.ones((3, 4)))
    with pytest.raises(MoesimError, match="0 bytes"):
        traffic(np.ones((4, 4)), token_bytes=0)


def test_four_draws_of_256_ranks_take_milliseconds():
    cluster, group = load_cluster("dgx-h100", 32), Group(size=256, per_node=8)
    draws = traffic(np.random.default_rng(0).poisson(128, (4, 256, 256)))
    for algorithm in USABLE:
        best_s = np.inf
        for _ in range(5):
            start_s = time.perf_counter()
            all_to_all(cluster, group, draws, algorithm)
            best_s = min(best_s, time.perf_counter() - start_s)
        assert best_s < 5e-3


def test_in_node_bytes_are_those_of_the_send_buffer():
    # an even exchange of S a rank puts S (R-1)/R on each port and takes what NCCL's curve says for S
    cost = all_to_all(load_cluster("dgx-h100"), Group(size=4, per_node=4), traffic(np.full((4, 4), 10.0)), "linear")
    assert cost.seconds == pytest.approx(in_node(load_cluster("dgx-h100"), "all_to_all", 4, 40e6).seconds)
