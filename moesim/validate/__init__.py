"""Predicted against measured, group by group.

    GROUPS     kernels, collectives, network, training, serving, live: judge(folder or None) -> a line per figure
    figures    tables of measured figures, and the presets they mean
    summary    how wrong, how often inside the band, and the goals

Without a folder a small set of cited figures that ships with moesim is judged; docs/validation.md describes
the tables that a folder may hold.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moesim.errors import MoesimError, choice
from moesim.validate.summary import TARGETS, summarise

if TYPE_CHECKING:
    import pandas as pd

Judge = Callable[[Path | None], "pd.DataFrame"]
ALL: Final = "all"  # the group of a part's headline


def _judge(part: str) -> Judge:
    def judge(data: Path | None) -> "pd.DataFrame":
        found: pd.DataFrame = import_module(f"moesim.validate.{part}").judge(data)
        return found

    return judge


GROUPS: Final[dict[str, Judge]] = {
    part: _judge(part) for part in ("kernels", "collectives", "network", "training", "serving", "live")
}
DEFAULT: Final = (
    "kernels",
    "collectives",
    "network",
    "training",
    "serving",
)  # live runs a layer: only where it is asked for
TABLES: Final = {
    "kernels": ("kernel_moe_*.csv", "kernel_gemm_*.csv", "kernel_attention_*.csv"),
    "collectives": ("comm_nccl_intranode_aic.csv",),
    "network": (
        "comm_deepep_aic.csv", "comm_ep_published.csv", "comm_trtllm_alltoall_gb200_aic.csv", "comm_nccl_published.csv",
        "comm_vidur.csv",
    ),
    "training": ("e2e_training_*.csv",),
    "serving": ("e2e_serving_silicon.csv", "e2e_serving_published.csv"),
    "live": (),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Validation:
    """Every judged figure, and what they say together."""

    rows: "pd.DataFrame"  # a line per figure: part and the columns of the judges
    absent: tuple[str, ...]  # parts for which the folder has no table

    def to_frame(self) -> "pd.DataFrame":
        """A line per measured figure, judged or skipped."""
        return self.rows

    def summary(self) -> "pd.DataFrame":
        """A line per part (group "all": the headline, on GPUs with a profile of their own) and per group."""
        import pandas as pd

        return pd.DataFrame(self._lines())

    @property
    def met(self) -> bool:
        """Whether every headline meets its goals, and every group that has goals of its own."""
        lines = [one for one in self._lines() if one["group"] == ALL or one["group"] in TARGETS]
        return not any(one["missed"] for one in lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the summary, without the figures themselves."""
        return {"groups": self._lines(), "absent": list(self.absent), "met": self.met}

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for part, rows in self.rows.groupby("part", sort=False):
            headline = rows["headline"].astype(bool) | (rows["skipped"] != "")
            lines.append(summarise(str(part), ALL, rows[headline], ordered=rows))
            lines += [summarise(str(part), str(group), members) for group, members in rows.groupby("group")]
        return lines


def validate(groups: Iterable[str] | None = None, data: Path | None = None) -> Validation:
    """Judge the named groups (default: DEFAULT) on the tables in ``data``, or on what ships with moesim.

    Raises MoesimError for an unknown group, for a folder without any table of the groups, and for a table
    without a column it needs.
    """
    import pandas as pd

    names = list(DEFAULT) if groups is None else list(groups)
    for name in names:
        if name not in GROUPS:
            raise choice("group", name, list(GROUPS))
    present = [name for name in names if data is None or not TABLES[name] or _has_table(data, name)]
    if not present:
        wanted = ", ".join(table for name in names for table in TABLES[name])
        raise MoesimError(f"{data} has none of {wanted}: point --data at a folder of measured tables")
    frames = [_completed(name, GROUPS[name](data)) for name in present]
    return Validation(
        rows=pd.concat(frames, ignore_index=True),
        absent=tuple(name for name in names if name not in present),
    )


def _has_table(data: Path, part: str) -> bool:
    return any(any(data.glob(pattern)) for pattern in TABLES[part])


def _completed(part: str, rows: "pd.DataFrame") -> "pd.DataFrame":
    """All judges' columns: a judge without an order has no blocks, and all its rows are headline."""
    filled = rows.assign(part=part, skipped=rows["skipped"].fillna(""))
    for name, value in (("block", ""), ("headline", True)):
        if name not in filled:
            filled[name] = value
    return filled[["part", *(name for name in filled if name != "part")]]
