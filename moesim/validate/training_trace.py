"""One forward and one backward micro-batch in DeepSeek's training profile: wall time, hidden communication.

The published trace (github.com/deepseek-ai/profile-data, train.json) shows four MoE layers of DeepSeek-V3 on H800,
EP 64, TP 1, 4,096 tokens, balanced routing; a forward of one micro-batch and a backward of another are
interleaved. Rows of ``overlap.csv``: group ``deepseek_trace``, component ``chunk pair wall time`` (busy_us) and
``all communication`` (overlap_pct).

    wall     four times a layer's pair                     hidden   communication beside which compute is busy
"""

from pathlib import Path
from typing import Any, Final

from moesim.routing import parse_routing
from moesim.step.pair import Pair, pair
from moesim.step.passes import pass_key
from moesim.step.scenario import make_scenario
from moesim.strategy import load_strategy
from moesim.validate.figures import Row, find_cluster, find_model, line, number, read_tables
from moesim.workload import make_workload

TABLE: Final = "overlap.csv"
NEEDED: Final = ("source", "group", "component", "busy_us", "overlap_pct")
LAYERS: Final = 4
RANKS: Final = 64
WALL: Final = "wall time of a pair of micro-batches"
HIDDEN: Final = "hidden communication of a pair"
RECOMPUTE: Final = "selective"  # norms and activations: arXiv:2412.19437 section 3.2.3


def judge_trace(folder: Path) -> list[dict[str, Any]]:
    """The lines of the trace; none where the folder has no such table."""
    if not (folder / TABLE).is_file():
        return []
    rows = [row for row in read_tables(folder, TABLE, NEEDED) if row["group"] == "deepseek_trace"]
    found = layer_pair()
    wall_ms, hidden = LAYERS * float(found.seconds.mean()) * 1e3, 100.0 * float(found.hidden.mean())
    lines = []
    for row in rows:
        if row["component"] == "chunk pair wall time":
            lines.append(_line(row, WALL, "ms", number(row, "busy_us") / 1e3, wall_ms))
        if row["component"] == "all communication":
            lines.append(_line(row, HIDDEN, "%", number(row, "overlap_pct"), hidden))
    return lines


def _line(row: Row, group: str, unit: str, measured: float, predicted: float) -> dict[str, Any]:
    one = line("H800", f"DeepSeek-V3 on H800, {row['component']}", row, unit, group)
    return one | {"measured": measured, "predicted": predicted, "low": predicted, "high": predicted, "headline": False}


def layer_pair() -> Pair:
    """The pair of one MoE layer under the trace's work, with the mean load: its routing is balanced."""
    workload = make_workload("train", RANKS, global_batch=RANKS, seq=4096, dtype="fp8_block")
    model, cluster = find_model("DeepSeek-V3"), find_cluster("H800", RANKS)
    scenario = make_scenario(model, cluster, workload, parse_routing("uniform"), average=True)
    strategy = load_strategy({"ep": RANKS, "micro_batch": 1, "all_to_all": "deepep"}, RANKS)
    return pair(scenario, model.layers[-1], pass_key(scenario, strategy), RECOMPUTE)
