"""Measured seconds as a smooth function of the shape: one method for every operation.

    seconds = sum of coefficient x part  x  exp(correction(features)),     coefficient >= 0

The parts are closed-form seconds (arithmetic, bytes, launches) of a GPU's data sheet; their coefficients are
least squares of the relative error. The correction is a Gaussian process over logs of the shape: beyond the
table its edge holds and the band opens. It opens as well at a shape that no row has (``Kernel.jump``): tuned
kernels jump between shapes that are close. The width of the band comes from leaving whole groups of rows (a
model, a matrix) out of the correction. Nothing is fitted per row.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.cost import FloatArray

OUTSIDE: Final = 0.1  # added half-width of the band per e-fold beyond the table, per feature
_NORMAL: Final = 1.64  # 90 % of a normal distribution
_COVERED: Final = 0.94  # above 0.9: the coefficients have seen the rows left out, and the next model has not
_SAME_SHAPE: Final = 0.3  # e-folds over which one shape's jump is another's
_LONE_GROUP: Final = 2.0 * _NORMAL  # no group can be left out: half the confidence


class Kernel(NamedTuple):
    """Hyperparameters of one operation, in log space; the same for every GPU and kernel."""

    scales: tuple[float, ...]  # length scale of each feature
    signal: float  # standard deviation of the correction over shapes
    noise: float  # of a repeated measurement
    jump: float = 0.0  # standard deviation that a shape without rows adds to the band
    shape: tuple[int, ...] = ()  # the features that make a shape


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fit:
    """One fitted family: rows of one table, kernel and dtype."""

    kernel: Kernel
    coefficients: FloatArray  # [part]
    x: FloatArray  # [point, feature], in length scales
    alpha: FloatArray  # [point]
    inverse: FloatArray  # [point, point], inverse covariance
    mean: float
    low: FloatArray  # [feature], range of the measurements
    high: FloatArray
    shapes: FloatArray  # [shape, feature of a shape], those that have rows
    band: float  # half-width of the 90 % band in predicted standard deviations

    def base_s(self, parts: FloatArray) -> FloatArray:
        """Seconds before the correction, ``parts[..., part]``."""
        return np.asarray(parts @ self.coefficients)

    def correction(self, features: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Log correction and half-width of the 90 % band of log seconds, at ``features[..., feature]``."""
        inside = np.clip(features, self.low, self.high)
        flat = inside.reshape(-1, features.shape[-1]) / np.asarray(self.kernel.scales)
        cross = covariance(flat, self.x, self.kernel)
        explained = ((cross @ self.inverse) * cross).sum(axis=-1)
        variance = np.maximum(self.kernel.signal**2 - explained, 0.0) + self.kernel.noise**2
        variance += jumps(features.reshape(-1, features.shape[-1]), self.shapes, self.kernel)
        beyond = np.abs(features - inside).sum(axis=-1)
        shape = features.shape[:-1]
        mean = (self.mean + cross @ self.alpha).reshape(shape)
        return mean, self.band * np.sqrt(variance).reshape(shape) + OUTSIDE * beyond


def fit(parts: FloatArray, features: FloatArray, time_s: FloatArray, groups: NDArray[Any], kernel: Kernel) -> Fit:
    """Fit ``time_s[point]`` to ``parts[point, part]`` and ``features[point, feature]``."""
    coefficients = non_negative(parts / time_s[:, None])
    log_ratio = np.log(time_s / (parts @ coefficients))
    x = features / np.asarray(kernel.scales)
    spread = covariance(x, x, kernel)
    spread[np.diag_indices_from(spread)] += kernel.noise**2
    inverse = np.asarray(np.linalg.inv(spread), dtype=np.float64)
    weight = inverse.sum(axis=1)
    mean = float(weight @ log_ratio / weight.sum())
    alpha = inverse @ (log_ratio - mean)
    return Fit(
        kernel=kernel,
        coefficients=coefficients,
        x=x,
        alpha=alpha,
        inverse=inverse,
        mean=mean,
        low=features.min(axis=0),
        high=features.max(axis=0),
        shapes=_shapes(features, kernel),
        band=_band(inverse, alpha, features, groups, kernel),
    )


def _band(inverse: FloatArray, alpha: FloatArray, features: FloatArray, groups: NDArray[Any], kernel: Kernel) -> float:
    """The width, in standard deviations, that holds 9 of 10 rows of groups left out (closed form)."""
    names = np.unique(groups)
    if names.size < 2:
        return _LONE_GROUP
    scores = []
    for name in names:
        rows = np.flatnonzero(groups == name)
        block = np.linalg.inv(inverse[np.ix_(rows, rows)])  # predictive covariance of the rows left out
        others = _shapes(features[groups != name], kernel)
        variance = np.diag(block) + jumps(features[rows], others, kernel)
        scores.append(np.abs(block @ alpha[rows]) / np.sqrt(variance))
    return float(np.quantile(np.concatenate(scores), _COVERED))


def _shapes(features: FloatArray, kernel: Kernel) -> FloatArray:
    return np.unique(features[:, list(kernel.shape)], axis=0)


def jumps(features: FloatArray, shapes: FloatArray, kernel: Kernel) -> FloatArray:
    """Variance that ``features[point, feature]`` add for being of none of ``shapes``."""
    if not kernel.jump:
        return np.zeros(len(features))
    apart = features[:, None, list(kernel.shape)] - shapes
    nearest = np.sqrt((apart**2).sum(axis=-1)).min(axis=1)
    return np.asarray(kernel.jump**2 * -np.expm1(-nearest / _SAME_SHAPE))


def non_negative(ratio: FloatArray) -> FloatArray:
    """Coefficients >= 0 with ``ratio[point, part] @ c`` nearest to one: least squares, part by part."""
    size = np.sqrt((ratio**2).mean(axis=0)) + 1e-30
    scaled = ratio / size
    gram = scaled.T @ scaled / len(scaled) + 1e-6 * np.eye(size.size)
    aim = scaled.mean(axis=0)
    found = np.full(size.size, 0.1)
    for _ in range(400):
        for j in range(size.size):
            found[j] = max(0.0, found[j] + (aim[j] - gram[j] @ found) / gram[j, j])
    return np.asarray(found / size)


def covariance(a: FloatArray, b: FloatArray, kernel: Kernel) -> FloatArray:
    """Matern 3/2 between ``a[..., feature]`` and ``b[point, feature]``: kinks are allowed."""
    squared = (a**2).sum(axis=-1)[..., None] + (b**2).sum(axis=-1) - 2.0 * (a @ b.T)
    distance = np.sqrt(3.0 * np.maximum(squared, 0.0))
    return np.asarray(kernel.signal**2 * (1.0 + distance) * np.exp(-distance))
