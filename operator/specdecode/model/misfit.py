"""What the model of single steps leaves unexplained of the TPOT that users get: bursts shorter than a look, prefixes
that pods share, whatever else makes a service differ from a queue of independent requests.

log TPOT measured - log TPOT modelled is a Gaussian process over log load, half of it common to all options (a service
that is bursty is so for all), half each option's own. How large it is at all is weighted by the evidence, so where the
model explains what is seen it says next to nothing. What was seen long ago says less. By how much windows at one load
differ (bursts that are not alike) the next one may differ as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from specdecode.model.knowledge import DAY, NEWER, Knowledge

Array = NDArray[np.float64]

_SIZES = np.array([0.015, 0.08, 0.25, 0.5])
"""Standard deviation of the misfit."""
_SIZE_PRIOR = np.log([0.45, 0.3, 0.15, 0.1])
_LENGTH = 0.7
"""Length scale in log load."""
_COMMON = 0.5
"""Part of its variance that all options share."""
_NOISE = 0.05
"""Standard deviation of the logarithm of a mean TPOT over a window: requests that finish tell of minutes before."""
_OF_A_MEAN = NEWER / (2 - NEWER)
"""Variance of a mean that moves by `NEWER` of what is new, over that of single windows."""
_AGEING = 0.2
"""What that grows by a day."""


class Misfit:
    """Fitted once, then asked."""

    def __init__(self, known: Mapping[str, Knowledge], now: float) -> None:
        seen = [(name, r) for name, k in sorted(known.items()) for r in k.residuals]
        self._names = np.array([name for name, _ in seen])
        self._loads = np.log([r.tokens_per_second for _, r in seen])
        ratios = np.array([r.log_ratio for _, r in seen])
        ages = np.array([max(0.0, now - r.measured_at) for _, r in seen]) / DAY
        self._scatter = np.array([r.variance for _, r in seen])
        # In units of the noise, turned so that what is seen is independent: for every size at once.
        whiten = 1 / np.sqrt(_NOISE**2 + _OF_A_MEAN * self._scatter + (_AGEING * ages) ** 2)
        shape = self._shape(self._loads, self._names[:, None])
        eigenvalues, vectors = np.linalg.eigh(whiten[:, None] * shape * whiten)
        self._whiten = whiten[:, None] * vectors
        variances = 1 + _SIZES[:, None] ** 2 * np.maximum(eigenvalues, 0.0)
        white = ratios @ self._whiten
        self._precision, self._solved = 1 / variances, white / variances
        log_weights = _SIZE_PRIOR - 0.5 * (self._solved @ white + np.log(variances).sum(axis=1))
        weights = np.exp(log_weights - log_weights.max())
        self._weights = weights / weights.sum()

    def _shape(self, loads: Array, names: NDArray[np.str_] | str) -> Array:
        near = np.exp(-0.5 * ((loads[:, None] - self._loads) / _LENGTH) ** 2)
        shape: Array = near * np.where(self._names == names, 1.0, _COMMON)
        return shape

    def at(self, profile: str, tokens_per_second: Array) -> tuple[Array, Array]:
        """Mean and variance of log(measured / modelled) of an option at some loads."""
        if not len(self._names):
            return np.zeros(len(tokens_per_second)), np.zeros(len(tokens_per_second))
        shape = self._shape(np.log(np.maximum(tokens_per_second, 1e-6)), profile)
        scatter = shape @ self._scatter / np.maximum(shape.sum(axis=1), 1.0)
        seen = shape @ self._whiten
        squared = _SIZES[:, None] ** 2
        means = squared * (self._solved @ seen.T)
        mean = self._weights @ means
        known = squared**2 * (self._precision @ (seen**2).T)
        return mean, self._weights @ (np.maximum(squared - known, 0.0) + (means - mean) ** 2) + scatter
