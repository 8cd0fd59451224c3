"""What users got while an option ran, half an hour by half an hour: bursts, queues and what they leave included.

A prediction is of a steady load, and a canary is one pod more for a quarter of an hour. Whether a change was right
shows in what users get over the hours after it, held against what they got before at such a load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt

HALF_HOUR = 1800.0
KEPT = 24
"""Half hours of service kept per option; the oldest go."""
RECENT = 3600.0
"""Seconds of service that are looked at: the last ones."""

Sum = Annotated[float, Ge(0), Lt(1e15)]


@dataclass(frozen=True)
class HalfHour:
    """Sums over the part of half an hour in which an option served alone. Tokens are output tokens per pod."""

    number: int
    """Counted from the epoch."""
    seconds: Sum = 0.0
    asked: Sum = 0.0
    """Tokens that were asked for."""
    crowd: Sum = 0.0
    """Tokens that were asked for, each times the tokens per second that were asked for then."""
    served: Sum = 0.0
    """Tokens that were served."""
    felt: Sum = 0.0
    """Seconds that they took: each token times the TPOT of then."""
    prompts: Sum = 0.0
    """Each token that was served, times the mean tokens of a prompt then."""

    @property
    def load(self) -> float:
        """Output tokens per second and pod that were asked for when the mean token was."""
        return self.crowd / self.asked if self.asked else 0.0


@dataclass(frozen=True)
class Service:
    """What users got over some time."""

    seconds: float
    load: float
    """As of a half hour."""
    tpot: float
    """Seconds; the mean over the tokens."""
    prompt_length: float
    """Mean tokens."""


@dataclass(frozen=True)
class Glance:
    """What was seen at one look. Loads are output tokens per second and pod."""

    asked: float
    served: float
    tpot: float
    """Seconds."""
    prompt_length: float
    """Mean tokens."""


def add(record: Sequence[HalfHour], now: float, seconds: float, seen: Glance) -> tuple[HalfHour, ...]:
    """The record with `seconds` more that ended now."""
    number = int(now // HALF_HOUR)
    *before, last = record if record and record[-1].number == number else (*record, HalfHour(number))
    tokens = seen.served * seconds
    last = HalfHour(
        number,
        seconds=last.seconds + seconds,
        asked=last.asked + seen.asked * seconds,
        crowd=last.crowd + seen.asked**2 * seconds,
        served=last.served + tokens,
        felt=last.felt + seen.tpot * tokens,
        prompts=last.prompts + seen.prompt_length * tokens,
    )
    return (*before[-(KEPT - 1) :], last)


def latest(record: Sequence[HalfHour], since: float, least_load: float = 0.0) -> Service | None:
    """What users got in the last half hours of at least some load, as many as make `RECENT` seconds of service, none of
    them over before a time; None where nothing was served."""
    taken: list[HalfHour] = []
    for half_hour in reversed(record):
        if (half_hour.number + 1) * HALF_HOUR < since or sum(h.seconds for h in taken) >= RECENT:
            break
        if half_hour.load >= least_load:
            taken.append(half_hour)
    asked, served, felt = (sum(getattr(h, name) for h in taken) for name in ("asked", "served", "felt"))
    if asked < 1 or served < 1 or not felt:
        return None
    return Service(
        seconds=sum(h.seconds for h in taken),
        load=sum(h.crowd for h in taken) / asked,
        tpot=felt / served,
        prompt_length=sum(h.prompts for h in taken) / served,
    )
