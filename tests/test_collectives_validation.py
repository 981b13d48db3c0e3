"""Intra-node collectives on sizes that no profile holds."""

import numpy as np
import pytest

from moesim.errors import MoesimError
from moesim.validate.collectives import COLUMNS, TABLE, judge

HEADER = "source,gpu,fabric,op,library,ranks,nodes,bytes,latency_us\n"


def test_held_out_sizes_are_predicted_within_the_stated_error():
    # four operations on 2, 4 and 8 GPUs: <= 10 % rms with NVLink, <= 17 % with PCIe
    frame = judge(None)
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == 240
    assert set(frame["skipped"]) == {""}
    error = np.log(frame["predicted"] / frame["measured"])
    pcie = frame["group"].str.contains("L40S")
    assert np.sqrt(np.mean(error[~pcie] ** 2)) <= 0.10
    assert np.sqrt(np.mean(error[pcie] ** 2)) <= 0.17
    assert error.abs().median() <= 0.03


def test_nine_in_ten_lie_inside_the_band():
    frame = judge(None)
    inside = (frame["low"] <= frame["measured"]) & (frame["measured"] <= frame["high"])
    assert inside.mean() >= 0.90


def test_a_folder_is_judged_row_by_row_with_reasons_for_what_is_skipped(tmp_path):
    rows = [
        "s,H100-SXM-80GB,x,all_reduce,NCCL 2.29.2,8,1,536870912,2111.06",  # in the profile
        "s,H100-SXM-80GB,x,alltoall,NCCL 2.29.2,8,1,1048576,15.61",
        "s,H100-SXM-80GB,x,alltoall,NCCL 2.27.3,8,1,1048576,15.91",
        "s,H100-SXM-80GB,x,alltoall,NCCL 2.29.2,16,2,1048576,99.0",
        "s,MI300X-OAM,x,alltoall,NCCL 2.29.2,8,1,1048576,15.0",
        "s,H200-SXM-141GB,x,alltoall,NCCL 2.29.2,16,1,1048576,15.0",
    ]
    (tmp_path / TABLE).write_text(HEADER + "\n".join(rows) + "\n")
    reasons = judge(tmp_path)["skipped"].tolist()
    assert sorted(reasons) == [
        "", "an older release than NCCL 2.29.2", "dgx-h200 has 8 GPUs a node", "in the profile",
        "more than one node", "no cluster preset has a MI300X",
    ]  # fmt: skip


def test_a_table_with_a_missing_column_is_refused(tmp_path):
    (tmp_path / TABLE).write_text(HEADER.replace(",bytes", "") + "s,H100,x,alltoall,NCCL,8,1,15.0\n")
    with pytest.raises(MoesimError, match="has no column 'bytes'"):
        judge(tmp_path)


def test_a_folder_without_the_table_is_refused(tmp_path):
    with pytest.raises(MoesimError, match=f"has no {TABLE}"):
        judge(tmp_path)
