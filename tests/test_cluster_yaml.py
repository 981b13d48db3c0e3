"""A user's own cluster from YAML: what is read, and the one line for what is wrong."""

import re
from pathlib import Path

import pytest
import yaml

from moesim.cluster import GPUS, Degraded, Fabric, Wire, graph, load_cluster
from moesim.errors import MoesimError
from moesim.tiers import Tier, Tiers, tiers_of
from moesim.units import US

DOCS = Path(__file__).parents[1] / "docs" / "clusters.md"

GOOD = """
name: lab
gpu: H200
nodes: 2
gpus_per_node: 4
scale_up: {kind: nvlink, latency: 8us, bandwidth: 320GB/s, peak: 450GB/s, source: nccl-tests on our machine}
scale_out: {kind: nic, latency: 0.02ms, bandwidth: 45GB/s, peak: 400Gb/s, basis: measured, source: the same}
nics_per_node: 4
gpu_hour_price: 2.5
gpu_hour_price_source: our invoice
source: written by hand
"""
OWN_GPU = (
    "gpu: {name: X1, architecture: hopper, memory: 96GiB, memory_bandwidth: 4TB/s, "
    "flops: {bf16: 700TFLOP/s}, sms: 132, l2: 50MiB, source: its data sheet}"
)


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "lab.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_quantities_carry_their_units(file):
    cluster = load_cluster(file(GOOD))
    assert (cluster.name, cluster.gpus, cluster.gpu) == ("lab", 8, GPUS["H200"])
    assert cluster.scale_up.latency_s == pytest.approx(8e-6)
    assert cluster.scale_out.peak_bytes_per_s == 50e9
    assert (cluster.scale_up.basis, cluster.scale_out.basis) == ("estimated", "measured")
    assert cluster.gpu_hour_price == 2.5


def test_memory_behind_a_gpu_can_be_stated(file):
    cpu = "cpu: {capacity: 250GB, bandwidth: 40GB/s, start: 10us, source: our copies}"
    ssd = "ssd: {capacity: 3.8TB, bandwidth: 6GB/s, start: 100us, source: fio}"
    both = load_cluster(file(f"{GOOD}memory_tiers: {{{cpu}, {ssd}}}"))
    assert tiers_of(both) == both.tiers == Tiers(
        cpu=Tier(capacity_bytes=250e9, bytes_per_s=40e9, start_s=10 * US, source="our copies"),
        ssd=Tier(capacity_bytes=3.8e12, bytes_per_s=6e9, start_s=100 * US, source="fio"),
    )  # fmt: skip
    alone = load_cluster(file(f"{GOOD}memory_tiers: {{{cpu}}}"))
    assert tiers_of(alone).ssd is None
    assert tiers_of(alone, cpu_bytes_per_s=20e9).cpu.capacity_bytes == 250e9
    with pytest.raises(MoesimError, match=r"memory_tiers\.cpu\.start is missing"):
        load_cluster(file(f"{GOOD}memory_tiers: {{{cpu.replace('start: 10us, ', '')}}}"))


def test_the_number_of_nodes_can_be_replaced(file):
    assert load_cluster(file(GOOD), nodes=16).gpus == 64


def test_damage_of_nodes_that_are_left_out_is_left_out(file):
    nic, up = Degraded(link="nic", node=0, share=0.5), Degraded(link="up", node=3, share=0.5)
    uplinks = [Degraded(link="uplink", node=leaf, share=0.5) for leaf in (0, 1)]
    sick = [{"link": one.link, "node": one.node, "share": one.share} for one in (nic, up, *uplinks)]
    tree = file(with_fabric({"between": "tree", "leaf_nodes": 2, "degraded": sick}, nodes=4))
    assert load_cluster(tree).fabric.degraded == (nic, up, *uplinks)
    assert load_cluster(tree, nodes=8).fabric.degraded == (nic, up, *uplinks)
    assert load_cluster(tree, nodes=3).fabric.degraded == (nic, *uplinks)
    assert load_cluster(tree, nodes=2).fabric.degraded == (nic, uplinks[0])  # below one leaf


def test_a_gpu_of_ones_own(file):
    gpu = load_cluster(file(GOOD.replace("gpu: H200", OWN_GPU))).gpu
    assert (gpu.name, gpu.memory_bytes, gpu.flops["bf16"]) == ("X1", 96 * 2.0**30, 700e12)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "bandwidth: 320GB/s",
            "bandwidth: 320Gbs",
            r"scale_up.bandwidth: '320Gbs' is not a bandwidth: unit 'Gbs'",
        ),
        (
            "bandwidth: 320GB/s",
            "bandwidth: 320",
            r"scale_up.bandwidth: '320' is not a bandwidth: write a number and one of",
        ),
        ("nodes: 2", "nodes: 2\nnodes: 3", r"is not YAML: the key 'nodes' is there twice"),
        ("kind: nic,", "kind: nic, kind: nic,", r"the key 'kind' is there twice"),
        ("nodes: 2", "nodes: 300000", r"300000 nodes of 4 GPUs: give at most 1,000,000 GPUs"),
        ("gpus_per_node: 4", f"gpus_per_node: {10**30}", r"give at most 1,000,000 GPUs"),
        ("latency: 8us", "latency: -8us", r"scale_up.latency: '-8us' is not a duration"),
        ("peak: 450GB/s", "peek: 450GB/s", r"scale_up.peek: unknown key 'peek': did you mean peak"),
        ("nics_per_node: 4", "nics: 4", r"nics: unknown key 'nics'.*nics_per_node"),
        ("nodes: 2", "nodes: 0", r"nodes 0: .*greater than or equal to 1"),
        ("nodes: 2", "nodes: two", r"nodes 'two': .*integer"),
        ("gpus_per_node: 4", "", r"gpus_per_node is missing"),
        ("kind: nvlink", "kind: nvlnk", r"scale_up.kind 'nvlnk'"),
        ("gpu: H200", "gpu: H20O", r"gpu: unknown GPU 'H20O': did you mean H200"),
        (
            "gpu: H200",
            OWN_GPU.replace("700TFLOP/s", "700TF"),
            r"gpu.flops.bf16: '700TF' is not a compute rate",
        ),
        ("gpu: H200", OWN_GPU.replace("96GiB", "96"), r"gpu.memory: '96' is not a size"),
        ("gpu: H200", OWN_GPU.replace("bf16:", "fp16:"), r"state the dense bf16"),
        ("gpu_hour_price_source: our invoice", "", r"gpu_hour_price 2.5 has no source"),
        ("bandwidth: 320GB/s", "bandwidth: 999GB/s", r"lab.yaml: .*above its peak"),
        ("name: lab", "name: [lab", r"is not YAML"),
    ],
)
def test_a_wrong_entry_is_named_with_its_value_in_one_line(file, old, new, words):
    assert old in GOOD
    with pytest.raises(MoesimError, match=words) as error:
        load_cluster(file(GOOD.replace(old, new)))
    assert "\n" not in str(error.value)
    assert "lab.yaml" in str(error.value)


@pytest.mark.parametrize("text", ["", "- a list", "just text"])
def test_a_file_without_keys_is_refused(file, text):
    with pytest.raises(MoesimError, match="is not a mapping: write name, gpu"):
        load_cluster(file(text))


def test_python_objects_are_not_made_from_yaml(file):
    with pytest.raises(MoesimError, match="is not YAML"):
        load_cluster(file("name: !!python/object/apply:os.getcwd []"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MoesimError, match=r"cannot read the cluster file .*none.yaml"):
        load_cluster(str(tmp_path / "none.yaml"))


def with_fabric(fabric, **keys):
    """The good cluster with a fabric, and with other keys changed."""
    return yaml.safe_dump(yaml.safe_load(GOOD) | {"fabric": fabric} | keys)


ONE_DOMAIN = {"nodes": 1, "scale_out": None, "nics_per_node": 0}
SQUARE = "one,other,bandwidth\ngpu0,gpu1,50GB/s\ngpu1,gpu2,50GB/s\n\ngpu2,gpu3,50GB/s\ngpu3, gpu0, 400Gb/s\n"


def test_a_cluster_without_a_fabric_has_a_switch_and_rails(file):
    assert load_cluster(file(GOOD)).fabric == Fabric()


def test_every_key_of_a_fabric_is_read(file):
    tree = {"between": "tree", "leaf_nodes": 2, "oversubscription": 4, "ecmp": 1.5}
    slow = [{"link": "nic", "node": 1, "index": 2, "share": 0.5}, {"link": "uplink", "node": 0, "share": 0.9}]
    host = {"inside": "host", "host_bandwidth": "80GB/s"}
    assert load_cluster(file(with_fabric(tree | host | {"degraded": slow}))).fabric == Fabric(
        inside="host", host_bytes_per_s=80e9, between="tree", leaf_nodes=2, oversubscription=4.0, ecmp=1.5,
        degraded=(Degraded(link="nic", node=1, index=2, share=0.5), Degraded(link="uplink", node=0, share=0.9)),
    )  # fmt: skip
    torus = {"inside": "torus", "torus": [2, 2]}
    assert load_cluster(file(with_fabric(torus, **ONE_DOMAIN))).fabric == Fabric(inside="torus", torus=(2, 2))


def test_wires_lie_beside_the_file_that_names_them(file, tmp_path):
    (tmp_path / "square.csv").write_text(SQUARE)
    fabric = load_cluster(file(with_fabric({"inside": "graph", "wires": "square.csv"}, **ONE_DOMAIN))).fabric
    assert fabric.wires[0] == Wire(one="gpu0", other="gpu1", bandwidth_bytes_per_s=50e9)
    assert fabric.wires[3] == Wire(one="gpu3", other="gpu0", bandwidth_bytes_per_s=50e9)
    assert len(fabric.wires) == 4


@pytest.mark.parametrize(
    ("fabric", "words"),
    [
        ({"insid": "mesh"}, r"fabric.insid: unknown key 'insid': did you mean inside"),
        ({"inside": "swich"}, r"fabric.inside 'swich'"),
        ({"between": "fat"}, r"fabric.between 'fat'"),
        ({"oversubscription": 0}, r"oversubscription 0.0: give 0.001 to 1,000"),
        ({"oversubscription": 1.0e308, "ecmp": 10}, r"oversubscription 1e\+308"),
        ({"oversubscription": -2}, r"oversubscription -2.0"),
        ({"ecmp": 0.5}, r"ecmp 0.5: give 1 to 1,000"),
        ({"between": "tree", "leaf_nodes": 0}, r"leaf_nodes 0: give 1 to 1,000,000"),
        ({"between": "tree", "leaf_nodes": 10**30}, r"leaf_nodes 10+: give 1 to 1,000,000"),
        ({"between": "tree", "oversubscription": 2}, r"leaf_nodes is missing: between: tree needs it"),
        ({"leaf_nodes": 2}, r"fabric.leaf_nodes 2 with between: rail: it is for between: tree; leave it out"),
        ({"between": "rail_only", "oversubscription": 2}, r"oversubscription 2.0 with between: rail_only"),
        ({"between": "rail_only", "ecmp": 2}, r"ecmp 2.0 with between: rail_only: it is for between: rail, spine"),
        ({"inside": "torus", "torus": [4], "between": "spine"}, r"between spine with inside: torus: .*switch, mesh"),
        ({"between": "rail_only", "degraded": [{"link": "uplink", "node": 0, "share": 0.5}]}, r"no way up"),
        ({"inside": "torus", "torus": [1]}, r"torus \[1\]: give up to 3 dimensions, 2 places or more"),
        ({"inside": "torus", "torus": [1] * 8 + [4]}, r"give up to 3 dimensions"),
        ({"inside": "host"}, r"inside=host: host_bytes_per_s belongs to inside=host, and it needs it"),
        ({"inside": "host", "host_bandwidth": "0GB/s"}, r"host_bytes_per_s 0.0: give a number above zero"),
        ({"inside": "host", "host_bandwidth": "80"}, r"fabric.host_bandwidth: '80' is not a bandwidth"),
        ({"inside": "torus", "torus": [2, 2]}, r"2 nodes with inside=torus: it is one domain, give nodes: 1"),
        ({"degraded": [{"link": "nik", "node": 0, "share": 0.5}]}, r"fabric.degraded.0.link 'nik'"),
        ({"degraded": [{"link": "nic", "nod": 0, "share": 0.5}]}, r"unknown key 'nod': did you mean node"),
        ({"degraded": [{"link": "nic", "node": 0}]}, r"fabric.degraded.0.share is missing"),
        ({"degraded": [{"link": "nic", "node": 0, "share": 0}]}, r"share 0.0: give 0.001 to 1"),
        ({"degraded": [{"link": "nic", "node": 0, "share": 1e-300}]}, r"share 1e-300: give 0.001 to 1"),
        ({"degraded": [{"link": "nic", "node": 2, "share": 0.5}]}, r"nic of node 2, index 0: there are 2 with 4 each"),
        ({"degraded": [{"link": "up", "node": 0, "index": 4, "share": 0.5}]}, r"up of node 0, index 4"),
        ({"wires": "none.csv"}, r"cannot read the wires .*none.csv"),
    ],
)
def test_a_wrong_fabric_is_named_with_its_value_in_one_line(file, fabric, words):
    with pytest.raises(MoesimError, match=words) as error:
        load_cluster(file(with_fabric(fabric)))
    assert "\n" not in str(error.value)
    assert re.search(r"lab.yaml|none.csv", str(error.value))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("one,other,bandwidth", "from,to,bandwidth", r"columns from,to,bandwidth: begin it with one,other,bandwidth"),
        (SQUARE, "", r"columns none: begin it with"),
        (SQUARE, "one,other,bandwidth\n", r"has no wires"),
        ("gpu0,gpu1,50GB/s", "gpu0,gpu1", r"line 2: 2 values: give one, other, bandwidth"),
        ("gpu0,gpu1,50GB/s", "gpu0,gpu1,50", r"line 2: '50' is not a bandwidth"),
        ("gpu0,gpu1,50GB/s", "gpu0,gpu1,0GB/s", r"line 2: wire gpu0 - gpu1 bandwidth 0.0: give a number above zero"),
        ("gpu0,gpu1,50GB/s", "gpu0,gpu1,-5GB/s", r"line 2: '-5GB/s' is not a bandwidth"),
        ("gpu0,gpu1,50GB/s", "gpu0,gpu0,50GB/s", r"line 2: .*give two different ends"),
        ("gpu0,gpu1,50GB/s", "gpu0,,50GB/s", r"line 2: a wire without an end"),
        ("gpu0,gpu1", "gpu2,gpu1", r"two wires between gpu1 and gpu2: write one"),
        ("gpu3, gpu0", "gpu3, gpu4", r"a wire to gpu4 with gpus_per_node 4: name gpu0 to gpu3"),
        ("gpu0", "plx", r"gpu0 has no wire: connect it"),
        (
            "gpu1,gpu2,50GB/s\n\ngpu2,gpu3,50GB/s\ngpu3, gpu0",
            "gpu2,gpu3",
            r"no way from gpu0 to gpu2: connect the 2 parts",
        ),
    ],
)
def test_a_wrong_wire_is_named_with_its_line(file, tmp_path, old, new, words):
    (tmp_path / "square.csv").write_text(SQUARE.replace(old, new))
    with pytest.raises(MoesimError, match=words) as error:
        load_cluster(file(with_fabric({"inside": "graph", "wires": "square.csv"}, **ONE_DOMAIN)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nics_per_node": 0}, r"nics_per_node 0: give at least 1 with a scale_out link"),
        ({"scale_out": None, "nics_per_node": 0}, r"2 nodes and no scale_out link: describe its NICs"),
    ],
)
def test_a_rank_without_a_nic_is_refused(file, change, words):
    with pytest.raises(MoesimError, match=words):
        load_cluster(file(with_fabric({}, **change)))


def examples():
    """The clusters of docs/clusters.md: the first whole, the others changes to it; and the CSV files that they name."""
    text = DOCS.read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    return [blocks[0] | block for block in blocks], dict(re.findall(r"```csv (\S+)\n(.*?)```", text, re.S))


@pytest.mark.parametrize("number", range(9))
def test_the_examples_of_the_manual_are_taken_as_they_stand(tmp_path, number):
    clusters, files = examples()
    assert len(clusters) == 9
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(clusters[number]))
    cluster = load_cluster(str(path))
    assert sum(kind == "gpu" for _, kind in graph(cluster).nodes(data="kind")) == cluster.gpus
