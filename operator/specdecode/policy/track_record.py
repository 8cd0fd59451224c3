"""Whether an option did worse than what the user's own manifest says: what users got with each, whatever was predicted
of it or its canary showed."""

from __future__ import annotations

import math

from specdecode.model.loads import DAY, HOUR
from specdecode.model.service import Service, latest
from specdecode.policy.observation import Observation

LEAST = 600.0
"""Seconds of service before anything is said of an option."""
LOST = 120.0
"""Seconds of work that users must have lost over the shorter service of the two: 3 % of an hour, 10 % of twenty
minutes."""
AS_MUCH = 0.97
"""Share of a load that is as good as all of it."""
ELSEWHERE = 1.1
"""Factor by which the load must have been higher for the record to tell nothing of now."""
ANOTHER_KIND = 1.25
"""Factor in the mean length of prompts from which requests are not the same."""


def was_slower(o: Observation, profile: str, since: float) -> tuple[Service, Service] | None:
    """What users got in the last hour of a profile after a time, and with what the manifest says when that was asked
    for as much, where that was faster; None where that cannot be said, or is not of loads like those of now.

    Nothing is concluded from a load that the manifest's own was not seen to serve: more is slower with anything.
    """
    own, load = o.own, o.loads.crowded(o.now - HOUR, o.now)
    other = _service(o, profile, since)
    if own is None or own.profile == profile or other is None or other.seconds < LEAST:
        return None
    if load is None or load / o.serving < other.load / ELSEWHERE:
        return None
    manifest = _service(o, own.profile, o.now - DAY, AS_MUCH * other.load)
    if manifest is None:
        return None
    if abs(math.log((1 + other.prompt_length) / (1 + manifest.prompt_length))) > math.log(ANOTHER_KIND):
        return None
    if min(other.seconds, manifest.seconds) * math.log(other.tpot / manifest.tpot) < LOST:
        return None
    return other, manifest


def unlike_own(o: Observation, profile: str, since: float) -> Service | None:
    """What users got in the last hour of a profile after a time; None where nothing was served, or where at such a load
    the manifest's own was seen today, too: then `was_slower` knows."""
    own, seen = o.own, _service(o, profile, since)
    if own is None or seen is None:
        return None
    known = _service(o, own.profile, o.now - DAY, seen.load / ELSEWHERE)
    return None if known is not None and known.seconds >= LEAST else seen


def _service(o: Observation, profile: str, since: float, least_load: float = 0.0) -> Service | None:
    known = o.knowledge.get(profile)
    return latest(known.service, since, least_load) if known is not None else None
