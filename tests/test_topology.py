"""The graph that is drawn and the links that are calculated with are the same network, in every fabric."""

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise, permutations, product

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cluster import CLUSTERS, Degraded, Fabric, Group, Wire, graph, load_cluster
from moesim.cluster.graph import gpu_name, next_place, place_name
from moesim.network import Dense, Product, bytes_per_s, forwards, waits
from moesim.plots.link_loads import edge_bytes_per_s, edge_loads

BOX = replace(CLUSTERS["dgx-h100"], gpus_per_node=4, nics_per_node=4)
SHARED = replace(CLUSTERS["pcie-l40s"], gpus_per_node=4, nics_per_node=2)  # two GPUs on each NIC
wire = partial(Wire, bandwidth_bytes_per_s=25e9)
# gpu0 - gpu1 - gpu2 - gpu3 - gpu0, and a switch that joins gpu0 with gpu2
RING = (
    *(wire(one=f"gpu{i}", other=f"gpu{(i + 1) % 4}") for i in range(4)),
    *(Wire(one=f"gpu{i}", other="plx", bandwidth_bytes_per_s=50e9) for i in (0, 2)),
)
SLOW = (
    Degraded(link="up", node=0, index=1, share=0.5),
    Degraded(link="nic", node=1, share=0.25),
    Degraded(link="uplink", node=0, share=0.5),
)
SEVERAL_NODES = {
    "one NIC a GPU": replace(BOX, nodes=3),
    "shared NICs": replace(SHARED, nodes=3),
    "rails alone": replace(BOX, nodes=3, fabric=Fabric(between="rail_only")),
    "spine": replace(BOX, nodes=3, fabric=Fabric(between="spine", oversubscription=2, ecmp=1.25)),
    "tree": replace(BOX, nodes=4, fabric=Fabric(between="tree", leaf_nodes=2, oversubscription=4)),
    "tree with an odd leaf": replace(SHARED, nodes=3, fabric=Fabric(between="tree", leaf_nodes=2)),
    "slow links": replace(BOX, nodes=4, fabric=Fabric(between="tree", leaf_nodes=2, degraded=SLOW)),
    "mesh": replace(BOX, nodes=2, fabric=Fabric(inside="mesh", degraded=SLOW)),
    "host": replace(SHARED, nodes=2, fabric=Fabric(inside="host", host_bytes_per_s=40e9, degraded=SLOW)),
}
ONE_DOMAIN = {
    "ring": replace(BOX, fabric=Fabric(inside="torus", torus=(4,))),
    "two GPUs a place": replace(BOX, gpus_per_node=16, fabric=Fabric(inside="torus", torus=(4, 2))),
    "cube": replace(BOX, gpus_per_node=18, fabric=Fabric(inside="torus", torus=(3, 2, 3))),
    "slow place": replace(BOX, fabric=Fabric(inside="torus", torus=(2, 2), degraded=SLOW[:1])),
    "wires": replace(BOX, fabric=Fabric(inside="graph", wires=RING)),
}
EVERY = SEVERAL_NODES | ONE_DOMAIN | {"rack": load_cluster("gb200-nvl72", 2)}


def everybody(cluster):
    return Group(size=cluster.gpus, per_node=cluster.gpus_per_node)


@pytest.mark.parametrize("name", EVERY)
def test_the_graph_has_the_bandwidths_of_the_links(name):
    net, widths = graph(EVERY[name]), edge_bytes_per_s(EVERY[name], everybody(EVERY[name]))
    drawn = nx.get_edge_attributes(net, "bandwidth_bytes_per_s")
    for edge, width in widths.items():
        both_ways = 2 if net.edges[edge]["kind"] == "host" else 1  # memory: in and out together
        assert drawn[edge] * both_ways == pytest.approx(width)
    limited = {edge for edge, width in drawn.items() if np.isfinite(width)}
    assert limited - {(b, a) for a, b in widths} <= set(widths)  # every edge that bytes can wait on is a link
    assert nx.is_strongly_connected(net)


def shortest(net, one, other, *kinds):
    """The edges of every shortest way over nodes of these kinds."""
    between = {name for name, kind in net.nodes(data="kind") if kind in kinds}
    allowed = net.subgraph({one, other} | between)
    return [list(pairwise(way)) for way in nx.all_shortest_paths(allowed, one, other)]


def one_after_another(parts):
    """Ways from the ways of each part."""
    return [list(chain(*chosen)) for chosen in product(*parts)]


def inside(net, cluster, one, other):
    """Within a node: by its switch, its host's memory, its wires, or along one dimension of its torus after another."""
    if cluster.fabric.inside == "host":
        host = f"{one.split('.')[0]}.host"
        return one_after_another([shortest(net, one, host, "switch"), shortest(net, host, other, "switch")])
    if cluster.fabric.inside != "torus":
        return shortest(net, one, other, "switch", *(["gpu"] if cluster.fabric.inside == "graph" else []))
    (start,), (end,) = ([place for place in net[gpu] if "place" in place] for gpu in (one, other))
    at, target = (np.unravel_index(int(p.split("place")[1]), cluster.fabric.torus) for p in (start, end))
    corners = [(*target[:k], *at[k:]) for k in range(len(at) + 1)]
    names = [place_name(0, int(np.ravel_multi_index(corner, cluster.fabric.torus))) for corner in corners]
    return one_after_another([shortest(net, a, b, "place") for a, b in pairwise(names)])


def ways(net, cluster, src, dst, route):
    """Every way from a rank to another, each with an equal share of the bytes."""
    per_node = cluster.gpus_per_node
    (node, local), (far, there) = divmod(src, per_node), divmod(dst, per_node)
    one, other = gpu_name(node, local), gpu_name(far, there)
    if node == far:
        return inside(net, cluster, one, other)
    if not forwards(cluster, route):
        return shortest(net, one, other, "nic", "leaf", "spine")
    rail = gpu_name(node, there)  # NVLink first
    first = inside(net, cluster, one, rail) if rail != one else [[]]
    return one_after_another([first, shortest(net, rail, other, "nic", "leaf")])


ROUTED = [
    (name, route)
    for name in EVERY.keys() - {"rack"}
    for route in ("forwarded", "direct")
    if (name, route) != ("rails alone", "direct")  # nothing joins these rails but NVLink
]


@pytest.mark.parametrize(("name", "route"), sorted(ROUTED))
def test_flows_over_the_graph_load_its_edges_as_calculated(name, route):
    cluster, net = EVERY[name], graph(EVERY[name])
    copies = np.random.default_rng(3).integers(0, 9, (cluster.gpus, cluster.gpus)).astype(float)
    carried = Counter()
    for src, dst in permutations(range(cluster.gpus), 2):
        every = ways(net, cluster, src, dst, route)
        for edge in chain(*every):
            carried[edge] += copies[src, dst] / len(every)
    seconds = {edge: load / net.edges[edge]["bandwidth_bytes_per_s"] for edge, load in carried.items()}
    calculated = edge_loads(cluster, everybody(cluster), Dense(copies=copies), route)
    assert {edge: s for edge, s in calculated.items() if s} == pytest.approx(
        {edge: s for edge, s in seconds.items() if s and edge in calculated}
    )
    left_out = {edge for edge, s in seconds.items() if s} - set(calculated)
    assert {net.edges[edge]["kind"] for edge in left_out} <= {"host"}  # its way back takes as long


@given(copies=st.lists(st.integers(0, 5), min_size=256, max_size=256), name=st.sampled_from(sorted(SEVERAL_NODES)))
@settings(max_examples=20, deadline=None)
def test_the_busiest_edge_takes_the_longest_wait(copies, name):
    cluster = replace(SEVERAL_NODES[name], nodes=4)
    pairs = Dense(copies=np.reshape(copies, (16, 16)).astype(float))
    busiest = max(edge_loads(cluster, everybody(cluster), pairs, "forwarded").values())
    found = waits(cluster, everybody(cluster), pairs, "forwarded")
    assert busiest == pytest.approx(max(float(w) / bytes_per_s(cluster, kind)[0] for kind, w in found.items()))


def test_a_copy_of_two_bytes_takes_twice_as_long():
    pairs = Dense(copies=np.ones((12, 12)))
    cluster = EVERY["shared NICs"]
    one, two = (edge_loads(cluster, everybody(cluster), pairs, copy_bytes=size) for size in (1.0, 2.0))
    assert two == pytest.approx({edge: 2 * seconds for edge, seconds in one.items()})


def test_the_next_place_of_a_torus_goes_round():
    # 0 1 2
    # 3 4 5
    assert [next_place((2, 3), 5, 0, 1), next_place((2, 3), 5, 1, 1), next_place((2, 3), 3, 1, -1)] == [2, 3, 5]


# GShard (Lepikhin et al. 2020), fig. 9: chips by cores, and microseconds of an all-to-all of 8 and of 32 MiB a core.
GSHARD = {
    16: ((4, 2), 286, 1120), 32: ((4, 4), 296, 1150), 64: ((8, 4), 550, 2190), 128: ((8, 8), 734, 2590),
    256: ((16, 8), 1228, 4980), 512: ((16, 16), 1293, 5090), 1024: ((32, 16), 2413, 10260),
    2048: ((32, 32), 2361, 10580),
}  # fmt: skip


def gshard_us(cores, mib):
    pod = load_cluster("tpu-v3")
    part = replace(pod, gpus_per_node=cores, fabric=replace(pod.fabric, torus=GSHARD[cores][0]))
    each = Product(sent=np.ones(cores), share=np.full(cores, 1 / cores))
    seconds = edge_loads(part, everybody(part), each, copy_bytes=mib * 2.0**20)
    return (pod.scale_up.latency_s + max(seconds.values())) * 1e6


def test_a_torus_fitted_to_16_cores_holds_for_the_other_14_points_of_gshard():
    errors = {
        (cores, mib): gshard_us(cores, mib) / measured - 1
        for cores, (_, *both) in GSHARD.items()
        for mib, measured in zip((8, 32), both, strict=True)
    }
    assert [errors.pop((16, mib)) for mib in (8, 32)] == pytest.approx([0, 0], abs=1e-3)  # fitted on these
    assert max(map(abs, errors.values())) < 0.25
    assert np.sqrt(np.mean(np.square(list(errors.values())))) == pytest.approx(0.113, abs=1e-3)


def test_square_and_oblong_tori_of_one_longest_side_take_equally_long():
    # the staircase: twice the cores on 4 x 4 instead of 4 x 2 chips cost nothing, 8 x 4 cost twice as much
    steps = [gshard_us(cores, 8) - 8 for cores in GSHARD]
    assert steps == pytest.approx([steps[0] * 2**k for k in (0, 0, 1, 1, 2, 2, 3, 3)])
