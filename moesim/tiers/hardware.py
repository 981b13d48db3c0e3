"""CPU memory and SSD as one GPU sees them: its share of the node's capacity, and what it reads while all others do too.

Capacities are the vendors' data sheets. A link to the host is worth 22 of 32 GB/s of its data sheet: what NCCL reaches
through it between two L40S (the pcie-l40s preset); nobody published the copies of a whole node at once. NVMe drives
are read at about 50 GB/s a node (eight drives of PCIe 4). All *estimated*: state your own with a number. Where the GPU
was calibrated, its copies from pinned host memory price the link: one GPU alone, *measured*.
"""

from typing import Final

import numpy as np

from moesim.cluster import Cluster, Tier, Tiers
from moesim.errors import MoesimError
from moesim.profile import DataSheet, load_profile, non_negative
from moesim.units import GB, TB, US

HOST_SHARE: Final = 22.0 / 32.0
COPY_START_S: Final = 10 * US  # of one cudaMemcpyAsync from pinned memory (assumed)
READ_START_S: Final = 100 * US  # of one read from NVMe: its access time (assumed)


def _node(gpus: int, cpu_bytes: float, host_bytes_per_s: float, ssd_bytes: float, source: str) -> Tiers:
    """``host_bytes_per_s`` is the data sheet's, of one GPU and direction, already divided where GPUs share a link."""
    return Tiers(
        cpu=Tier(
            capacity_bytes=cpu_bytes / gpus, bytes_per_s=HOST_SHARE * host_bytes_per_s, start_s=COPY_START_S,
            source=f"{source}; {HOST_SHARE:.0%} of the host link assumed",
        ),
        ssd=Tier(
            capacity_bytes=ssd_bytes / gpus, bytes_per_s=50.0 * GB / 8, start_s=READ_START_S,
            source=f"{source}; about 50 GB/s for eight GPUs assumed",
        ),
    )  # fmt: skip


_DGX_H100: Final = "NVIDIA DGX H100 data sheet: 2 TB, 8 x 3.84 TB NVMe, PCIe 5 x16 for each GPU"
TIERS: Final = {
    "dgx-a100": _node(
        8, 2 * TB, 16 * GB, 30.72 * TB, "NVIDIA DGX A100 data sheet: 2 TB, 8 x 3.84 TB NVMe, two GPUs on a PCIe 4 x16"
    ),
    "dgx-h100": _node(8, 2 * TB, 64 * GB, 30.72 * TB, _DGX_H100),
    "dgx-h200": _node(8, 2 * TB, 64 * GB, 30.72 * TB, f"as {_DGX_H100}"),
    "hgx-h800": _node(8, 2 * TB, 64 * GB, 30.72 * TB, f"as {_DGX_H100}"),
    "hgx-b200": _node(8, 2 * TB, 64 * GB, 30.72 * TB, f"as {_DGX_H100}"),
}


def tiers_of(
    cluster: Cluster,
    *,
    cpu_bytes: float | None = None,
    cpu_bytes_per_s: float | None = None,
    ssd_bytes: float | None = None,
    ssd_bytes_per_s: float | None = None,
) -> Tiers:
    """What the cluster states, or the preset of its nodes; what was measured replaces the preset, and what is given (a
    GPU's share) all of them; ``ssd_bytes=0``: there is no SSD."""
    known = cluster.tiers or TIERS.get(cluster.name)
    capacity = cpu_bytes if cpu_bytes is not None or known is None else known.cpu.capacity_bytes
    stated = cpu_bytes_per_s is not None or cluster.tiers is not None or capacity is None
    copied = None if stated or capacity is None else _measured(cluster.gpu, capacity)
    if known is None and copied is None and (cpu_bytes is None or cpu_bytes_per_s is None):
        raise MoesimError(
            f"no memory tiers are known for cluster {cluster.name}: give --cpu-memory and --cpu-bandwidth of a GPU, "
            f"memory_tiers in its YAML file, or choose from {', '.join(TIERS)}"
        )
    cpu = copied or _given(known.cpu if known else None, cpu_bytes, cpu_bytes_per_s, COPY_START_S)
    ssd = known.ssd if known else None
    if ssd_bytes == 0:
        ssd = None
    elif ssd_bytes is not None or ssd_bytes_per_s is not None:
        if ssd is None and (ssd_bytes is None or ssd_bytes_per_s is None):
            raise MoesimError("an SSD has a size and a bandwidth: give both")
        ssd = _given(ssd, ssd_bytes, ssd_bytes_per_s, READ_START_S)
    return Tiers(cpu=cpu, ssd=ssd)


def _measured(gpu: DataSheet, capacity_bytes: float) -> Tier | None:
    """CPU memory behind the link that ``moesim calibrate`` measured on this GPU: seconds = start + bytes / rate."""
    for one in load_profile(gpu).tables["copies"]:
        rows = one.table.select(direction="host_to_device")
        if rows.rows > 1:
            parts = np.stack([rows.numbers["bytes"], np.ones(rows.rows)], axis=-1) / rows.time_s[:, None]
            per_byte_s, start_s = non_negative(parts)
            return Tier(
                capacity_bytes=capacity_bytes, bytes_per_s=1.0 / float(per_byte_s), start_s=float(start_s),
                source=f"{one.source}; one GPU alone",
            )  # fmt: skip
    return None


def _given(known: Tier | None, capacity: float | None, bytes_per_s: float | None, start_s: float) -> Tier:
    if known is not None and capacity is None and bytes_per_s is None:
        return known
    return Tier(
        capacity_bytes=capacity if capacity is not None else known.capacity_bytes if known else 0.0,
        bytes_per_s=bytes_per_s if bytes_per_s is not None else known.bytes_per_s if known else 0.0,
        start_s=start_s,
        source="given",
    )
