"""What a cluster is: nouns checked at birth, presets with sources, a graph that can be walked."""

import subprocess
import sys
from dataclasses import replace

import networkx as nx
import pytest

from moesim.cluster import CLUSTERS, GPUS, Degraded, Fabric, Group, check_group, graph, load_cluster
from moesim.cluster.graph import gpu_name
from moesim.errors import MoesimError
from moesim.units import GIB

NAMES = [
    "dgx-a100", "dgx-h100", "dgx-h200", "hgx-h800", "hgx-b200", "gb200-nvl72", "hgx-b300", "gb300-nvl72",
    "pcie-l40s", "pcie-a30", "tpu-v3",
]  # fmt: skip


def test_every_promised_preset_is_there_and_cites_its_figures():
    assert list(CLUSTERS) == NAMES
    for cluster in CLUSTERS.values():
        links = [link.source for link in (cluster.scale_up, cluster.scale_out) if link is not None]
        for source in (cluster.source, cluster.gpu.source, *links):
            assert len(source) > 10


def test_data_sheet_figures_of_the_h200():
    h200 = load_cluster("dgx-h200").gpu
    assert h200.memory_bytes == 141 * GIB
    assert h200.memory_bytes_per_s == 4.8e12
    assert h200.flops == {"bf16": 989e12, "fp8": 1978e12, "int8": 1978e12}
    assert (h200.sms, h200.architecture) == (132, "hopper")


def test_the_h800_is_an_h100_with_half_the_nvlink():
    h800, h100 = CLUSTERS["hgx-h800"], CLUSTERS["dgx-h100"]
    assert h800.gpu.flops == h100.gpu.flops
    assert h800.scale_up.bandwidth_bytes_per_s == h100.scale_up.bandwidth_bytes_per_s / 2


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_preset_grows_to_any_number_of_nodes(name):
    cluster = load_cluster(name, nodes=3)
    assert cluster.gpus == 3 * cluster.gpus_per_node
    assert cluster.scale_up.bandwidth_bytes_per_s <= cluster.scale_up.peak_bytes_per_s


def test_a_pod_of_tpus_is_one_torus_of_1024_chips_with_two_cores_each():
    pod = load_cluster("tpu-v3")
    assert pod.gpus / pod.fabric.places == 2
    assert pod.scale_up.peak_bytes_per_s == 82e9  # 656 Gb/s
    with pytest.raises(MoesimError, match="2 nodes and no scale_out link"):
        load_cluster("tpu-v3", nodes=2)


def test_two_racks_of_72_are_two_nodes():
    net = graph(load_cluster("gb200-nvl72", 2))
    assert len(net["leaf71"]) == 2 + 1  # a NIC of each rack, and the spine
    assert len(net["n1.nvswitch"]) == 72


def test_clusters_and_groups_can_be_keys_of_a_cache():
    assert len({load_cluster("dgx-h100", 2), load_cluster("dgx-h100", 2), load_cluster("dgx-h100", 4)}) == 2
    assert len({Group(size=8, per_node=8), Group(size=8, per_node=8)}) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nodes": 0}, "nodes 0"),
        ({"nodes": 2.5}, "nodes 2.5"),
        ({"gpus_per_node": -8}, "gpus_per_node -8"),
        ({"scale_out": None, "nics_per_node": 0, "nodes": 2}, "no scale_out link"),
        ({"nics_per_node": 0}, "nics_per_node 0"),
        ({"gpu_hour_price": 0.0}, "gpu_hour_price 0.0"),
        ({"scale_up": CLUSTERS["dgx-h100"].scale_out}, "scale_out is nic: correct them"),
        ({"nics_per_node": 16}, "nics_per_node 16 with 8 GPUs: several NICs of one GPU count as one"),
        ({"nodes": 2, "fabric": Fabric(inside="torus", torus=(4, 2))}, "2 nodes with inside=torus: it is one domain"),
        ({"fabric": Fabric(inside="torus", torus=(3, 2))}, "torus of 3x2 places with 8 GPUs: give a multiple of 6"),
        ({"fabric": Fabric(degraded=(Degraded(link="nic", node=1),))}, "degraded nic of node 1, index 0: there are 1"),
    ],
)
def test_an_impossible_cluster_is_refused(change, words):
    with pytest.raises(MoesimError, match=words):
        replace(CLUSTERS["dgx-h100"], **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bandwidth_bytes_per_s": -1.0}, "bandwidth_bytes_per_s -1.0"),
        ({"bandwidth_bytes_per_s": 500e9}, "500 GB/s is above its peak 450 GB/s"),
        ({"latency_s": float("nan")}, "latency nan"),
        ({"kind": "nvlin"}, "did you mean nvlink"),
        ({"basis": "guessed"}, "unknown basis"),
    ],
)
def test_an_impossible_link_is_refused(change, words):
    with pytest.raises(MoesimError, match=words):
        replace(CLUSTERS["dgx-h100"].scale_up, **change)


def test_an_impossible_gpu_is_refused():
    with pytest.raises(MoesimError, match="memory_bytes 0"):
        replace(GPUS["H100"], memory_bytes=0)
    with pytest.raises(MoesimError, match="dense bf16"):
        replace(GPUS["H100"], flops={"fp8": 1e15})


def test_an_unknown_cluster_names_the_nearest():
    with pytest.raises(MoesimError, match="unknown cluster 'dgx-h10': did you mean dgx-h100"):
        load_cluster("dgx-h10")


def test_a_group_fits_or_is_refused():
    cluster = load_cluster("dgx-h100", 2)
    check_group(cluster, Group(size=16, per_node=8))
    for size, per_node in ((32, 8), (16, 4), (16, 16)):
        with pytest.raises(MoesimError, match="a group"):
            check_group(cluster, Group(size=size, per_node=per_node))
    for size, per_node in ((0, 1), (8, 16), (12, 8)):
        with pytest.raises(MoesimError, match="a group of"):
            Group(size=size, per_node=per_node)


@pytest.mark.parametrize(("name", "nodes"), [("dgx-h100", 2), ("pcie-l40s", 2), ("dgx-a100", 4)])
def test_half_of_the_nodes_reach_the_other_half_at_the_speed_of_their_nics(name, nodes):
    cluster = load_cluster(name, nodes)
    net = graph(cluster)
    for node in range(nodes):
        for local in range(cluster.gpus_per_node):
            ends = ("in", gpu_name(node, local)) if node < nodes // 2 else (gpu_name(node, local), "out")
            net.add_edge(*ends)  # without a bandwidth: unlimited
    flow, _ = nx.maximum_flow(net, "in", "out", capacity="bandwidth_bytes_per_s")
    assert flow == pytest.approx(cluster.gpus / 2 * cluster.scale_out.bandwidth_bytes_per_s)


def test_the_latency_along_a_path_is_that_of_the_link():
    cluster = load_cluster("dgx-h100", 2)
    net = graph(cluster)
    near = nx.shortest_path_length(net, gpu_name(0, 0), gpu_name(0, 1), weight="latency_s")
    far = nx.shortest_path_length(net, gpu_name(0, 0), gpu_name(1, 0), weight="latency_s")
    assert (near, far) == pytest.approx((7.7e-6, 19.9e-6))


def test_gpus_that_share_a_nic_share_its_bandwidth():
    cluster = load_cluster("pcie-l40s", 2)  # 8 GPUs on 2 NICs of 200 Gb/s
    net = graph(cluster)
    assert [gpu for gpu in net["n1.nic1"] if "gpu" in gpu] == [f"n1.gpu{local}" for local in (4, 5, 6, 7)]
    assert net.edges["n0.nic0", "leaf0"]["bandwidth_bytes_per_s"] == pytest.approx(23e9)


def test_one_node_has_no_network_beyond_its_nics():
    kinds = {kind for _, kind in graph(load_cluster("dgx-h100")).nodes(data="kind")}
    assert kinds == {"gpu", "switch", "nic"}


def test_the_graph_of_2048_gpus_is_whole():
    net = graph(load_cluster("dgx-h100", 256))
    assert sum(kind == "gpu" for _, kind in net.nodes(data="kind")) == 2048
    assert nx.is_strongly_connected(net)


def test_the_path_of_the_planner_imports_nothing_heavy():
    code = (
        "import sys, moesim.alltoall, moesim.cluster; moesim.cluster.load_cluster('dgx-h100');"
        "print({'pandas', 'networkx', 'pydantic', 'yaml', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
