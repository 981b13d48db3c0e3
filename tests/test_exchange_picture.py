"""What the command of an all-to-all says and draws: whose loads a picture shows, what it never writes over."""

import pytest

from moesim.cli import main
from moesim.costs.all_to_all import AllToAll, priced
from moesim.costs.exchange_picture import own_route, title

SICK = """
name: sick
source: test
gpu: H100
nodes: 4
gpus_per_node: 8
scale_up: {kind: nvlink, latency: 8us, bandwidth: 320GB/s, peak: 450GB/s, source: test}
scale_out: {kind: nic, latency: 20us, bandwidth: 50GB/s, peak: 50GB/s, source: test}
nics_per_node: 8
fabric: {degraded: [{link: nic, node: 3, index: 2, share: 0.5}]}
"""
EXCHANGE = "--hidden 4096 --top-k 2 --experts 32 --tokens-per-rank 512"


@pytest.fixture
def sick(tmp_path):
    path = tmp_path / "sick.yaml"
    path.write_text(SICK, encoding="utf-8")
    return str(path)


def call(cluster, *more):
    return main(["cost", "all-to-all", "--cluster", cluster, *EXCHANGE.split(), *more])


def found(algorithm):
    asked = {"hidden": 4096, "top_k": 2, "experts": 16, "tokens_per_rank": 512}
    return priced(AllToAll(cluster="dgx-h100", nodes=2, algorithm=algorithm, **asked))


def test_a_table_that_is_not_ours_is_never_written_over(sick, tmp_path, capsys):
    wires = tmp_path / "ring.csv"
    wires.write_text("one,other,bandwidth\ngpu0,gpu1,50GB/s\n")
    assert call(sick, "--plot", str(tmp_path / "ring.png")) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "ring.csv, which is something else: give another name" in captured.err
    assert wires.read_text().startswith("one,other,bandwidth")
    assert not (tmp_path / "ring.png").exists()


def test_a_picture_can_be_drawn_again(sick, tmp_path):
    picture = tmp_path / "links.png"
    for nodes in ("2", "4"):
        assert call(sick, "--nodes", nodes, "--algorithm", "linear", "--plot", str(picture)) == 0
    assert "n3.nic2" in picture.with_suffix(".csv").read_text()


def test_loads_of_another_algorithm_are_shown_without_a_time():
    assert title(found("linear"), "dispatch").startswith("linear dispatch between 16 ranks, 8.0 KiB a row: ")
    words = title(found("deepep"), "dispatch")
    assert words.startswith("dispatch between 16 ranks, 8.0 KiB a row: every copy sent on its own (linear)")
    assert words.endswith("(what deepep loads is not known link by link)")


@pytest.mark.parametrize("algorithm", ["linear", "2dh", "rail"])
def test_the_loads_that_are_drawn_as_its_own_are_what_it_is_priced_by(algorithm):
    from moesim.alltoall import busiest_bytes
    from moesim.plots import edge_loads

    case = found(algorithm)
    traffic, up = case.traffic(algorithm), case.cluster.scale_up.bandwidth_bytes_per_s
    priced_bytes = busiest_bytes(case.cluster, case.group, traffic, algorithm)
    drawn_s = edge_loads(
        case.cluster, case.group, traffic.pairs, own_route(case.cluster, algorithm), copy_bytes=case.token_bytes
    )
    # the picture has the mean of the draws on each link, the price each draw's busiest: a few percent more
    busiest_s = {kind: max(s for edge, s in drawn_s.items() if kind in "".join(edge)) for kind in ("nic", "nvswitch")}
    nic_s = priced_bytes["nic"].mean() / case.cluster.scale_out.bandwidth_bytes_per_s
    assert busiest_s["nic"] == pytest.approx(nic_s, rel=0.1)
    assert busiest_s["nvswitch"] == pytest.approx(priced_bytes["nvlink"].mean() / up, rel=0.1)


def test_bytes_on_a_slow_link_are_said_as_what_it_carries(sick, capsys):
    assert call(sick, "--algorithm", "linear") == 0
    text = capsys.readouterr().out
    # 1,024 rows of 8 KiB, three of four to other nodes: 6 MiB by a NIC; half of one left counts as 12
    busiest = next(line for line in text.splitlines() if "busiest" in line)
    whole, left = (
        float(word.strip("(")) for word in (busiest.split("nic=")[1].split()[0], busiest.split("(or ")[1][:3])
    )
    assert whole == pytest.approx(12, rel=0.1)
    assert left == pytest.approx(6, rel=0.1)
    assert "on the one with 50% left)" in busiest
    assert call(sick, "--nodes", "2", "--algorithm", "linear") == 0  # without the node that is sick
    assert "left" not in capsys.readouterr().out


def test_who_cannot_run_is_counted_for_people(capsys):
    assert call("dgx-h100", "--nodes", "1") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  cannot run")]
    assert len(lines) == 1
    assert lines[0].endswith("other algorithms; --json says why")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--redundant-experts", "64000000"], "redundant_experts '64000000': give a whole number from 0 to 1,048,576"),
        (["--redundant-experts", "1000000000000"], "redundant_experts"),
        (["--capacity-factor", "1e300"], "capacity_factor '1e300': give a number above 0, at most 1,000"),
        (["--tokens-per-rank", "1000000000000"], "tokens_per_rank '1000000000000'"),
        (["--nodes", "1000000000"], "give at most 1,000,000 GPUs"),
    ],
)
def test_what_no_machine_could_hold_is_one_line(more, words, capsys):
    assert call("dgx-h100", *more) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert words in captured.err
