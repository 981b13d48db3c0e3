"""A real MoE layer, run on this machine now, against what this machine's profile says.

The layers have shapes that calibration does not measure. Parts are predicted from the kernels they consist of;
the whole layer from the expert model, with its loads, and the parts around it:

    layer = gate + router + [all-to-all] + expert layer of the slowest rank + [all-to-all]
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.cluster import Cluster, load_cluster
from moesim.collectives import in_node
from moesim.compute import expert_ffn, gemm, kernel
from moesim.cost import MEASURED, Cost
from moesim.errors import MoesimError
from moesim.profile import Profile, load_profile, measured_gpus, own_table
from moesim.units import US

if TYPE_CHECKING:
    import pandas as pd

POINTS: Final = 6  # layers: two shapes, three loads
SEED: Final = 0
_COUNTS_BYTES: Final = 8.0  # of each expert's count, sent before the tokens


def judge(data: Path | None) -> "pd.DataFrame":
    """One line per part of each layer, in us; there is no ``data`` to read."""
    import pandas as pd

    if data is not None:
        raise MoesimError(f"validate --group live runs layers here and reads nothing of {data}: leave out --data")
    profile = _own_profile()
    from moesim.calibrate.live import run_live

    device = "cpu" if profile.gpu.architecture == "cpu" else "cuda"
    lines = [_judged(profile, row) for row in run_live(device, SEED, POINTS)]
    return pd.DataFrame(lines)


def _own_profile() -> Profile:
    """The measured profile of this machine's device."""
    from moesim.calibrate.machine import find_machine, this_device

    name = find_machine(this_device(), None).name
    own = [load_profile(gpu) for gpu in measured_gpus() if gpu.name == name]
    if not own or not own[0].tables["kernels"] or own[0].tables["expert_ffn"][0].basis is not MEASURED:
        raise MoesimError(
            f"no profile of {name} was measured here: run moesim calibrate, set MOESIM_PROFILES to its folder"
        )
    return own[0]


def _judged(profile: Profile, row: dict[str, Any]) -> dict[str, object]:
    """One part of one layer beside its prediction."""
    low, seconds, high = predicted(profile, row)
    return {
        "group": f"live {row['part']} {profile.gpu.name}",
        "case": " ".join(f"{name}={row[name]}" for name in ("model", "tokens", "ep", "load")),
        "measured": float(row["time_us"]),
        "predicted": seconds / US,
        "low": low / US,
        "high": high / US,
        "unit": "us",
        "skipped": "",
        "source": "run on this machine by moesim",
        "headline": True,  # the parts too: errors that cancel in the whole layer are still errors
    }


def predicted(profile: Profile, row: dict[str, Any]) -> tuple[float, float, float]:
    """Low, expected and high seconds of the part that ``row`` names."""
    costs = _layer(profile, row) if row["part"] == "layer" else _part(profile, row, str(row["part"]))
    low, seconds, high = (sum(float(getattr(cost, name)) for cost in costs) for name in ("low", "seconds", "high"))
    return low, seconds, high


def _layer(profile: Profile, row: dict[str, Any]) -> list[Cost]:
    loads = np.array([float(count) for count in str(row["tokens_per_expert"]).split(";")])
    hidden, ffn, top_k = int(row["hidden"]), int(row["ffn"]), int(row["top_k"])
    experts = expert_ffn(profile, loads, hidden, ffn, "bf16", top_k=top_k)
    away = [cost for part in ("dispatch", "combine") for cost in _exchanges(profile, row, part)]
    return [*_part(profile, row, "router"), experts, *away]


def _part(profile: Profile, row: dict[str, Any], part: str) -> list[Cost]:
    from moesim.calibrate.live_costs import live_calls

    calls = live_calls(row)[part]
    costs = [kernel(profile, one.op, one.dtype, one.work.flops, one.work.bytes) for one in calls]
    if part == "router":
        tokens = int(row["tokens"]) / int(row["ep"])
        costs.append(gemm(profile, tokens, float(row["experts"]), float(row["hidden"]), "bf16"))
    return [*costs, *_exchanges(profile, row, part)]


def _exchanges(profile: Profile, row: dict[str, Any], part: str) -> list[Cost]:
    """The all-to-alls of a part; on dispatch the counts go first."""
    ranks = int(row["ep"])
    if ranks == 1 or part not in ("dispatch", "combine"):
        return []
    cluster = _cluster(profile)
    tokens = in_node(cluster, "all_to_all", ranks, float(row["sent_bytes"]) * ranks / (ranks - 1))
    counts = in_node(cluster, "all_to_all", ranks, _COUNTS_BYTES * int(row["experts"]))
    return [counts, tokens] if part == "dispatch" else [tokens]


def _cluster(profile: Profile) -> Cluster:
    """The cluster that calibration wrote beside the profile."""
    table = own_table(profile.gpu.name, "collectives")
    if table is None:
        raise MoesimError(f"no collectives of {profile.gpu.name} were measured: run moesim calibrate again")
    return load_cluster(str(table.with_name("cluster.yaml")))
