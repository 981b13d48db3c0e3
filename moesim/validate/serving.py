"""Serving runs: predicted against measured time per output token, and tokens/s per GPU of one phase.

Aggregated servers (e2e_serving_silicon.csv) are judged on TPOT in the mean-field steady state: ``dp``
attention ranks each decode b = concurrency / dp sequences at isl + osl/2 tokens of context. A new prompt
comes in for every finished answer, so a sequence meets ``share`` prefills of other prompts per output token:

    share = (b dp - 1) / (dp osl)             prefill: one prompt on each of the dp ranks
    TPOT  = decode(b) + share x prefill       servers that stop decoding for a prompt: sglang
            - min(share, 1) x min(prefill, decode(b) - its attention)          trtllm, vllm

The last two put prompt and decode in one step, so weights are read and ranks meet once for both: whatever a
decode step does outside attention is then paid with the prompt.

TTFT is not judged, because a queue makes most of it; rows in which requests wait longer than they decode
are skipped, because their batch is not the concurrency. Deployments of one phase
(e2e_serving_published.csv) are judged on tokens/s per GPU of a batch. One set of rules for all rows:

    GPUs of a worker   tp x attention dp x pp; expert TP and EP as given
    routing            uniform popularity, drawn by chance; no expert is replicated
    overlap            dual_batch where the source overlaps two micro-batches, else none
    number format      fp8, fp8_block, bf16 as given; 4-bit floats are int4 (weights only) on GPUs without
                       4-bit arithmetic, and not expressed on GPUs with it
"""

import re
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.cluster import Cluster
from moesim.errors import MoesimError
from moesim.metrics import Result, measure
from moesim.model import Model
from moesim.routing import parse_routing
from moesim.step.scenario import make_scenario
from moesim.strategy import Strategy, load_strategy, why_not
from moesim.units import MS
from moesim.validate.figures import (
    SHIPPED,
    Found,
    Row,
    SkipError,
    exchange,
    find_cluster,
    find_model,
    frame,
    line,
    merge_repeats,
    number,
    positive,
    read_tables,
    whole,
)
from moesim.workload import Workload, make_workload

if TYPE_CHECKING:
    import pandas as pd

SERVERS: Final = "e2e_serving_silicon.csv"
PHASES: Final = "e2e_serving_published.csv"
NEEDED_SERVERS: Final = (
    *("source", "model", "system", "framework", "precision", "gemm_quant", "moe_quant", "mode", "isl", "osl"),
    *("concurrency", "agg_batch", "agg_tp", "agg_pp", "agg_attn_dp", "agg_moe_tp", "agg_moe_ep", "tpot_ms"),
    "gpus",
)
NEEDED_PHASES: Final = (
    *(
        "source",
        "model",
        "gpu",
        "gpus",
        "precision",
        "phase",
        "ep",
        "batch_per_gpu",
        "isl",
        "features",
        "metric",
    ),
    *("value", "unit", "note"),
)
# SGLang mixes prompts into decode steps only with --enable-mixed-chunk; the others do by default.
STOPS_FOR_PROMPTS: Final = ("sglang",)
GPUS_PER_NODE: Final = 8  # of the published "tok/s/node" figures
_TOKENS: Final = re.compile(r"([\d,]+)(K?) tokens per (?:GPU|device)")


def judge(data: Path | None) -> "pd.DataFrame":
    """One line per measured figure: servers in ms per output token, phases in tokens/s per GPU."""
    folder = SHIPPED if data is None else data
    lines = []
    if (folder / SERVERS).is_file():
        rows = read_tables(folder, SERVERS, NEEDED_SERVERS)
        lines += _judged_servers([row for row in rows if row.get("is_moe") is not False])
    if (folder / PHASES).is_file():
        lines += _judged_phases(read_tables(folder, PHASES, NEEDED_PHASES))
    if not lines:
        raise MoesimError(f"{folder} has no row in {SERVERS} or {PHASES}: point --data at measured tables")
    return frame(lines)


def _judged_servers(rows: list[Row]) -> list[dict[str, Any]]:
    lines, repeats = [], defaultdict(list)
    for row in rows:
        one = line(str(row["system"]), _server_case(row), row, "ms/token", str(row["framework"]))
        lines.append(one)
        try:
            found, remarks = predict_tpot(row)
            one |= found._asdict() | {"measured": number(row, "tpot_ms")}
        except SkipError as reason:
            one["skipped"] = str(reason)
            continue
        repeats[one["group"], one["case"]].append((str(row.get("framework_version") or ""), one))
        one["case"] = "; ".join((one["case"], *remarks))
    for runs in repeats.values():
        merge_repeats(runs)
    return lines


def predict_tpot(row: Row) -> tuple[Found, tuple[str, ...]]:
    """Milliseconds per output token of an aggregated server; SkipError where moesim cannot express it."""
    if row["mode"] != "agg":
        raise SkipError("disaggregated: prefill and decode pools are not judged yet")
    if number(row, "ttft_ms", 0.0) > positive(row, "tpot_ms") * positive(row, "osl"):
        raise SkipError("most requests wait in a queue: the batch is smaller than the concurrency")
    model = find_model(str(row["model"]))
    tp, dp, pp = (whole(row, f"agg_{name}", 1) for name in ("tp", "attn_dp", "pp"))
    cluster = find_cluster(str(row["system"]), tp * dp * pp)
    shape = f"tp={tp} dp={dp} pp={pp} ep={whole(row, 'agg_moe_ep', 1)} etp={whole(row, 'agg_moe_tp', 1)}"
    workers = max(1.0, number(row, "gpus") / cluster.gpus)
    asked = number(row, "concurrency") / workers / dp
    batch = max(1, round(min(asked, number(row, "agg_batch", asked)) / pp)) * pp  # of one attention rank
    isl, osl, dtype = whole(row, "isl"), whole(row, "osl"), _dtype(row, cluster)
    decode = _play(
        model, cluster, f"{shape} micro_batch={batch // pp}",
        make_workload("decode", cluster.gpus, global_batch=batch * dp, isl=isl, osl=osl, dtype=dtype),
    )  # fmt: skip
    prefill = _play(
        model, cluster, shape, make_workload("prefill", cluster.gpus, global_batch=dp, isl=isl, dtype=dtype)
    )
    steps, prompts = _seconds(decode), _seconds(prefill)
    share = (batch * dp - 1) / (dp * osl)
    apart = 1.0 - decode.breakdown.seconds["attention"] / decode.step_s
    saved = 0.0 if row["framework"] in STOPS_FOR_PROMPTS else min(share, 1.0)
    tpot_s = (
        step + share * prompt - saved * min(prompt, apart * step) for step, prompt in zip(steps, prompts, strict=True)
    )
    remarks = (decode.infeasible,) if decode.infeasible else ()
    return Found(*(seconds / MS for seconds in tpot_s)), remarks


def _seconds(result: Result) -> Found:
    """Steady seconds of a batch and their band; a prefill batch follows another."""
    speed, band = result.metrics["tokens_per_s"], result.interval["tokens_per_s"]
    assert speed is not None
    assert band is not None
    tokens = result.scenario.workload.tokens
    return Found(tokens / speed, tokens / band[1], tokens / band[0])


@lru_cache(maxsize=4096)
def _play(model: Model, cluster: Cluster, shape: str, workload: Workload) -> Result:
    try:
        strategy: Strategy = load_strategy(shape, cluster.gpus)
    except MoesimError as error:
        raise SkipError(str(error)) from None
    reason = why_not(model, cluster, workload, strategy)
    if reason is not None:
        raise SkipError(f"moesim cannot express it: {reason}")
    scenario = make_scenario(model, cluster, workload, parse_routing("uniform"), seed=0)
    return measure(scenario, strategy, events=False, fold=True)


def _dtype(row: Row, cluster: Cluster) -> str:
    """The number format of the experts, which hold most weights."""
    named = str(row["moe_quant"] or row["precision"])
    if named in ("nvfp4", "mxfp4", "fp4"):
        if "fp4" in cluster.gpu.flops:
            raise SkipError("moesim has no 4-bit float arithmetic")
        return "int4"
    if named not in ("bf16", "fp8", "fp8_block"):
        raise SkipError(f"moesim has no number format {named}")
    return named


def _server_case(row: Row) -> str:
    parts = (("tp", "TP"), ("attn_dp", "DP"), ("moe_tp", "ETP"), ("moe_ep", "EP"))
    shape = " ".join(f"{short}{row[f'agg_{name}'] or '?'}".removesuffix(".0") for name, short in parts)
    return (
        f"{row['model']}, {row['gpus']} GPUs, {row['moe_quant'] or row['precision']}, {shape}, "
        f"isl {row['isl']} osl {row['osl']} concurrency {row['concurrency']}"
    )


def _judged_phases(rows: list[Row]) -> list[dict[str, Any]]:
    lines, repeats = [], defaultdict(list)
    for row in rows:
        case = f"{row['model']}, {row['gpus']} GPUs, EP{row['ep']}, isl {row['isl']}, {row['metric']}"
        one = line(str(row["gpu"]), case, row, "tokens/s/GPU", "other figures")
        lines.append(one)
        try:
            played, found = predict_phase(row)
        except SkipError as reason:
            one["skipped"] = str(reason)
            continue
        name = f"{played[0].name} {row['phase']}"
        one |= line(str(row["gpu"]), case, row, "tokens/s/GPU", name)
        one |= {"measured": _per_gpu(row)} | found._asdict()
        repeats[played].append(("", one))
    for runs in repeats.values():
        merge_repeats(runs)
    return lines


def _per_gpu(row: Row) -> float:
    if "throughput" not in str(row["metric"]) or "cache hits" in str(row["metric"]):
        raise SkipError("not a throughput of one phase")
    if "MTP" in str(row["features"]).replace("no MTP", ""):
        raise SkipError("multi-token prediction: its acceptance is not known")
    per = {"tok/s/node": GPUS_PER_NODE, "tok/s/GPU": 1}.get(str(row["unit"]))
    if per is None:
        raise SkipError(f"unit {row['unit']}")
    return positive(row, "value") / per


def predict_phase(row: Row) -> tuple[tuple[Model, Cluster, Workload, int], Found]:
    """What was played, and tokens/s per GPU."""
    if row.get("quality") not in (None, "table", "derived"):
        raise SkipError(f"quality of the figure: {row['quality']}")
    _per_gpu(row)
    if row["phase"] not in ("prefill", "decode"):
        raise SkipError("both phases together")
    model, cluster = find_model(str(row["model"])), find_cluster(str(row["gpu"]), whole(row, "gpus"))
    isl, ep = whole(row, "isl"), whole(row, "ep")
    decodes = row["phase"] == "decode"
    batch = whole(row, "batch_per_gpu") if decodes else max(1, _tokens_per_gpu(row) // isl)
    dtype = "fp8_block" if str(row["precision"]) in ("fp8", "fp8 block128") else "bf16"
    workload = make_workload(str(row["phase"]), cluster.gpus, global_batch=batch * cluster.gpus, isl=isl, dtype=dtype)
    overlaps = re.search(r"\bTBO\b(?! off)|two micro-batch overlap", str(row["features"]))
    both = " overlap=dual_batch" if overlaps else ""
    all_to_all = exchange(row.get("framework"), str(row["phase"]), ep)
    shape = f"tp=1 ep={ep} micro_batch={batch} all_to_all={all_to_all}{both}"
    result = _play(model, cluster, shape, workload)
    speed, band = result.metrics["tokens_per_s_per_gpu"], result.interval["tokens_per_s_per_gpu"]
    assert speed is not None
    assert band is not None
    return (model, cluster, workload, ep), Found(speed, *band)


def _tokens_per_gpu(row: Row) -> int:
    """Tokens of one batch on one GPU, as the source's remarks say."""
    found = _TOKENS.search(f"{row['features']} {row['note']}")
    if found is None:
        raise SkipError("tokens per GPU of a batch are not given")
    return int(found[1].replace(",", "")) * (1024 if found[2] else 1)
