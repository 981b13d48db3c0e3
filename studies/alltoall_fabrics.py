"""What are rails, a non-blocking spine and node-limited routing worth to DeepSeek-V3's all-to-all?

Dispatch of 4,096 tokens a GPU (hidden 7,168 in fp8 with scales, top-8 of 256 experts) on 32 to 2,048 H100; beyond
256 GPUs every expert has several replicas, and its tokens divide over them. Popularity uniform, or log-normal with
sigma 0.5 (mean of four draws). Networks, all of 400 Gb/s a GPU:

    rails            a leaf for each rail; bytes for another rail go by NVLink first. rail_only is the same
    spine            the same leaves, but bytes for another rail climb to the spine, 1:1 or 2:1 oversubscribed
    tree             a leaf for four nodes, 1:1 to 4:1 oversubscribed

Expected: with linear a 1:1 network of any shape is as good as rails, and 2:1 and 4:1 cost up to so much once most
bytes leave their leaf; contention of NIC and uplink adds to it where both are busy. DeepEP sends a token once to each
node, so it has fewer bytes to climb. Best 4 of 8 groups of experts pays once there are more than 4 nodes:

    python studies/alltoall_fabrics.py
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from moesim.alltoall import Traffic, all_to_all
from moesim.cluster import Group, load_cluster
from moesim.cluster.fabric import Fabric
from moesim.network import Product
from moesim.routing import parse_routing, popularity
from moesim.timeline import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NETWORKS: Final = {
    "rails": Fabric(),
    "spine 1:1": Fabric(between="spine"),
    "spine 2:1": Fabric(between="spine", oversubscription=2.0),
    "tree 1:1": Fabric(between="tree", leaf_nodes=4),
    "tree 2:1": Fabric(between="tree", leaf_nodes=4, oversubscription=2.0),
    "tree 4:1": Fabric(between="tree", leaf_nodes=4, oversubscription=4.0),
}
LOOKS: Final = {  # colour, marker, its size, name; the 1:1 networks lie on rails' line
    "spine 2:1": ("#0072B2", "s", 4, "spine 2:1"),
    "tree 2:1": ("#E69F00", "^", 5, "tree 2:1"),
    "tree 4:1": ("#D55E00", "v", 5, "tree 4:1"),
    "rails": ("#000000", "o", 9, "rails (1:1 spine and tree take as long)"),
}
ALGORITHMS: Final = {  # name -> algorithm, groups of experts and how many of them a token may use
    "linear": ("linear", (1, 1)),
    "deepep": ("deepep", (1, 1)),
    "deepep, best 4 of 8": ("deepep", (8, 4)),
}
ROUTINGS: Final = {"uniform": 1, "lognormal:0.5": 4}  # draws
RANKS: Final = tuple(2**power for power in range(5, 12))
TOKENS, TOP_K, EXPERTS, ROW_BYTES = 4096, 8, 256, 7168 * (1 + 4 / 128)


def run(ranks: tuple[int, ...] = RANKS) -> pd.DataFrame:
    """One row for each network, routing, number of GPUs and algorithm."""
    rows = []
    for gpus in ranks:
        for routing, draws in ROUTINGS.items():
            drawn = traffic(routing, draws, gpus)
            for network, fabric in NETWORKS.items():
                cluster = replace(load_cluster("dgx-h100", gpus // 8), fabric=fabric)
                for label, (name, groups) in ALGORITHMS.items():
                    asked = replace(drawn, groups=groups, memo={})
                    cost = all_to_all(cluster, Group(size=gpus, per_node=8), asked, name)
                    rows.append((network, routing, gpus, label, float(cost.seconds.mean()) * 1e6, cost.limited_by))
    return pd.DataFrame(rows, columns=["network", "routing", "gpus", "algorithm", "time_us", "limited_by"])


def traffic(routing: str, draws: int, gpus: int) -> Traffic:
    """Expected copies; a draw is a popularity of its own."""
    shares = popularity(parse_routing(routing), draws, EXPERTS, np.random.default_rng(0))
    copies = max(1, gpus // EXPERTS)  # of each expert
    slots = np.repeat(shares / copies, copies, axis=-1)
    by_rank = slots.reshape(draws, gpus, -1).sum(axis=-1)
    sent = np.full((draws, gpus), float(TOKENS * TOP_K))
    return Traffic(
        pairs=Product(sent=sent, share=by_rank), tokens=TOKENS, token_bytes=ROW_BYTES, share=slots, top_k=TOP_K
    )


def over_rails(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with how many times slower than rails each line is, by the same algorithm with all nodes open."""
    base = frame["algorithm"].str.partition(",")[0]
    rails = frame[(frame["network"] == "rails") & (frame["algorithm"] == base)]
    known = rails.set_index(["routing", "gpus", "algorithm"])["time_us"]
    keys = pd.MultiIndex.from_arrays([frame["routing"], frame["gpus"], base])
    return frame.assign(over_rails=frame["time_us"].to_numpy() / known.loc[keys].to_numpy())


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Rows of algorithms, columns of routings; a line for each network."""
    from moesim import plots

    picture, alone = plots.figure(11.0, 9.0)
    alone.remove()
    axes = picture.subplots(len(ALGORITHMS), len(ROUTINGS), sharex=True, sharey="row")
    for row, algorithm in zip(axes, ALGORITHMS, strict=True):
        for ax, routing in zip(row, ROUTINGS, strict=True):
            _lines(ax, frame[(frame["algorithm"] == algorithm) & (frame["routing"] == routing)])
            ax.set_title(f"{algorithm}; {routing}", fontsize=10)
        row[0].set_ylabel(f"time over that of\n{algorithm.partition(',')[0]} on rails")
    for ax in axes[-1]:
        ax.set_xlabel("GPUs")
    handles, names = axes[0][0].get_legend_handles_labels()
    picture.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    plots.save(picture, path)


def _lines(ax: "Axes", frame: pd.DataFrame) -> None:
    from moesim.plots.style import tidy

    for network, (colour, marker, size, label) in LOOKS.items():
        line = frame[frame["network"] == network]
        hollow = "none" if network == "rails" else "full"
        ax.plot(
            line["gpus"], line["over_rails"], color=colour, marker=marker, markersize=size, fillstyle=hollow,
            linewidth=0.8 if network == "rails" else 1.6, label=label,
        )  # fmt: skip
    ranks = sorted(set(frame["gpus"]))
    ax.set_xscale("log", base=2)
    ax.set_xticks(ranks, [f"{each:,}" for each in ranks])
    ax.set_ylim(bottom=0.0)
    ax.grid(axis="y", color="#dddddd")
    tidy(ax)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 and 256 GPUs only")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    arguments = parser.parse_args()
    frame = over_rails(run((32, 256) if arguments.quick else RANKS))
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = frame.round({"time_us": 1, "over_rails": 3})
    write_whole(arguments.out / "alltoall_fabrics.csv", lambda path: table.to_csv(path, index=False))
    draw(frame, arguments.out / "alltoall_fabrics.png")
    wide = frame.pivot_table(index=["routing", "algorithm", "gpus"], columns="network", values="over_rails")
    print("time over that of the same algorithm on rails, all nodes open")
    print(wide[list(NETWORKS)].round(2).to_string())


if __name__ == "__main__":
    main()
