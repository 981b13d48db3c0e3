"""A cost is seconds that know how sure they are and where they come from.

Every cost function of moesim (compute, collectives, alltoall) returns a ``Cost``. Arrays of any one
shape: a batch of shapes is priced in one call.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Basis(NamedTuple):
    """Shares of a predicted time by what it rests on; they sum to one."""

    measured: float  # by moesim's own kernels on this GPU
    published: float  # in a cited table for this GPU
    estimated: float  # from a data sheet, or carried over from another GPU


MEASURED: Final = Basis(1.0, 0.0, 0.0)
PUBLISHED: Final = Basis(0.0, 1.0, 0.0)
ESTIMATED: Final = Basis(0.0, 0.0, 1.0)
BASIS: Final = {"measured": MEASURED, "published": PUBLISHED, "estimated": ESTIMATED}


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Cost:
    """Predicted seconds of one operation, or of a batch of them.

    ``low`` and ``high`` enclose the truth nine times in ten; ``bound_s`` is a closed-form lower bound
    (roofline or link bound): ``bound_s <= seconds`` always.
    """

    seconds: FloatArray
    low: FloatArray
    high: FloatArray
    bound_s: FloatArray
    limited_by: str  # "compute", "memory", "launch", "nvlink", "nic", "pcie"
    basis: Basis
    source: str


def cost(
    seconds: FloatArray | float,
    relative_error: float,
    bound_s: FloatArray | float,
    limited_by: str,
    basis: Basis,
    source: str,
) -> Cost:
    """A Cost with a symmetric band in log space: ``seconds / (1 + e)`` to ``seconds * (1 + e)``."""
    value = np.asarray(seconds, dtype=np.float64)
    floor = at_most(np.asarray(bound_s, dtype=np.float64), value)
    return Cost(
        seconds=value,
        low=value / (1.0 + relative_error),
        high=value * (1.0 + relative_error),
        bound_s=np.broadcast_to(floor, value.shape),
        limited_by=limited_by,
        basis=basis,
        source=source,
    )


def at_most(bound_s: FloatArray, seconds: FloatArray) -> FloatArray:
    """Tables of a user may be faster than the data sheet; tests of moesim's own models take this away."""
    return np.minimum(bound_s, seconds)
