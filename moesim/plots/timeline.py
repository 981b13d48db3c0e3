"""Gantt charts: who does what, when."""

from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Patch

from moesim.plots.axis_break import break_of, mark_break, squeezed
from moesim.plots.style import (
    COLOURS,
    SMALL,
    label_share,
    legend_above,
    readable_on,
    say_empty,
    swatches,
    tidy,
    time_unit,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FORWARD, BACKWARD, DATA, WEIGHTS = "#56B4E9", "#D55E00", "#88537D", "#009E73"  # apart when paler, too
PASSES: Final = ("forward", "backward", "data", "weights", "pair")
STEP_COLOURS: Final = {
    "forward": FORWARD,
    "backward": BACKWARD,
    "data": DATA,
    "weights": WEIGHTS,
    "pair": FORWARD,
    "send": COLOURS["pp"],
    "back": COLOURS["pp"],
    "gather": COLOURS["dp"],
    "reduce": COLOURS["dp"],
    "optimizer": COLOURS["optimizer"],
}
STEP_NAMES: Final = {
    "forward": "forward",
    "backward": "backward",
    "data": "backward, data alone",
    "weights": "backward, weights alone",
    "send": "transfer between stages",
    "gather": "weights gathered, gradients reduced (dp)",
    "optimizer": "optimizer",
}
# Family of each op, by the first words of its name; a gradient belongs where its forward does.
FAMILIES: Final = {
    "attention": "attention", "core": "attention", "mamba": "mamba", "norm": "dense", "ffn": "dense",
    "shared": "dense", "head": "head", "embedding": "head", "route": "gate", "merge": "gate", "experts": "experts",
    "recompute": "recompute", "dispatch": "all-to-all",
    "combine": "all-to-all", "tp": "tp", "etp": "etp", "kv": "cp", "weight": "dp", "gradient": "dp",
    "launches": "host",
}  # fmt: skip
LINE: Final = "\n"
PALER: Final = 0.55  # how much colour each further part of a stage keeps
THINNEST: Final = 0.002  # share of the axis below which bars get no white edge


def timeline(spans: "pd.DataFrame", ax: "Axes") -> "Axes":
    """A step as its pipeline: one row per stage with its passes, transfers and reductions as thin bars below.

    ``spans`` has the columns of ``Span``; ops inside the layers are left out. Numbers are micro-batches; where a
    stage holds several parts of the model, the later ones are paler. A pair is its forward above its backward.
    Of a long step only the begin and the end are drawn.
    """
    shown = spans[spans["stream"].isin(["stage", "send", "back", "dp"]) & (spans["layer"] < 0)]
    shown = shown[shown["end_s"] > shown["start_s"]]
    shown = shown.assign(word=shown["what"].str.split().str[0])
    unit, factor = time_unit(float(shown["end_s"].max()) if len(shown) else 1.0)
    cut = break_of(shown)
    if cut is not None:
        shown = squeezed(shown, cut)
    stages = int(shown["rank"].max()) + 1 if len(shown) else 1
    shown = shown.assign(chunk_of_stage=_chunk_of_stage(shown, "part"), chunk_back=_chunk_of_stage(shown, "back_part"))
    for (word, chunk, back), bars in shown.groupby(["word", "chunk_of_stage", "chunk_back"], sort=False):
        _pass_bars(ax, bars, str(word), (int(str(chunk)), int(str(back))), factor)
    _number_passes(ax, shown[shown["word"].isin(PASSES)], factor)
    _frame(ax, shown, unit, factor)
    _mark_turns(ax, shown, factor)
    if cut is not None:
        mark_break(ax, cut, factor)
    ax.set_ylabel("pipeline stage")
    ax.set_yticks(range(stages))
    ax.set_ylim(stages - 0.5, -0.5)
    present = [(name, STEP_COLOURS[word]) for word, name in STEP_NAMES.items() if _has(shown, word)]
    paler = [Patch(alpha=0.0, label="paler: later part of the model")] if shown["chunk_of_stage"].any() else []
    legend_above(ax, swatches(present) + paler)
    if not len(shown):
        say_empty(ax, "passes")
    return ax


def layer_timeline(spans: "pd.DataFrame", ax: "Axes") -> "Axes":
    """One layer pass: compute of every rank class (slowest first), below it the collectives they share.

    ``spans`` are those of one layer played alone: ``rank`` is the rank class.
    """
    shown = spans[spans["end_s"] > spans["start_s"]]
    whole_s = float(shown["end_s"].max()) if len(shown) else 1.0
    unit, factor = time_unit(whole_s)
    rows = _layer_rows(shown)
    chunked = set(shown.loc[shown["chunk"] > 0, "what"])
    families, initials = [], set[tuple[str, str]]()
    for where, bars in shown.groupby(["stream", "rank", "what"], sort=False):
        stream, rank, what = where
        family = FAMILIES[str(what).split()[0]]
        families.append(family)
        row = rows[str(stream), int(str(rank))][0]
        _bars(ax, bars.assign(rank=row), factor, COLOURS[family], (-0.4, 0.8))
        initials |= _label_ops(ax, bars.assign(rank=row), whole_s, factor, COLOURS[family], str(what) in chunked)
    _frame(ax, shown, unit, factor)
    if len(shown) and shown["layer"].max() >= 0:
        ax.set_xlabel(f"time ({unit}), one micro-batch through layer {int(shown['layer'].max())}", fontsize=SMALL + 1)
    ax.set_yticks(range(len(rows)), [name for _, name in rows.values()])
    ax.set_ylabel("stream")
    ax.set_ylim(max(1, len(rows)) - 0.4, -0.6)
    used = swatches((family, colour) for family, colour in COLOURS.items() if family in families)
    legend_above(ax, used + _meanings(initials))
    if not len(shown):
        say_empty(ax, "ops")
    return ax


def _layer_rows(shown: "pd.DataFrame") -> dict[tuple[str, int], tuple[int, str]]:
    """Row and name of each (stream, rank class)."""
    lanes = sorted({(str(s), int(r)) for s, r in zip(shown["stream"], shown["rank"], strict=True)})
    compute = [lane for lane in lanes if lane[0] == "compute"]
    names = {
        (stream, rank): f"compute, rank class {rank}" + (" (slowest)" if rank == 0 else "") for stream, rank in compute
    }
    if len(compute) == 1:
        names = dict.fromkeys(names, "compute")
    shared = {"comm": "communication", "dp": "weights, gradients (dp)", "host": "CPU"}
    names |= {lane: shared.get(lane[0], lane[0]) for lane in lanes if lane[0] != "compute"}
    return {lane: (row, name) for row, (lane, name) in enumerate(names.items())}


def _has(shown: "pd.DataFrame", word: str) -> bool:
    same = {
        "send": ["send", "back"],
        "gather": ["gather", "reduce"],
        "forward": ["forward", "pair"],
        "backward": ["backward", "pair"],
    }
    return bool(shown["word"].isin(same.get(word, [word])).any())


def _bars(ax: "Axes", bars: "pd.DataFrame", factor: float, colour: str, place: tuple[float, float]) -> None:
    """One rectangle per row; ``place`` is where it begins below the row's middle, and its height."""
    offset, height = place
    left, right = bars["start_s"].to_numpy() * factor, bars["end_s"].to_numpy() * factor
    low = bars["rank"].to_numpy() + offset
    corners = [[(a, y), (b, y), (b, y + height), (a, y + height)] for a, b, y in zip(left, right, low, strict=True)]
    wide = height > 0.2 and np.median(right - left) > THINNEST * right.max()
    edge = "white" if wide else colour  # a thin bar is drawn at least as a hairline
    ax.add_collection(PolyCollection(corners, facecolors=colour, edgecolors=edge, linewidths=0.4, antialiaseds=wide))


def _chunk_of_stage(shown: "pd.DataFrame", which: str) -> "pd.Series[int]":
    """Which of its stage's parts a pass (of a pair: its ``back_part``) goes through: 0, 1, …; 0 for all else."""
    passes = shown[shown[which] >= 0]
    number = passes.groupby("rank")[which].rank(method="dense").astype(int) - 1
    return number.reindex(shown.index, fill_value=0)


def _pass_bars(ax: "Axes", bars: "pd.DataFrame", word: str, chunks: tuple[int, int], factor: float) -> None:
    """Passes thick, what runs beside them thin; a pair in two halves, its backward below."""
    chunk, back = chunks
    if word == "pair":
        _bars(ax, bars, factor, _paler(FORWARD, chunk), (-0.32, 0.25))
        _bars(ax, bars, factor, _paler(BACKWARD, back), (-0.07, 0.25))
        return
    thick = word in (*PASSES, "optimizer")
    _bars(ax, bars, factor, _paler(STEP_COLOURS[word], chunk), (-0.32, 0.5) if thick else (0.22, 0.14))


def _paler(colour: str, chunk: int) -> str:
    """Halfway to white for the second part, and on."""
    red, green, blue = (1.0 - (1.0 - one) * PALER**chunk for one in to_rgb(colour))
    return to_hex((red, green, blue))


def _number_passes(ax: "Axes", passes: "pd.DataFrame", factor: float) -> None:
    """Micro-batch numbers, where the bars are wide enough to hold them all."""
    if not len(passes):
        return
    whole = float(passes["end_s"].max())
    room = (passes["end_s"] - passes["start_s"]).quantile(0.1) / whole
    if room < label_share(ax, str(passes["chunk"].max())):
        return
    wanted = ("what", "start_s", "end_s", "rank", "chunk", "back", "chunk_of_stage", "chunk_back")
    for what, start_s, end_s, rank, chunk, back, place, back_place in zip(
        *(passes[n].tolist() for n in wanted), strict=True
    ):
        middle, colour = (start_s + end_s) / 2 * factor, _paler(STEP_COLOURS[what], place)
        if what != "pair":
            _number(ax, middle, rank - 0.07, chunk, colour)
            continue
        _number(ax, middle, rank - 0.195, chunk, colour)
        _number(ax, middle, rank + 0.055, back, _paler(BACKWARD, back_place))


def _number(ax: "Axes", x: float, y: float, number: int, colour: str) -> None:
    ax.text(x, y, str(number), ha="center", va="center", fontsize=SMALL - 1, color=readable_on(colour))


def _mark_turns(ax: "Axes", shown: "pd.DataFrame", factor: float) -> None:
    """Decode: when the next token of all micro-batches is done."""
    turns = shown.groupby("turn")["end_s"].max()
    for turn, end_s in turns.items() if len(turns) > 1 else ():
        ax.axvline(end_s * factor, color="0.3", linestyle="--", linewidth=0.8)
        ax.text(
            end_s * factor, 0.01, f"token {turn} of every sequence done ", transform=ax.get_xaxis_transform(),
            ha="right", va="bottom", fontsize=SMALL - 1, color="0.3",
        )  # fmt: skip


def _label_ops(
    ax: "Axes", bars: "pd.DataFrame", whole_s: float, factor: float, colour: str, chunked: bool
) -> set[tuple[str, str]]:
    """The name of each op in its bar, or its initial, or nothing: what fits. Returns the initials used."""
    initials = set()
    columns = (bars[name].tolist() for name in ("what", "start_s", "end_s", "rank", "chunk"))
    for what, start_s, end_s, rank, chunk in zip(*columns, strict=True):
        number = str(chunk) if chunked else ""
        short = what[0].upper()
        name = f"{what} {number}".strip()
        choices = (name, f"{what.replace(' ', LINE)} {number}".strip(), short + number)
        fits = [text for text in choices if label_share(ax, text) <= (end_s - start_s) / whole_s]
        if fits == [choices[-1]]:
            initials.add((short, what))
        ax.text(
            (start_s + end_s) / 2 * factor, rank, fits[0] if fits else "",
            ha="center", va="center", fontsize=SMALL - 1, color=readable_on(colour),
        )  # fmt: skip
    return initials


def _meanings(initials: set[tuple[str, str]]) -> list[Patch]:
    """Legend entries without a colour: "D = dispatch"."""
    shorts = sorted({short for short, _ in initials})
    names = {short: " or ".join(sorted(what for s, what in initials if s == short)) for short in shorts}
    return [Patch(alpha=0.0, label=f"{short} = {name}") for short, name in names.items()]


def _frame(ax: "Axes", shown: "pd.DataFrame", unit: str, factor: float) -> None:
    end = float(shown["end_s"].max()) * factor if len(shown) else 1.0
    ax.set_xlim(0.0, end)
    ax.set_xlabel(f"time ({unit})", fontsize=SMALL + 1)
    tidy(ax)
