"""Pods that fall behind: whether it is a burst, or lasts."""

from __future__ import annotations

import math

from specdecode.model.loads import DAY
from specdecode.policy.clock import seconds_of
from specdecode.policy.observation import AT_THE_LIMIT, Observation

BEHIND_FOR = 900.0
"""Seconds for which more is asked than the pods can carry before that counts as more than a burst."""


def carries(o: Observation) -> float | None:
    """Tokens per second that a pod carries with what runs; None where that is not known."""
    e, load = o.estimates, o.estimates.load
    if e.running is None or load is None:
        return None
    carried = e.running.headroom * load.tokens_per_second
    if e.queueing and e.measured is not None:
        # The model does not know how many requests the KV cache has room for: what is served tells.
        carried = min(carried, (e.measured.generation_tokens_per_second or math.inf) / o.serving)
    return carried


def long_behind(o: Observation, margin: float = 1.0) -> bool:
    """Whether more is asked than the pods carry, or less by a factor of `margin`, for `BEHIND_FOR` now and with what
    runs now."""
    carried, since, last = carries(o), o.now - BEHIND_FOR, o.last_success
    asked = o.loads.between(since, o.now) if o.loads.at(since) is not None else None
    if carried is None or asked is None or (last is not None and seconds_of(last.finished_at) > since):
        return False
    return asked[0] * margin >= carried * o.serving


def may_fall_behind(o: Observation) -> bool:
    """Whether the highest load of the last day would be too much for what runs, or nobody knows."""
    carried, past = carries(o), o.loads.between(o.now - DAY, o.now)
    if carried is None or past is None:
        return True
    return past[1] * AT_THE_LIMIT > carried * o.serving
