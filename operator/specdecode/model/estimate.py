"""A figure and how sure we are of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z90 = 1.6448536269514722
"""Half width of a 90 % interval in standard deviations of a normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 90 % interval, low <= value <= high."""

    value: float
    low: float
    high: float

    @classmethod
    def log_normal(cls, median: float, sd: float) -> Estimate:
        """A positive quantity whose logarithm has standard deviation `sd`."""
        return cls(median, median * math.exp(-Z90 * sd), median * math.exp(Z90 * sd))

    def __str__(self) -> str:
        """`1.25 (1.1 to 1.4)`."""
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"
