"""Quantiles of Prometheus histograms, which admit what the buckets cannot tell."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from specdecode.vllm.metrics import Histogram


@dataclass(frozen=True)
class Quantile:
    """Where a quantile lies, as far as buckets tell.

    vLLM's smallest bucket of latencies per token ends at 10 ms, so on a fast GPU most quantiles are a bound only.
    """

    low: float
    high: float
    """The quantile is above `low` and at most `high`, which is infinite in the last bucket."""
    value: float | None
    """Estimated linearly inside the bucket, as Prometheus' `histogram_quantile`; None in the first bucket, whose lower
    end is not known, and in the last, which has no upper end."""

    def exceeds(self, limit: float) -> bool | None:
        """Whether the quantile is above a limit; None where its bucket contains the limit and cannot tell."""
        if self.low >= limit:
            return True
        if self.high <= limit:
            return False
        return None if self.value is None else self.value > limit


def quantile(histogram: Histogram | None, q: float) -> Quantile | None:
    """The `q` quantile, 0 < q <= 1; None without observations."""
    if histogram is None or histogram.count <= 0:
        return None
    rank = q * histogram.count
    i = bisect_left(histogram.counts, rank)
    high = histogram.bounds[i]
    if i == 0:
        return Quantile(0.0, high, None)
    low, below = histogram.bounds[i - 1], histogram.counts[i - 1]
    if math.isinf(high):
        return Quantile(low, high, None)
    return Quantile(low, high, low + (high - low) * (rank - below) / (histogram.counts[i] - below))
