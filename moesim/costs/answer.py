"""A cost, the inputs as they were understood, and the JSON that says both."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from moesim.cost import Cost
from moesim.costs.inputs import make


class Answer(NamedTuple):
    """One operation's price."""

    cost: Cost  # of one case: every field a single number
    inputs: dict[str, Any]  # as understood, defaults filled in
    more: dict[str, Any]  # what this operation also says: the algorithm that was chosen, the heaviest rank

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "seconds": float(self.cost.seconds),
            "low": float(self.cost.low),
            "high": float(self.cost.high),
            "basis": {name: float(share) for name, share in self.cost.basis._asdict().items()},
            "bound_s": float(self.cost.bound_s),
            "limited_by": self.cost.limited_by,
            "source": self.cost.source,
            **self.more,
            "inputs": self.inputs,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """Something that ``moesim cost`` prices; call it with its options as keywords."""

    name: str
    inputs: type[Any]
    price: Callable[[Any], Answer] = field(repr=False)
    about: str

    def answer(self, **given: Any) -> Answer:
        """The price, and how the inputs were understood."""
        return self.price(make(self.inputs, given))

    def __call__(self, **given: Any) -> Cost:
        """The price."""
        return self.answer(**given).cost


def mean(cost: Cost, of: str = "") -> Cost:
    """The expectation over a batch of draws: the mean of each number."""
    return Cost(
        seconds=np.asarray(np.mean(cost.seconds)),
        low=np.asarray(np.mean(cost.low)),
        high=np.asarray(np.mean(cost.high)),
        bound_s=np.asarray(np.mean(cost.bound_s)),
        limited_by=cost.limited_by,
        basis=cost.basis,
        source=f"{cost.source}; {of}" if of else cost.source,
    )
