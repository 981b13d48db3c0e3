"""One shape's seconds as a table over (active, others, most), so that thousands of loads cost a look-up.

``active`` counts the experts that have tokens, ``most`` is the largest load, ``others`` is the work of the other
experts beyond one token each. A token more on the busiest expert raises ``most``, on another busy one
``others``, on an idle one ``active``; nothing falls. The table is made to rise along each axis (``rising``), so
one more token never costs less; by how much that moved it is added to the band.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moesim.compute.expert_parts import Shape, equal_load, features, parts, tau_s
from moesim.cost import FloatArray
from moesim.profile import DataSheet, Fit

_LEAST_ACTIVE: Final = 1 / 16  # expected active experts of an almost idle rank
_MOST_TOKENS: Final = 2.0**18
_NO_EXTRA: Final = 1e-5  # of one expert's first token: the smallest work told apart
_ACTIVE, _OTHERS, _MOST = 12, 100, 40  # points of the table's axes
_SKEWS: Final = np.log([1.0, 2.0, 5.0, 15.0, 60.0])
_COARSE: Final = 20  # loads at which the correction itself is evaluated


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curve:
    """log seconds and half-width of the band over logs of (active, others, most), on even grids."""

    first_s: float  # tau of one token
    axes: tuple[FloatArray, FloatArray, FloatArray]
    log_s: FloatArray  # [active, others, most]
    half_width: FloatArray

    def at(self, active: FloatArray, others_s: FloatArray, most: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Seconds and half-width of the band."""
        place = [
            np.log(np.maximum(active, _LEAST_ACTIVE)),
            np.log(others_s / self.first_s + _NO_EXTRA),
            np.log(np.maximum(most, 1.0)),
        ]
        log_s, half_width = interpolate(self.axes, (self.log_s, self.half_width), place)
        return np.exp(log_s), half_width


def build_curve(gpu: DataSheet, shape: Shape, fitted: Fit) -> Curve:
    """Evaluate the fitted family for one shape."""
    few = np.linspace(np.log(_LEAST_ACTIVE), np.log(shape.local), _ACTIVE)
    loads = np.linspace(0.0, np.log(_MOST_TOKENS), _COARSE)
    a, t, skew = np.meshgrid(few, loads, _SKEWS, indexing="ij")
    coarse = fitted.correction(features(gpu, shape, np.exp(a), np.exp(t), skew))
    first_s, last_s = tau_s(gpu, shape, np.array([1.0, _MOST_TOKENS]))
    others = np.linspace(np.log(_NO_EXTRA), np.log(shape.local * last_s / first_s), _OTHERS)
    most = np.linspace(0.0, np.log(_MOST_TOKENS), _MOST)
    active = np.exp(few)[:, None, None]
    beyond = (np.exp(others) - _NO_EXTRA)[:, None] + tau_s(gpu, shape, np.exp(most)) / first_s - 1.0
    equal = equal_load(gpu, shape, first_s * (1.0 + beyond / active))
    active = np.broadcast_to(active, equal.shape)
    base = np.log(fitted.base_s(parts(gpu, shape, active, equal)))
    skew = np.clip(most - np.log(equal), 0.0, _SKEWS[-1])
    correction, half_width = interpolate((few, loads, _SKEWS), coarse, [np.log(active), np.log(equal), skew])
    predicted = base + correction
    log_s = predicted
    for axis in range(3):
        log_s = rising(log_s, axis)
    half_width += np.abs(log_s - predicted)
    return Curve(first_s=float(first_s), axes=(few, others, most), log_s=log_s, half_width=half_width)


def rising(values: FloatArray, axis: int) -> FloatArray:
    """Never falling along ``axis``: between the running maximum and the running minimum from the end."""
    ahead = np.flip(np.minimum.accumulate(np.flip(values, axis), axis=axis), axis)
    return np.asarray(0.5 * (np.maximum.accumulate(values, axis=axis) + ahead))


def interpolate(
    axes: tuple[FloatArray, ...], values: tuple[FloatArray, ...], place: list[FloatArray]
) -> tuple[FloatArray, ...]:
    """Multilinear interpolation of ``values`` at ``place`` (one array per axis), clipped to the axes."""
    cells, weights = zip(*(_cell(axis, x) for axis, x in zip(axes, place, strict=True)), strict=True)
    results = [np.zeros(np.shape(place[0])) for _ in values]
    for corner in range(2 ** len(axes)):
        high = [bool(corner >> bit & 1) for bit in range(len(axes))]
        index = tuple(cell + up for cell, up in zip(cells, high, strict=True))
        weight = np.ones(())
        for w, up in zip(weights, high, strict=True):
            weight = weight * (w if up else 1.0 - w)
        for result, value in zip(results, values, strict=True):
            result += weight * value[index]
    return tuple(results)


def _cell(axis: FloatArray, x: FloatArray) -> tuple[NDArray[np.intp], FloatArray]:
    """Cell and place inside it, for each x."""
    if axis.size == 1 or axis[-1] <= axis[0]:
        return np.zeros(np.shape(x), dtype=np.intp), np.zeros(np.shape(x))
    position = np.interp(x, axis, np.arange(float(axis.size)))
    cell = np.minimum(position.astype(np.intp), axis.size - 2)
    return cell, np.asarray(position - cell)
