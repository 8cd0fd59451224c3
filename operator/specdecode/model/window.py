"""The recent readings of a pod, and what they say: as a whole, part by part, and as a distribution over pods."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple

from specdecode.model.measure import (
    STALL_SECONDS,
    Activity,
    Change,
    Measurement,
    Reason,
    Unmeasured,
    change_between,
    measurement,
)
from specdecode.vllm.metrics import Page

ENOUGH_DRAFTED = 200
"""Drafted tokens that a rate in the spread is taken from: with fewer, chance alone spreads them (sd 0.03 at 0.75)."""


class DraftingPart(NamedTuple):
    """A stretch of a pod's readings that drafted enough to tell a rate."""

    rate: float
    """Accepted over drafted tokens."""
    drafted: float
    """Tokens."""
    t: float
    """Its end, seconds."""


@dataclass(frozen=True)
class Reading:
    """One page of a pod."""

    t: float
    """Seconds, of any clock that goes on."""
    page: Page
    change: Change | Unmeasured | None
    """Since the reading before; None for a first one."""
    drafting: DraftingPart | None = field(default=None, compare=False)
    """The part of at least `ENOUGH_DRAFTED` tokens that ends here; None where none does."""
    begun: tuple[float, float] = field(default=(0.0, 0.0), compare=False)
    """Accepted and drafted tokens of the part that goes on."""
    unbroken_since: float = field(default=-math.inf, compare=False)
    """Time of the first of the readings up to this one between all of which changes could be measured."""

    @cached_property
    def pace(self) -> tuple[float, float] | None:
        """Output tokens per second since the reading before, and requests that ended; None where that is not known."""
        change = self.change
        if not isinstance(change, Change):
            return None
        return change.pace, change.finished

    def then(self, t: float, page: Page, change: Change | Unmeasured) -> Reading:
        """The reading after this one."""
        totals = change.totals if isinstance(change, Change) else None
        unbroken = t if totals is None else self.unbroken_since
        accepted, drafted = self.begun
        if totals is not None:
            more, of = totals.counter("accepted_tokens"), totals.counter("draft_tokens")
            if more is not None and of is not None:
                accepted, drafted = accepted + more, drafted + of
        if drafted < ENOUGH_DRAFTED:
            return Reading(t, page, change, begun=(accepted, drafted), unbroken_since=unbroken)
        return Reading(t, page, change, DraftingPart(accepted / drafted, drafted, t), unbroken_since=unbroken)


@dataclass(frozen=True)
class Window:
    """The readings of one pod within the last `seconds`, oldest first."""

    seconds: float
    limit: int = 240
    """Readings kept at most; at least 2, so that there is a pair."""
    readings: tuple[Reading, ...] = ()

    def __post_init__(self) -> None:
        if self.limit < 2:
            raise ValueError(f"a window keeps at least 2 readings, not {self.limit}")

    def add(self, page: Page, t: float) -> Window:
        """This window with one more reading, and without those more than `seconds` older.

        After a clock that stood still or went back the window starts anew: nothing before it can be timed. A page that
        lost series while its process went on was cut short between two families: it is not taken.
        """
        if not self.readings or t <= self.readings[-1].t:
            return Window(self.seconds, self.limit, (Reading(t, page, None),))
        last = self.readings[-1]
        change = change_between(last.page, page, t - last.t)
        if (
            isinstance(change, Unmeasured)
            and change.reason is Reason.SERIES_VANISHED
            and page.process_start is not None
            and page.process_start == last.page.process_start
        ):
            return self
        kept = self.readings[self._first(t - self.seconds) :][1 - self.limit :]
        return Window(self.seconds, self.limit, (*kept, last.then(t, page, change)))

    def since(self, t: float) -> Window:
        """The readings from time `t` on."""
        first = self._first(t)
        return Window(self.seconds, self.limit, self.readings[first:]) if first else self

    def _first(self, t: float) -> int:
        """Index of the first reading from time `t` on. The readings' times rise."""
        return bisect_left(self.readings, t, key=_time) if self.readings and self.readings[0].t < t else 0

    @cached_property
    def change(self) -> Change | Unmeasured | None:
        """The whole of the window, from its oldest to its newest reading; None before there are two.

        A restart splits the readings: then it begins with the first of the process that runs now, and where there is
        none but the newest yet, says why nothing can be measured.
        """
        if len(self.readings) < 2:
            return None
        newest, first = self.readings[-1], self._first(self.readings[-1].unbroken_since)
        if first >= len(self.readings) - 2:
            return newest.change
        return change_between(self.readings[first].page, newest.page, newest.t - self.readings[first].t)

    @cached_property
    def measurement(self) -> Measurement | Unmeasured | None:
        """What `change` says."""
        return measurement([self.change]) if isinstance(self.change, Change) else self.change

    def stretches(self, request_steps: float) -> Iterator[tuple[float, Change]]:
        """The window in stretches as short as can be that hold so many request-steps each: when they ended, and what
        happened in them. One reading each, but where an engine is slow or has little to do."""
        first = 0
        for i, reading in enumerate(self.readings[1:], 1):
            stretch = reading.change
            if not isinstance(stretch, Change) or stretch.request_steps is None:
                first = i
                continue
            if i - first > 1:
                # A look at two counts, not at two pages: most stretches are too short.
                if not _request_steps(reading.page) - _request_steps(self.readings[first].page) >= request_steps:
                    continue
                stretch = Window(self.seconds, self.limit, self.readings[first : i + 1]).change
            if isinstance(stretch, Change) and (stretch.request_steps or 0.0) >= request_steps:
                yield reading.t, stretch
                first = i

    @property
    def activity(self) -> Activity | None:
        """What the pod does now; None where the newest pair of readings cannot be measured."""
        quiet = 0.0
        activity = None
        for reading in reversed(self.readings):
            if not isinstance(reading.change, Change):
                break
            activity = activity or reading.change.activity
            if reading.change.activity not in (Activity.WAITING, Activity.STALLED):
                break
            quiet += reading.change.seconds
        return Activity.STALLED if activity is Activity.WAITING and quiet >= STALL_SECONDS else activity


_time, _rate, _drafted = attrgetter("t"), attrgetter("rate"), attrgetter("drafted")


def _request_steps(page: Page) -> float:
    """Since the process started; not a number where an engine does not count them."""
    return math.fsum([math.nan if e.inter_token is None else e.inter_token.count for e in page.engines])


def pods_together(windows: Iterable[Window]) -> Measurement | None:
    """What the pods did together over their windows; None where none of them can be measured."""
    changes = [w.change for w in windows if isinstance(w.change, Change)]
    return measurement(changes) if changes else None


def queue_growth(window: Window) -> float:
    """Requests per second by which a pod's queue grew; 0 over a window that tells no change."""
    if not isinstance(window.change, Change):
        return 0.0
    first, last = window.readings[0], window.readings[-1]
    return (_waiting(last) - _waiting(first)) / (last.t - first.t)


def queued(windows: Sequence[Window], together: Measurement) -> float:
    """Requests per second that are asked of pods beyond those that they serve `together`: those by which queues grew,
    or those that wait, as if they were to be served within the window, up to as many again. 0 where it is not known how
    long answers are."""
    served, length = together.generation_tokens_per_second, together.output_length
    if not served or not length:
        return 0.0
    growth = math.fsum(max(0.0, queue_growth(w)) for w in windows)
    measured = (w.readings for w in windows if isinstance(w.change, Change))
    backlog = math.fsum(_waiting(readings[-1]) / (readings[-1].t - readings[0].t) for readings in measured)
    return max(growth, min(backlog, served / length))


def _waiting(reading: Reading) -> float:
    return math.fsum(e.waiting or 0.0 for e in reading.page.engines)


@dataclass(frozen=True)
class Spread:
    """How acceptance rates are distributed over parts of windows and pods, every part weighing as many tokens as it
    drafted."""

    p10: float
    p50: float
    p90: float
    draft_tokens: float


def acceptance_spread(windows: Iterable[Window]) -> Spread | None:
    """The spread over all windows, in parts of at least `ENOUGH_DRAFTED` tokens; None where less was drafted."""
    rates = sorted((part for window in windows for part in drafting_parts(window)), key=_rate)
    if not rates:
        return None
    reached = list(accumulate(map(_drafted, rates)))
    drafted = reached[-1]
    p10, p50, p90 = (rates[bisect_left(reached, q * drafted)].rate for q in (0.1, 0.5, 0.9))
    return Spread(p10, p50, p90, drafted)


def drafting_parts(window: Window) -> list[DraftingPart]:
    """The parts of at least `ENOUGH_DRAFTED` tokens each that end within a window, oldest first."""
    return [r.drafting for r in window.readings[1:] if r.drafting is not None]
