"""Collectives: exact on the measured points, linear beyond them, carried over with a wider band."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cluster import CLUSTERS, Degraded, Fabric, Group, Wire, load_cluster
from moesim.collectives import all_gather, all_reduce, in_node, point_to_point, reduce_scatter
from moesim.collectives.curves import OPS, node_curves
from moesim.cost import ESTIMATED, MEASURED, PUBLISHED
from moesim.errors import MoesimError

pytestmark = pytest.mark.usefixtures("unclamped")

US, MIB = 1e-6, 2.0**20
H100 = load_cluster("dgx-h100")
COLLECTIVES = (all_reduce, all_gather, reduce_scatter)
sizes = st.floats(1.0, 1e11)


def test_a_measured_point_is_returned_exactly():
    # NCCL 2.29.2, 8 x H100, all-reduce of 512 MiB: 2111.06 us (aiconfigurator-core 0.12.0, nccl-tests)
    cost = all_reduce(H100, Group(size=8, per_node=8), 512 * MIB)
    assert cost.seconds == pytest.approx(2111.06 * US)
    assert cost.basis == PUBLISHED
    assert "NCCL 2.29.2 on H100" in cost.source


def test_between_two_points_the_curve_is_straight_in_log_log():
    # 8 ranks, all-gather: 128 MiB 392.82 us, 512 MiB 1401.5 us
    halfway = all_gather(H100, Group(size=8, per_node=8), 256 * MIB)
    assert halfway.seconds == pytest.approx((392.82 * 1401.5) ** 0.5 * US)


def test_small_messages_cost_the_latency_and_large_ones_the_bandwidth():
    group = Group(size=8, per_node=8)
    cost = all_gather(H100, group, np.array([0.0, 1.0, 512.0, 1e9, 1e10]))
    assert cost.seconds[0] == cost.seconds[1] == cost.seconds[2]
    assert cost.seconds[4] == pytest.approx(10 * cost.seconds[3])


def test_one_rank_costs_nothing():
    alone = Group(size=1, per_node=1)
    for collective in COLLECTIVES:
        assert collective(H100, alone, np.array([0.0, 1e9])).seconds.tolist() == [0.0, 0.0]


def test_a_batch_is_priced_like_its_members():
    group = Group(size=32, per_node=8)
    cluster = load_cluster("dgx-h100", 4)
    size = np.array([[1e3, 1e6], [1e8, 1e9]])
    for collective in COLLECTIVES:
        batch = collective(cluster, group, size).seconds
        assert batch.shape == size.shape
        assert batch[1, 0] == pytest.approx(collective(cluster, group, 1e8).seconds)


def test_six_ranks_lie_between_four_and_eight_at_equal_wire_bytes():
    wire = 64 * MIB
    four, six, eight = (in_node(H100, "all_gather", n, wire * n / (n - 1)).seconds for n in (4, 6, 8))
    assert min(four, eight) <= six <= max(four, eight)


def test_the_h200_takes_the_curve_of_the_h100_and_says_so():
    # 8 x H200, NCCL 2.29.2 (aiconfigurator), all-gather of 1, 8, 64, 512 MiB: 17, 43, 206, 1395 us
    cost = all_gather(load_cluster("dgx-h200"), Group(size=8, per_node=8), np.array([1, 8, 64, 512]) * MIB)
    assert cost.basis == ESTIMATED
    assert "carried over from H100" in cost.source
    assert cost.seconds == pytest.approx(np.array([17, 43, 206, 1395]) * US, rel=0.09)


def test_gb200_takes_the_curve_of_b200():
    # vLLM blog (GB200 wide-EP, table): all-gather of 512 MiB on 2 and 4 GPUs of one domain: 604 and 719 us
    cluster = load_cluster("gb200-nvl72")
    for ranks, published_s in ((2, 604 * US), (4, 719 * US)):
        group = Group(size=ranks, per_node=ranks)
        assert all_gather(cluster, group, 512 * MIB).seconds == pytest.approx(published_s, rel=0.05)


def test_half_the_nvlink_doubles_the_time_above_the_latency():
    group, size = Group(size=8, per_node=8), np.array([512.0, 512 * MIB])
    h100, h800 = (all_gather(load_cluster(name), group, size).seconds for name in ("dgx-h100", "hgx-h800"))
    assert h800[0] == h100[0]
    assert h800[1] - h800[0] == pytest.approx(2 * (h100[1] - h100[0]))


def test_a_carried_curve_has_the_wider_band():
    group = Group(size=8, per_node=8)
    widths = []
    for name in ("dgx-h100", "dgx-h200", "hgx-h800"):
        cost = all_reduce(load_cluster(name), group, 1e8)
        widths.append(float(cost.high / cost.seconds))
    assert widths == sorted(set(widths))


def test_pcie_boxes_use_the_table_of_their_group_size():
    # NCCL 2.27.3, L40S, all-gather of 512 MiB: 2 GPUs 13.7 ms, 4 GPUs 85 ms, 8 GPUs 400 ms
    cluster = load_cluster("pcie-l40s")
    found = [float(in_node(cluster, "all_gather", n, 512 * MIB).seconds) for n in (2, 4, 8)]
    assert found == pytest.approx([0.013698, 0.084965, 0.400176])


def test_across_nodes_the_busier_link_decides():
    # 2 nodes, all-gather of 1 GiB: NVLink brings 7/8 of it at ~335 GB/s, a NIC 1/16 of it at 48 GB/s
    near = all_gather(H100, Group(size=8, per_node=8), 1024 * MIB).seconds
    two = all_gather(load_cluster("dgx-h100", 2), Group(size=16, per_node=8), 1024 * MIB)
    assert two.seconds == pytest.approx(near, rel=0.01)
    assert two.limited_by == "nvlink"
    # one rank a node: everything by NIC, (N-1)/N of 1 GiB at 48 GB/s
    alone = all_gather(load_cluster("dgx-h100", 2), Group(size=2, per_node=1), 1024 * MIB)
    assert alone.seconds == pytest.approx(512 * MIB / 48e9, rel=0.01)
    assert alone.limited_by == "nic"


def test_all_reduce_over_many_nodes_moves_the_buffer_twice_over_each_rail():
    cluster = load_cluster("dgx-h100", 32)
    cost = all_reduce(cluster, Group(size=256, per_node=8), 8e9)
    assert cost.seconds == pytest.approx(2 * 31 / 32 * 1e9 / 48e9, rel=0.01)
    assert cost.basis == ESTIMATED


def test_a_tree_saves_steps_when_messages_are_small():
    # 32 nodes: 2 x 5 tree steps of 5.6 us instead of 2 x 31 ring steps
    cluster = load_cluster("dgx-h100", 32)
    cost = all_reduce(cluster, Group(size=256, per_node=8), 8.0)
    assert cost.seconds == pytest.approx(15.59 * US + 10 * 0.28 * 19.9 * US, rel=0.01)
    assert cost.limited_by == "launch"


def test_point_to_point_is_latency_plus_bytes_over_bandwidth():
    # Vidur, H100: 7.7 us + S / 357 GB/s in a node, 19.9 us + S / 36..48 GB/s across
    cluster = load_cluster("dgx-h100", 2)
    assert point_to_point(cluster, 357e6, same_node=True).seconds == pytest.approx(1e-3 + 7.7e-6)
    assert point_to_point(cluster, 48e6, same_node=False).seconds == pytest.approx(1e-3 + 19.9e-6)


def test_a_pair_is_faster_than_an_all_to_all_only_on_the_links_where_that_was_measured():
    own = replace(H100, scale_up=replace(H100.scale_up, bandwidth_bytes_per_s=330e9, source="mine"))
    assert point_to_point(own, 330e6, same_node=True).seconds == pytest.approx(1e-3 + 7.7e-6)
    assert point_to_point(own, 1.0, same_node=True).source == "mine"
    assert "1.12 x all-to-all" in point_to_point(H100, 1.0, same_node=True).source


def test_a_message_crosses_what_joins_two_gpus():
    def width(alone=True, **fabric):
        plain = replace(H100.scale_up, bandwidth_bytes_per_s=240e9, latency_s=0.0)
        cluster = replace(H100, gpus_per_node=4, nics_per_node=4, scale_up=plain, fabric=Fabric(**fabric))
        return 1e9 / float(point_to_point(cluster, 1e9, same_node=True, alone=alone).seconds)

    wires = tuple(Wire(one=f"gpu{i}", other=f"gpu{(i + 1) % 4}", bandwidth_bytes_per_s=50e9) for i in range(4))
    assert width() == pytest.approx(240e9)
    assert width(inside="mesh") == pytest.approx(80e9)  # a third of a GPU's links
    assert width(inside="graph", wires=wires) == pytest.approx(50e9)
    assert width(inside="host", host_bytes_per_s=100e9) == pytest.approx(50e9)  # into host memory and out of it
    assert width(alone=False, inside="host", host_bytes_per_s=100e9) == pytest.approx(12.5e9)  # four at once
    assert width(degraded=(Degraded(link="up", node=0, index=2, share=0.5),)) == pytest.approx(120e9)


def test_an_idle_pair_has_a_shared_nic_to_itself():
    # 2 NICs of 23 GB/s for 8 GPUs behind PCIe of 22 GB/s
    box = load_cluster("pcie-l40s", 2)
    alone, together = (point_to_point(box, 23e9, same_node=False, alone=each).seconds for each in (True, False))
    assert (float(alone), float(together)) == pytest.approx((23 / 22, 4.0), rel=1e-4)


def test_a_slow_nic_or_a_narrow_leaf_holds_up_what_all_gpus_send_to_the_next_node():
    def slower(**fabric):
        cluster = replace(load_cluster("dgx-h100", 4), fabric=Fabric(**fabric))
        return float(point_to_point(cluster, 48e9, same_node=False).seconds)

    assert slower() == pytest.approx(1.0, rel=1e-4)
    assert slower(degraded=(Degraded(link="nic", node=3, index=1, share=0.5),)) == pytest.approx(2.0, rel=1e-4)
    assert slower(between="tree", leaf_nodes=1, oversubscription=4.0) == pytest.approx(4.0, rel=1e-4)


def test_a_carried_curve_is_never_above_the_data_sheet():
    peak = H100.scale_up.peak_bytes_per_s
    fast = replace(H100, scale_up=replace(H100.scale_up, bandwidth_bytes_per_s=peak))
    for op in OPS:
        found = in_node(fast, op, 8, np.logspace(3, 11))
        assert np.all(found.bound_s <= found.seconds)


def test_sending_between_nodes_without_nics_is_refused():
    lonely = replace(H100, scale_out=None, nics_per_node=0)
    with pytest.raises(MoesimError, match="no scale_out link"):
        point_to_point(lonely, 1.0, same_node=False)


def test_a_group_that_does_not_fit_is_refused():
    with pytest.raises(MoesimError, match="does not fit dgx-h100"):
        all_reduce(H100, Group(size=16, per_node=8), 1.0)
    with pytest.raises(MoesimError, match="unknown collective 'all_reduc'"):
        in_node(H100, "all_reduc", 8, 1.0)


def test_a_table_with_a_missing_column_is_refused(tmp_path, monkeypatch):
    (tmp_path / "h100").mkdir()
    (tmp_path / "h100" / "collectives.csv").write_text("op,ranks,bytes,library,basis,source\nall_gather,8,1,x,y,z\n")
    monkeypatch.setenv("MOESIM_PROFILES", str(tmp_path))
    with pytest.raises(MoesimError, match=r"line 2 has no 'time_us'"):
        all_gather(H100, Group(size=8, per_node=8), 1e6)


def test_a_table_of_ones_own_goes_before_the_shipped_one(tmp_path, monkeypatch):
    (tmp_path / "h100").mkdir()
    header = "op,ranks,bytes,library,time_us,basis,source\n"
    rows = "all_gather,8,1,gloo,7,measured,here\nall_gather,8,1000000,gloo,70,measured,here\n"
    (tmp_path / "h100" / "collectives.csv").write_text(header + rows)
    monkeypatch.setenv("MOESIM_PROFILES", str(tmp_path))
    cost = all_gather(H100, Group(size=8, per_node=8), 1e6)
    assert float(cost.seconds) == pytest.approx(70e-6)
    assert cost.basis is MEASURED


@given(
    name=st.sampled_from([name for name, cluster in CLUSTERS.items() if cluster.scale_out]),
    collective=st.sampled_from(COLLECTIVES),
    nodes=st.integers(1, 9),
    per_node=st.integers(1, 8),
    size=sizes,
)
def test_the_bound_is_never_above_the_time_and_the_band_encloses_it(name, collective, nodes, per_node, size):
    cost = collective(load_cluster(name, nodes), Group(size=nodes * per_node, per_node=per_node), size)
    assert 0.0 <= cost.bound_s <= cost.seconds
    assert cost.low <= cost.seconds <= cost.high


@given(collective=st.sampled_from(COLLECTIVES), nodes=st.integers(1, 9), small=sizes, large=sizes)
def test_a_larger_message_never_takes_less_time(collective, nodes, small, large):
    cluster, group = load_cluster("dgx-h100", nodes), Group(size=8 * nodes, per_node=8)
    seconds = collective(cluster, group, np.sort([small, large])).seconds
    assert seconds[0] <= seconds[1] * (1 + 1e-12)


@given(op=st.sampled_from(OPS), name=st.sampled_from(list(CLUSTERS)))
def test_curves_rise(op, name):
    for curve in node_curves(CLUSTERS[name], op).curves:
        assert np.all(np.diff(curve.log_bytes) > 0)
        assert np.all(np.diff(curve.log_s) >= 0)


def test_the_bound_needs_no_clamp_on_measured_points():
    # a data-sheet floor above a measurement would be a wrong data sheet or a wrong convention of bytes
    from moesim.collectives.steps import floor_share
    from moesim.profile import shipped_folder

    for name in ("dgx-a100", "dgx-h100", "hgx-b200", "pcie-l40s"):
        cluster = CLUSTERS[name]
        with (shipped_folder() / cluster.gpu.name.lower() / "collectives.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                floor_s = floor_share(cluster, row["op"], int(row["ranks"])) * float(row["bytes"])
                assert floor_s / cluster.scale_up.peak_bytes_per_s <= float(row["time_us"]) * US
