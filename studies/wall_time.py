"""How much of the wall time of a large run is useful, and how often should it be saved?

DeepSeek-V3 trained on 256 to 16,384 H100 (data parallelism grows, a step stays as long); failures, storage and restarts
as published for Llama 3 and MegaScale (``moesim.goodput.FACTS``). And the checkpoint interval on 16,384 of them.

Expected: losses grow with the GPUs, restarts in proportion; the best interval is Daly's and flat around it; Llama 3
kept more than 90 % of its time, which counts failures and checkpoints only. Found: 92 % between failures on 16,384
GPUs, of which waits at barriers and slow nodes leave 84 %; from 4,096 on slow nodes cost more than failures, until
restarts catch up at 16,384.

    python studies/wall_time.py --out studies/results
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from moesim.api import scenario
from moesim.cluster import load_cluster
from moesim.goodput import Reality, goodput, useful_share
from moesim.metrics import measure
from moesim.strategy import load_strategy
from moesim.timeline import write_whole
from moesim.workload import Workload

STRATEGY = "pp=16 ep=16 recompute=full zero=1"
NODES = (32, 64, 128, 256, 512, 1024, 2048)
LOSSES = ("barriers", "stragglers", "checkpoints", "restarts", "repeated work")
COLOURS = ("#E69F00", "#D55E00", "#56B4E9", "#4D4D4D", "#CC79A7")


def by_size(nodes: tuple[int, ...]) -> pd.DataFrame:
    """One row per cluster: the same micro-batches for every pipeline."""
    rows = []
    for count in nodes:
        cluster = load_cluster("dgx-h100", count)
        work = Workload(kind="train", sequences=60 * cluster.gpus // 16, queries=4096, past=0, dtype="bf16")
        asked = scenario("deepseek-v3", cluster, workload=work)
        found = goodput(measure(asked, load_strategy(STRATEGY, cluster.gpus, work), events=False))
        rows.append(
            {
                "gpus": cluster.gpus, "goodput": found.goodput, "between_failures": found.useful_share, **found.lost,
                "mtbf_h": found.mtbf_s / 3600, "interval_s": found.interval_s, "write_s": found.write_s,
                "step_s": found.step_s, "real_step_s": found.real_step_s,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def by_interval(largest: "pd.Series[float]") -> pd.DataFrame:
    """Useful share between failures over the checkpoint interval."""
    restart_s = Reality().restart_s
    rows = []
    for interval_s in np.geomspace(30.0, 7200.0, 60):
        share = useful_share(interval_s, largest["write_s"], restart_s, largest["mtbf_h"] * 3600)
        rows.append({"interval_s": interval_s, "useful_share": share})
    return pd.DataFrame(rows)


def draw(sizes: pd.DataFrame, intervals: pd.DataFrame, path: Path) -> None:
    """Left: what is lost, by size. Right: the interval."""
    from moesim import plots

    picture, ax = plots.figure(11.0, 4.6)
    ax.remove()
    left, right = picture.subplots(1, 2)
    below = np.zeros(len(sizes))
    places = range(len(sizes))
    for name, colour in zip(LOSSES, COLOURS, strict=True):
        left.bar(places, 100 * sizes[name], bottom=100 * below, color=colour, label=name)
        below += sizes[name].to_numpy()
    left.set_xticks(list(places), [f"{n:,}" for n in sizes["gpus"]])
    left.set(xlabel="H100", ylabel="share of the wall time (%)")
    left.legend(frameon=False, fontsize=8, title="lost to", title_fontsize=8)
    right.plot(intervals["interval_s"] / 60, 100 * intervals["useful_share"], color="#0072B2")
    last = sizes.iloc[-1]
    right.plot(last["interval_s"] / 60, 100 * last["between_failures"], "o", color="#D55E00", label="Daly 2006")
    right.axhline(90.0, color="0.6", linestyle=":", label="Llama 3: more than 90 %")
    right.set(xscale="log", xlabel="computing between checkpoints (min)", ylabel="useful time between failures (%)")
    right.set_xticks([0.5, 1, 2, 5, 10, 30, 60, 120], ["0.5", "1", "2", "5", "10", "30", "60", "120"])
    right.minorticks_off()
    right.set_title(f"{last['gpus']:,.0f} GPUs: an interruption every {last['mtbf_h']:.1f} h", fontsize=9)
    right.legend(frameon=False, fontsize=8)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    plots.save(picture, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    arguments = parser.parse_args()
    sizes = by_size(NODES[:2] if arguments.quick else NODES)
    intervals = by_interval(sizes.iloc[-1])
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, frame in (("wall_time", sizes), ("wall_time_interval", intervals)):
        write_whole(arguments.out / f"{name}.csv", lambda path, rows=frame: rows.round(5).to_csv(path, index=False))
    draw(sizes, intervals, arguments.out / "wall_time.png")
    print(sizes.round(4).to_string(index=False))
    best = intervals.loc[intervals["useful_share"].idxmax()]
    print(f"best of the swept intervals: {best['interval_s']:.0f} s, {best['useful_share']:.2%}")


if __name__ == "__main__":
    main()
