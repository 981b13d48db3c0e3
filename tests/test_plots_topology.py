"""The picture of a cluster's links: what stands in it, where, and in which colour."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from moesim.cluster import CLUSTERS, Degraded, Fabric, Group, Wire, graph, load_cluster
from moesim.network import Dense
from moesim.plots import edge_loads, figure, save, topology
from moesim.plots.places import tiers, torus

BOX = replace(CLUSTERS["dgx-h100"], gpus_per_node=4, nics_per_node=4)
POD = CLUSTERS["tpu-v3"]
SQUARE = tuple(
    Wire(one=f"gpu{i}", other=end, bandwidth_bytes_per_s=(i + 1) * 10e9) for i in range(4) for end in ("left", "right")
)
FABRICS = {
    "mesh": replace(BOX, nodes=2, fabric=Fabric(inside="mesh")),
    "host": replace(CLUSTERS["pcie-l40s"], nodes=2, fabric=Fabric(inside="host", host_bytes_per_s=40e9)),
    "ring": replace(POD, gpus_per_node=6, fabric=Fabric(inside="torus", torus=(6,))),
    "torus": replace(POD, gpus_per_node=32, fabric=Fabric(inside="torus", torus=(4, 4))),
    "cube": replace(POD, gpus_per_node=24, fabric=Fabric(inside="torus", torus=(2, 3, 4))),
    "wires": replace(BOX, fabric=Fabric(inside="graph", wires=SQUARE)),
    "rails alone": replace(BOX, nodes=2, fabric=Fabric(between="rail_only")),
    "tree": replace(BOX, nodes=4, fabric=Fabric(between="tree", leaf_nodes=2, oversubscription=2)),
}


def drawn(cluster, tmp_path, loads=None):
    """The words of the picture and its lines, drawn for real: a warning fails here."""
    picture, ax = figure()
    assert topology(graph(cluster), ax, loads) is ax
    save(picture, tmp_path / "plot.png")
    (lines,) = [each for each in ax.collections if isinstance(each, LineCollection)]
    return [text.get_text() for text in ax.texts], lines, picture


def skewed(cluster):
    """Everybody sends to rank 0 above all."""
    copies = np.ones((cluster.gpus, cluster.gpus))
    copies[:, 0] = 10.0
    return edge_loads(cluster, Group(size=cluster.gpus, per_node=cluster.gpus_per_node), Dense(copies=copies))


@pytest.mark.parametrize(
    ("cluster", "nodes"),
    [("dgx-h100", 1), ("dgx-h100", 4), ("dgx-h100", 32), ("gb200-nvl72", 2), ("pcie-a30", 2)],
)
def test_topology_states_the_bandwidth_of_each_tier(tmp_path, cluster, nodes):
    words, _, _ = drawn(load_cluster(cluster, nodes), tmp_path)
    up = load_cluster(cluster, nodes).scale_up
    kind = {"nvlink": "NVLink", "pcie": "PCIe"}[up.kind]
    assert f"{kind} {up.bandwidth_bytes_per_s / 1e9:.3g} GB/s" in words
    assert sum(word.startswith("node ") for word in words) == (nodes if nodes <= 4 else 2)
    assert any(f"{nodes - 2} more nodes not drawn" in word for word in words) == (nodes > 4)
    assert ("spine" in words) == (nodes > 1)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("name", FABRICS)
def test_every_fabric_can_be_drawn_with_and_without_loads(tmp_path, name, loaded):
    cluster = FABRICS[name]
    words, _, picture = drawn(cluster, tmp_path, skewed(cluster) if loaded else None)
    assert any("busiest: " in word for word in words) == loaded
    assert len(picture.axes) == 1 + loaded  # the bar of colours


def test_the_busiest_link_is_named_and_the_widest(tmp_path):
    cluster = load_cluster("dgx-h100", 2)
    words, lines, picture = drawn(cluster, tmp_path, skewed(cluster))
    assert any(word.startswith("busiest: NIC 0 of node 1 to leaf 0\n") for word in words)
    assert max(lines.get_linewidths()) == lines.get_linewidths()[-1] == 3.0  # on top of the others
    assert picture.axes[1].get_ylabel() == "time that the link is busy, of the busiest"


def test_the_node_and_the_rail_of_the_busiest_link_are_drawn_among_many(tmp_path):
    racks = load_cluster("gb200-nvl72", 6)
    words, _, _ = drawn(racks, tmp_path, {("n4.nic43", "leaf43"): 2.0, ("n1.nic0", "leaf0"): 1.0})
    assert any(word.startswith("busiest: NIC 43 of node 4 to leaf 43\n") for word in words)
    assert "node 4: 72 GPUs, 8 drawn" in words
    assert "node 1: 72 GPUs, 8 drawn" not in words
    places = tiers(graph(racks), ("n4.nic43", "leaf43")).places
    assert {"n0.gpu43", "n4.gpu43", "n4.nic43", "leaf43"} <= set(places)


def test_loads_of_nothing_are_drawn_as_none(tmp_path):
    words, _, picture = drawn(BOX, tmp_path, {("n0.gpu0", "n0.nvswitch"): 0.0})
    assert not any("busiest" in word for word in words)
    assert len(picture.axes) == 1


def test_a_slow_link_shows_in_the_range_of_its_tier(tmp_path):
    slow = (Degraded(link="nic", node=1, index=2, share=0.5),)
    words, _, _ = drawn(replace(BOX, nodes=2, fabric=Fabric(degraded=slow)), tmp_path)
    assert "network 24 to 48 GB/s" in words


def test_the_links_of_a_mesh_hang_below_its_gpus():
    drawing = tiers(graph(FABRICS["mesh"]), None)
    arcs = [line for _, line in drawing.lines if len(line) > 2]
    assert len(arcs) == 2 * 6  # 4 x 3 / 2 pairs in each of two nodes
    assert all(y <= 1.0 for arc in arcs for _, y in arc)


def test_a_torus_is_a_grid_whose_edge_leads_round():
    drawing = torus(graph(FABRICS["torus"]), None)
    assert drawing.places["n0.place0"] == (0.0, 0.0)
    assert drawing.places["n0.place7"] == (1.0, -3.0)  # column 1, row 3
    assert len(drawing.lines) == 24 + 2 * 8  # 24 between neighbours; 8 go round, with two ends each


def test_a_pod_is_drawn_up_to_eight_by_eight(tmp_path):
    words, _, _ = drawn(POD, tmp_path)
    assert any("2 GPUs on each place; stubs go round\n960 more places not drawn" in word for word in words)


def test_wires_keep_their_names_and_places(tmp_path):
    words, _, _ = drawn(FABRICS["wires"], tmp_path)
    assert {"gpu0", "gpu3", "left", "right", "wires: 10 to 40 GB/s per direction"} <= set(words)
