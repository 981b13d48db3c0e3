"""Measured / roofline as a smooth function of the shape: a Gaussian process in logs.

    log(measured / roofline) = mean + k(x, X) alpha,   x = logs of the shape in units of its length scales

Far from every measurement the prediction returns to the mean efficiency of the family and the band opens.
The length scales belong to the operation (one set for all GPUs and kernels), chosen by leaving whole models
out; nothing is fitted per row.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moesim.cost import FloatArray


class Kernel(NamedTuple):
    """Hyperparameters of one operation, in log space."""

    scales: tuple[float, ...]  # length scale of each feature
    signal: float  # standard deviation of the log efficiency over shapes
    noise: float  # of a repeated measurement
    band: float  # half-width of the 90 % band in predicted standard deviations


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fit:
    """A fitted family: predicts the mean log ratio and its standard deviation."""

    kernel: Kernel
    x: FloatArray  # [point, feature], in length scales
    alpha: FloatArray  # [point]
    inverse: FloatArray  # [point, point], inverse covariance
    mean: float
    low: FloatArray  # [feature] range of the measurements, unscaled
    high: FloatArray

    def mean_at(self, features: FloatArray) -> FloatArray:
        """Mean log ratio at ``features[..., feature]``."""
        return self.mean + self._cross(features) @ self.alpha

    def at(self, features: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation (measurement noise included) of the log ratio."""
        cross = self._cross(features)
        explained = np.einsum("...i,...i->...", cross @ self.inverse, cross)
        variance = self.kernel.signal**2 - explained
        return self.mean + cross @ self.alpha, np.sqrt(np.maximum(variance, 0.0) + self.kernel.noise**2)

    def _cross(self, features: FloatArray) -> FloatArray:
        inside = np.clip(features, self.low, self.high)  # beyond the table its edge holds
        return covariance(inside / np.asarray(self.kernel.scales), self.x, self.kernel)


def fit(features: FloatArray, log_ratio: FloatArray, kernel: Kernel) -> Fit:
    """Fit one family: ``features[point, feature]``, ``log_ratio[point]``."""
    x = features / np.asarray(kernel.scales)
    spread = covariance(x, x, kernel)
    spread[np.diag_indices_from(spread)] += kernel.noise**2
    inverse = np.linalg.inv(spread)
    ones = inverse.sum(axis=1)
    mean = float(ones @ log_ratio / ones.sum())  # generalised least squares
    return Fit(
        kernel=kernel,
        x=x,
        alpha=inverse @ (log_ratio - mean),
        inverse=inverse,
        mean=mean,
        low=features.min(axis=0),
        high=features.max(axis=0),
    )


def covariance(a: FloatArray, b: FloatArray, kernel: Kernel) -> FloatArray:
    """Matern 3/2 between ``a[..., feature]`` and ``b[point, feature]``: kinks are allowed."""
    squared = (a**2).sum(axis=-1)[..., None] + (b**2).sum(axis=-1) - 2.0 * (a @ b.T)
    distance = np.sqrt(3.0 * np.maximum(squared, 0.0))
    return np.asarray(kernel.signal**2 * (1.0 + distance) * np.exp(-distance))
