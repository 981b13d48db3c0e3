"""Which constants describe the kernels that exchange tokens, and how far do they carry?

Reads ``comm_deepep_aic.csv``, ``comm_ep_published.csv`` and ``comm_trtllm_alltoall_gb200_aic.csv`` from a folder of
tables, and the cited figures that ship with moesim, and writes ``hardware_profiles/libraries.csv``: for each line
least squares of the logarithm of the time over few constants (FITS), on rows that ``moesim validate`` then skips;
the error on the rows that it judges stands beside. Some of those of aiconfigurator-core 0.12.0 (Apache-2.0) ship in
``moesim/validate/cited/comm_deepep_aic.csv``. Expected: 3 to 5 % on kernels measured over many shapes.

    python studies/build_network_profile.py FOLDER
"""

import csv
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from moesim.alltoall.deepep import WORK, Work, seconds
from moesim.alltoall.libraries import TABLE, Kernel, read
from moesim.cluster import CLUSTERS, Cluster
from moesim.validate.figures import SHIPPED
from moesim.validate.network_rows import AIC as AIC_TABLE
from moesim.validate.network_rows import Case
from moesim.validate.network_rows import read as read_rows

OUT = Path(__file__).resolve().parent.parent / "hardware_profiles"
NOTHING = 1e-3  # ns, us, GB/s
OUTLIER = 0.05  # a row that is further off than this counts less
CONSTANTS = (
    "start_us", "across_us", "far_us", "expert_ns", "first_ns", "pipe_ns", "across_pipe_ns", "token_ns", "copy_ns",
    "sm_gb_s", "across_sm_gb_s", "up_gb_s", "nic_gb_s",
)  # fmt: skip
COLUMNS = (
    "library", "release", "mechanism", "gpus", "architecture", "direction", "sms", *CONSTANTS, "link_gb_s",
    "rows_fitted", "rms_fitted", "rows_judged", "rms_judged", "fitted_on", "basis", "source",
)  # fmt: skip
START = {
    "start_us": 20.0, "across_us": 5.0, "far_us": 5.0, "expert_ns": 10.0, "first_ns": 1.0, "pipe_ns": 4.0,
    "across_pipe_ns": 6.0, "token_ns": 500.0, "copy_ns": 100.0, "sm_gb_s": 20.0, "across_sm_gb_s": 15.0,
    "up_gb_s": 300.0, "nic_gb_s": 46.0,
}  # fmt: skip


Key = tuple[str, str, str]  # library, release, mechanism and GPUs: "low_latency H100 H200"


class Fit(NamedTuple):
    """Two lines, dispatch and combine: which constants are free, and where the others come from."""

    key: Key
    sms: int
    dispatch: str  # free constants
    combine: str  # free constants; "=" before those that the dispatch decides
    fitted_on: str
    source: str
    base: Key = ("", "", "")
    stated: str = ""  # "nic_gb_s=48"


class Line(NamedTuple):
    """Constants of one direction, and how wrong they are."""

    constants: dict[str, float]
    fitted: int
    rms_fitted: float
    judged: int
    rms_judged: float


AIC = "aiconfigurator-core 0.12.0 (DeepEP tests)"
HYBRID = "DeepEP branch hybrid-ep docs @94a9f8f"
TRT = "aiconfigurator-core 0.12.0 (TRT-LLM MoE all-to-all)"
SM = "start_us first_ns pipe_ns copy_ns sm_gb_s"
SHAPES = f"{SM} up_gb_s"
ACROSS = "across_us across_pipe_ns across_sm_gb_s"
V1 = ("deepep", "V1", "normal H100 H200")
V1_LL = ("deepep", "V1", "low_latency H100")
V2_B200 = ("deepep_v2", "b306af0", "normal B200")
# In the order of preference: of several lines for a GPU the first is the one that plans use.
FITS = (
    Fit(V1, 20, f"{SHAPES} {ACROSS}", f"{SHAPES} {ACROSS}", "H100: every second number of tokens on one node and on "
        "two; NIC as in low latency", AIC, stated="nic_gb_s=48"),
    Fit(("deepep", "V1", "normal B300"), 24, SM, SM, "B300: every second number of tokens on one node; NVLink as "
        "NCCL, between nodes as H100", AIC, V1, "up_gb_s=563"),
    Fit(("deepep", "V1 2025-06", "normal H800"), 24, "up_gb_s nic_gb_s", "=up_gb_s =nic_gb_s",
        "dispatch of 8, 32 and 64 ranks; the rest as H100", "DeepEP README 2025-06", V1),
    Fit(("deepep", "V1 2025-02", "normal H800"), 24, "up_gb_s nic_gb_s", "=up_gb_s =nic_gb_s",
        "dispatch; the rest as H100", "DeepEP README @ebfe47e (2025-02-24)", V1),
    Fit(V1_LL, 0, "start_us expert_ns token_ns up_gb_s across_us far_us nic_gb_s",
        "start_us expert_ns sm_gb_s up_gb_s across_us far_us nic_gb_s", "H100: every second number of tokens, on one "
        "node (sglang 0.5.12), two and eight (sglang 0.5.6)", AIC),
    Fit(("deepep", "V1 (sglang 0.5.6)", "low_latency H100"), 0, "start_us up_gb_s", "start_us up_gb_s",
        "H100: every second number of tokens on one node; the rest as sglang 0.5.12", AIC, V1_LL),
    Fit(("deepep", "V1", "low_latency H200"), 0, "start_us", "start_us", "H200: every second number of tokens on one "
        "node; the rest as H100", AIC, V1_LL),
    Fit(("deepep", "V1", "low_latency B300"), 0, "start_us expert_ns token_ns up_gb_s",
        "start_us expert_ns sm_gb_s up_gb_s", "B300: every second number of tokens on one node; between nodes as "
        "H100", AIC, V1_LL),
    Fit(("deepep", "V1 2025-06", "low_latency H800"), 0, "nic_gb_s", "=nic_gb_s", "dispatch of 32 and 64 ranks; the "
        "rest as H100", "DeepEP README 2025-06", V1_LL),
    Fit(("deepep", "V1 2025-02", "low_latency H800"), 0, "nic_gb_s", "nic_gb_s", "8, 32 and 128 ranks, by "
        "NIC even inside a node; the rest as H100", "DeepEP README @ebfe47e (2025-02-24)", V1_LL),
    Fit(("deepep_v2", "b306af0", "normal H100"), 6, "nic_gb_s", "=nic_gb_s", "dispatch; start as V1",
        "DeepEP README @b306af0", V1, "across_sm_gb_s=0 copy_ns=0"),
    Fit(V2_B200, 24, "sm_gb_s up_gb_s nic_gb_s", "=sm_gb_s =up_gb_s =nic_gb_s", "dispatch; start as V1 on B300",
        "DeepEP README @b306af0", ("deepep", "V1", "normal B300"), "across_sm_gb_s=0 copy_ns=0"),
    Fit(("hybrid_ep", "94a9f8f", "by_node H100"), 16, "copy_ns across_sm_gb_s up_gb_s nic_gb_s",
        "=copy_ns =across_sm_gb_s =up_gb_s =nic_gb_s", "dispatch of the kernel alone; start assumed as DeepEP V1",
        HYBRID, V1, "pipe_ns=0 across_pipe_ns=0"),
    Fit(("hybrid_ep", "94a9f8f", "by_node B200"), 16, "copy_ns sm_gb_s", "=copy_ns =sm_gb_s", "dispatch of the kernel "
        "alone; start and NVLink as DeepEP V2, NIC as H100", HYBRID, V2_B200, "pipe_ns=0 across_pipe_ns=0 "
        "across_sm_gb_s=22.7 nic_gb_s=42.3"),
    Fit(("uccl", "da914a2", "normal H200"), 24, "nic_gb_s", "=nic_gb_s", "dispatch of 8, 24 and 32 ranks over EFA; the "
        "rest as DeepEP V1", "uccl-project/uccl ep/README @da914a2", V1),
    Fit(("uccl", "da914a2", "low_latency H200"), 0, "nic_gb_s", "=nic_gb_s", "dispatch of 24 and 32 ranks over EFA; "
        "the rest as DeepEP V1", "uccl-project/uccl ep/README @da914a2", V1_LL),
    Fit(("pplx_ibgda", "2bd6e30", "low_latency H100"), 0, "start_us nic_gb_s", "=start_us =nic_gb_s", "dispatch",
        "perplexityai/pplx-kernels README @2bd6e30", V1_LL),
    Fit(("pplx_ibrc", "2bd6e30", "low_latency H100"), 0, "start_us nic_gb_s", "=start_us =nic_gb_s", "dispatch",
        "perplexityai/pplx-kernels README @2bd6e30", V1_LL),
    Fit(("pplx_nvlink", "2bd6e30", "low_latency H100"), 0, "start_us up_gb_s", "=start_us =up_gb_s", "dispatch",
        "perplexityai/pplx-kernels README @2bd6e30", V1_LL),
    Fit(("trtllm_one_sided", "", "normal GB200"), 1, "start_us up_gb_s", "start_us up_gb_s",
        "8 ranks", TRT),
    Fit(("trtllm_two_sided", "", "normal GB200"), 1, "start_us up_gb_s", "start_us up_gb_s",
        "8 ranks", TRT),
)  # fmt: skip


def run(folder: Path) -> list[dict[str, str]]:
    """One row of the table for each line."""
    cases = [found.case for found in read_rows(folder) if found.case and not found.skipped]
    cited = [found.case for found in read_rows(SHIPPED) if found.case and not found.skipped]
    cases += [case for case in cited if case.measured.release == "V1 2025-06"]
    done: dict[tuple[Key, str], Line] = {}
    for fit in sorted(FITS, key=lambda one: FITS.index(one) if not one.base[0] else 100 + _depth(one)):
        for direction in ("dispatch", "combine"):
            done[fit.key, direction] = fitted_line(fit, direction, cases, done)
    return [_text(fit, direction, done[fit.key, direction]) for fit in FITS for direction in ("dispatch", "combine")]


def _depth(fit: Fit) -> int:
    """How many lines stand between a line and one without a base."""
    return 1 + _depth(next(one for one in FITS if one.key == fit.base)) if fit.base[0] else 0


def fitted_line(fit: Fit, direction: str, cases: list[Case], done: dict[tuple[Key, str], Line]) -> Line:
    """Least squares over the free constants; the others as the base has them."""
    constants = dict.fromkeys(CONSTANTS, 0.0)
    if fit.base[0]:
        constants |= done[fit.base, direction].constants
        here, there = (link(key).scale_up.bandwidth_bytes_per_s for key in (fit.key, fit.base))
        constants["up_gb_s"] *= here / there
    constants |= {name: float(value) for name, value in (one.split("=") for one in fit.stated.split())}
    names = (fit.dispatch if direction == "dispatch" else fit.combine).split()
    for name in (one[1:] for one in names if one.startswith("=")):
        constants[name] = done[fit.key, "dispatch"].constants[name]
    free = [name for name in names if not name.startswith("=")]
    mine = [case for case in cases if _matches(fit, case, direction)]
    seen, unseen = ([case for case in mine if case.measured.fitted is which] for which in (True, False))
    if free:
        constants |= _solve(fit, direction, constants, free, seen)
    wrong = [rms(fit, direction, constants, part) for part in (seen if free else [], unseen)]
    return Line(constants, len(seen) if free else 0, wrong[0], len(unseen), wrong[1])


def link(key: Key) -> Cluster:
    """The preset of a line's first GPU."""
    gpu = key[2].split()[1]
    return next(one for one in CLUSTERS.values() if one.gpu.name == gpu)


def _matches(fit: Fit, case: Case, direction: str) -> bool:
    library, release, rest = fit.key
    mechanism, *gpus = rest.split()
    same = (case.measured.library, case.measured.mechanism, case.direction, case.measured.scope) == (
        library,
        mechanism,
        direction,
        "",
    )
    return same and case.cluster.gpu.name in gpus and case.measured.release in ("", release)


def _solve(
    fit: Fit, direction: str, constants: dict[str, float], free: list[str], cases: list[Case]
) -> dict[str, float]:
    """The free constants; all are above zero, so their logarithms are what moves."""
    work, measured = stacked(fit, cases)

    def wrong(logs: np.ndarray) -> np.ndarray:
        now = constants | dict(zip(free, np.exp(logs).tolist(), strict=True))
        return np.log(seconds(kernel(fit, direction, now), work) / measured)

    begin = [constants[name] or START[name] for name in free]
    best = least_squares(wrong, np.log(begin), loss="soft_l1", f_scale=OUTLIER)
    return dict(zip(free, np.exp(best.x).tolist(), strict=True))


def rms(fit: Fit, direction: str, constants: dict[str, float], cases: list[Case]) -> float:
    """Root mean square of the logarithm of predicted over measured."""
    if not cases:
        return float("nan")
    work, measured = stacked(fit, cases)
    found = np.log(seconds(kernel(fit, direction, constants), work) / measured)
    return float(np.sqrt(np.mean(found**2)))


def stacked(fit: Fit, cases: list[Case]) -> tuple[Work, np.ndarray]:
    """All cases as arrays."""
    each = [
        WORK[case.measured.mechanism](case.cluster, case.group, case.traffic, case.measured.sms or fit.sms)[0]
        for case in cases
    ]
    columns = zip(*each, strict=True)
    return Work(*(np.array([float(value) for value in column]) for column in columns)), np.array(
        [case.measured.time_us * 1e-6 for case in cases]
    )


def kernel(fit: Fit, direction: str, constants: dict[str, float]) -> Kernel:
    """What moesim makes of the line."""
    return read(_text(fit, direction, Line(constants, 0, 0.0, 0, 0.0), 17))


def _text(fit: Fit, direction: str, line: Line, digits: int = 4) -> dict[str, str]:
    """A row of the table; what is zero stays empty."""
    library, release, rest = fit.key
    mechanism, *gpus = rest.split()
    cluster = link(fit.key)
    numbers = {
        name: f"{line.constants[name]:.{digits}g}" if line.constants[name] > NOTHING else "" for name in CONSTANTS
    }
    wrong = {"rms_fitted": line.rms_fitted, "rms_judged": line.rms_judged}
    return {
        "library": library, "release": release, "mechanism": mechanism, "gpus": " ".join(gpus),
        "architecture": cluster.gpu.architecture, "direction": direction, "sms": str(fit.sms), **numbers,
        "link_gb_s": f"{cluster.scale_up.bandwidth_bytes_per_s / 1e9:g}",
        "rows_fitted": str(line.fitted), "rows_judged": str(line.judged),
        **{name: "" if np.isnan(value) else f"{value:.3f}" for name, value in wrong.items()},
        "fitted_on": fit.fitted_on, "basis": "published", "source": fit.source,
    }  # fmt: skip


def thinned(folder: Path) -> pd.DataFrame:
    """The rows of DeepEP V1 that ship for ``moesim validate``: none that a constant was fitted on."""
    rows = pd.read_csv(folder / AIC_TABLE, dtype=str, keep_default_na=False)
    number = rows[["tokens_per_rank", "nodes", "num_experts"]].astype(int)
    shape = (number["num_experts"] == 256) & (rows["suspect"] == "False") & ~rows["sms"].isin(["4", "8", "12", "16"])
    tokens = number["tokens_per_rank"].isin([24, 96, 512, 8192]) & (number["nodes"] > 1)
    tokens |= number["tokens_per_rank"].isin([256, 4096]) & (number["nodes"] == 1) & (rows["gpu"] != "H100")
    kept = rows[shape & tokens & rows["mode"].isin(["normal", "low_latency"])]
    fitted = [
        found.case is None or found.case.measured.fitted for found in read_rows(folder) if found.table == AIC_TABLE
    ]
    return kept[~np.array(fitted)[kept.index]]


def main(folder: Path) -> None:
    """Write the tables and say how wrong the constants are."""
    rows = run(folder)
    thinned(folder).to_csv(SHIPPED / AIC_TABLE, index=False, lineterminator="\n")
    with (OUT / TABLE).open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    for row in rows:
        print(*(row[name] for name in ("library", "release", "mechanism", "gpus", "direction")), end=": ")
        print(
            f"fitted on {row['rows_fitted']} rows, rms {row['rms_fitted']}; judged {row['rows_judged']}, rms", end=" "
        )
        print(row["rms_judged"], {name: row[name] for name in CONSTANTS if row[name]})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
