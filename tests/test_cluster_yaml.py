"""A user's own cluster from YAML: what is read, and the one line for what is wrong."""

import pytest

from moesim.cluster import GPUS, load_cluster
from moesim.errors import MoesimError

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


def test_the_number_of_nodes_can_be_replaced(file):
    assert load_cluster(file(GOOD), nodes=16).gpus == 64


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
            r"scale_up.bandwidth: '320' is not a bandwidth",
        ),
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
