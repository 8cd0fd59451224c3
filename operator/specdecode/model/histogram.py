"""Arithmetic on Prometheus histograms: differences, sums, means, quantiles that admit what the buckets cannot tell."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from operator import sub

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


def difference(before: Histogram, after: Histogram, *, buckets: bool = True) -> Histogram | None:
    """What was observed between two readings; None when the buckets are not the same or a count fell.

    Without `buckets` only the last one is kept (and looked at), which is all that a mean needs.
    """
    bounds = after.bounds
    # Readers give all histograms of a family the same bounds: most often there is nothing to compare.
    if bounds is not before.bounds and bounds != before.bounds:
        return None
    if buckets:
        counts = (*map(sub, after.counts, before.counts),)
        fell = min(counts) < 0
    else:
        bounds, counts = bounds[-1:], (after.counts[-1] - before.counts[-1],)
        fell = counts[0] < 0
    return None if fell else Histogram(bounds, counts, after.sum - before.sum, after.count - before.count)


def total(histograms: Iterable[Histogram | None]) -> Histogram | None:
    """Observations of several histograms together; None when there is none, one is lacking or their buckets differ."""
    given = list(histograms)
    parts = [part for part in given if part is not None]
    if not parts or len(parts) < len(given):
        return None
    bounds = parts[0].bounds
    if [part for part in parts if part.bounds != bounds]:
        return None
    counts = tuple(map(math.fsum, zip(*[part.counts for part in parts], strict=True)))
    return Histogram(bounds, counts, math.fsum([p.sum for p in parts]), math.fsum([p.count for p in parts]))


def mean(histogram: Histogram | None) -> float | None:
    """Sum over count; None without observations."""
    return histogram.sum / histogram.count if histogram is not None and histogram.count > 0 else None


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
