"""Which published collective times does moesim ship, and how are they thinned?

Reads ``comm_nccl_intranode_aic.csv`` (aiconfigurator-core 0.12.0, nccl-tests, Apache-2.0;
ai-dynamo/aiconfigurator) from a folder of tables and writes, per GPU,
``hardware_profiles/<gpu>/collectives.csv`` (every second message size, first and last included) and
``collectives_held_out.csv`` (every fourth of the others), which no predictor reads and ``moesim validate``
judges on. Where a GPU was measured with two NCCL releases the newer one is kept.

    python studies/build_collectives_profile.py FOLDER
"""

import sys
from pathlib import Path

import pandas as pd

OUT = Path(__file__).resolve().parent.parent / "hardware_profiles"
SOURCE = "aiconfigurator-core 0.12.0 (nccl-tests)"
GPUS = {"A100-SXM-80GB": "a100", "H100-SXM-80GB": "h100", "B200-SXM-180GB": "b200", "L40S": "l40s"}
OPS = {
    "all_gather": "all_gather",
    "all_reduce": "all_reduce",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}


def run(table: Path) -> pd.DataFrame:
    """One line per measured (gpu, op, ranks, bytes); ``place`` counts a curve's sizes from 0."""
    rows = pd.read_csv(table)
    rows = rows[rows["gpu"].isin(list(GPUS))].assign(gpu=rows["gpu"].map(GPUS), op=rows["op"].map(OPS))
    rows = rows[rows["library"] == rows.groupby("gpu")["library"].transform("max")]
    frame = rows[["gpu", "op", "ranks", "bytes", "library"]].assign(
        time_us=rows["latency_us"].round(2), basis="published", source=SOURCE
    )
    frame = frame.sort_values(["gpu", "op", "ranks", "bytes"], ignore_index=True)
    return frame.assign(place=frame.groupby(["gpu", "op", "ranks"]).cumcount())


def main(folder: Path) -> None:
    """Write the two tables of every GPU and say how long they are."""
    for gpu, rows in run(folder / "comm_nccl_intranode_aic.csv").groupby("gpu"):
        (OUT / str(gpu)).mkdir(parents=True, exist_ok=True)
        kept, held_out = rows[rows["place"] % 2 == 0], rows[rows["place"] % 4 == 3]
        for name, part in (("collectives", kept), ("collectives_held_out", held_out)):
            part.drop(columns=["gpu", "place"]).to_csv(OUT / str(gpu) / f"{name}.csv", index=False)
        print(f"{gpu}: {len(kept)} rows kept, {len(held_out)} held out")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
