"""What the history says of a profile: what was tried, and what of that tells something about today."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from specdecode.api.quantities import format_duration
from specdecode.api.v1alpha1 import HistoryEntry, Outcome
from specdecode.model.loads import DAY, HOUR
from specdecode.model.tokens import moved
from specdecode.policy.clock import seconds_of
from specdecode.policy.decision import Reason
from specdecode.policy.observation import Observation
from specdecode.policy.spare import NO_CAPACITY, cannot_spare_one
from specdecode.policy.track_record import was_slower

MAX_BACKOFF = 16
"""A change that failed again and again is tried again after at most this many cool-downs."""
BACKLOG = 2.0
"""Factor by which the load of pods that fall behind may be more than what is asked of them: what waits is a part of
it, up to as much again."""
LOAD_TURNED = 1.5
"""Factor in load from which an earlier failure proves nothing."""
SHORT_LIVED = 4
"""Cool-downs for which a change must at least have been right."""
TRAFFIC_TURNED = 0.3
"""Change of log(E - 1) from which the traffic is another."""
COMPARED = frozenset({"Slower", "TailWorse", "GainTooSmall", "NotSure"})
"""Endings of changes whose canary could have been promoted for what it showed, and was not."""
UNTOLD = frozenset({"UnequalLoad", "TooFewRequests", "PodMissed"})
"""Endings of changes whose canary told nothing."""
MEASURED = COMPARED | UNTOLD
"""Endings (`rollout.ending`) of changes that failed for what was measured, not because the profile does not run."""


HISTORY = 20
"""Changes that the history remembers."""


def remembered(history: Sequence[HistoryEntry], now: float) -> list[HistoryEntry]:
    """The history, newest first, without what it has no room for: the oldest, but of a day those that found no room
    first. They changed nothing, and would push out what the limit of changes a day counts."""
    kept = list(history)
    while len(kept) > HISTORY:
        oldest = kept[-1]
        if seconds_of(oldest.started_at) > now - DAY:
            oldest = next((h for h in reversed(kept) if h.outcome_reason == NO_CAPACITY), oldest)
        kept.remove(oldest)
    return kept


def failures(history: Iterable[HistoryEntry]) -> int:
    """How many of the last changes, newest first, did not succeed in a row."""
    return len(_in_a_row(history))


def _in_a_row(history: Iterable[HistoryEntry]) -> list[HistoryEntry]:
    return list(takewhile(lambda entry: entry.outcome is not Outcome.SUCCESSFUL, history))


def lost_today(o: Observation, profile: str) -> int:
    """How many canaries of a profile were compared in a row without success, whatever the load was then."""
    return failures(
        entry
        for entry in o.history
        if entry.target.profile == profile and entry.reason != Reason.RESTART_RESTORES
        if entry.outcome is Outcome.SUCCESSFUL or entry.outcome_reason in COMPARED
        if seconds_of(entry.finished_at) > o.now - DAY
    )


def backoff(o: Observation, profile: str) -> int:
    """Factor on the cool-down: doubles with each of the last changes to a profile that did not succeed, as far as they
    tell something about today. A measurement that failed is no bad result: it takes two of those."""
    failed = sum(0.5 if entry.outcome_reason in UNTOLD else 1.0 for entry in _in_a_row(tries(o, profile)))
    return int(min(2**failed, MAX_BACKOFF))


def tries(o: Observation, profile: str) -> Iterator[HistoryEntry]:
    """The last changes to a profile, newest first, but for restarts, and those that were measured in another traffic or
    at another load, beyond what it varies by in an hour: what lost then may win today, and what won tells no more.
    Where a pod can be given up for a canary by now, those do not count that found no room."""
    turned = moved(o.knowledge, profile) > TRAFFIC_TURNED
    now = o.loads.at(o.now)
    room = o.policy.rollout.allow_unavailable and cannot_spare_one(o, len(o.running(o.active)), profile) is None
    for entry in o.history:
        if entry.target.profile != profile or entry.reason == Reason.RESTART_RESTORES:
            continue
        then = o.loads.between(seconds_of(entry.started_at) - HOUR, seconds_of(entry.finished_at))
        elsewhere = now and then and not then[0] / LOAD_TURNED < now < then[1] * LOAD_TURNED
        if turned or elsewhere:
            if entry.outcome is Outcome.SUCCESSFUL:
                return
            if entry.outcome_reason in MEASURED:
                continue
        if room and entry.outcome_reason == NO_CAPACITY:
            continue
        yield entry


def fell_behind(o: Observation, profile: str) -> str | None:
    """That the pods were seen to fall behind with a profile today, at a load of which more than half (a backlog is a
    part of it) is asked now, where it is not sure that it would be faster."""
    if o.estimates.surely_faster(o.estimates.candidate(profile)):
        return None
    now = o.loads.at(o.now) or 0.0
    for entry in o.history:
        if entry.reason != Reason.OVERLOADED or entry.outcome is not Outcome.SUCCESSFUL:
            continue
        age, then = o.now - seconds_of(entry.finished_at), o.loads.at(seconds_of(entry.started_at))
        if entry.source.profile == profile and age < DAY and then is not None and now > then / BACKLOG:
            ago = format_duration(round(age))
            return f"the pods fell behind with it {ago} ago, and more than half of that load, backlog included, is back"
    return None


def taken_back(o: Observation, profile: str) -> list[float]:
    """When a profile was replaced today soon after it was promoted, in Unix seconds, the last first: what makes it pay
    comes and goes faster than pods can be changed for it."""
    soon = SHORT_LIVED * o.policy.rollout.cooldown
    made = [h for h in o.history if h.outcome is Outcome.SUCCESSFUL and h.source.profile != h.target.profile]
    began = [seconds_of(h.finished_at) for h in made if h.target.profile == profile]
    ended = [h for h in made if h.source.profile == profile and seconds_of(h.finished_at) > o.now - DAY]
    short = [h for h in ended if any(0 <= seconds_of(h.started_at) - t < soon for t in began)]
    return [seconds_of(h.finished_at) for h in short]


def given_up_in_vain(o: Observation, profile: str) -> list[float]:
    """When a canary of a profile ended today for which a pod was given up and which told nothing, in Unix seconds."""
    told_nothing = (
        h for h in o.history if h.target.profile == profile and h.give_up_one and h.outcome_reason in UNTOLD
    )
    return [t for h in told_nothing if (t := seconds_of(h.finished_at)) > o.now - DAY]


def was_worse(o: Observation, profile: str) -> str | None:
    """What users got with a profile today that speaks against it, whatever is predicted."""
    if (slower := was_slower(o, profile, o.now - DAY)) is not None:
        ours, theirs = (f"{service.tpot * 1e3:.1f} ms" for service in slower)
        return f"a token took {ours} with it, and {theirs} with what the manifest says, at no less load"
    return fell_behind(o, profile)


def last_failed(o: Observation, profile: str) -> float:
    """Unix seconds of the end of the last change to a profile that did not succeed, whatever the load was then."""
    failed = (h for h in o.history if h.target.profile == profile and h.outcome is not Outcome.SUCCESSFUL)
    return max((seconds_of(h.finished_at) for h in failed), default=-math.inf)


def last_tried(o: Observation, profile: str) -> float:
    """Unix seconds of the end of the last of `tries`; minus infinity where there is none."""
    return next((seconds_of(h.finished_at) for h in tries(o, profile)), -math.inf)
