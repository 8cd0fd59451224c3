"""A figure and how sure we are of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

Z90 = 1.6448536269514722
"""Half width of a 90 % interval in standard deviations of a normal distribution."""


class Ranged(Protocol):
    """Whatever has a value and its interval: an `Estimate`, or the API's `Interval`."""

    @property
    def value(self) -> float: ...  # noqa: D102

    @property
    def low(self) -> float: ...  # noqa: D102

    @property
    def high(self) -> float: ...  # noqa: D102


def percent(gain: Ranged) -> str:
    """`+25 % (+10 to +40 %)`."""
    return f"{gain.value * 100:+.0f} % ({gain.low * 100:+.0f} to {gain.high * 100:+.0f} %)"


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

    def rounded(self) -> dict[str, float]:
        """The three figures with the four digits that results and the status keep."""
        return {f: round(getattr(self, f), 4) for f in ("value", "low", "high")}

    def __str__(self) -> str:
        """`1.25 (1.1 to 1.4)`."""
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"
