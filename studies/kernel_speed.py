"""How fast is the Triton expert layer on this GPU?

Each shape with balanced routing from 1 to 16,384 tokens: the whole layer (sort, permute, two grouped GEMMs, combine)
by replay of a CUDA graph, beside two dense bf16 GEMMs of the same FLOPs in the same run. Each call of a graph routes
to other experts, and all weights of a shape exceed the L2, so weights come from memory.

Expected on an H200: bound by the weights' bytes (over 4 TB/s) up to 64 tokens an expert; at 16,384 tokens of Mixtral
at least 75 % of the dense GEMM; geometric mean no slower than vLLM's Triton kernel. Not measured yet.

    python studies/kernel_speed.py --out results --rows kernel_moe.csv    # compares with the table's rows
    python studies/kernel_speed.py --tune                                 # times other tiles, prints the best

The table is appended row by row; a second run goes on where the first stopped.
"""

import argparse
import csv
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pandas as pd

VLLM = "vllm_unquantizedfusedmoe_triton_tritonexperts"
CALLS, REPLAYS = 8, 15
TUNED_LOADS = (2, 16, 32, 64, 128, 1024)  # tokens an expert
DENSE_BYTES = 40e9  # a larger dense GEMM is not tried


class Case(NamedTuple):
    """One layer and the tokens it gets; ``reference_us`` of the table, if any."""

    model: str
    hidden: int
    ffn: int
    experts: int
    top_k: int
    tokens: int
    reference_us: float = math.nan


SHAPES = {
    "Mixtral 8x7B": (4096, 14336, 8, 2),
    "Qwen3-30B-A3B": (2048, 768, 128, 8),
    "DeepSeek-V3": (7168, 2048, 256, 8),
    "gpt-oss-120b like": (2880, 2880, 128, 4),
}
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
KEY = ["model", "hidden", "ffn", "experts", "top_k", "tokens", "dtype"]
COLUMNS = [*KEY, "layer_us", "dense_us", "reference_us", "layer_tflops", "weights_TB_per_s", "sm_clock_mhz"]


def cases(rows: Path | None, kernel: str) -> list[Case]:
    """The shapes above, or the balanced rows of one kernel on one GPU of a table (widths divided by its tp)."""
    if rows is None:
        return [Case(model, *shape, tokens) for model, shape in SHAPES.items() for tokens in TOKENS]
    table = pd.read_csv(rows)
    table = table[(table["kernel"] == kernel) & (table["ep"] == 1) & (table["distribution"] == "balanced")]
    tp = table["tp"] if "tp" in table else pd.Series(1, table.index)
    names = ["model_hint", "hidden", "inter", "num_experts", "topk", "num_tokens", "latency_us"]
    table = table.assign(inter=table["inter"] // tp)[names]
    return [Case(*row) for row in table.sort_values(names[:-1]).itertuples(index=False, name=None)]


def run(wanted: list[Case], dtype: str, table: Path) -> pd.DataFrame:
    """Measure the cases that ``table`` does not hold yet; the whole table."""
    if not table.exists():
        table.write_text(",".join(COLUMNS) + "\n")
    done = {tuple(map(str, row)) for row in pd.read_csv(table)[KEY].itertuples(index=False, name=None)}
    shape, experts = None, None
    for case in wanted:
        if tuple(map(str, (*case[:6], dtype))) in done:
            continue
        if case[1:4] != shape:
            shape, experts = case[1:4], None  # frees the weights before it makes others
            experts = _experts(case, dtype)
        row = _measured(case, experts, dtype)
        with table.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        print(f"{case.model:24} {case.tokens:6} tokens {row['layer_us']:10.1f} us  dense {row['dense_us']:10.1f} us")
    return pd.read_csv(table)


def _experts(case: Case, dtype: str):
    from moesim.kernels.expert_ffn import make_experts

    return make_experts(case.experts, case.hidden, case.ffn, dtype, device="cuda")


def balanced(case: Case, call: int):
    """experts_TK: every expert gets as many copies as any other, beginning elsewhere in each call."""
    import torch

    copies = torch.arange(case.tokens * case.top_k, device="cuda") + call * case.top_k * case.tokens
    order = torch.randperm(case.experts, generator=torch.Generator().manual_seed(case.experts)).cuda()
    return order[copies % case.experts].view(case.tokens, case.top_k).int()


def _measured(case: Case, experts, dtype: str) -> dict[str, float | str | int]:
    import torch

    from moesim.kernels.expert_ffn import expert_ffn

    x = torch.randn(case.tokens, case.hidden, device="cuda").bfloat16()
    choice_weights = torch.rand(case.tokens, case.top_k, device="cuda")
    chosen = [balanced(case, call) for call in range(CALLS)]
    layer_s = seconds([lambda c=c: expert_ffn(x, experts, c, choice_weights) for c in chosen])
    rows = case.tokens * case.top_k
    flops = 6.0 * rows * case.hidden * case.ffn
    touched = min(case.experts, rows) * sum(w.nbytes for w in experts[:4] if w is not None) / case.experts
    return {
        **dict(zip(KEY, (*case[:6], dtype), strict=True)), "layer_us": layer_s * 1e6, "dense_us": _dense_s(case) * 1e6,
        "reference_us": case.reference_us, "layer_tflops": flops / layer_s / 1e12,
        "weights_TB_per_s": touched / layer_s / 1e12, "sm_clock_mhz": _clock_mhz(),
    }  # fmt: skip


def _dense_s(case: Case) -> float:
    """Seconds of [rows, hidden] x [hidden, 2 ffn] and [rows, ffn] x [ffn, hidden] in bf16; nan if too large."""
    import torch

    rows = case.tokens * case.top_k
    if 2.0 * rows * (2 * case.hidden + 3 * case.ffn) > DENSE_BYTES:
        return math.nan
    a, b = (torch.randn(rows, k, device="cuda", dtype=torch.bfloat16) for k in (case.hidden, case.ffn))
    up = torch.randn(2 * case.ffn, case.hidden, device="cuda", dtype=torch.bfloat16)
    down = torch.randn(case.hidden, case.ffn, device="cuda", dtype=torch.bfloat16)
    return seconds([lambda: (a @ up.T, b @ down.T)] * 2)


def seconds(calls: list[Callable[[], object]], replays: int = REPLAYS) -> float:
    """Median seconds of one call, by replays of a CUDA graph of all of them."""
    import torch

    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times_ms = []
    for replay in range(replays + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 3:
            times_ms.append(begin.elapsed_time(end))
    return median(times_ms) * 1e-3 / len(calls)


def _clock_mhz() -> str:
    command = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "--id=0"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def tune(dtype: str, table: Path) -> pd.DataFrame:
    """Each tile that fits, by shape, load and block: seconds of both GEMMs; appended to ``table`` load by load."""
    names = ["model", "load", "block", "rows", "depth", "warps", "stages", "loops", "up_s", "down_s"]
    if not table.exists():
        table.write_text(",".join(names) + "\n")
    done = set(pd.read_csv(table)[["model", "load"]].itertuples(index=False, name=None))
    for model, (hidden, ffn, experts, _) in SHAPES.items():
        missing = [load for load in TUNED_LOADS if (model, load) not in done]
        weights = _experts(Case(model, hidden, ffn, experts, 1, 1), dtype) if missing else None
        for load in missing:
            rows = list(_tuned(Case(model, hidden, ffn, experts, 1, load * experts), weights, dtype, load))
            pd.DataFrame(rows, columns=names).to_csv(table, mode="a", header=False, index=False)
            print(f"{model:24} {load:6} tokens an expert: {len(rows)} tiles")
    return pd.read_csv(table)


def _tuned(case: Case, weights, dtype: str, load: int) -> Iterator[tuple]:
    import torch
    from triton.runtime.errors import OutOfResources

    from moesim.kernels.fp8 import quantise_fp8_rows
    from moesim.kernels.grouped_gemm import grouped_gemm
    from moesim.kernels.permute import sort_by_expert

    for block, tile in candidates(dtype, load):
        order, times = sort_by_expert(balanced(case, 0), case.experts, block), []
        for activation, w, scale in (
            ("swiglu", weights.w13, weights.w13_scale),
            ("none", weights.w2, weights.w2_scale),
        ):
            x = torch.randn(order.rows, w.shape[2], device="cuda", dtype=torch.bfloat16)
            options = {"activation": activation, "w_scale": scale, "tile": tile}
            if dtype == "fp8_block":
                x, options["x_scale"] = quantise_fp8_rows(x)
            try:
                times.append(seconds([lambda x=x, w=w, r=order, o=options: grouped_gemm(x, w, r, **o)] * 2, replays=5))
            except OutOfResources:
                break
        if len(times) == 2:
            yield case.model, load, block, *tile, *times


def candidates(dtype: str, load: int) -> Iterator[tuple[int, tuple]]:
    """Blocks near the load, and tiles whose accumulators hold 8 to 128 registers a thread."""
    from moesim.kernels.tiles import BLOCKS, Tile

    near = [block for block in BLOCKS if load / 4 <= block <= 4 * load] or [BLOCKS[0] if load < 4 else BLOCKS[-1]]
    sums = 2 if dtype == "fp8_block" else 1  # a partial sum waits for its scale
    for block, rows, warps, stages, loops in product(near, (64, 128, 256), (4, 8), (3, 4), (False, True)):
        if 8 <= sums * block * rows // (32 * warps) <= 128:
            depths = (128,) if dtype == "fp8_block" else (64, 128) if block <= 32 else (64,)
            yield from ((block, Tile(rows, depth, warps, stages, loops)) for depth in depths)


def summary(frame: pd.DataFrame) -> str:
    """Geometric mean against the table's rows, and the share of the dense GEMM at the largest load."""
    lines = []
    known = frame.dropna(subset=["reference_us"])
    if len(known):
        logs = (known["reference_us"] / known["layer_us"]).map(math.log)
        lines.append(f"{math.exp(logs.mean()):.3f} times as fast as the reference, geometric mean of {len(known)} rows")
    dense = frame[(frame["tokens"] == 16384) & (frame["hidden"] == 4096) & (frame["ffn"] == 14336)]
    for row in dense.itertuples():
        share = row.dense_us / row.layer_us
        lines.append(f"{row.model}, {row.dtype}: {row.layer_tflops:.0f} TFLOP/s, {share:.1%} of the dense GEMM")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only loads of up to 64 tokens")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp8_block", "int4", "ternary"])
    parser.add_argument("--rows", type=Path, help="CSV of published layers to time and compare with")
    parser.add_argument("--kernel", default=VLLM, help="which of its kernels")
    parser.add_argument("--tune", action="store_true", help="time other tiles (bf16 or fp8_block)")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("no GPU here: this study times kernels on one")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.tune:
        frame = tune(arguments.dtype, arguments.out / f"kernel_tiles_{arguments.dtype}.csv")
        best = frame.assign(layer_s=frame["up_s"] + frame["down_s"]).sort_values("layer_s")
        print(best.groupby(["model", "load"], sort=False).head(3).sort_values(["model", "load"]).to_string(index=False))
        return
    wanted = [case for case in cases(arguments.rows, arguments.kernel) if case.tokens <= 64 or not arguments.quick]
    print(summary(run(wanted, arguments.dtype, arguments.out / "kernel_speed.csv")))


if __name__ == "__main__":
    main()
