"""Price: the duration of one op for every draw and rank class, and what it rests on."""

from typing import Final, NamedTuple

import numpy as np

from moesim.cost import ESTIMATED, Basis, Cost, FloatArray

COMMUNICATION: Final = ("all-to-all", "tp", "cp", "etp", "dp", "pp")  # families


class Price(NamedTuple):
    """``seconds[draw, rank]``; either axis may be 1."""

    seconds: FloatArray
    slowest: FloatArray  # [draw] seconds of the slowest rank
    error: float  # half-width of the 90 % band, relative
    basis: Basis
    family: str  # errors are alike inside a family and independent between families
    sources: frozenset[str]
    kernels: int = 0  # that the GPU runs for it


Prices = dict[str, Price]  # by the keys of a program
NOTHING: Final = Price(np.zeros((1, 1)), np.zeros(1), 0.0, ESTIMATED, "none", frozenset())


def price(family: str, *costs: Cost, times: float = 1.0, kernels: int = 1) -> Price:
    """The sum of costs, each [draw, rank] or a number, of so many kernels; errors and basis weighted by time."""
    seconds = sum((_two_axes(cost.seconds) for cost in costs), np.zeros((1, 1))) * times
    weights = [float(cost.seconds.mean()) for cost in costs]
    errors = [_error(cost) for cost in costs]
    return Price(
        seconds,
        seconds.max(axis=1),
        _mean(errors, weights),
        Basis(*(_mean([cost.basis[i] for cost in costs], weights) for i in range(3))),
        family,
        frozenset(cost.source for cost in costs),
        kernels,
    )


def both(first: Price, second: Price) -> Price:
    """Two prices one after the other."""
    weights = [float(first.seconds.mean()), float(second.seconds.mean())]
    seconds = first.seconds + second.seconds
    return Price(
        seconds,
        seconds.max(axis=1),
        _mean([first.error, second.error], weights),
        Basis(*(_mean([first.basis[i], second.basis[i]], weights) for i in range(3))),
        first.family,
        first.sources | second.sources,
        first.kernels + second.kernels,
    )


def scaled(one: Price, factor: FloatArray | float, *, basis: Basis | None = None, error: float = 0.0) -> Price:
    """``factor`` times as long, on another ``basis`` and with a wider band if given."""
    seconds = one.seconds * factor
    return one._replace(
        seconds=seconds, slowest=seconds.max(axis=1), basis=basis or one.basis, error=max(one.error, error)
    )


def _two_axes(seconds: FloatArray) -> FloatArray:
    return np.atleast_2d(seconds) if seconds.ndim != 1 else seconds[:, None]


def _error(cost: Cost) -> float:
    total = float(cost.seconds.sum())
    return float(cost.high.sum()) / total - 1.0 if total > 0 else 0.0


def _mean(values: list[float], weights: list[float]) -> float:
    total = sum(weights)
    if total <= 0:
        return sum(values) / len(values) if values else 0.0
    return sum(v * w for v, w in zip(values, weights, strict=True)) / total
