"""What does each way to overlap hide inside one layer?

DeepSeek-V3, one MoE layer. Above: prefill of 4 x 4,096 tokens a GPU on 4 x DGX H100 (EP32, DeepEP), forward; a
shortcut is another model of the same size (ScMoE), all others compute the same. Below: the forward and the
backward pass of two micro-batches of 4,096 tokens on 256 x HGX H800 (EP64), as DualPipe pairs them.

Expected: a shared expert hides a tenth of the exchange; two chunks and a shortcut half of it, four chunks 80 %,
two halves of a batch nearly all; each hidden second is paid for in slower compute. Tiles cross the network once
for each expert instead of once for each node, and lose. The pair hides everything (DeepSeek's trace: 96 %) and lasts
31 to 33 ms (129.0 ms for four).

    python studies/overlap_in_a_layer.py --out studies/results
"""

import argparse
from pathlib import Path

import pandas as pd

from moesim.cluster import load_cluster
from moesim.model import load_model
from moesim.player import Played
from moesim.routing import parse_routing
from moesim.step.layers import play_draw
from moesim.step.passes import LayerPass, forward_pass, pair_pass, pass_key
from moesim.step.scenario import Scenario, make_scenario
from moesim.strategy import load_strategy
from moesim.timeline import to_frame, write_whole
from moesim.workload import make_workload

CHOICES = {
    "none": "none", "chunked, 2": "chunked chunks=2", "chunked, 4": "chunked chunks=4", "shared": "shared",
    "shortcut": "shortcut", "dual_batch": "dual_batch", "tiles": "tiles",
}  # fmt: skip
PAIR = "pair"
MOVED = ("dispatch", "combine")
Passes = dict[str, LayerPass]


def passes(choices: dict[str, str]) -> Passes:
    """The forward pass of a layer under each choice, and the pair."""
    given = _scenario("prefill", "dgx-h100", 4, batch=4, isl=4096)
    found = {name: forward_pass(given, given.model.layers[-1], _key(given, 32, text)) for name, text in choices.items()}
    train = _scenario("train", "hgx-h800", 256, global_batch=15360, seq=4096)
    found[PAIR] = pair_pass(train, train.model.layers[-1], _key(train, 64, "chunked"), "selective")
    return found


def _scenario(kind: str, cluster: str, nodes: int, **sizes: int) -> Scenario:
    here = load_cluster(cluster, nodes)
    work = make_workload(kind, here.gpus, dtype="fp8_block", **sizes)
    return make_scenario(load_model("deepseek-v3"), here, work, parse_routing("uniform"))


def _key(given: Scenario, ep: int, overlap: str):
    exchange = "tiles" if overlap == "tiles" else "deepep"
    pipeline = "pp=16 micro_batch=1" if given.workload.trains else "micro_batch=4"
    return pass_key(given, load_strategy(f"ep={ep} {pipeline} all_to_all={exchange} overlap={overlap}", _gpus(given)))


def _gpus(given: Scenario) -> int:
    return given.cluster.gpus


def run(choices: dict[str, str] = CHOICES) -> tuple[pd.DataFrame, dict[str, Played]]:
    """One row per choice, and its spans."""
    played = {name: play_draw(one, 0) for name, one in passes(choices).items()}
    rows = [{"overlap": name, **_measured(one)} for name, one in played.items()]
    return pd.DataFrame(rows), played


def _measured(one: Played) -> dict[str, float]:
    """Seconds of the layer, of its streams, and the share of communication beside which something computes."""
    spans = to_frame([span for span in one.spans if span.rank == 0])
    seconds = spans["end_s"] - spans["start_s"]
    computes = spans["stream"] == "compute"
    moving_s = float(seconds[~computes].sum())
    hidden_s = sum(
        max(0.0, min(a.end_s, b.end_s) - max(a.start_s, b.start_s))
        for a in spans[computes].itertuples()
        for b in spans[~computes].itertuples()
    )
    return {
        "layer_ms": one.end_s * 1e3,
        "compute_ms": float(seconds[computes].sum()) * 1e3,
        "communication_ms": moving_s * 1e3,
        "hidden_share": hidden_s / moving_s if moving_s else float("nan"),
    }


def draw(frame: pd.DataFrame, played: dict[str, Played], path: Path) -> None:
    """Two rows, compute and communication, for each choice."""
    from matplotlib.figure import Figure

    from moesim import plots
    from moesim.plots.style import COLOURS, swatches
    from moesim.plots.timeline import FAMILIES

    tall = [2 * (len(played) - 1), 2]
    picture = Figure(figsize=(12.0, 9.0), layout="constrained")
    above, below = picture.subplots(2, 1, gridspec_kw={"height_ratios": tall})
    _panel(above, frame, {name: one for name, one in played.items() if name != PAIR})
    above.set_title(
        "forward pass of one layer, 4 x 4,096 tokens a GPU, EP32 on 4 x DGX H100; of each pair of rows the upper one "
        "computes, the lower one communicates", loc="left", fontsize=9,
    )  # fmt: skip
    _panel(below, frame, {PAIR: played[PAIR]})
    below.set_title("forward and backward of two micro-batches, EP64 on HGX H800", loc="left", fontsize=10)
    below.set_xlabel("time (ms)")
    used = {
        FAMILIES[span.what.split()[0]] for one in played.values() for span in one.spans if span.end_s > span.start_s
    }
    shown = swatches((family, colour) for family, colour in COLOURS.items() if family in used)
    letters = "r = route, s = shared experts, m = merge, d = dispatch, su = shared up, awg = attention weight grad"
    picture.legend(
        handles=shown, loc="outside lower center", ncols=len(shown), title=letters, title_fontsize=8, fontsize=8
    )
    plots.save(picture, path)


def _panel(ax, frame: pd.DataFrame, played: dict[str, Played]) -> None:
    from moesim.plots.style import COLOURS, readable_on
    from moesim.plots.timeline import FAMILIES

    end_ms = max(one.end_s for one in played.values()) * 1e3
    ticks = []
    for place, (name, one) in enumerate(played.items()):
        row = frame.set_index("overlap").loc[name]
        hidden = "" if pd.isna(row["hidden_share"]) else f", {row['hidden_share']:.0%} hidden"
        ticks.append((place * 2.3 + 0.5, f"{name}\n{row['layer_ms']:.1f} ms{hidden}"))
        for span in (s for s in one.spans if s.rank == 0 and s.end_s > s.start_s):
            family = FAMILIES[span.what.split()[0]]
            wide = (span.end_s - span.start_s) * 1e3
            at = place * 2.3 + (span.stream != "compute")
            ax.barh(at, wide, left=span.start_s * 1e3, height=0.9, color=COLOURS[family], edgecolor="white", lw=0.5)
            for text in (span.what, span.what.replace(" ", "\n"), "".join(w[0] for w in span.what.split())):
                if max(map(len, text.split("\n"))) * 0.0082 * end_ms < wide:
                    ax.text(span.start_s * 1e3 + wide / 2, at, text, ha="center", va="center", fontsize=7,
                            color=readable_on(COLOURS[family]))  # fmt: skip
                    break
    ax.set_yticks([at for at, _ in ticks], [text for _, text in ticks], fontsize=8)
    ax.set_ylim(2.3 * len(played) - 0.7, -0.6)
    ax.set_xlim(0, end_ms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two choices only")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    arguments = parser.parse_args()
    frame, played = run({name: CHOICES[name] for name in ("none", "dual_batch")} if arguments.quick else CHOICES)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.out / "overlap_in_a_layer.csv", lambda path: frame.to_csv(path, index=False))
    draw(frame, played, arguments.out / "overlap_in_a_layer.png")
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
