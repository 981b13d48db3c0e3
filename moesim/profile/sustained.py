"""How fast a GPU computes under the load of a training step, over the speed of its kernel tables.

Tables are taken with clocks locked; a GPU at its power limit lowers them. One number for each GPU, in
``hardware_profiles/sustained.csv``; a GPU without one, and kernels that were measured on the GPU itself, keep their
speed.
"""

import csv
from functools import lru_cache
from typing import Final

from moesim.profile.folders import shipped_folder

TABLE: Final = "sustained.csv"


def sustained_share(gpu: str) -> float:
    """Share of the tables' speed that kernels which compute, and do not wait for memory, keep."""
    return _shares().get(gpu, 1.0)


@lru_cache(maxsize=1)
def _shares() -> dict[str, float]:
    with (shipped_folder() / TABLE).open(newline="", encoding="utf-8") as file:
        return {row["gpu"]: float(row["share"]) for row in csv.DictReader(file)}
