"""What does a step lose as the same work is spread over more GPUs?

Strong scaling, sequences of 4,096 tokens, the batch held fixed: tokens/s per GPU against the number of GPUs.

    Mixtral-8x22B   bf16, 1,024 sequences, 128 to 1,024 H100: the best configuration of each family, found as
                    ``moesim validate`` finds it, with tokens dropped at capacity factor 1. Dots are published: MoE
                    Parallel Folding, arXiv:2504.14960, table 4 (MFU of 989.4 TFLOP/s on Eos, DGX H100)
    DeepSeek-V3     fp8_block, 15,360 sequences, 256 to 4,096 H100: the first answer of ``moesim plan`` at each size

Expected: with pipelines, fewer micro-batches for each and thus more bubble, 4 % to 16 % of the step; FSDP+EP and
TP+EP+DP have none and lose little; folding experts apart from attention's degrees wins a few percent throughout.
DeepSeek-V3 is best in the middle: on 256 GPUs memory asks for TP, on 4,096 the bubble grows to a tenth:

    python studies/training_scaling.py --out studies/results
"""

import argparse
from pathlib import Path
from typing import Any, Final

import pandas as pd
from matplotlib.figure import Figure

from moesim.cluster import load_cluster
from moesim.metrics import Result
from moesim.model import load_model, training_flops
from moesim.planner import plan
from moesim.planner.why import short
from moesim.routing import parse_routing
from moesim.step.scenario import make_scenario
from moesim.timeline import write_whole
from moesim.units import TFLOPS
from moesim.validate.training import predicted
from moesim.validate.training_rows import Run
from moesim.workload import make_workload

SEQUENCE: Final = 4096
PEAK: Final = 989.4 * TFLOPS
PUBLISHED_MFU: Final = {  # by family and GPUs
    "FSDP+EP": {128: 0.239, 256: 0.255, 512: 0.244, 1024: 0.238},
    "TP+EP+DP": {128: 0.404, 256: 0.391, 512: 0.360, 1024: 0.362},
    "MCore (TP+EP+PP+DP)": {128: 0.494, 256: 0.480, 512: 0.455, 1024: 0.423},
    "MCore + MoE Parallel Folding": {128: 0.522, 256: 0.507, 512: 0.489, 1024: 0.449},
}
COLOURS: Final = dict(zip(PUBLISHED_MFU, ("#E69F00", "#CC79A7", "#56B4E9", "#0072B2"), strict=True))
PLANNED: Final = "best plan"
PLANNED_GPUS: Final = (256, 512, 1024, 2048, 4096)


def families(gpus: tuple[int, ...] = (128, 256, 512, 1024)) -> pd.DataFrame:
    """One row per family and number of GPUs."""
    model = load_model("mixtral-8x22b")
    flops = training_flops(model, SEQUENCE) / SEQUENCE
    rows = []
    for family, published in PUBLISHED_MFU.items():
        for number in gpus:
            cluster = load_cluster("dgx-h100", number // 8)
            work = make_workload("train", number, global_batch=1024, seq=SEQUENCE)
            result = predicted(Run(model, cluster, work, (), family, True, None, ()))
            if result is not None:
                measured = published[number] * PEAK / flops
                rows.append(_row(result, family) | {"published_tokens_per_s_per_gpu": measured})
    return pd.DataFrame(rows)


def plans(gpus: tuple[int, ...] = PLANNED_GPUS) -> pd.DataFrame:
    """One row per number of GPUs."""
    rows = []
    for number in gpus:
        work = make_workload("train", number, global_batch=15360, seq=SEQUENCE, dtype="fp8_block")
        cluster = load_cluster("dgx-h100", number // 8)
        best = plan(make_scenario(load_model("deepseek-v3"), cluster, work, parse_routing("uniform")), top=1).best
        if best is not None:
            rows.append(_row(best, PLANNED))
    return pd.DataFrame(rows)


def _row(result: Result, family: str) -> dict[str, Any]:
    bubble = result.breakdown.seconds.get("bubble", 0.0)
    return {
        "model": result.scenario.model.name,
        "family": family,
        "gpus": result.scenario.cluster.gpus,
        "tokens_per_s_per_gpu": result.metrics["tokens_per_s_per_gpu"],
        "mfu": result.metrics["mfu"],
        "step_s": result.step_s,
        "bubble_share": bubble / result.step_s,
        "strategy": short(result.strategy),
        "recompute": result.strategy.recompute,
    }


def draw(frame: pd.DataFrame, path: Path) -> None:
    """A line per family and model, published runs as dots; MFU on the right."""
    from matplotlib.lines import Line2D

    from moesim import plots
    from moesim.plots.style import tidy

    models = list(dict.fromkeys(frame["model"]))
    picture = Figure(figsize=(5.4 * len(models), 4.6), layout="constrained")
    for ax, model in zip(picture.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        shown = frame[frame["model"] == model]
        for family, line in shown.groupby("family", sort=False):
            colour = COLOURS.get(str(family), "#000000")
            ax.plot(line["gpus"], line["tokens_per_s_per_gpu"], color=colour, zorder=2)
            if "published_tokens_per_s_per_gpu" in line:
                ax.plot(line["gpus"], line["published_tokens_per_s_per_gpu"], "o", color=colour, zorder=3)
        per_mfu = float((shown["tokens_per_s_per_gpu"] / shown["mfu"]).iloc[0]) / 100.0
        right = ax.secondary_yaxis("right", functions=(lambda t, k=per_mfu: t / k, lambda m, k=per_mfu: m * k))
        right.set_ylabel("MFU (%)")
        right.tick_params(labelsize=8)
        ax.set_xscale("log", base=2)
        ax.set_xticks(sorted(set(shown["gpus"])), [f"{n:,}" for n in sorted(set(shown["gpus"]))])
        ax.set(
            xlabel="H100 GPUs",
            ylabel="tokens/s per GPU",
            ylim=(0.0, 1.1 * shown["tokens_per_s_per_gpu"].max()),
            title=model,
        )
        tidy(ax)
        ax.grid(axis="y", color="#dddddd", zorder=0)
    known = [Line2D([], [], color=colour, label=family) for family, colour in COLOURS.items()]
    more = [Line2D([], [], color="#000000", label=PLANNED)] if len(models) > 1 else []
    dots = [Line2D([], [], color="#666666", marker="o", linestyle="", label="published (arXiv:2504.14960, table 4)")]
    picture.legend(
        handles=known + more + dots, loc="outside upper center", ncols=len(models) + 1, frameon=False, fontsize=8
    )
    plots.save(picture, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Mixtral at two sizes only")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    arguments = parser.parse_args()
    frame = families((128, 1024)) if arguments.quick else pd.concat([families(), plans()], ignore_index=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    digits = {"tokens_per_s_per_gpu": 1, "published_tokens_per_s_per_gpu": 1, "mfu": 4, "step_s": 3, "bubble_share": 3}
    table = frame.round(digits)
    write_whole(arguments.out / "training_scaling.csv", lambda path: table.to_csv(path, index=False))
    draw(frame, arguments.out / "training_scaling.png")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
