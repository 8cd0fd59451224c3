"""What a `/metrics` page says, as the operator uses it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from operator import attrgetter, gt
from typing import NamedTuple

from specdecode.vllm.live_schedule import ScheduleReport

Bounds = tuple[float, ...]

COUNTERS = ("preemptions", "prompt_tokens", "generation_tokens", "drafts", "draft_tokens", "accepted_tokens")
WITH_QUANTILES = ("ttft", "tpot")
HISTOGRAMS = (*WITH_QUANTILES, "inter_token", "iteration_tokens", "queue_time", "prompt_length", "output_length")
"""Of all but the first two a mean is all that is asked for."""
POSITIONS = "accepted_per_position"


_AT = {name: i for i, name in enumerate((*COUNTERS, *HISTOGRAMS))}
"""Places in a row of totals of the counters and of the counts of histograms."""
_COUNTS = len(_AT)


@dataclass(frozen=True, slots=True)
class Histogram:
    """A Prometheus histogram."""

    bounds: Bounds
    """Upper bounds of the buckets, rising; the last is infinity."""
    counts: tuple[float, ...]
    """Observations at or below each bound (cumulative, as exposed)."""
    sum: float
    count: float


class Shape(NamedTuple):
    """Which numbers a row of totals has."""

    missing: frozenset[str]
    """Figures that the page does not have."""
    positions: int
    bounds: tuple[Bounds | None, ...]
    """Of the histograms, in the order of `HISTOGRAMS`."""

    @property
    def parts(self) -> tuple[int, ...]:
        """How many numbers of a row are counters, counts of histograms, positions, buckets, and sums of histograms."""
        buckets = (len(of or ()) for of in self.bounds[: len(WITH_QUANTILES)])
        return len(COUNTERS), len(HISTOGRAMS), self.positions, *buckets, len(HISTOGRAMS)


@dataclass(frozen=True, slots=True)
class Totals:
    """All that only grows on a page, as one row of numbers: pages are subtracted, and pods added, in one go.

    What a page does not have is 0 here, and its name is in `shape.missing`. Of most histograms there is a count and a
    sum only.
    """

    row: tuple[float, ...]
    """Counters, counts of the histograms, accepted tokens by position, buckets of the histograms of which quantiles are
    asked for; at last the sums of the histograms, which alone may fall."""
    shape: Shape

    def counter(self, name: str) -> float | None:
        """A counter; None where the page has none."""
        return None if name in self.shape.missing else self.row[_AT[name]]

    def count(self, name: str) -> float | None:
        """Observations of a histogram; None where the page has none."""
        return None if name in self.shape.missing else self.row[_AT[name]]

    def mean(self, name: str) -> float | None:
        """Sum over count of a histogram; None without observations."""
        count = self.row[_AT[name]]
        return self.row[_AT[name] - _COUNTS] / count if count > 0 else None

    @property
    def positions(self) -> tuple[float, ...]:
        """Accepted tokens by position."""
        return self.row[_COUNTS : _COUNTS + self.shape.positions]

    def histogram(self, name: str) -> Histogram | None:
        """One of those of which quantiles are asked for."""
        start = _COUNTS + self.shape.positions
        for other, bounds in zip(WITH_QUANTILES, self.shape.bounds, strict=False):
            end = start + len(bounds or ())
            if other == name:
                break
            start = end
        if bounds is None:
            return None
        return Histogram(bounds, self.row[start:end], self.row[_AT[name] - _COUNTS], self.row[_AT[name]])

    @property
    def _parts(self) -> Iterator[tuple[float, ...]]:
        return (self.row[a:b] for a, b in pairwise(accumulate(self.shape.parts, initial=0)))

    def beyond(self, later: Totals) -> str | None:
        """A figure that is more here than in totals of the same shape; None where there is none."""
        counted = len(self.row) - len(HISTOGRAMS)
        more = tuple(map(gt, self.row[:counted], later.row))
        if True not in more:
            return None
        names = [*COUNTERS, *HISTOGRAMS, *[POSITIONS] * self.shape.positions]
        for name, bounds in zip(WITH_QUANTILES, self.shape.bounds, strict=False):
            names += [name] * len(bounds or ())
        return names[more.index(True)]

    def without(self, names: Collection[str]) -> Totals:
        """These totals as if the page did not have some of the figures."""
        if not names:
            return self
        counters, counts, positions, *buckets, sums = self._parts
        bounds = tuple(None if name in names else of for name, of in zip(HISTOGRAMS, self.shape.bounds, strict=True))
        kept = () if POSITIONS in names else positions
        rest = [b for name, of in zip(WITH_QUANTILES, buckets, strict=True) if name not in names for b in of]
        row = (*_without(COUNTERS, counters, names), *_without(HISTOGRAMS, counts, names), *kept, *rest)
        shape = Shape(self.shape.missing.union(names), len(kept), bounds)
        return Totals((*row, *_without(HISTOGRAMS, sums, names)), shape)


def _without(names: tuple[str, ...], values: tuple[float, ...], without: Collection[str]) -> Iterator[float]:
    return (0.0 if name in without else value for name, value in zip(names, values, strict=True))


@dataclass(frozen=True, kw_only=True)
class EngineSample:
    """What one engine core of a server exposes. Data-parallel servers have several engines on a page. None: not on the
    page, or not a finite number.

    Counters and histograms are cumulative since the process started, gauges of the moment.
    """

    model_name: str
    """The first served model name; empty where the page does not say."""
    engine: str
    """Index of the engine core; "0" before vLLM 0.8.3, which had one."""
    running: float | None = None
    """Requests in the running batch, prefills included (gauge)."""
    waiting: float | None = None
    kv_usage: float | None = None
    """Share of the KV cache in use, 0 to 1 (gauge)."""
    kv_cache_tokens: float | None = None
    """Size of the KV cache in tokens."""
    preemptions: float | None = None
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    requests: Mapping[str, float] = field(default_factory=dict)
    """Finished requests by reason: stop, length, abort, error, …"""
    drafts: float | None = None
    """Request-steps with at least one draft token."""
    draft_tokens: float | None = None
    accepted_tokens: float | None = None
    accepted_per_position: tuple[float, ...] = ()
    """Accepted tokens by position in the draft; empty where the version has no such family."""
    draft_acceptance_gauge: float | None = None
    """Accepted over drafted tokens since the start of the process; exposed by the V0 engine only."""
    ttft: Histogram | None = None
    """Seconds to a request's first token."""
    inter_token: Histogram | None = None
    """Seconds between two outputs of a request: one observation per request and step, however many tokens it gave."""
    tpot: Histogram | None = None
    """Seconds per output token, one observation per finished request (vLLM >= 0.11)."""
    iteration_tokens: Histogram | None = None
    """Tokens per engine step, computed prompt tokens and emitted ones; its count is the number of steps."""
    queue_time: Histogram | None = None
    """Seconds a request waited to be scheduled, observed when it finishes."""
    prompt_length: Histogram | None = None
    """Prompt tokens per finished request."""
    output_length: Histogram | None = None
    """Generated tokens per finished request."""

    @cached_property
    def totals(self) -> Totals:
        """Its counters and histograms."""
        counters, histograms, positions = _counters_of(self), _histograms_of(self), self.accepted_per_position
        row = [value or 0.0 for value in counters]
        row += [0.0 if h is None else h.count for h in histograms]
        row += positions
        for h in histograms[: len(WITH_QUANTILES)]:
            row += h.counts if h is not None else ()
        row += [0.0 if h is None else h.sum for h in histograms]
        values = (*counters, *histograms, positions or None)
        missing = frozenset(name for name, value in zip(_GROWING, values, strict=True) if value is None)
        bounds = tuple(None if h is None else h.bounds for h in histograms)
        return Totals(tuple(row), Shape(missing, len(positions), bounds))


_GROWING = (*COUNTERS, *HISTOGRAMS, POSITIONS)
_counters_of, _histograms_of = attrgetter(*COUNTERS), attrgetter(*HISTOGRAMS)


@dataclass(frozen=True, slots=True)
class Page:
    """One `/metrics` page."""

    engines: tuple[EngineSample, ...]
    """Ordered by model name and engine; at least one."""
    process_start: float | None = None
    """Unix time at which the server process started. Absent where several API servers share the metrics."""
    http_requests: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Answers by (path, status) of the paths that generate text; vLLM groups statuses as "2xx", "4xx", "5xx". A pair
    appears with its first answer."""
    schedule: ScheduleReport | None = None
    """What the plugin for live schedules tells; None: the server has none."""
