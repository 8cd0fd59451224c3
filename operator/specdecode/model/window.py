"""The recent readings of a pod, and what they say: as a whole, part by part, and as a distribution over pods."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

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


@dataclass(frozen=True)
class Reading:
    """One page of a pod."""

    t: float
    """Seconds, of any clock that goes on."""
    page: Page
    change: Change | Unmeasured | None
    """Since the reading before; None for a first one."""

    @cached_property
    def part(self) -> Measurement | None:
        """What the time since the reading before says; None where it cannot be measured."""
        return measurement([self.change]) if isinstance(self.change, Change) else None


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
            return replace(self, readings=(Reading(t, page, None),))
        last = self.readings[-1]
        change = change_between(last.page, page, t - last.t)
        if (
            isinstance(change, Unmeasured)
            and change.reason is Reason.SERIES_VANISHED
            and page.process_start is not None
            and page.process_start == last.page.process_start
        ):
            return self
        kept = tuple(r for r in self.readings if r.t >= t - self.seconds)[1 - self.limit :]
        return replace(self, readings=(*kept, Reading(t, page, change)))

    def since(self, t: float) -> Window:
        """The readings from time `t` on."""
        return replace(self, readings=tuple(r for r in self.readings if r.t >= t))

    @cached_property
    def change(self) -> Change | Unmeasured | None:
        """The whole of the window, from its oldest to its newest reading; None before there are two.

        A restart splits the readings: then it begins with the first of the process that runs now, and where there is
        none but the newest yet, says why nothing can be measured.
        """
        if len(self.readings) < 2:
            return None
        *earlier, newest = self.readings
        first = newest
        for before, after in zip(reversed(earlier), reversed(self.readings), strict=False):
            if not isinstance(after.change, Change):
                break
            first = before
        return newest.change if first is newest else change_between(first.page, newest.page, newest.t - first.t)

    @cached_property
    def measurement(self) -> Measurement | Unmeasured | None:
        """What `change` says."""
        return measurement([self.change]) if isinstance(self.change, Change) else self.change

    @property
    def parts(self) -> tuple[Measurement, ...]:
        """What the times between consecutive readings say, oldest first, where they can be measured."""
        return tuple(r.part for r in self.readings[1:] if r.part is not None)

    def latest(self, request_steps: float) -> Measurement | None:
        """The newest stretch that holds so many request-steps; None where the window does not hold as many.

        A stretch as short as can be: a step's time belongs to one batch size, and over a whole window that changes.
        """
        if not self.readings:
            return None
        newest = self.readings[-1]
        for later, earlier in itertools.pairwise(reversed(self.readings)):
            if not isinstance(later.change, Change):
                return None
            stretch = change_between(earlier.page, newest.page, newest.t - earlier.t)
            steps = stretch.figures.inter_token if isinstance(stretch, Change) else None
            if isinstance(stretch, Change) and steps is not None and steps.count >= request_steps:
                return measurement([stretch])
        return None

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


def pods_together(windows: Iterable[Window]) -> Measurement | None:
    """What the pods did together over their windows; None where none of them can be measured."""
    changes = [w.change for w in windows if isinstance(w.change, Change)]
    return measurement(changes) if changes else None


@dataclass(frozen=True)
class Spread:
    """How acceptance rates are distributed over parts of windows and pods, every part weighing as many tokens as it
    drafted."""

    p10: float
    p50: float
    p90: float
    draft_tokens: float


ENOUGH_DRAFTED = 200
"""Drafted tokens that a rate in the spread is taken from: with fewer, chance alone spreads them (sd 0.03 at 0.75)."""


def acceptance_spread(windows: Iterable[Window]) -> Spread | None:
    """The spread over all windows, in parts of at least `ENOUGH_DRAFTED` tokens; None where less was drafted."""
    rates = sorted(part for window in windows for part in _drafting_parts(window))
    if not rates:
        return None
    drafted = sum(weight for _, weight in rates)
    p10, p50, p90 = (_weighted_quantile(rates, q * drafted) for q in (0.1, 0.5, 0.9))
    return Spread(p10, p50, p90, drafted)


def _drafting_parts(window: Window) -> Iterable[tuple[float, float]]:
    """Acceptance rate and drafted tokens of stretches long enough to tell."""
    accepted = drafted = 0.0
    for reading in window.readings[1:]:
        figures = reading.change.figures if isinstance(reading.change, Change) else None
        if figures is None or figures.draft_tokens is None or figures.accepted_tokens is None:
            continue
        accepted, drafted = accepted + figures.accepted_tokens, drafted + figures.draft_tokens
        if drafted >= ENOUGH_DRAFTED:
            yield accepted / drafted, drafted
            accepted = drafted = 0.0


def _weighted_quantile(ordered: list[tuple[float, float]], rank: float) -> float:
    """The smallest value whose weight, with that of all smaller ones, reaches the rank."""
    reached = 0.0
    for value, weight in ordered:
        reached += weight
        if reached >= rank:
            return value
    return ordered[-1][0]
