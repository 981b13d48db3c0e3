"""``moesim cost all-to-all``: what the answer says, options that change the traffic, many ranks, refusals."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.alltoall import ALGORITHMS
from moesim.alltoall.reach import reached_parts
from moesim.cli import main
from moesim.costs import OPERATIONS
from moesim.costs.exchange_traffic import Layer, exchange_traffic
from moesim.errors import MoesimError
from moesim.network import Product
from moesim.placement import replicated

pytestmark = pytest.mark.usefixtures("unclamped")

EXCHANGE = "--hidden 4096 --top-k 2 --experts 16 --tokens-per-rank 512"
TREE = """
name: tree
source: test
gpu: H100
nodes: 4
gpus_per_node: 8
scale_up: {kind: nvlink, latency: 8us, bandwidth: 320GB/s, peak: 450GB/s, source: test}
scale_out: {kind: nic, latency: 20us, bandwidth: 48GB/s, peak: 50GB/s, source: test}
nics_per_node: 8
fabric: {between: tree, leaf_nodes: 2, oversubscription: 2}
"""
HOST = """
name: host
source: test
gpu: L40S
nodes: 1
gpus_per_node: 8
scale_up: {kind: pcie, latency: 20us, bandwidth: 22GB/s, peak: 32GB/s, source: test}
fabric: {inside: host, host_bandwidth: 80GB/s}
"""


def ask(**given):
    settled = {"cluster": "dgx-h100", "nodes": 2, "hidden": 4096, "top_k": 2, "experts": 16, "tokens_per_rank": 512}
    return OPERATIONS["all-to-all"].answer(**(settled | given))


def seconds(**given):
    return float(ask(**given).cost.seconds)


@pytest.fixture
def tree(tmp_path):
    path = tmp_path / "tree.yaml"
    path.write_text(TREE, encoding="utf-8")
    return str(path)


def layer(**given):
    settled = {
        "routing": "lognormal:1", "stamp": None, "placement": "contiguous", "seed": 0, "experts": 16, "redundant": 0,
        "groups": (1, 1), "top_k": 2, "capacity_factor": None, "ranks": 8, "tokens": 512,
    }  # fmt: skip
    return Layer(**(settled | given))


def test_best_names_the_fastest_and_says_why_the_others_cannot_run():
    found = ask().more
    assert found["algorithm"] == min(found["compared"], key=found["compared"].get)
    assert set(found["compared"]) | set(found["fused"]) | set(found["cannot_run"]) == set(ALGORITHMS)
    assert "is a switch" in found["cannot_run"]["torus"]


def test_who_is_as_fast_as_the_best_within_its_band_is_named():
    found = ask(nodes=4, hidden=7168, top_k=8, experts=256, tokens_per_rank=4096)
    assert (found.more["algorithm"], found.more["as_fast"]) == ("deepep", ["hybrid_ep"])
    assert found.more["compared"]["hybrid_ep"] <= found.cost.high < found.more["compared"]["ag_rs"]
    assert "no CUDA graph" in found.more["note"]
    assert "note" not in ask(algorithm="linear").more


def test_a_fused_kernel_is_compared_but_not_chosen():
    found = ask(experts=64, nodes=1).more
    assert found["fused"]["tiles"] < min(found["compared"].values())
    assert found["algorithm"] != "tiles"
    assert ask(experts=64, nodes=1, algorithm="tiles").more["algorithm"] == "tiles"


def test_the_busiest_links_are_named_with_their_bytes():
    # 16 ranks of 512 tokens, top-2: half of a rank's 1024 rows of 8 KiB leave the node, a sixteenth goes to each peer
    found = ask(algorithm="linear")
    assert found.more["busiest"]["nic"] == pytest.approx(512 * 8192, rel=0.15)
    assert found.more["traffic"] == "drawn"
    assert found.inputs["draws"] == 8
    assert found.cost.bound_s <= found.cost.seconds


def test_an_oversubscribed_tree_says_what_climbs_and_that_it_contends(tree):
    found = ask(cluster=tree, nodes=4, experts=32, tokens_per_rank=4096, routing="lognormal:0.2", algorithm="linear")
    assert set(found.more["busiest"]) == {"nvlink", "nic", "uplink"}
    assert found.more["contention"] > 1.01
    assert "contention" not in ask(algorithm="linear").more


def test_combine_and_dispatch_carry_the_same_bytes_the_other_way_round():
    there, home = (ask(algorithm="linear", direction=way).more["busiest"]["nic"] for way in ("dispatch", "combine"))
    assert there == pytest.approx(home, rel=0.1)


def test_node_limited_routing_spares_the_network():
    # DeepSeek-V3 on 8 nodes: the best 4 of 8 groups, a group a node
    given = {"nodes": 8, "experts": 256, "top_k": 8, "tokens_per_rank": 4096, "algorithm": "deepep"}
    free, limited = ask(**given), ask(**given, expert_groups=8, top_groups=4)
    assert limited.more["busiest"]["nic"] / free.more["busiest"]["nic"] == pytest.approx(3.63 / 5.29, rel=0.02)
    assert limited.cost.seconds < free.cost.seconds


def test_experts_that_are_scattered_are_reached_without_limit():
    given = {"nodes": 8, "experts": 256, "top_k": 8, "tokens_per_rank": 4096, "algorithm": "deepep"}
    given |= {"placement": "balanced", "routing": "lognormal:0.5"}
    free, scattered = ask(**given), ask(**given, expert_groups=8, top_groups=4)
    assert scattered.more["busiest"]["nic"] == free.more["busiest"]["nic"]


def test_one_group_of_eight_on_four_nodes_is_one_node_a_token():
    # a token leaves its node three times in four, once
    given = {"nodes": 4, "experts": 256, "top_k": 8, "tokens_per_rank": 4096, "algorithm": "deepep"}
    found = ask(**given, expert_groups=8, top_groups=1)
    assert found.more["busiest"]["nic"] == pytest.approx(0.75 * 4096 * 8192, rel=0.02)


def test_what_a_capacity_drops_is_sent_by_nobody():
    # an expert a rank: as many rows arrive as the drawn copies say
    found = exchange_traffic(layer(routing="lognormal:0.5", ranks=16, capacity_factor=0.5, tokens=4096))
    reached = reached_parts(found.real, 16) * 4096 * 16
    assert found.dropped_share > 0.4
    np.testing.assert_allclose(reached.sum(axis=-1), found.real.pairs.copies.sum(axis=(-1, -2)), rtol=0.02)
    given = {"nodes": 4, "experts": 256, "top_k": 8, "tokens_per_rank": 4096, "hidden": 7168}
    for name in ("deepep", "deepep_ll", "hybrid_ep"):
        whole, quarter = (ask(**given, algorithm=name, capacity_factor=factor) for factor in (None, 0.25))
        assert quarter.cost.seconds < 0.6 * whole.cost.seconds
        assert quarter.more["busiest"]["nic"] < 0.6 * whole.more["busiest"]["nic"]


def test_in_a_node_links_that_wait_for_one_another_are_in_the_seconds(tmp_path):
    path = tmp_path / "host.yaml"
    path.write_text(HOST, encoding="utf-8")
    found = ask(cluster=str(path), nodes=1, tokens_per_rank=4096, routing="lognormal:1", algorithm="linear")
    busiest_s = max(found.more["busiest"]["pcie"] / 22e9, found.more["busiest"]["host"] / 80e9)
    assert found.more["contention"] > 1.01
    assert found.cost.seconds == pytest.approx(found.more["contention"] * busiest_s, rel=0.01)


def test_a_capacity_factor_pads_every_exchange_but_those_that_send_real_rows():
    given = {"routing": "lognormal:1", "tokens_per_rank": 4096}
    plain, padded = (ask(**given, capacity_factor=factor, algorithm="linear") for factor in (None, 1.0))
    assert padded.more["dropped_share"] == padded.more["padding_share"] > 0.1
    # everybody sends an even 4096 x 2 / 16 rows to each of 8 ranks on the other node
    assert padded.more["busiest"]["nic"] == 8 * 512 * 8192
    assert padded.more["busiest"]["nic"] < plain.more["busiest"]["nic"]
    roomy, real = (ask(**given, capacity_factor=4.0, algorithm=name) for name in ("linear", "deepep_ll"))
    assert roomy.more["busiest"]["nic"] == 4 * padded.more["busiest"]["nic"]
    assert real.more["busiest"]["nic"] < 0.8 * roomy.more["busiest"]["nic"]


def test_replicas_of_popular_experts_even_the_load():
    given = {"experts": 64, "routing": "zipf:1", "algorithm": "linear", "placement": "balanced"}
    assert seconds(**given, redundant_experts=16) < 0.8 * seconds(**given)


def test_the_heaviest_expert_gets_the_next_slot():
    # loads 6, 2, 1: the first extra slot halves 6 to 3 + 3, the second gives 2 + 2 + 2, the third goes to a 2 first met
    assert replicated(np.array([6.0, 2.0, 1.0]), 5).tolist() == [0, 1, 2, 0, 0]
    assert replicated(np.array([[6.0, 2.0, 1.0], [1.0, 1.0, 8.0]]), 4).tolist() == [[0, 1, 2, 0], [0, 1, 2, 2]]
    with pytest.raises(MoesimError, match="2 slots for 3 experts"):
        replicated(np.ones(3), 2)


@given(loads=st.lists(st.integers(1, 99), min_size=2, max_size=6), more=st.integers(0, 6))
@settings(max_examples=30)
def test_no_replica_has_more_to_do_than_before(loads, more):
    shares = np.array(loads, dtype=float)
    origin = replicated(shares, len(loads) + more)
    each = shares / np.bincount(origin)
    assert origin[: len(loads)].tolist() == list(range(len(loads)))
    assert each.max() <= shares.max()


def test_copies_are_conserved_with_replicas_and_capacity():
    plain = exchange_traffic(layer())
    split = exchange_traffic(layer(redundant=8))
    assert plain.real.pairs.copies.sum() == pytest.approx(8 * 8 * 512 * 2)  # draws x ranks x tokens x top-k
    assert split.real.pairs.copies.sum() == pytest.approx(8 * 8 * 512 * 2)
    capped = exchange_traffic(layer(capacity_factor=1.0))
    assert capped.real.pairs.copies.sum() == pytest.approx(8 * 8 * 1024 * (1 - capped.dropped_share))
    assert np.all(capped.padded.pairs.copies == 64 * 2)  # 512 x 2 / 16 slots for each of a rank's two experts


def test_expected_traffic_is_what_draws_are_on_average(monkeypatch):
    drawn = exchange_traffic(layer(tokens=100_000, seed=3))
    monkeypatch.setattr("moesim.costs.exchange_traffic.MOST_DRAWN", 0)
    expected = exchange_traffic(layer(tokens=100_000, seed=3, stamp=(1, 1)))
    assert isinstance(expected.real.pairs, Product)
    found = expected.real.pairs.sent[..., :, None] * expected.real.pairs.share[..., None, :]
    assert found == pytest.approx(drawn.real.pairs.copies, rel=0.03)


def test_a_hundred_thousand_ranks_answer_in_a_second():
    given = {"nodes": 12_800, "experts": 102_400, "top_k": 8, "routing": "lognormal:1", "algorithm": "linear"}
    start_s = time.perf_counter()
    found = ask(**given)
    assert time.perf_counter() - start_s < 1.0
    assert found.more["traffic"] == "expected"
    assert found.cost.seconds > seconds(**given | {"routing": "uniform"})


def test_the_command_prints_bytes_for_people(capsys):
    assert main(["cost", "all-to-all", "--cluster", "dgx-h100", "--nodes", "2", *EXCHANGE.split()]) == 0
    text = capsys.readouterr().out
    assert "busiest" in text
    assert "as_fast" in text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--algorithm torus", ["torus needs a node joined as torus", "choose linear, pairwise"]),
        ("--algorithm 3dh", ["3dh needs pods", "choose"]),
        ("--experts 24", ["24 experts do not divide over 16 ranks"]),
        ("--redundant-experts 8", ["16 experts and 8 redundant ones do not divide over 16 ranks"]),
        ("--redundant-experts -1", ["redundant_experts '-1'"]),
        ("--expert-groups 3", ["experts 16 do not divide into expert_groups 3"]),
        ("--expert-groups 4 --top-groups 5", ["top_groups 5 is above expert_groups 4"]),
        ("--expert-groups 16 --top-groups 1", ["top_k 2 is above the 1 experts of 1 groups"]),
        ("--capacity-factor 0", ["capacity_factor '0'", "above 0"]),
        ("--tokens-per-rank many", ["tokens_per_rank 'many'", "whole number"]),
        ("--nodes 512 --experts 4096 --capacity-factor 1", ["capacity_factor 1 with 4096 ranks", "4,194,304"]),
        ("--nodes 4000 --experts 32000 --placement balanced", ["placement balanced of 32,000 experts", "contiguous"]),
    ],
)
def test_a_wrong_exchange_gets_one_line_that_names_the_value(more, words, capsys):
    assert main(["cost", "all-to-all", "--cluster", "dgx-h100", "--nodes", "2", *EXCHANGE.split(), *more.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


@pytest.mark.parametrize("algorithm", ["linear", "2dh"])
def test_a_plot_shows_the_links_and_leaves_their_table(algorithm, tmp_path, capsys):
    picture = tmp_path / "links.png"
    call = ["cost", "all-to-all", "--cluster", "dgx-h100", "--nodes", "2", *EXCHANGE.split(), "--algorithm", algorithm]
    assert main([*call, "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 10_000
    lines = picture.with_suffix(".csv").read_text().splitlines()
    assert lines[0] == "from,to,busy_s"
    busy_s = {tuple(line.split(",")[:2]): float(line.split(",")[2]) for line in lines[1:]}
    assert busy_s["n0.nic3", "leaf3"] == pytest.approx(512 * 8192 / 48e9, rel=0.1)  # half of 1024 rows of 8 KiB
    assert ("leaf3", "spine") not in busy_s  # forwarded to the rail, nothing climbs


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--plot links.txt", ["links.txt", ".png"]),
        ("--plot links.png --from cases.csv", ["--plot draws one case"]),
        ("--plot links.png --nodes 600 --experts 4800", ["4,800 ranks", "fewer nodes"]),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused(more, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["cost", "all-to-all", "--cluster", "dgx-h100", "--nodes", "2", *EXCHANGE.split(), *more.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for word in words:
        assert word in captured.err
    assert list(tmp_path.iterdir()) == []


def test_json_says_all_of_it(capsys):
    call = ["cost", "all-to-all", "--cluster", "dgx-h100", "--nodes", "2", *EXCHANGE.split(), "--json"]
    assert main(call) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"seconds", "low", "high", "bound_s", "limited_by", "basis", "source", "algorithm"} <= set(found)
    assert {"compared", "fused", "cannot_run", "busiest", "traffic", "inputs"} <= set(found)
