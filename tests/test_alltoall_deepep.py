"""DeepEP: distinct destinations against enumeration, published points, and what must hold for any traffic."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.alltoall import ALGORITHMS, Traffic, all_to_all, resized, unsupported
from moesim.alltoall.libraries import judged, kernels
from moesim.alltoall.reach import hits, reached, reached_parts
from moesim.cluster import Degraded, Fabric, Group, load_cluster
from moesim.cost import ESTIMATED
from moesim.errors import MoesimError
from moesim.network import Dense

pytestmark = pytest.mark.usefixtures("unclamped")

EVEN = np.full(256, 1 / 256)
FP8, BF16 = 7168 * (1 + 4 / 128), 7168 * 2.0


def traffic(ranks, tokens, size, share=EVEN, groups=(1, 1)):
    """Every rank sends ``tokens`` tokens to 8 of 256 experts, by their shares."""
    by_rank = share.reshape(ranks, -1).sum(axis=1)
    copies = np.outer(np.full(ranks, 8.0 * tokens), by_rank)
    return Traffic(pairs=Dense(copies=copies), tokens=tokens, token_bytes=size, share=share, top_k=8, groups=groups)


def microseconds(cluster, nodes, name, direction, tokens, groups=(1, 1)):
    size = FP8 if direction == "dispatch" else BF16
    group = Group(size=8 * nodes, per_node=8)
    cost = all_to_all(
        load_cluster(cluster, nodes), group, traffic(8 * nodes, tokens, size, groups=groups), name, direction
    )
    return float(cost.seconds) * 1e6


@pytest.mark.parametrize(("parts", "distinct"), [(2, 1.99), (4, 3.61), (8, 5.29), (16, 6.52), (32, 7.27)])
def test_eight_of_256_even_experts_reach_this_many_parts(parts, distinct):
    assert float(reached(EVEN, parts, 8).sum()) == pytest.approx(distinct, abs=0.01)


def test_deepseeks_four_groups_of_eight_reach_at_most_four_nodes():
    nodes = {
        (parts, top): float(reached_parts(traffic(parts, 1, 1.0, groups=(8, top)), parts).sum())
        for parts, top in ((8, 4), (8, 8), (4, 1), (4, 8))
    }
    assert nodes == pytest.approx({(8, 4): 3.63, (8, 8): 5.29, (4, 1): 1.0, (4, 8): 3.61}, abs=0.01)


@pytest.mark.parametrize(("parts", "groups", "top_groups"), [(2, 4, 2), (3, 4, 2), (4, 4, 1), (6, 2, 1), (4, 6, 5)])
def test_groups_and_drops_agree_with_every_choice_written_out(parts, groups, top_groups):
    # 12 experts; a token takes any 2 of any of its groups; of the copies for each part a third is dropped
    found, of_group, of_part = np.zeros((parts, 3)), 12 // groups, 12 // parts
    ways = [
        experts
        for chosen in combinations(range(groups), top_groups)
        for experts in combinations([e for e in range(12) if e // of_group in chosen], 2)
    ]
    for experts in ways:
        for part in range(parts):
            found[part, sum(e // of_part == part for e in experts)] += 1 / len(ways)
    np.testing.assert_allclose(hits(12, parts, 2, groups, top_groups), found)
    even = np.full(12, 1 / 12)
    sent = Traffic(
        pairs=Dense(copies=np.ones((parts, parts))), tokens=1, token_bytes=1.0, share=even, top_k=2,
        groups=(groups, top_groups), kept=np.full(12, 2 / 3),
    )  # fmt: skip
    np.testing.assert_allclose(reached_parts(sent, parts), 1 - found @ (1 / 3) ** np.arange(3))


@given(st.integers(1, 2), st.lists(st.floats(0.2, 1.0), min_size=8, max_size=8))
def test_skewed_popularities_agree_with_enumeration(top_k, weights):
    share = np.array(weights) / sum(weights)
    found = reached(share, 4, top_k)
    exact = np.zeros(4)
    for chosen in combinations(range(8), top_k):
        chance = sum(_in_order(share, order) for order in _orders(chosen))
        for part in {expert // 2 for expert in chosen}:
            exact[part] += chance
    np.testing.assert_allclose(found, exact, atol=0.05)


def _orders(chosen):
    if len(chosen) <= 1:
        return [chosen]
    return [(one, *rest) for one in chosen for rest in _orders(tuple(c for c in chosen if c != one))]


def _in_order(share, order):
    chance, left = 1.0, 1.0
    for expert in order:
        chance *= share[expert] / left
        left -= share[expert]
    return chance


@pytest.mark.parametrize(
    ("cluster", "nodes", "name", "direction", "tokens", "published_us"),
    [
        # aiconfigurator-core 0.12.0, DeepEP V1 on H100, 20 SMs
        ("dgx-h100", 1, "deepep", "dispatch", 4096, 491),
        ("dgx-h100", 1, "deepep", "combine", 4096, 973),
        ("dgx-h100", 2, "deepep", "dispatch", 2048, 460),
        ("dgx-h100", 2, "deepep", "combine", 2048, 1114),
        ("dgx-h100", 4, "deepep", "dispatch", 4096, 1791),
        ("dgx-h100", 8, "deepep_ll", "dispatch", 96, 129),
        ("dgx-h100", 8, "deepep_ll", "combine", 96, 237),
        # DeepEP README 2025-06, H800; derived from GB/s with the README's convention; best 4 of 8 groups
        ("hgx-h800", 8, "deepep", "dispatch", 4096, 2137),
        ("hgx-h800", 8, "deepep", "combine", 4096, 4227),
        # low latency, 128 tokens
        ("hgx-h800", 4, "deepep_ll", "dispatch", 128, 155),
        ("hgx-h800", 4, "deepep_ll", "combine", 128, 273),
        ("hgx-h800", 8, "deepep_ll", "dispatch", 128, 173),
        ("hgx-h800", 8, "deepep_ll", "combine", 128, 314),
        # DeepEP branch hybrid-ep docs @94a9f8f, 16 SMs, kernel alone
        ("dgx-h100", 4, "hybrid_ep", "combine", 4096, 3693),
    ],
)
def test_published_points_are_within_six_per_cent(cluster, nodes, name, direction, tokens, published_us):
    limit = (8, 4) if (cluster, name) == ("hgx-h800", "deepep") else (1, 1)
    assert microseconds(cluster, nodes, name, direction, tokens, limit) == pytest.approx(published_us, rel=0.06)


@given(
    nodes=st.sampled_from([1, 2, 4, 8]), sigma=st.floats(0.0, 1.5), seed=st.integers(0, 99),
    name=st.sampled_from(["deepep", "deepep_ll", "hybrid_ep"]),
)  # fmt: skip
def test_skew_costs_time_and_the_bound_holds(nodes, sigma, seed, name):
    share = np.exp(sigma * np.random.default_rng(seed).standard_normal(256))
    group = Group(size=8 * nodes, per_node=8)
    cluster = load_cluster("dgx-h100", nodes)
    even, skewed = (
        all_to_all(cluster, group, traffic(group.size, 512, FP8, one), name) for one in (EVEN, share / share.sum())
    )
    assert float(skewed.seconds) >= float(even.seconds) * 0.999
    assert float(skewed.bound_s) <= float(skewed.seconds)


def test_a_chunk_is_a_part_of_the_tokens_not_of_each_row():
    # four chunks of 1,024 tokens: each as long as an exchange of 256 whole rows
    whole, part = traffic(8, 1024, BF16), traffic(8, 256, BF16)
    chunk = resized(whole, BF16 / 4, 4)
    group, cluster = Group(size=8, per_node=8), load_cluster("dgx-h100")
    for name in ("deepep", "deepep_ll", "hybrid_ep"):
        for way in ("dispatch", "combine"):
            found, expected = (all_to_all(cluster, group, each, name, way) for each in (chunk, part))
            assert float(found.seconds) == pytest.approx(float(expected.seconds))


def test_eight_experts_keep_eight_sms_busy():
    # Mixtral's shape: the kernel gives each expert an SM, so that few experts take far longer
    group, cluster = Group(size=8, per_node=8), load_cluster("dgx-h100")

    def of(experts):
        share = np.full(experts, 1 / experts)
        pairs = Dense(copies=np.full((8, 8), 1024 * 2 / 8))
        sent = Traffic(pairs=pairs, tokens=1024, token_bytes=4096 * (1 + 4 / 128), share=share, top_k=2)
        return float(all_to_all(cluster, group, sent, "deepep_ll").seconds) * 1e6

    assert of(8) == pytest.approx(321, rel=0.08)  # aiconfigurator-core 0.12.0
    assert of(128) < 0.25 * of(8)


@given(tokens=st.integers(1, 8192), more=st.integers(1, 4096), nodes=st.sampled_from([1, 2, 4]))
def test_more_tokens_never_take_less_time(tokens, more, nodes):
    for name in ("deepep", "deepep_ll", "hybrid_ep"):
        few, many = (microseconds("dgx-h100", nodes, name, "dispatch", t) for t in (tokens, tokens + more))
        assert few < many


def test_a_token_crosses_the_network_once_for_each_node():
    one, each = (microseconds("dgx-h100", 4, name, "combine", 4096) for name in ("deepep", "deepep_ll"))
    assert one < 0.6 * each


def priced_on(cluster, nodes=8, tokens=4096, name="deepep"):
    group = Group(size=8 * nodes, per_node=8)
    share = np.full(256 * max(1, nodes // 32), 1 / (256 * max(1, nodes // 32)))
    return all_to_all(cluster, group, traffic(group.size, tokens, FP8, share), name)


def test_published_are_only_exchanges_like_the_published_ones():
    h100 = load_cluster("dgx-h100", 8)
    slow = replace(h100, fabric=Fabric(degraded=(Degraded(link="nic", node=0, share=0.5),)))
    narrow = replace(h100, fabric=Fabric(between="tree", oversubscription=2.0))
    guessed = replace(h100, scale_out=replace(h100.scale_out, basis="estimated"))
    assert priced_on(h100).basis.published == 1.0
    assert priced_on(load_cluster("dgx-h200"), 1).basis.published == 1.0  # the preset that stands for the measured one
    large, long = priced_on(load_cluster("dgx-h100", 16), 16), priced_on(h100, tokens=65536)
    for found in (priced_on(slow), priced_on(narrow), priced_on(guessed), large, long):
        assert found.basis == ESTIMATED
        assert found.high >= 1.4 * found.seconds


def test_many_more_ranks_than_were_measured_are_an_estimate():
    kernel = next(each for each in kernels() if each.mechanism == "low_latency")
    cluster = load_cluster("dgx-h100", 64)
    assert judged(kernel, cluster, Group(size=256, per_node=8), 128)
    assert not judged(kernel, cluster, Group(size=512, per_node=8), 128)


def test_the_way_up_is_named_where_it_decides():
    tree = replace(load_cluster("dgx-h100", 8), fabric=Fabric(between="tree", oversubscription=2.0))
    found = priced_on(tree)
    assert found.limited_by == "uplink"
    assert found.bound_s == pytest.approx(2 * priced_on(load_cluster("dgx-h100", 8)).bound_s)


def test_without_nvlink_or_hopper_it_cannot_run():
    group = Group(size=8, per_node=8)
    for name in ("pcie-l40s", "dgx-a100"):
        assert "needs NVLink and a Hopper" in unsupported(load_cluster(name), group, "deepep")
    assert unsupported(load_cluster("dgx-h100"), group, "deepep") is None
    assert {"deepep", "deepep_ll", "hybrid_ep"} <= set(ALGORITHMS)


def test_traffic_without_popularities_is_refused():
    bare = Traffic(pairs=Dense(copies=np.ones((8, 8))), tokens=4, token_bytes=1.0)
    with pytest.raises(MoesimError, match="give share"):
        all_to_all(load_cluster("dgx-h100"), Group(size=8, per_node=8), bare, "deepep")
