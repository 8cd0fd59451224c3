"""Without a spare GPU: whether a pod may be given up for a canary, and whether what it proves could be taken back."""

from __future__ import annotations

from itertools import pairwise

from specdecode.api.v1alpha1 import DISABLED
from specdecode.model.cost import Option
from specdecode.model.loads import DAY
from specdecode.model.measure import Change
from specdecode.policy.behind import long_behind
from specdecode.policy.clock import seconds_of
from specdecode.policy.observation import AT_THE_LIMIT, Observation

NO_CAPACITY = "NoCapacity"
"""Ending (`rollout.ending`) of a change whose canary found no node."""
LONG_AGO = 6 * 3600.0
"""Seconds after which a GPU may have become free: an additional pod that waits a minute for it costs nothing."""
AMPLE = 1.5
"""Headroom that the other pods must have before one is given up to find something out, or to turn something on."""
MOST_OF_IT = 0.8
"""Headroom that the others must have without one pod to switch off: what waits meanwhile is soon worked off."""

UNEQUAL_LOAD = 1.5
"""Factor in load per pod between canary and baseline from which the one with less has it too easy to win."""


def one_is_given_up(o: Observation, *, for_sure: bool = False) -> bool:
    """Whether a canary has to take the place of another pod: that is allowed, and the last one found no room beside
    them. Where nobody knows, or only from `LONG_AGO`, it is taken to, unless asked `for_sure`."""
    if not o.policy.rollout.allow_unavailable:
        return False
    last = next((entry for entry in o.history if not entry.live), None)
    if last is None:
        return not for_sure
    full = last.give_up_one or last.outcome_reason == NO_CAPACITY
    return full and not (for_sure and o.now - seconds_of(last.finished_at) > LONG_AGO)


def cannot_spare_one(o: Observation, pods: int, profile: str) -> str | None:
    """Why none of so many pods may be given up for a change to a profile: a canary in its place would tell nothing, or
    the others could not carry the load without it. Where they have long fallen behind as it is, the change may be the
    way out (a burst is over before a canary has started); and to switch off, most of the load will do for the time that
    pods start, if that is paid back (for sure, where the user chose what runs) and all of it is carried afterwards."""
    e = o.estimates
    here, option = e.running, e.candidate(profile)
    too_few = "without one pod the others could not carry the load"
    if here is None:
        return too_few
    if _none_serves_as_much_as_another(o):
        return "no two pods get a like load, and a canary in the place of one could be held against none of the others"
    without = here.headroom_without_one(pods)
    if without > AT_THE_LIMIT:
        return None
    if option is None or profile not in e.predictions:
        return too_few
    if e.overloaded:
        return None if long_behind(o) and e.relieved_by(option) else too_few
    carried = without > MOST_OF_IT and e.predictions[profile].headroom > max(AT_THE_LIMIT, here.headroom)
    return None if profile == DISABLED and carried and _is_paid_back(o, option) else too_few


def _none_serves_as_much_as_another(o: Observation) -> bool:
    """Whether the load is dealt out that unevenly."""
    changes = (p.window.change for p in o.running(o.active))
    paces = sorted(c.pace for c in changes if isinstance(c, Change))
    return len(paces) > 1 and all(more > UNEQUAL_LOAD * less for less, more in pairwise(paces))


def _is_paid_back(o: Observation, option: Option) -> bool:
    """Whether a change is worth what it costs; where it leaves what the user chose, that has to be sure."""
    outlook = o.estimates.outlooks.get(option.profile)
    paid = outlook is not None and outlook.benefit > 0
    return paid and (not o.is_own(o.active) or o.estimates.surely_faster(option))


def waits_for_room(o: Observation, option: Option) -> bool:
    """Whether the way back, to no speculation or to what the manifest says, was wanted today and found no pod that
    could be given up for it."""
    if option.profile != DISABLED and not o.is_own(option):
        return False
    last = next((h for h in o.history if h.target.profile == option.profile), None)
    refused = last is not None and last.outcome_reason == NO_CAPACITY and o.now - seconds_of(last.finished_at) < DAY
    return refused and one_is_given_up(o, for_sure=True)


def cannot_spare_much(o: Observation) -> bool:
    """Whether a canary that only finds something out would cost a pod that the others would miss."""
    running, pods = o.estimates.running, o.serving
    return running is not None and one_is_given_up(o) and running.headroom_without_one(pods) < AMPLE


def cannot_go_back(o: Observation, option: Option) -> str | None:
    """Why a change for which a pod is given up could not be taken back: another one would have to be given up for that,
    and the others could not carry the highest load of the last day. What the user's own manifest says needs no way
    back; and where there is one pod only, each change takes the service down, and that was allowed."""
    running, load, pods = o.estimates.running, o.estimates.load, len(o.running(o.active))
    if running is None or load is None or pods < 2 or o.is_own(option):
        return None
    without = running.headroom_without_one(pods)
    past = o.loads.between(o.now - DAY, o.now)
    if without >= AMPLE and (past is None or without * load.tokens_per_second * pods >= AT_THE_LIMIT * past[1]):
        return None
    return (
        "a pod would have to be given up for it, and the others could not carry the load of now with room to spare, or"
        " the highest of the last day, to take it back: free a GPU"
    )
