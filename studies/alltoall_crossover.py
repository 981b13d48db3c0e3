"""From how many GPUs on is which all-to-all the fastest?

Even exchanges of 64 KiB to 1 GiB a GPU on 16 to 4,096 GPUs, on three networks:

    A100 2021       DGX A100, NCCL 2.10: no PXN, bytes for another rail climb to a non-blocking spine
    H100 rails      DGX H100, rail-optimised, NCCL with PXN
    H100 tree       DGX H100, leaves of 32 nodes, two to one oversubscribed: the only one with pods for 3dh

Expected: on the A100s linear up to 128 GPUs and 2dh from 256 on at 32 MiB, earlier for less (Tutel fig. 18, issue
214). With PXN a NIC keeps few connections, so large messages stay linear. With eight NICs a node HetuMoE's leader
never pays: it is for one that all share (docs/alltoall.md). What small messages choose at thousands of GPUs rests on
assumed latencies (band 40 %):

    python studies/alltoall_crossover.py
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from moesim.alltoall import Traffic, all_to_all, unsupported
from moesim.cluster import Group, load_cluster
from moesim.cluster.fabric import Fabric
from moesim.network import Product
from moesim.timeline import write_whole
from moesim.units import show_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NETWORKS: Final = {
    "A100 2021": ("dgx-a100", Fabric(between="spine")),
    "H100 rails": ("dgx-h100", Fabric()),
    "H100 tree 2:1": ("dgx-h100", Fabric(between="tree", leaf_nodes=32, oversubscription=2.0)),
}
COLOURS: Final = {
    "linear": "#0072B2", "rail": "#56B4E9", "2dh": "#E69F00", "3dh": "#D55E00", "bruck": "#009E73",
    "pairwise": "#CC79A7", "leader": "#4D4D4D",
}  # fmt: skip
SIZES: Final = tuple(2.0**power for power in range(16, 31, 2))
RANKS: Final = tuple(2**power for power in range(4, 13))


def run(sizes: tuple[float, ...] = SIZES, ranks: tuple[int, ...] = RANKS) -> pd.DataFrame:
    """One row for each network, number of GPUs, size and algorithm that can run there."""
    rows = []
    for network, (preset, fabric) in NETWORKS.items():
        for gpus in ranks:
            cluster = replace(load_cluster(preset, gpus // 8), fabric=fabric)
            group, pairs = Group(size=gpus, per_node=8), even(gpus)
            for name in (name for name in COLOURS if unsupported(cluster, group, name) is None):
                for size in sizes:
                    traffic = Traffic(pairs=pairs, tokens=1.0, token_bytes=size)
                    cost = all_to_all(cluster, group, traffic, name)
                    rows.append((network, gpus, size, name, float(cost.seconds) * 1e6, cost.limited_by))
    return pd.DataFrame(rows, columns=["network", "gpus", "bytes", "algorithm", "time_us", "limited_by"])


def even(ranks: int) -> Product:
    """Everybody sends the same to everybody."""
    return Product(sent=np.ones(ranks), share=np.full(ranks, 1.0 / ranks))


def fastest(frame: pd.DataFrame) -> pd.DataFrame:
    """The fastest algorithm of each case, and how much faster than linear it is."""
    best = frame.loc[frame.groupby(["network", "gpus", "bytes"], sort=False)["time_us"].idxmin()]
    linear = frame[frame["algorithm"] == "linear"].set_index(["network", "gpus", "bytes"])["time_us"]
    keys = pd.MultiIndex.from_frame(best[["network", "gpus", "bytes"]])
    return best.assign(over_linear=linear.loc[keys].to_numpy() / best["time_us"].to_numpy())


def crossovers(frame: pd.DataFrame) -> pd.DataFrame:
    """``[bytes, network]`` the fewest GPUs from which on 2dh is faster than linear."""
    wide = frame.pivot_table(index=["network", "bytes", "gpus"], columns="algorithm", values="time_us")
    ahead = (wide["2dh"] < wide["linear"]).unstack("gpus")
    stays = ahead.loc[:, ::-1].cummin(axis=1).loc[:, ::-1]
    first = stays.apply(lambda row: str(row.idxmax()) if row.any() else "-", axis=1)
    return first.unstack("network")[list(NETWORKS)]


def draw(frame: pd.DataFrame, path: Path) -> None:
    """A map for each network: who is fastest, and how many times faster than linear."""
    from moesim import plots
    from moesim.plots.style import swatches

    picture, alone = plots.figure(13.0, 4.8)
    alone.remove()
    axes = picture.subplots(1, len(NETWORKS), sharey=True)
    best, first = fastest(frame), crossovers(frame)
    for ax, network in zip(axes, NETWORKS, strict=True):
        _map(ax, best[best["network"] == network])
        _staircase(ax, first[network], sorted(set(frame["gpus"])))
        ax.set(title=network, xlabel="GPUs")
    axes[0].set_ylabel("sent by each GPU (bytes)")
    used = [name for name in COLOURS if name in set(best["algorithm"])]
    picture.legend(
        handles=swatches((name, COLOURS[name]) for name in used), loc="outside upper center", ncols=len(used),
        frameon=False,
        title="fastest all-to-all; in the cell: times faster than linear; right of the black line 2dh beats linear",
    )  # fmt: skip
    plots.save(picture, path)


def _map(ax: "Axes", best: pd.DataFrame) -> None:
    from moesim.plots.style import readable_on

    ranks, sizes = sorted(set(best["gpus"])), sorted(set(best["bytes"]))
    for row in best.to_dict("records"):
        x, y, colour = ranks.index(row["gpus"]), sizes.index(row["bytes"]), COLOURS[row["algorithm"]]
        ax.add_patch(_cell(x, y, colour))
        if row["algorithm"] != "linear":
            ax.text(x, y, f"{row['over_linear']:.3g}", ha="center", va="center", fontsize=8, color=readable_on(colour))
    ax.set(xlim=(-0.5, len(ranks) - 0.5), ylim=(-0.5, len(sizes) - 0.5))
    ax.set_xticks(range(len(ranks)), [f"{each:,}" for each in ranks], rotation=45)
    ax.set_yticks(range(len(sizes)), [show_bytes(each).replace(".0", "") for each in sizes])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=8)


def _staircase(ax: "Axes", first: "pd.Series[str]", ranks: list[int]) -> None:
    """Between the cells where 2dh is slower than linear and those where it is faster."""
    edge = [ranks.index(int(each)) - 0.5 if each != "-" else len(ranks) - 0.5 for each in first.sort_index()]
    ax.step([edge[0], *edge], np.arange(len(edge) + 1) - 0.5, where="post", color="black", linewidth=2.0, clip_on=False)


def _cell(x: int, y: int, colour: str) -> object:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=colour)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three sizes, three numbers of GPUs")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    arguments = parser.parse_args()
    frame = run(SIZES[::3], RANKS[2::3]) if arguments.quick else run()
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = frame.assign(time_us=frame["time_us"].round(2))
    write_whole(arguments.out / "alltoall_crossover.csv", lambda path: table.to_csv(path, index=False))
    draw(frame, arguments.out / "alltoall_crossover.png")
    print("GPUs from which on 2dh is faster than linear")
    print(crossovers(frame).rename(index=show_bytes).to_string())


if __name__ == "__main__":
    main()
