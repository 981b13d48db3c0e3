"""How wrong the predictions are, in a few numbers for each group of figures.

error    |predicted / measured - 1|: median, mean, 90th percentile
rms      root mean square of log(predicted / measured)
inside   share of the measured that lie inside the predicted 90 % band
tau      Kendall's tau-b inside blocks of comparable configurations, at least four in each, pooled

Of verdicts (1 or 0) only the mean error is said: the share of wrong ones.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from moesim.cost import FloatArray

if TYPE_CHECKING:
    import pandas as pd

AT_LEAST: Final = ("inside", "tau")  # of the other numbers a target is the most
SMALLEST_BLOCK: Final = 4
VERDICT: Final = "verdict"  # unit of a figure that is 1 (yes) or 0 (no): its error is 1 where the two differ

# The goals that moesim sets itself, by part; a group of its own name replaces those of its part.
TARGETS: Final[dict[str, dict[str, float]]] = {
    "kernels": {"mean": 0.05, "p90": 0.12, "inside": 0.90},
    "live": {"median": 0.05, "p90": 0.12, "inside": 0.90},
    "collectives": {"rms": 0.05, "inside": 0.90},
    "network": {"rms": 0.05, "inside": 0.90},
    "training": {"median": 0.10, "mean": 0.15, "tau": 0.7, "inside": 0.90},
    "serving": {"median": 0.10, "inside": 0.90},
    "DeepSeek's own run on H800 (estimated)": {"median": 0.10},
    "wall time of a pair of micro-batches on H800 (estimated)": {"median": 0.10},
    "hidden communication of a pair on H800 (estimated)": {"median": 0.052},  # 5 points of 96.3
    "memory: what ran fits": {"mean": 0.0},
    "memory: out of memory is refused": {"mean": 0.0},
    "repeats of one configuration (floor)": {},
    "one rate per GPU and precision (baseline)": {},
    "one rate, on the headline rows (baseline)": {},
    "deepseek-v3 decode on H800 (estimated)": {"median": 0.07, "inside": 0.90},
    "deepseek-v3 prefill on H800 (estimated)": {"median": 0.07, "inside": 0.90},
}


class Order(NamedTuple):
    """How a set of pairs is ordered by prediction and by measurement."""

    agreeing: float  # concordant minus discordant pairs
    predicted: float  # pairs that are no tie in the prediction
    measured: float

    @property
    def tau(self) -> float | None:
        """Kendall's tau-b; None where one side has ties only."""
        pairs = (self.predicted * self.measured) ** 0.5
        return self.agreeing / pairs if pairs > 0 else None


def order(predicted: FloatArray, measured: FloatArray) -> Order:
    """Compare every pair of configurations."""
    upper = np.triu_indices(len(predicted), 1)
    p = np.sign(np.subtract.outer(predicted, predicted))[upper]
    m = np.sign(np.subtract.outer(measured, measured))[upper]
    return Order(float((p * m).sum()), float(np.abs(p).sum()), float(np.abs(m).sum()))


def errors(rows: "pd.DataFrame") -> dict[str, float | None]:
    """The numbers of this module's docstring, over rows that were judged; None where there are no rows."""
    if rows.empty:
        return dict.fromkeys(("median", "mean", "p90", "rms", "inside", "tau"))
    measured, predicted = (rows[name].to_numpy(dtype=np.float64) for name in ("measured", "predicted"))
    if "unit" in rows and (rows["unit"] == VERDICT).all():
        none = dict.fromkeys(("median", "mean", "p90", "rms", "inside", "tau"))
        return none | {"mean": float(np.abs(predicted - measured).mean())}
    relative = np.abs(predicted / measured - 1.0)
    inside = (rows["low"] <= rows["measured"]) & (rows["measured"] <= rows["high"])
    return {
        "median": float(np.median(relative)),
        "mean": float(relative.mean()),
        "p90": float(np.percentile(relative, 90)),
        "rms": float(np.sqrt(np.mean(np.log(predicted / measured) ** 2))),
        "inside": float(inside.mean()),
        "tau": _pooled_tau(rows),
    }


def _pooled_tau(rows: "pd.DataFrame") -> float | None:
    sums = np.zeros(3)
    for block, members in rows.groupby("block"):
        if block and len(members) >= SMALLEST_BLOCK:
            sums += order(members["predicted"].to_numpy(), members["measured"].to_numpy())
    return Order(*sums.tolist()).tau


def summarise(part: str, group: str, rows: "pd.DataFrame", ordered: "pd.DataFrame | None" = None) -> dict[str, Any]:
    """One line of the summary: how many were judged and skipped, how wrong, and which goals are missed.

    ``ordered`` are the rows whose order is compared, if not the same.
    """
    judged = rows[rows["skipped"] == ""]
    found = errors(judged)
    if ordered is not None:
        found["tau"] = _pooled_tau(ordered[ordered["skipped"] == ""])
    goals = TARGETS.get(group, TARGETS.get(part, {}))
    return {
        "part": part,
        "group": group,
        "n": len(judged),
        "skipped": {str(k): int(v) for k, v in rows["skipped"][rows["skipped"] != ""].value_counts().items()},
        **found,
        "targets": goals,
        "missed": missed(found, goals),
    }


def missed(found: Mapping[str, float | None], goals: Mapping[str, float]) -> list[str]:
    """The names of the numbers that miss their goal; a number that does not exist misses nothing."""
    return [
        name
        for name, goal in goals.items()
        if (value := found[name]) is not None and (value < goal if name in AT_LEAST else value > goal)
    ]
