"""The load that users offered over the last two days, in buckets: how long such loads last, and what comes next."""

from __future__ import annotations

from dataclasses import dataclass

BUCKET = 300.0
"""Seconds."""
HOUR = 3600.0
DAY = 86_400.0
KEPT = int(2 * DAY / BUCKET)
"""Buckets kept: yesterday's day and today's."""


@dataclass(frozen=True)
class LoadHistory:
    """Mean offered load per bucket, of the whole workload."""

    first: int = 0
    """Number of the oldest bucket, counted from the epoch."""
    tokens_per_second: tuple[float, ...] = ()
    """Output tokens per second of all pods together; negative: not measured."""
    seen: float = 0.0
    """Seconds of the newest bucket that were measured."""

    def add(self, now: float, tokens_per_second: float, seconds: float) -> LoadHistory:
        """The history with `seconds` of a load that ended now."""
        bucket = int(now // BUCKET)
        last = self.first + len(self.tokens_per_second) - 1
        if not self.tokens_per_second or bucket - last > KEPT or bucket < last:
            # The first one, or the clock went elsewhere.
            return LoadHistory(bucket, (tokens_per_second,), min(seconds, BUCKET))
        if bucket == last:
            old = self.tokens_per_second[-1]
            mixed = (old * self.seen + tokens_per_second * seconds) / (self.seen + seconds)
            return LoadHistory(self.first, (*self.tokens_per_second[:-1], mixed), min(self.seen + seconds, BUCKET))
        loads = (*self.tokens_per_second, *(-1.0 for _ in range(bucket - last - 1)), tokens_per_second)
        return LoadHistory(bucket - len(loads[-KEPT:]) + 1, loads[-KEPT:], min(seconds, BUCKET))

    def at(self, t: float) -> float | None:
        """Tokens per second in the bucket of a time; None where none was measured."""
        i = int(t // BUCKET) - self.first
        known = 0 <= i < len(self.tokens_per_second) and self.tokens_per_second[i] >= 0
        return self.tokens_per_second[i] if known else None

    def between(self, start: float, end: float) -> tuple[float, float] | None:
        """Least and most tokens per second of the buckets from one time to another; None where none was measured."""
        known = self.of(start, end)
        return (min(known), max(known)) if known else None

    def mean(self, start: float, end: float) -> float | None:
        """Tokens per second over the buckets from one time to another; None where none was measured."""
        known = self.of(start, end)
        return sum(known) / len(known) if known else None

    def crowded(self, start: float, end: float) -> float | None:
        """The same as the mean token met it: busy buckets weigh more; None where nothing was asked for."""
        known = self.of(start, end)
        return sum(load**2 for load in known) / sum(known) if any(known) else None

    def of(self, start: float, end: float) -> list[float]:
        """Tokens per second of the buckets from one time to another that were measured, oldest first."""
        first, last = (int(t // BUCKET) - self.first for t in (start, end))
        return [load for load in self.tokens_per_second[max(0, first) : max(0, last + 1)] if load >= 0]
