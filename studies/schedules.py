"""What does each pipeline schedule do with the same work?

Four stages, eight micro-batches, no transfers: forward 1 s, gradients of data 1 s and of weights 1 s a stage and
micro-batch; a forward interleaved with a backward takes 2.5 s instead of 3. Expected idle seconds of a stage, in
brackets of GPipe's: gpipe and 1f1b 9 (1), interleaved with two parts a stage 4.5 (1/2), zero_bubble 3 (1/3),
dualpipe (p/2 - 1)(F&B + B - 3W) = 1.5 (1/6), combined_1f1b 9 (1) on its last stage; the pairs of the last two also
shorten the work itself, by 0.5 s each. What is held at the worst moment, in micro-batches through a whole stage: 8, 4,
5.5, 4, 8, 5.

    python studies/schedules.py --out studies/results
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from moesim import plots
from moesim.program import Passes
from moesim.schedule import RUNS, in_flight
from moesim.step.play import play_pipeline
from moesim.step.scenario import BATCH_CLASSES
from moesim.step.times import StepTimes
from moesim.timeline import to_frame, write_whole

STAGES, MICRO_BATCHES = 4, 8
SHOWN = {"gpipe": 1, "1f1b": 1, "interleaved": 2, "zero_bubble": 1, "combined_1f1b": 1, "dualpipe": 1}  # virtual stages
FORWARD_S, DATA_S, WEIGHTS_S, PAIR_S = 1.0, 1.0, 1.0, 2.5


def spans_of(schedule: str, micro_batches: int = MICRO_BATCHES) -> pd.DataFrame:
    """The step as spans."""
    passes = Passes(
        stages=STAGES, micro_batches=micro_batches, classes=BATCH_CLASSES, schedule=schedule, virtual=SHOWN[schedule]
    )
    each = np.full((passes.parts, BATCH_CLASSES), 1.0 / passes.virtual)
    pair = np.full((passes.parts, BATCH_CLASSES, 1, BATCH_CLASSES), PAIR_S)
    nothing = np.zeros(STAGES)
    times = StepTimes(
        each * FORWARD_S, each * (DATA_S + WEIGHTS_S), each * DATA_S, each * WEIGHTS_S, pair, *[nothing] * 8
    )
    return to_frame(span._replace(micro_batch=span.chunk) for _, span in play_pipeline(passes, times))


def run(micro_batches: int = MICRO_BATCHES) -> pd.DataFrame:
    """One row per schedule: length of the step, idle seconds, micro-batches held."""
    rows = []
    for schedule, virtual in SHOWN.items():
        spans = spans_of(schedule, micro_batches)
        busy_s = spans[spans["stream"] == "stage"].eval("end_s - start_s").groupby(spans["rank"]).sum()
        held = in_flight(schedule, Passes(stages=STAGES, micro_batches=micro_batches, virtual=virtual).pipe)
        rows.append({
            "schedule": schedule,
            "virtual": virtual,
            "step_s": spans["end_s"].max(),
            "idle_s": spans["end_s"].max() - busy_s.min(),
            "held_micro_batches": held[..., :RUNS].sum(axis=(-2, -1)).max() / virtual,
        })  # fmt: skip
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame, path: Path, micro_batches: int = MICRO_BATCHES) -> None:
    """A Gantt chart of each schedule, on one axis of time."""
    picture = Figure(figsize=(12.0, 2.2 * len(frame)), layout="constrained")
    axes = picture.subplots(len(frame), 1)
    for ax, row in zip(axes, frame.to_dict("records"), strict=True):
        plots.timeline(spans_of(row["schedule"], micro_batches), ax)
        parts = f", {row['virtual']} parts a stage" if row["virtual"] > 1 else ""
        about = f"{row['schedule']}{parts}: {row['step_s']:g} s, idle {row['idle_s']:g} s"
        ax.set_title(f"{about}, holds {row['held_micro_batches']:g} micro-batches", loc="right", fontsize=9)
        ax.set_xlim(0.0, frame["step_s"].max())
    plots.save(picture, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    arguments = parser.parse_args()
    frame = run()
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.out / "schedules.csv", lambda path: frame.to_csv(path, index=False))
    draw(frame, arguments.out / "schedules.png")
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
