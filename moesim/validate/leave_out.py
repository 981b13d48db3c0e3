"""Leave one model out (or one load): a kernel family is fitted without its rows, which are then predicted.

    rows of one GPU, kernel and dtype  ->  for each model: fit on the others, price its rows  ->  time, band

It is the product's own method from end to end: the fit, the curve of each shape and ``expert_ffn``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.cluster import GPUS
from moesim.compute import expert_ffn
from moesim.compute.common import Source
from moesim.compute.expert_parts import fit_key, fit_rows, row_loads, training
from moesim.cost import PUBLISHED, FloatArray
from moesim.errors import MoesimError
from moesim.profile import DataSheet, Measured, Profile, Sheet, Table, measured_gpus
from moesim.profile.table import COLUMNS, OPTIONAL
from moesim.units import US

if TYPE_CHECKING:
    import pandas as pd

FAMILY: Final = ["gpu", "kernel", "dtype"]
MEMBERS: Final = 2  # models (or loads) that a family needs, so that one can be left out


class Fold(NamedTuple):
    """One model or load of a family, left out."""

    gpu: DataSheet
    rows: "pd.DataFrame"  # of the whole family
    table: Table
    parts: FloatArray  # [row, part]
    features: FloatArray  # [row, feature]
    out: NDArray[np.bool_]  # [row]


def leave_one_out(rows: "pd.DataFrame", by: str = "model") -> "pd.DataFrame":
    """The rows of families with at least two models (loads), with predicted, low, high (us) and ``refused``.

    ``rows`` have the columns of expert_ffn.csv and gpu (``kernel_rows.expert_rows``).
    """
    import pandas as pd

    found = [_predicted(fold) for fold in folds(rows, by)]
    return pd.concat(found) if found else rows.iloc[:0].assign(predicted=0.0, low=0.0, high=0.0, refused="")


def folds(rows: "pd.DataFrame", by: str = "model") -> list[Fold]:
    """One fold for each model (or load) of each family of at least two."""
    found = []
    known: list[DataSheet] = [*measured_gpus(), *GPUS.values()]
    gpus = {one.name: one for one in known}
    for (name, _, _), family in rows.groupby(FAMILY, sort=False):
        members = family[by].unique()
        if len(members) >= MEMBERS and name in gpus:
            gpu, table = gpus[str(name)], as_table(family)
            parts, features = training(table, gpu)
            found += [Fold(gpu, family, table, parts, features, (family[by] == one).to_numpy()) for one in members]
    return found


def as_table(rows: "pd.DataFrame") -> Table:
    """Rows as a table of a profile."""
    text, numbers = (part.split() for part in COLUMNS["expert_ffn"].split("|"))
    stated = [name for name in OPTIONAL["expert_ffn"] if name in rows]
    return Table(
        path=Path("left out"),
        text={name: rows[name].to_numpy(dtype=np.str_) for name in (*text, *stated)},
        numbers={name: rows[name].to_numpy(dtype=np.float64) for name in numbers},
    )


def _predicted(fold: Fold) -> "pd.DataFrame":
    """The fold's rows that were left out, priced by a profile that holds only the others."""
    gpu = fold.gpu
    kernel, dtype = (str(fold.table.text[name][0]) for name in ("kernel", "dtype"))
    kept = fold.table.take(~fold.out)
    measured = Measured(table=kept, gpu=_sheet(gpu), basis=PUBLISHED, source="the other models", carried_error=0.0)
    profile = Profile(gpu=gpu, tables={"expert_ffn": (measured,)}, limits=(), folders=())
    key = fit_key(Source(measured=measured, dtype=dtype, kernel=kernel, error=0.0))
    profile.memo[key] = fit_rows(kept, fold.parts[~fold.out], fold.features[~fold.out])
    priced = [_price(profile, fold.table, int(i)) for i in np.flatnonzero(fold.out)]
    names = ("predicted", "low", "high", "refused")
    return fold.rows[fold.out].assign(**{name: [row[name] for row in priced] for name in names})


def _price(profile: Profile, table: Table, i: int) -> dict[str, float | str]:
    n = {name: float(column[i]) for name, column in table.numbers.items()}
    stated = str(table.text["tokens_per_expert"][i]) if "tokens_per_expert" in table.text else ""
    try:
        cost = expert_ffn(
            profile, row_loads(n, str(table.text["load"][i]), stated), int(n["hidden"]), int(n["ffn"] // n["tp"]),
            str(table.text["dtype"][i]), top_k=int(n["top_k"]), gated=bool(n["gated"]),
            kernel=str(table.text["kernel"][i]),
        )  # fmt: skip
    except MoesimError as refusal:
        none = float("nan")
        return {"predicted": none, "low": none, "high": none, "refused": f"refused: {refusal}"}
    seconds, low, high = (float(x.mean()) / US for x in (cost.seconds, cost.low, cost.high))
    return {"predicted": seconds, "low": low, "high": high, "refused": ""}


def _sheet(gpu: DataSheet) -> Sheet:
    return Sheet(
        name=gpu.name, architecture=gpu.architecture, memory_bytes_per_s=gpu.memory_bytes_per_s, flops=gpu.flops,
        sms=gpu.sms, l2_bytes=gpu.l2_bytes,
    )  # fmt: skip
