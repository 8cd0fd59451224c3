"""Back to what the user's own manifest says, where that was seen to be better, or nothing can show that it is not.

These gates go by what users got, not by what is predicted, and their canary has to work, not to win: measured beside
pods that are overloaded, with one pod more than there will be, it tells little.
"""

from __future__ import annotations

import math

from specdecode.api.quantities import format_duration, format_minutes
from specdecode.api.v1alpha1 import HistoryEntry, Mode, Outcome
from specdecode.model.cost import Option
from specdecode.model.loads import DAY
from specdecode.policy.behind import BEHIND_FOR, carries, long_behind
from specdecode.policy.clock import seconds_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.guards import breaks_tpot_limit
from specdecode.policy.observation import AT_THE_LIMIT, Observation
from specdecode.policy.options import describe
from specdecode.policy.past import fell_behind
from specdecode.policy.track_record import unlike_own, was_slower

OWN_MAY_LOSE = 0.25
"""By how much slower its canary may be, which has little to do."""
IN_A_LULL = 0.1
"""The same where only the model speaks for it: about what it loses where there is little to do."""
MUCH = 0.14
"""By how much slower tokens must have been than the model's for what the manifest says, as a log: models err."""
LONG_ENOUGH = 1800.0
"""Seconds of service, bursts and lulls, that are held against what the model says."""
LOST_BY_MODEL = 300.0
"""Seconds of work that users must have lost by it."""


def overloaded_by_ours(o: Observation) -> Decision | None:
    """The pods have long fallen behind with what the user did not choose, and what they did choose is expected to carry
    more, or nobody knows: a canary, one pod more, cannot tell, so it gets to run. Where nobody knows, it is enough that
    they are about to fall behind: what spoke for leaving it was seen where there was less to do."""
    e, pair = o.estimates, _ours_and_theirs(o)
    if pair is None:
        return None
    active, own = pair
    would = e.predictions.get(own.profile)
    if would is None or not (e.own_is_untried or e.makes_room(own.profile)):
        return None
    # That its KV cache would be as full is no objection: requests wait for room in this one.
    if breaks_tpot_limit(o, own) or fell_behind(o, own.profile):
        return None
    carried = carries(o)
    if carried is None or not long_behind(o, AT_THE_LIMIT if e.own_is_untried else 1.0):
        return None
    if would.capacity is not None and would.capacity.high < carried:
        return None
    more = f"nobody has seen what {describe(own)} carries" if e.own_is_untried else f"{describe(own)} carries more"
    return _gets_to_run(
        o,
        own,
        Reason.OVERLOADED,
        f"the pods have fallen behind with {describe(active)} for {format_duration(BEHIND_FOR)}, or nearly so, and"
        f" {more}, which the manifest asks for: it gets to run",
    )


def manifest_was_faster(o: Observation) -> Decision | None:
    """Since it runs, users got slower tokens than with what they chose themselves, at no more load: bursts, a hot spot
    or other traffic, which its canary did not meet."""
    pair = _ours_and_theirs(o)
    if pair is None:
        return None
    active, own = pair
    seen = was_slower(o, active.profile, _since_the_last_change(o))
    if seen is None or own.profile not in o.estimates.predictions:
        return None
    ours, theirs = seen
    return _gets_to_run(
        o,
        own,
        Reason.MANIFEST_WAS_FASTER,
        f"over {format_minutes(ours.seconds)} of service with {describe(active)} a token took {ours.tpot * 1e3:.1f} ms,"
        f" at {ours.load:.0f} tokens/s per pod; with {describe(own)}, which the manifest asks for, it took"
        f" {theirs.tpot * 1e3:.1f} ms at {theirs.load:.0f}: it gets to run",
    )


def manifest_would_be_faster(o: Observation) -> Decision | None:
    """Since it runs, bursts have cost users more than the lulls between them gained, and what they chose themselves
    would not have, by the model: it was not seen at such loads, or `manifest_was_faster` would know, and a burst may be
    over before a canary can show it."""
    pair, modelled = _ours_and_theirs(o), o.estimates.own_lately
    if pair is None or modelled is None or pair[1].profile not in o.estimates.predictions:
        return None
    active, own = pair
    if any(_disproved(h) and seconds_of(h.finished_at) > o.now - DAY for h in o.history):
        return None
    seen = unlike_own(o, active.profile, _since_the_last_change(o))
    if seen is None or seen.seconds < LONG_ENOUGH:
        return None
    gain = math.log(seen.tpot / modelled)
    if gain < MUCH or seen.seconds * gain < LOST_BY_MODEL:
        return None
    return _gets_to_run(
        o,
        own,
        Reason.MANIFEST_WAS_FASTER,
        f"over {format_minutes(seen.seconds)} of service with {describe(active)} a token took {seen.tpot * 1e3:.1f} ms,"
        f" bursts and lulls; at these loads {describe(own)}, which the manifest asks for, is expected to take"
        f" {modelled * 1e3:.1f} ms: it gets to run",
        may_lose=IN_A_LULL,
    )


def _disproved(entry: HistoryEntry) -> bool:
    """Whether a canary showed that what the manifest says would not have been faster."""
    return entry.reason == Reason.MANIFEST_WAS_FASTER and entry.outcome is Outcome.FAILED


def _since_the_last_change(o: Observation) -> float:
    """Unix seconds, a day ago at most."""
    last = o.last_success
    return max(o.now - DAY, seconds_of(last.finished_at) if last is not None else 0.0)


def _ours_and_theirs(o: Observation) -> tuple[Option, Option] | None:
    """What runs and what the manifest says, where that is something else, and changes are made at all."""
    if o.policy.mode is not Mode.AUTO or o.active is None or o.own is None or o.is_own(o.active):
        return None
    return o.active, o.own


def _gets_to_run(o: Observation, own: Option, reason: Reason, message: str, may_lose: float = OWN_MAY_LOSE) -> Decision:
    return Decision(
        reason,
        message,
        own,
        change=True,
        gain=o.estimates.gain(own),
        required_gain=-may_lose,
        urgent=True,
    )
