"""Does moesim predict expert kernels of unseen models better than a plain regression does?

Every model of every table of published kernel times (docs/validation.md) is left out once; both predictors see
the same rows of the other models of its GPU, kernel and dtype:

    moesim     closed form, fitted parts, Gaussian process (moesim.compute.expert_parts)
    boosting   scikit-learn's HistGradientBoostingRegressor: log of time over roofline, from logs of the roofline
               times, of the load and of the shape

Once without the rows that cannot be what they say (moesim.validate.kernel_rows), once with them. Found on the
tables of aiconfigurator-core 0.12.0: moesim ahead in most large families, most at the 90th percentile; behind on
kernels whose tuned times jump between shapes (SGLang bf16, vLLM's CUTLASS fp8, several on A100). Needs
scikit-learn; minutes:

    python studies/expert_baseline.py FOLDER --out studies/results
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from moesim.cluster import GPUS
from moesim.errors import MoesimError
from moesim.timeline import write_whole
from moesim.validate.kernel_rows import expert_rows
from moesim.validate.leave_out import FAMILY, Fold, folds, leave_one_out

KEPT, ALL_ROWS = "trusted", "with suspect"


def read(folder: Path) -> pd.DataFrame:
    """All rows of one rank's own tokens, with the reason where one cannot be what it says."""
    paths = sorted(folder.glob("kernel_moe_aic_*.csv"))
    if not paths:
        raise MoesimError(f"{folder} has no kernel_moe_aic_*.csv: name a folder of published tables")
    rows = pd.concat([expert_rows(pd.read_csv(path)) for path in paths], ignore_index=True)
    rows = rows[rows["gpu"].isin(list(GPUS)) & rows["dtype"].notna()]
    return rows[(rows["skipped"] == "") | rows["skipped"].str.startswith("suspect")]


def boosted(fold: Fold) -> pd.DataFrame:
    """The fold's rows predicted by gradient boosting: joined, arithmetic and activation times, and the features."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    x = np.concatenate([np.log(fold.parts[:, :3]), fold.features], axis=1)
    roofline_s = fold.parts[:, 0]
    y = np.log(fold.table.time_s / roofline_s)
    model = HistGradientBoostingRegressor(max_iter=300, learning_rate=0.1, min_samples_leaf=5, random_state=0)
    model.fit(x[~fold.out], y[~fold.out])
    return fold.rows[fold.out].assign(boosted=roofline_s[fold.out] * np.exp(model.predict(x[fold.out])) * 1e6)


def run(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per family, EP range and set of rows."""
    lines = []
    for which, used in ((KEPT, rows[rows["skipped"] == ""]), (ALL_ROWS, rows)):
        ours = leave_one_out(used)
        ours["boosted"] = pd.concat([boosted(fold) for fold in folds(used)])["boosted"]
        for (gpu, kernel, dtype), family in ours.groupby(FAMILY):
            for ep, part in (("1", family[family["ep"] == 1]), ("all", family)):
                if len(part):
                    lines.append({"rows": which, "gpu": gpu, "kernel": kernel, "dtype": dtype, "ep": ep} | line(part))
    return pd.DataFrame(lines)


def line(rows: pd.DataFrame) -> dict[str, float]:
    """Errors of both predictors, the share in moesim's 90 % band, power-law error over balanced error."""
    judged = rows[rows["refused"] == ""]
    inside = (judged["low"] <= judged["time_us"]) & (judged["time_us"] <= judged["high"])
    found = {"n": len(judged), "refused": len(rows) - len(judged), "inside_pct": inside.mean() * 100.0}
    for name, column in (("moesim", "predicted"), ("boosting", "boosted")):
        error = (judged[column] / judged["time_us"] - 1.0).abs() * 100.0
        even = judged["load"] == "balanced"
        found |= {
            f"{name}_median_pct": error.median(),
            f"{name}_mean_pct": error.mean(),
            f"{name}_p90_pct": error.quantile(0.9),
            f"{name}_skew_ratio": error[~even].median() / error[even].median(),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="has kernel_moe_aic_<gpu>.csv")
    parser.add_argument("--out", type=Path, default=Path("studies/results"))
    arguments = parser.parse_args()
    frame = run(read(arguments.folder)).round(2)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_whole(arguments.out / "expert_baseline.csv", lambda path: frame.to_csv(path, index=False))
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
