"""Published kernel tables in moesim's words, and the rows of them that cannot be what they say.

The layout is that of aiconfigurator's collected tables (docs/validation.md); the reader of a folder and
``studies/build_published_profiles.py`` share these functions.
"""

from typing import TYPE_CHECKING, Final

from moesim.cluster import GPUS
from moesim.compute.common import WEIGHT_BYTES

if TYPE_CHECKING:
    import pandas as pd

DTYPES: Final = {
    "bfloat16": "bf16", "bf16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block",
    "w4a16_mxfp4": "int4", "int4_wo": "int4",
}  # fmt: skip
NOT_GATED: Final = ("Nemotron-3-Nano",)  # two matrices an expert, relu squared
RANK_ONLY: Final = ("moe_torch_flow", "moe_torch_flow_cutlass", "moe_torch_flow_nongated")
MLA: Final = {"head_dim": 192, "v_head_dim": 128, "latent_dim": 576}  # DeepSeek-V3: 128 + 64, 128, 512 + 64
SERIES: Final = ["kernel", "dtype", "model", "ep", "tp", "load"]
_SHARED_WAYS, _MOST_SHARE = 8, 0.5


def gpu_name(label: str) -> str:
    """``H200-SXM-141GB`` -> ``H200``."""
    return str(label).split("-")[0]


def expert_rows(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Columns of expert_ffn.csv, plus gpu and ``skipped``: why a row says nothing about one rank's tokens."""
    import pandas as pd

    rows = pd.DataFrame(
        {
            "gpu": frame["gpu"].map(gpu_name),
            "kernel": frame["kernel"],
            "dtype": frame["dtype"].map(DTYPES),
            "model": frame["model_hint"],
            "gated": (~frame["model_hint"].isin(NOT_GATED)).astype(int),
            "tokens": frame["num_tokens"],
            "hidden": frame["hidden"],
            "ffn": frame["inter"],
            "experts": frame["num_experts"],
            "top_k": frame["topk"],
            "ep": frame["ep"],
            "tp": frame["tp"],
            "load": frame["distribution"].str.replace("power_law_", "power-law:"),
            "time_us": frame["latency_us"].round(2),
            "source": frame["source"],
        }
    )
    masked = (frame["ep"] > 1) & ~frame["kernel"].isin(RANK_ONLY)
    other = frame["measured_scope"] != "fused_moe_rank0"
    skipped = suspect(rows).mask(masked, "the kernel walks over the other ranks' masked tokens")
    return rows.assign(skipped=skipped.mask(other, "another scope: " + frame["measured_scope"]))


def suspect(rows: "pd.DataFrame") -> "pd.Series[str]":
    """Why a series of rows cannot be what it says; empty where nothing speaks against it.

    Balanced rows that are faster than reading the weights of their experts at the data sheet's speed did not
    touch them all (group-limited routing, as DeepSeek-V3's, reaches half of the groups for equal scores).
    Rows split 8 ways or more that still take over half of the unsplit time were not split.
    """
    reason = rows["dtype"].astype(str).map(lambda _: "")
    speed = rows["gpu"].map({name: gpu.memory_bytes_per_s for name, gpu in GPUS.items()})
    matrices = rows["gated"] + 2.0
    one = matrices * rows["hidden"] * rows["ffn"] / rows["tp"] * rows["dtype"].map(WEIGHT_BYTES)
    active = (rows["tokens"] * rows["top_k"]).clip(upper=rows["experts"]) / rows["ep"]
    fast = (rows["load"] == "balanced") & (active >= 1) & (rows["time_us"] * 1e-6 < active * one / speed)
    fast_series = fast.groupby([rows[name] for name in ["gpu", *SERIES]]).transform("any")
    reason = reason.mask(fast_series, "suspect: faster than reading the weights of its experts")
    unsplit = rows[(rows["ep"] == 1) & (rows["tp"] == 1) & (rows["load"] == "balanced")]
    whole = unsplit.drop_duplicates(["gpu", *_CASE]).set_index(["gpu", *_CASE])["time_us"]
    share = rows["time_us"] / whole.reindex(rows.set_index(["gpu", *_CASE]).index).to_numpy()
    middle = share.groupby([rows[name] for name in ["gpu", *SERIES]]).transform("median")
    unsplit_rows = (rows["ep"] * rows["tp"] >= _SHARED_WAYS) & (middle > _MOST_SHARE)
    return reason.mask(unsplit_rows, "suspect: as slow as the layer that is not split")


_CASE: Final = ["kernel", "dtype", "model", "tokens"]


def gemm_rows(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Columns of gemm.csv, plus gpu and skipped."""
    import pandas as pd

    bad = frame["suspect"].astype(bool) if "suspect" in frame else pd.Series(data=False, index=frame.index)
    return pd.DataFrame(
        {
            "gpu": frame["gpu"].map(gpu_name),
            "kernel": frame.get("kernel", ""),
            "dtype": frame["dtype"].map(DTYPES),
            "m": frame["m"], "n": frame["n"], "k": frame["k"],
            "time_us": frame["latency_us"].round(2),
            "source": frame["source"],
            "skipped": pd.Series("", index=frame.index).mask(bad, "suspect in its source"),
        }
    )  # fmt: skip


def attention_rows(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Columns of attention.csv, plus gpu and skipped; context counts all keys, the new ones among them."""
    import pandas as pd

    mla = frame["attn"] == "mla"
    return pd.DataFrame(
        {
            "gpu": frame["gpu"].map(gpu_name),
            "kernel": frame["kernel"],
            "phase": frame["phase"],
            "kind": frame["attn"],
            "dtype": frame["dtype"].map(DTYPES),
            "kv_dtype": frame["kv_dtype"].map(DTYPES),
            "heads": frame["num_heads"],
            "kv_heads": frame["num_kv_heads"],
            "head_dim": frame["head_dim"].where(~mla, MLA["head_dim"]).astype(int),
            "v_head_dim": frame["head_dim"].where(~mla, MLA["v_head_dim"]).astype(int),
            "latent_dim": mla.astype(int) * MLA["latent_dim"],
            "batch": frame["batch_size"],
            "queries": frame["isl"],
            "context": frame["isl"] + frame["kv_step"],
            "time_us": frame["latency_us"].round(2),
            "source": frame["source"],
            "skipped": "",
        }
    )
