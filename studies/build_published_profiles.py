"""Which published kernel times does moesim ship, and how are they thinned?

Reads the measured kernel tables of aiconfigurator-core 0.12.0 (Apache-2.0, NVIDIA; ai-dynamo/aiconfigurator)
from a folder with ``kernel_moe_aic_<gpu>.csv``, ``kernel_gemm_aic.csv`` and ``kernel_attention_aic.csv`` and
writes ``hardware_profiles/<gpu>/``: expert_ffn, gemm, attention and held_out_expert_ffn.csv, meta.json.

Left out: vLLM and SGLang rows with ep > 1 (their kernels walk over the masked tokens of the other ranks, so
the time is not that of one rank's tokens), rows of wider scope, rows that cannot be what they say. HELD_OUT
models go to the held-out file, which the predictor never sees and ``moesim validate`` judges on.

    python studies/build_published_profiles.py FOLDER
"""

import json
import sys
from pathlib import Path

import pandas as pd

from moesim.cluster import GPUS
from moesim.profile.table import COLUMNS
from moesim.validate.kernel_rows import attention_rows, expert_rows, gemm_rows, gpu_name

OUT = Path(__file__).resolve().parent.parent / "hardware_profiles"
HELD_OUT = ("Qwen3.5-122B-A10B", "Llama-4-Scout", "Nemotron-3-Nano")
NAMES = ("H200", "H100", "A100")
SOURCE = "aiconfigurator-core 0.12.0 (ai-dynamo/aiconfigurator), measured silicon tables, clocks locked"


def columns(table: str) -> list[str]:
    """Columns of a shipped table, text first, the time last."""
    text, numbers = COLUMNS[table].split("|")
    return [*text.split(), *numbers.split()]


def thinned(rows: pd.DataFrame, table: str) -> pd.DataFrame:
    """The trusted rows, sorted, in the columns of the table."""
    names = columns(table)
    return rows.loc[rows["skipped"] == "", names].sort_values(names[:-1])


def meta(name: str, versions: dict[str, str], tables: list[str]) -> dict[str, object]:
    """The birth certificate of a profile."""
    gpu = GPUS[name]
    return {
        "gpu": {
            "name": gpu.name,
            "architecture": gpu.architecture,
            "memory_bytes_per_s": gpu.memory_bytes_per_s,
            "flops": gpu.flops,
            "sms": gpu.sms,
            "l2_bytes": gpu.l2_bytes,
        },
        "tables": {table: {"basis": "published", "source": SOURCE} for table in tables},
        "licence": "Apache-2.0",
        "citation": "https://github.com/ai-dynamo/aiconfigurator, aiconfigurator-core 0.12.0 on PyPI",
        "libraries": versions,
        "date": "2026-11-22",
        "command": "python studies/build_published_profiles.py FOLDER",
        "note": "published figures, thinned; not measured by moesim",
    }


def main(folder: Path) -> None:
    """Write every profile and say how many rows it has, and why others were left out."""
    dense = pd.read_csv(folder / "kernel_gemm_aic.csv")
    attention = pd.read_csv(folder / "kernel_attention_aic.csv")
    for name in NAMES:
        moe = pd.read_csv(folder / f"kernel_moe_aic_{name.lower()}.csv")
        own = [frame[frame["gpu"].map(gpu_name) == name] for frame in (moe, dense, attention)]
        experts = expert_rows(own[0])
        held = experts["model"].isin(HELD_OUT)
        held &= experts["kernel"].isin(experts.loc[~held & (experts["skipped"] == ""), "kernel"])
        frames = {
            "expert_ffn": thinned(experts[~held], "expert_ffn"),
            "gemm": thinned(gemm_rows(own[1]), "gemm"),
            "attention": thinned(attention_rows(own[2]), "attention"),
            "held_out_expert_ffn": thinned(experts[held], "held_out_expert_ffn"),
        }
        home = OUT / name.lower()
        home.mkdir(parents=True, exist_ok=True)
        for table, frame in frames.items():
            frame.to_csv(home / f"{table}.csv", index=False)
        used = pd.concat(own)
        versions = {k: str(v) for k, v in used.groupby("framework")["framework_version"].first().items()}
        (home / "meta.json").write_text(json.dumps(meta(name, versions, list(frames)), indent=1) + "\n")
        print(name, {table: len(frame) for table, frame in frames.items()})
        print(experts["skipped"].value_counts().to_string())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
