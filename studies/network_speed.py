"""How fast is the network, how near does folding stay to the flows of all pairs, and when is the busiest link enough?

Skewed traffic (log-normal popularity of the destinations, 10 % spread of the sources) over DGX nodes in trees of 2:1
and 4:1, 4 nodes a leaf (2 with 64 ranks). Four questions:

* Time of one all-to-all of 2,048 and of 102,400 ranks, from its popularities: goals 50 and 500 ms on one core.
* Fold error: folded flows in steps, as the product prices them, against the flows of all pairs (steps of 1 and
  0.5 % of the bound, extrapolated to none: within 0.2 % at 256 ranks). Goal: 2 % typical at 1,024 ranks.
  Found: 1.6 and 2.0 % there at 2:1, missed at 4:1 with 3.0 and 4.5 %; finer bins do not cure the worst.
* Fluid over bound at 64 ranks, every end in turn, mean and worst of 5 seeds. Expected: 1 without oversubscription,
  largest where NICs and ways up are alike.
* Own time against SimGrid's (Debian's python3-simgrid) on the same 128-rank flows, in the same run.

All times are CPU seconds of one thread.

    OMP_NUM_THREADS=1 python studies/network_speed.py        about 8 minutes; --quick: seconds
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd

from moesim.cluster import Cluster, Fabric, Group, load_cluster
from moesim.network import Dense, Flows, Product, Route, contention, ends, pair_flows, waits
from moesim.network.links import bytes_per_s
from moesim.timeline import write_whole
from moesim.units import GB

T = TypeVar("T")
TOKEN_BYTES = 7392.0  # 7168 of fp8 with their scales
COPIES = 4096 * 8  # tokens and experts of each


class Sizes(NamedTuple):
    """What a run looks at."""

    big: tuple[int, ...]
    folded: tuple[int, ...]
    skews: tuple[float, ...]
    seeds: int
    simgrid: int


FULL = Sizes((2048, 102_400), (256, 512, 1024), skews=(0.2, 0.35, 0.5, 0.75, 1.0), seeds=5, simgrid=128)
QUICK = Sizes((2048,), (64,), skews=(0.2, 0.5, 1.0), seeds=1, simgrid=16)
NETWORKS: dict[str, Callable[[int], Fabric]] = {
    "a: one switch": lambda _: Fabric(),
    "b: rails, forwarded": lambda _: Fabric(between="rail"),
    "b': one leaf": lambda nodes: Fabric(between="tree", leaf_nodes=nodes),
    "c: 2:1 tree": lambda nodes: Fabric(between="tree", leaf_nodes=2 if nodes <= 8 else 4, oversubscription=2.0),
}


def network(name: str, ranks: int) -> tuple[Cluster, Group]:
    """The reference networks: NVLink of 450 and NICs of 50 GB/s, 8 GPUs a node."""
    per_node = ranks if name.startswith("a") else 8
    dgx = load_cluster("dgx-h100", ranks // per_node)
    assert dgx.scale_out is not None
    links = {
        kind: replace(link, bandwidth_bytes_per_s=rate * GB, peak_bytes_per_s=rate * GB)
        for kind, link, rate in (("scale_up", dgx.scale_up, 450), ("scale_out", dgx.scale_out, 50))
    }
    fabric = NETWORKS[name](ranks // per_node)
    return replace(dgx, gpus_per_node=per_node, fabric=fabric, **links), Group(size=ranks, per_node=per_node)


def drawn(ranks: int, skew: float, rng: np.random.Generator, spread: float = 0.0) -> Dense:
    """Copies of every pair, Poisson around what log-normal popularities give."""
    popularity = np.exp(skew * rng.standard_normal(ranks))
    sent = COPIES * np.exp(spread * rng.standard_normal(ranks))
    mean = np.outer(sent, popularity / popularity.sum())
    crossing = ~np.eye(ranks, dtype=bool)
    copies = np.zeros((ranks, ranks))
    copies[crossing] = rng.poisson(mean[crossing])
    return Dense(copies=copies)


def flows(name: str, ranks: int, skew: float) -> Flows:
    """The golden cases: seed 1."""
    cluster, group = network(name, ranks)
    return pair_flows(cluster, group, drawn(ranks, skew, np.random.default_rng(1)), route(name), TOKEN_BYTES)


def route(name: str) -> Route:
    return "forwarded" if name.startswith("b:") else "direct"


def run(sizes: Sizes = FULL) -> pd.DataFrame:
    """One row per figure: what, value, unit, and the goal it is held against."""
    rows = [*_time_rows(sizes), *_fold_rows(sizes), *_bound_rows(sizes), *_simgrid_rows(sizes)]
    return pd.DataFrame(rows, columns=["what", "value", "unit", "goal"])


def _tree(ranks: int, oversubscription: float) -> tuple[Cluster, Group]:
    fabric = Fabric(between="tree", leaf_nodes=2 if ranks <= 64 else 4, oversubscription=oversubscription)
    return replace(load_cluster("dgx-h100", ranks // 8), fabric=fabric), Group(size=ranks, per_node=8)


def _popular(ranks: int, skew: float) -> Product:
    rng = np.random.default_rng(3)
    share = np.exp(skew * rng.standard_normal(ranks))
    return Product(sent=COPIES * np.exp(0.1 * rng.standard_normal(ranks)), share=share / share.sum())


def _time_rows(sizes: Sizes) -> list[tuple[str, float, str, str]]:
    rows = []
    for ranks in sizes.big:
        for skew in (0.2, 0.5):
            (cluster, group), pairs = _tree(ranks, 2.0), _popular(ranks, skew)
            _price(cluster, group, pairs)  # what a cluster looks like is remembered
            seconds = np.median([_timed(lambda c=cluster, g=group, p=pairs: _price(c, g, p))[1] for _ in range(5)])
            goal = "<= 50" if ranks <= 2048 else "<= 500"
            rows.append((f"{ranks:,} ranks, skew {skew}: time", float(seconds) * 1e3, "ms", goal))
    return rows


def _price(cluster: Cluster, group: Group, pairs: Product) -> float:
    """Seconds of one exchange, with one byte for a copy."""
    kinds = waits(cluster, group, pairs, "direct")
    bound_s = max(float(wait) / bytes_per_s(cluster, kind)[0] for kind, wait in kinds.items())
    return bound_s * float(contention(cluster, group, pairs, "direct"))


def _fold_rows(sizes: Sizes) -> list[tuple[str, float, str, str]]:
    rows = []
    for ranks in sizes.folded:
        for oversubscription in (2.0, 4.0):
            for skew in (0.2, 0.5):
                (cluster, group), pairs = _tree(ranks, oversubscription), _popular(ranks, skew)
                every = pair_flows(cluster, group, Dense(copies=np.outer(pairs.sent, pairs.share)), "direct")
                coarse, fine = (float(ends(every, step).max()) for step in (0.01, 0.005))
                reference_s = max(every.bound_s, 2.0 * fine - coarse)
                what = f"{ranks:,} ranks, {oversubscription:g}:1, skew {skew}"
                rows.append((f"{what}: fluid / bound", reference_s / every.bound_s, "", ""))
                error = _price(cluster, group, pairs) / reference_s - 1.0
                rows.append((f"{what}: fold error", 100 * error, "%", "within 2" if ranks == 1024 else ""))
    return rows


def _bound_rows(sizes: Sizes) -> list[tuple[str, float, str, str]]:
    rows = []
    for oversubscription in (1.0, 2.0, 4.0):
        cluster, group = _tree(64, oversubscription)
        for skew in sizes.skews:
            ratios = []
            for seed in range(sizes.seeds):
                every = pair_flows(cluster, group, drawn(64, skew, np.random.default_rng(seed)), "direct")
                ratios.append(float(ends(every).max()) / every.bound_s)
            what = f"64 ranks, {oversubscription:g}:1, skew {skew}: fluid / bound"
            rows += [(f"{what}, mean", float(np.mean(ratios)), "", ""), (f"{what}, worst", max(ratios), "", "")]
    return rows


def _simgrid_rows(sizes: Sizes) -> list[tuple[str, float, str, str]]:
    rows = []
    for name in ("a: one switch", "c: 2:1 tree"):
        case = flows(name, sizes.simgrid, 0.5)
        end_s, own_s = _timed(lambda case=case: float(ends(case).max()))
        what = f"{sizes.simgrid} ranks, {name}"
        rows.append((f"{what}: own time, every end", own_s, "s", ""))
        python = simgrid_python()
        if python is not None:
            theirs = simgrid(python, case, sizes.simgrid)
            rows.append((f"{what}: SimGrid's time", theirs["run_s"], "s", ""))
            rows.append((f"{what}: SimGrid's time / own", theirs["run_s"] / own_s, "x", ""))
            rows.append((f"{what}: makespan / SimGrid's - 1", 1e6 * (end_s / theirs["makespan_s"] - 1), "ppm", "10"))
    return rows


def simgrid_python() -> str | None:
    """An interpreter that can import simgrid, if there is one: this one or the system's."""
    for python in (sys.executable, shutil.which("python3", path="/usr/bin"), shutil.which("python3")):
        if python and subprocess.run([python, "-c", "import simgrid"], capture_output=True).returncode == 0:
            return python
    return None


def simgrid(python: str, case: Flows, ranks: int) -> dict[str, float]:
    """Makespan and seconds of SimGrid for the flows of all pairs, which must all send something."""
    src, dst = np.nonzero(~np.eye(ranks, dtype=bool))
    assert len(src) == len(case.path)
    paths = [[link for link in path if link >= 0] for path in case.path.tolist()]
    listed = list(zip(src.tolist(), dst.tolist(), case.size_bytes.tolist(), paths, strict=True))
    text = json.dumps({"hosts": ranks, "capacity": case.capacity_bytes_per_s.tolist(), "flows": listed})
    script = str(Path(__file__).with_name("simgrid_flows.py"))
    done = subprocess.run([python, script], input=text, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What came out, and the CPU seconds that it took: other work on the machine does not count."""
    started_s = process_time()
    return work(), process_time() - started_s


def draw(frame: pd.DataFrame, skews: tuple[float, ...], path: Path) -> None:
    """Fluid over bound at 64 ranks: one line for each oversubscription, worst seed dashed."""
    from moesim import plots

    picture, ax = plots.figure(rows=8)
    for colour, oversubscription in zip(("#009E73", "#0072B2", "#D55E00"), (1, 2, 4), strict=True):
        for which, style in (("mean", "-"), ("worst", ":")):
            names = [f"64 ranks, {oversubscription}:1, skew {skew}: fluid / bound, {which}" for skew in skews]
            ratio = frame.set_index("what").loc[names, "value"].to_numpy()
            label = f"{oversubscription}:1" + ("" if which == "mean" else ", worst seed")
            ax.plot(skews, ratio, style, color=colour, marker="o", label=label)
    ax.set(xlabel="skew of the destinations (log-normal sigma)", ylabel="fluid time / busiest link's time")
    ax.legend(title="oversubscription", loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.grid(color="#dddddd")
    plots.save(picture, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller groups, one seed")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL
    frame = run(sizes)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.out / "network_speed.csv", lambda path: frame.to_csv(path, index=False))
    draw(frame, sizes.skews, arguments.out / "network_speed.png")
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
