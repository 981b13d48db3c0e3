"""Which published kernel times does moesim ship, and how are they thinned?

Reads the measured kernel tables of aiconfigurator-core 0.12.0 (Apache-2.0, NVIDIA; ai-dynamo/aiconfigurator)
from a folder with ``kernel_moe_aic_<gpu>.csv``, ``kernel_gemm_aic.csv`` and ``kernel_attention_aic.csv`` and
writes ``hardware_profiles/<gpu>/`` (expert_ffn.csv, gemm.csv, attention.csv, held_out_expert_ffn.csv, meta.json).

Left out: vLLM and SGLang rows with ep > 1 (their kernels walk over the masked tokens of the other ranks, so the
time is not that of one rank's tokens) and rows of wider scope than the fused kernel. The models of HELD_OUT
go to the held-out file, which the predictor never sees and ``moesim validate`` judges on.

    python studies/build_published_profiles.py FOLDER
"""

import json
import sys
from pathlib import Path

import pandas as pd

OUT = Path(__file__).resolve().parent.parent / "hardware_profiles"
HELD_OUT = ("Qwen3.5-122B-A10B", "Llama-4-Scout", "Nemotron-3-Nano")
NOT_GATED = ("Nemotron-3-Nano",)  # two matrices an expert, relu squared
RANK_SHARED = ("moe_torch_flow", "moe_torch_flow_cutlass", "moe_torch_flow_nongated")
DTYPES = {
    "bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "w4a16_mxfp4": "int4", "int4_wo": "int4",
}  # fmt: skip
# data sheets: NVIDIA A100 80GB SXM, H100 SXM and H200 SXM; dense peaks
GPUS = {
    "h200": ("H200-SXM-141GB", "H200", "hopper", 4.8e12, {"bf16": 989e12, "fp8": 1978e12}, 132, 50e6),
    "h100": ("H100-SXM-80GB", "H100", "hopper", 3.35e12, {"bf16": 989e12, "fp8": 1978e12}, 132, 50e6),
    "a100": ("A100-SXM-80GB", "A100", "ampere", 2.039e12, {"bf16": 312e12}, 108, 40e6),
}
MLA = {"head_dim": 192, "v_head_dim": 128, "latent_dim": 576}  # DeepSeek-V3: 128 + 64, 128, 512 + 64
SOURCE = "aiconfigurator-core 0.12.0 (ai-dynamo/aiconfigurator), measured silicon tables, clocks locked"


def expert_ffn(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per measured (kernel, shape, tokens, load)."""
    rows = rows[rows["measured_scope"] == "fused_moe_rank0"]
    rows = rows[(rows["ep"] == 1) | rows["kernel"].isin(RANK_SHARED)]
    frame = pd.DataFrame(
        {
            "kernel": rows["kernel"],
            "dtype": rows["dtype"].map(DTYPES),
            "model": rows["model_hint"],
            "gated": (~rows["model_hint"].isin(NOT_GATED)).astype(int),
            "tokens": rows["num_tokens"],
            "hidden": rows["hidden"],
            "ffn": rows["inter"],
            "experts": rows["num_experts"],
            "top_k": rows["topk"],
            "ep": rows["ep"],
            "tp": rows["tp"],
            "load": rows["distribution"].str.replace("power_law_", "power-law:"),
            "time_us": rows["latency_us"].round(2),
        }
    )
    return frame.sort_values(list(frame.columns)[:-1])


def gemm(rows: pd.DataFrame) -> pd.DataFrame:
    """Dense GEMM [m, k] x [k, n]."""
    frame = rows[["kernel", "dtype", "m", "n", "k"]].assign(
        dtype=rows["dtype"].map(DTYPES), time_us=rows["latency_us"].round(2)
    )
    return frame.sort_values(["kernel", "dtype", "n", "k", "m"])


def attention(rows: pd.DataFrame) -> pd.DataFrame:
    """Prefill and decode; context counts all keys of a sequence, the new ones among them."""
    mla = rows["attn"] == "mla"
    frame = pd.DataFrame(
        {
            "kernel": rows["kernel"],
            "phase": rows["phase"],
            "kind": rows["attn"],
            "dtype": rows["dtype"].map(DTYPES),
            "kv_dtype": rows["kv_dtype"].map(DTYPES),
            "heads": rows["num_heads"],
            "kv_heads": rows["num_kv_heads"],
            "head_dim": rows["head_dim"].where(~mla, MLA["head_dim"]).astype(int),
            "v_head_dim": rows["head_dim"].where(~mla, MLA["v_head_dim"]).astype(int),
            "latent_dim": mla.astype(int) * MLA["latent_dim"],
            "batch": rows["batch_size"],
            "queries": rows["isl"],
            "context": rows["isl"] + rows["kv_step"],
            "time_us": rows["latency_us"].round(2),
        }
    )
    return frame.sort_values(list(frame.columns)[:-1])


def meta(key: str, versions: dict[str, str], tables: list[str]) -> dict[str, object]:
    """The birth certificate of a profile."""
    _, name, architecture, bandwidth, flops, sms, l2_bytes = GPUS[key]
    return {
        "gpu": {
            "name": name, "architecture": architecture, "memory_bytes_per_s": bandwidth, "flops": flops,
            "sms": sms, "l2_bytes": l2_bytes,
        },
        "tables": {table: {"basis": "published", "source": SOURCE} for table in tables},
        "licence": "Apache-2.0",
        "citation": "https://github.com/ai-dynamo/aiconfigurator, aiconfigurator-core 0.12.0 on PyPI",
        "libraries": versions,
        "date": "2026-11-22",
        "command": "python studies/build_published_profiles.py FOLDER",
        "note": "thinned; not measured by moesim; NOTICE names the licence",
    }  # fmt: skip


def main(folder: Path) -> None:
    """Write every profile and say how large it is."""
    dense = pd.read_csv(folder / "kernel_gemm_aic.csv")
    attn = pd.read_csv(folder / "kernel_attention_aic.csv")
    for key, (label, *_) in GPUS.items():
        moe = pd.read_csv(folder / f"kernel_moe_aic_{key}.csv")
        experts = expert_ffn(moe)
        held = experts["model"].isin(HELD_OUT)
        frames = {
            "expert_ffn": experts[~held],
            "gemm": gemm(dense[dense["gpu"] == label]),
            "attention": attention(attn[attn["gpu"] == label]),
            "held_out_expert_ffn": experts[held],
        }
        (OUT / key).mkdir(parents=True, exist_ok=True)
        for name, frame in frames.items():
            frame.to_csv(OUT / key / f"{name}.csv", index=False)
        used = pd.concat([moe, dense[dense["gpu"] == label], attn[attn["gpu"] == label]])
        versions = {k: str(v) for k, v in used.groupby("framework")["framework_version"].first().items()}
        path = OUT / key / "meta.json"
        path.write_text(json.dumps(meta(key, versions, list(frames)), indent=1) + "\n")
        print(key, {name: len(frame) for name, frame in frames.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
