"""What does one slow link cost?

8 nodes of DGX H100 (64 GPUs), one link at half of its bandwidth: a NIC, a GPU's NVLink port, a leaf's way up. The
exchange is even, 64 MiB a GPU, by linear (forwarded by NVLink on rails) and by DeepEP; the all-reduce is a ring over
all 64, 1 GiB. Networks: rails; a tree of leaves of two nodes, 1:1 and 2:1 oversubscribed.

Expected: whatever waits for the slow link takes up to twice as long, however many others are sound. A slow NIC doubles
both. A slow NVLink port costs the exchange nothing, since NICs are seven times slower, and an all-reduce most of a
doubling, since NVLink and NICs take about as long for it. A leaf's way up at half speed makes a 1:1 tree as slow as
2:1; a ring notices only when the way up is worth less than one NIC a rail, as here at 2:1 and half of it:

    python studies/slow_link.py
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from moesim.alltoall import Traffic, all_to_all
from moesim.cluster import Cluster, Group, load_cluster
from moesim.cluster.fabric import Degraded, Fabric
from moesim.collectives import all_reduce
from moesim.network import Dense
from moesim.timeline import write_whole
from moesim.units import GIB, MIB

NETWORKS: Final = {
    "rails": Fabric(),
    "tree 1:1": Fabric(between="tree", leaf_nodes=2),
    "tree 2:1": Fabric(between="tree", leaf_nodes=2, oversubscription=2.0),
}
SLOW: Final = {
    "one NIC": Degraded(link="nic", node=3, index=2),
    "one NVLink port": Degraded(link="up", node=3, index=2),
    "one leaf's way up": Degraded(link="uplink", node=1),
}
WORK: Final = ("all-to-all, linear", "all-to-all, DeepEP", "all-reduce, ring")
COLOURS: Final = ("#0072B2", "#56B4E9", "#E69F00")
GPUS, TOP_K, ROW_BYTES = 64, 8, 14336.0
SIZE_BYTES, RING_BYTES = 64 * MIB, 1 * GIB


def run(share: float = 0.5) -> pd.DataFrame:
    """One row for each network, slow link and work."""
    rows = []
    for network, fabric in NETWORKS.items():
        sound = replace(load_cluster("dgx-h100", GPUS // 8), fabric=fabric)
        for slow, damage in SLOW.items():
            if slow == "one leaf's way up" and not fabric.climbs:
                continue
            hurt = replace(sound, fabric=replace(fabric, degraded=(replace(damage, share=share),)))
            for work in WORK:
                (sound_s, _), (hurt_s, waits_for) = seconds(sound, work), seconds(hurt, work)
                rows.append((network, slow, share, work, sound_s * 1e6, hurt_s * 1e6, hurt_s / sound_s, waits_for))
    columns = ["network", "slow_link", "share_left", "work", "sound_us", "hurt_us", "slower", "waits_for"]
    return pd.DataFrame(rows, columns=columns)


def seconds(cluster: Cluster, work: str) -> tuple[float, str]:
    """Seconds, and what they wait for."""
    group = Group(size=GPUS, per_node=8)
    if work.startswith("all-reduce"):
        cost = all_reduce(cluster, group, RING_BYTES)
    else:
        cost = all_to_all(cluster, group, even(), "linear" if work.endswith("linear") else "deepep")
    return float(cost.seconds), cost.limited_by


def even() -> Traffic:
    """Rows of 7,168 bf16 values to 256 equally popular experts."""
    copies = SIZE_BYTES / ROW_BYTES
    return Traffic(
        pairs=Dense(copies=np.full((GPUS, GPUS), copies / GPUS)), tokens=copies / TOP_K, token_bytes=ROW_BYTES,
        share=np.full(256, 1 / 256), top_k=TOP_K,
    )  # fmt: skip


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Bars of how many times slower, by network and slow link."""
    from moesim import plots
    from moesim.plots.style import swatches, tidy

    cases = list(dict.fromkeys(zip(frame["network"], frame["slow_link"], strict=True)))
    picture, ax = plots.figure(10.0, 4.2)
    for offset, (work, colour) in enumerate(zip(WORK, COLOURS, strict=True)):
        slower = frame[frame["work"] == work].set_index(["network", "slow_link"])["slower"]
        x = np.arange(len(cases)) + (offset - 1) * 0.27
        bars = ax.bar(x, [slower[case] for case in cases], width=0.25, color=colour, zorder=2)
        ax.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    ax.set_xticks(range(len(cases)), [f"{network}\n{slow}" for network, slow in cases])
    ax.set(ylabel="time over that without the slow link", ylim=(0.0, 2.4))
    ax.axhline(1.0, color="#888888", linewidth=0.8)
    tidy(ax)
    picture.legend(
        handles=swatches(zip(WORK, COLOURS, strict=True)), loc="outside upper center", ncols=len(WORK), frameon=False
    )
    plots.save(picture, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.5, help="of the link that is left  [default: 0.5]")
    parser.add_argument("--quick", action="store_true", help="the same: it takes a second")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    arguments = parser.parse_args()
    frame = run(arguments.share)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = frame.round({"sound_us": 1, "hurt_us": 1, "slower": 3})
    write_whole(arguments.out / "slow_link.csv", lambda path: table.to_csv(path, index=False))
    draw(frame, arguments.out / "slow_link.png")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
