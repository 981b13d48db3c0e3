"""The policy: the best way of every capacity bucket, and the time that a static choice loses against it.

bucket   floor(capacity / 128), capacity = rows of one GPU for one expert (Tutel, section 4.3)
best     least seconds over the loads of the bucket, which count alike
regret   sum of a static way's seconds over all loads / the policy's - 1; never below zero
worst    the largest seconds / best seconds - 1 of any single load
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moesim.adaptive.layer import PADDED, MoeLayer, Way, possible
from moesim.adaptive.price import LoadPrice, capacities, load_prices
from moesim.cluster import Cluster
from moesim.cost import FloatArray
from moesim.errors import MoesimError
from moesim.profile import Profile, load_profile

if TYPE_CHECKING:
    import pandas as pd

BUCKET: Final = 128  # R of Tutel's runtime search


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Policy:
    """What to run at each load, and what the others would take."""

    layer: MoeLayer
    cluster: Cluster
    factors: tuple[float, ...]
    capacity: FloatArray  # [load]
    bucket: tuple[int, ...]  # of each load
    ways: list[LoadPrice]
    seconds: FloatArray  # [way, load]
    best: dict[int, int]  # bucket -> index of its way
    impossible: dict[str, int]  # reason -> ways

    @property
    def chosen_s(self) -> FloatArray:
        """[load] seconds under the policy."""
        return np.array([self.seconds[self.best[key], load] for load, key in enumerate(self.bucket)])

    @property
    def regret(self) -> FloatArray:
        """[way] what a static choice loses."""
        return np.asarray(self.seconds.sum(axis=1) / self.chosen_s.sum() - 1.0)

    @property
    def best_static(self) -> int:
        """Index of the static choice that loses least."""
        return int(np.argmin(self.regret))

    def way(self, load: int) -> Way:
        """What the policy runs at a load."""
        return self.ways[self.best[self.bucket[load]]].way

    def to_frame(self) -> "pd.DataFrame":
        """One row per load: the policy, what the best static choice takes there, and loses in the bucket."""
        import pandas as pd

        static = self.ways[self.best_static]
        keys = np.array(self.bucket)
        lost = {key: static.seconds[keys == key].sum() / self.chosen_s[keys == key].sum() - 1.0 for key in self.best}
        return pd.DataFrame(
            [
                {
                    "bucket": key,
                    "capacity_factor": self.factors[load],
                    "capacity": int(self.capacity[load]),
                    **self.way(load)._asdict(),
                    "seconds": self.chosen_s[load],
                    "low_s": self.chosen_s[load] / (1.0 + self.ways[self.best[key]].error),
                    "high_s": self.chosen_s[load] * (1.0 + self.ways[self.best[key]].error),
                    "best_static_s": static.seconds[load],
                    "static_regret": lost[key],
                }
                for load, key in enumerate(self.bucket)
            ]
        )

    def statics(self) -> "pd.DataFrame":
        """One row per static choice, the one that loses least first."""
        import pandas as pd

        worst = (self.seconds / self.seconds.min(axis=0)).max(axis=1) - 1.0
        rows = [
            {**one.way._asdict(), "regret": self.regret[number], "worst_regret": worst[number]}
            for number, one in enumerate(self.ways)
        ]
        return pd.DataFrame(rows).sort_values("regret", kind="stable", ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: buckets, the best static choice, all static choices, what cannot run."""
        table = {
            str(key): self.ways[number].way._asdict()
            | {
                "capacity_from": key * BUCKET,
                "capacity_below": (key + 1) * BUCKET,
                "seconds": {
                    f"{self.factors[load]:g}": float(self.chosen_s[load])
                    for load, other in enumerate(self.bucket)
                    if other == key
                },
            }
            for key, number in sorted(self.best.items())
        }
        return {
            "bucket_rows": BUCKET,
            "policy": table,
            "static": self.statics().to_dict(orient="records"),
            "impossible": self.impossible,
            "sources": sorted({source for one in self.ways for part in one.parts.values() for source in part.sources}),
        }


def best_ways(
    layer: MoeLayer,
    cluster: Cluster,
    factors: tuple[float, ...],
    *,
    algorithms: tuple[str, ...] = PADDED,
    profile: Profile | None = None,
) -> Policy:
    """Price every possible way at every load and keep the best of each bucket."""
    ways, impossible = possible(layer, cluster, algorithms)
    capacity = capacities(layer, factors)
    if not ways:
        raise MoesimError(f"no way to run the layer on {cluster.name}: {'; '.join(impossible)}")
    found = load_prices(layer, cluster, profile or load_profile(cluster.gpu), ways, capacity)
    seconds = np.stack([one.seconds for one in found])  # [way, load]
    bucket = tuple(int(rows // BUCKET) for rows in capacity)
    keys = np.array(bucket)
    best = {key: int(np.argmin(seconds[:, keys == key].sum(axis=1))) for key in sorted(set(bucket))}
    return Policy(
        layer=layer, cluster=cluster, factors=factors, capacity=capacity, bucket=bucket, ways=found,
        seconds=seconds, best=best, impossible=impossible,
    )  # fmt: skip
