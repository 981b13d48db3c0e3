"""What does a dense einsum dispatch cost, and what does a sparse permute save?

An MoE layer, forward and backward, priced with ``permute=einsum`` and with ``permute=sparse``, all else alike (linear
all-to-all, capacity factor 1, top 2, no overlap, DGX A100, bf16). Nothing is fitted to the figures beside it:

    Tutel (arXiv:2206.03382) fig. 14   sparse over einsum, 16,384 tokens a GPU, D = H = 2,048, two experts a GPU:
                                       3.52 on 16 GPUs, 1.04 on 2,048
    Tutel table 5                      GPU memory of Fairseq's einsums less that of Tutel, 4,096 to 32,768 tokens,
                                       D = H = 4,096: 0.8, 3.0, 12.3, 52.2 GiB
    GShard (arXiv:2006.16668) fig. 8   gate einsums, 2,048 tokens a core, M = 1,024: 580, 580, 700 us at the roofline
                                       of 61.5 TFLOP/s for 128, 512, 2,048 experts; measured 715, 715, 1,495

Expected: einsums quadratic in tokens, so the ratio grows with them, and falls with GPUs as the all-to-all takes over;
GShard's roofline from 2 T E C M twice and the gate's 2 T M E. Found: on 16 GPUs the ratio grows from 1.1 at 1,024
tokens to 11 at 65,536 and is 3.43 at Tutel's point (3.52); on 2,048 GPUs 2.25 where Tutel has 1.04, because its linear
all-to-all there takes seconds and moesim's does not (the miss of ``adaptive_policy``). Memory is 21 to 27 % below
table 5 (whose dtype is not stated), in the same square of the tokens. GShard's roofline within 2.4 %: 1.23 from 128 to
2,048 experts; what it measured grows 2.1 times: two slots an expert fill no matrix unit, which no closed form knows.

    python studies/dense_dispatch.py --out studies/results
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from moesim.cluster import load_cluster
from moesim.compute import Einsum, einsum_flops
from moesim.memory import memory
from moesim.model import Attention, Experts, Layer, Model
from moesim.routing import parse_routing
from moesim.step.passes import backward_pass, forward_pass, pass_key
from moesim.step.scenario import make_scenario
from moesim.strategy import Strategy
from moesim.timeline import write_whole
from moesim.units import GIB
from moesim.workload import make_workload

TOKENS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
FIG_14 = {(16, 16384): 3.52, (2048, 16384): 1.04}  # (GPUs, tokens of one): sparse over einsum
TABLE_5 = {4096: 3.7 - 2.9, 8192: 6.2 - 3.2, 16384: 16.3 - 4.0, 32768: 57.9 - 5.7}  # GiB
FIG_8 = {128: (580.0, 715.0), 512: (580.0, 715.0), 2048: (700.0, 1495.0)}  # us: roofline, measured
CORE_FLOPS_PER_S = 61.5e12  # of a TPU v3 core
GSHARD = {"tokens": 2048, "row": 1024, "top_k": 2}
OPS = ("route", "merge", "experts", "dispatch", "combine")


def model(experts: int, hidden: int) -> Model:
    """One layer of top-2 experts of two matrices; its attention is not priced."""
    attention = Attention(heads=hidden // 128, kv_heads=hidden // 128, head_dim=128, v_head_dim=128)
    ffn = Experts(experts=experts, top_k=2, width=hidden, gated=False)
    return Model(name="layer", hidden=hidden, vocab=256, layers=(Layer(attention=attention, ffn=ffn),), source="Tutel")


def layer_ms(gpus: int, tokens: int, permute: str) -> dict[str, float]:
    """Milliseconds of the expert layer by what it does, forward and backward."""
    cluster = load_cluster("dgx-a100", gpus // 8)
    work = make_workload("train", gpus, global_batch=gpus, seq=tokens)
    scenario = make_scenario(model(2 * gpus, 2048), cluster, work, parse_routing("uniform"), average=True)
    strategy = Strategy(dp=gpus, ep=gpus, capacity_factor=1.0, permute=permute)
    key, layer = pass_key(scenario, strategy), scenario.model.layers[0]
    passes = forward_pass(scenario, layer, key), backward_pass(scenario, layer, key, "none")
    return {
        name: 1e3 * sum(float(one.price(op).slowest.mean()) for one in passes for op in one.program.keys
                        if op.startswith(name) and (one is passes[1]) == op.endswith("grad"))
        for name in OPS
    }  # fmt: skip


def times(points: list[tuple[int, int]]) -> pd.DataFrame:
    """One row per (GPUs, tokens): the layer both ways, and what Tutel printed."""
    rows = []
    for gpus, tokens in points:
        sparse, dense = (layer_ms(gpus, tokens, permute) for permute in ("sparse", "einsum"))
        rows.append(
            {
                "gpus": gpus, "tokens": tokens, "sparse_ms": sum(sparse.values()), "einsum_ms": sum(dense.values()),
                "ratio": sum(dense.values()) / sum(sparse.values()), "tutel_ratio": FIG_14.get((gpus, tokens)),
                "order_share_of_einsum": (dense["route"] + dense["merge"]) / sum(dense.values()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def masks() -> pd.DataFrame:
    """GiB that the einsums add on one GPU of two experts."""
    rows = []
    for tokens, printed in TABLE_5.items():
        work = make_workload("train", 1, global_batch=1, seq=tokens)
        one = Strategy(capacity_factor=1.0)
        sparse, dense = (
            memory(model(2, 4096), work, replace(one, permute=permute)).total for permute in ("sparse", "einsum")
        )
        rows.append({"tokens": tokens, "gib": (dense - sparse) / GIB, "tutel_gib": printed})
    return pd.DataFrame(rows)


def gate_einsums() -> pd.DataFrame:
    """Microseconds of the gate's three einsums at GShard's rate: E C = 2 T whatever E (capacity 2 N / G E)."""
    rows = []
    for experts, (roofline, measured) in FIG_8.items():
        one = Einsum(slots=2.0 * GSHARD["tokens"], **GSHARD)
        gate = 2.0 * GSHARD["tokens"] * GSHARD["row"] * experts
        us = 1e6 * (2.0 * einsum_flops(one) + gate) / CORE_FLOPS_PER_S
        rows.append({"experts": experts, "us": us, "gshard_roofline_us": roofline, "gshard_measured_us": measured})
    return pd.DataFrame(rows)


def draw(found: pd.DataFrame, memory_gib: pd.DataFrame, path: Path) -> None:
    """Left: how many times longer the layer takes with einsums. Right: the memory they add."""
    from moesim import plots

    picture, ax = plots.figure(10.0, 4.2)
    ax.remove()
    left, right = picture.subplots(1, 2)
    for gpus, rows in found.groupby("gpus"):
        (line,) = left.plot(rows["tokens"], rows["ratio"], marker="o", markersize=4, label=f"{gpus:,} GPUs")
        said = rows.dropna(subset="tutel_ratio")
        if len(said):
            left.plot(said["tokens"], said["tutel_ratio"], "x", color=line.get_color(), label=f"Tutel, {gpus:,} GPUs")
    left.axhline(1.0, color="black", linewidth=0.6)
    left.set(xscale="log", xlabel="tokens of a GPU", ylabel="layer with einsums / with a permute", ylim=(0, None))
    right.plot(memory_gib["tokens"], memory_gib["gib"], marker="o", markersize=4, label="moesim")
    right.plot(memory_gib["tokens"], memory_gib["tutel_gib"], "x", color="black", label="Tutel, table 5")
    right.set(xscale="log", yscale="log", xlabel="tokens of a GPU", ylabel="memory that the einsums add (GiB)")
    right.set_yticks((0.5, 1, 2, 5, 10, 20, 50), ("0.5", "1", "2", "5", "10", "20", "50"))
    left.set_xticks(TOKENS, [f"{n // 1024}k" for n in TOKENS])
    right.set_xticks(list(TABLE_5), [f"{n // 1024}k" for n in TABLE_5])
    for panel in (left, right):
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.legend(frameon=False, fontsize=8)
    plots.save(picture, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 GPUs and two numbers of tokens only")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    args = parser.parse_args()
    counts = (16,) if args.quick else (16, 128, 2048)
    found = times([(gpus, tokens) for gpus in counts for tokens in (TOKENS[::6] if args.quick else TOKENS)])
    memory_gib, gate = masks(), gate_einsums()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, frame in (("", found), ("_memory", memory_gib), ("_gshard", gate)):
        write_whole(args.out / f"dense_dispatch{name}.csv", partial(frame.round(4).to_csv, index=False))
        print(frame.round(3).to_string(index=False))
    draw(found, memory_gib, args.out / "dense_dispatch.png")


if __name__ == "__main__":
    main()
