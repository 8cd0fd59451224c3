"""The brakes: they do not change what is right, only whether it may be done now."""

from __future__ import annotations

import math
from collections.abc import Callable

from specdecode.api.quantities import format_duration
from specdecode.api.v1alpha1 import Mode, Outcome
from specdecode.model.loads import DAY, HOUR
from specdecode.policy.ageing import restarts_are_rationed
from specdecode.policy.behind import long_behind, may_fall_behind
from specdecode.policy.clock import seconds_of
from specdecode.policy.decision import GETS_TO_RUN, PROBES, Decision, Reason
from specdecode.policy.live import can_be_live
from specdecode.policy.observation import Observation
from specdecode.policy.past import (
    SHORT_LIVED,
    UNTOLD,
    backoff,
    failures,
    given_up_in_vain,
    last_tried,
    taken_back,
    tries,
)
from specdecode.policy.spare import NO_CAPACITY, one_is_given_up

Brake = Callable[[Observation, Decision], tuple[Reason, str] | None]


def cooling_down(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """Rest after a change, longer for a profile whose last changes did not succeed. What is urgent waits for those
    only."""
    if not o.history or d.target is None:
        return None
    if d.reason in GETS_TO_RUN and not any(
        h.reason == d.reason and seconds_of(h.finished_at) > o.now - DAY for h in o.history
    ):
        # What a canary showed when there was less to do is what this does not go by.
        return None
    profile, cooldown = d.target.profile, o.policy.rollout.cooldown
    until = -math.inf
    if not d.urgent:
        until = seconds_of(o.history[0].finished_at) + cooldown
    if not d.urgent or failures(tries(o, profile)):
        # What failed in a burst, or after one, says little about pods that have long fallen behind.
        until = max(until, last_tried(o, profile) + cooldown * (1 if _relieves(o, d) else backoff(o, profile)))
    return _rests(o, until, "resting after the last change")


def never_lasts(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """What was soon replaced each time that it was promoted waits for as long as it should have lasted, twice as long
    for each time more, but for what the manifest says."""
    if d.target is None or o.active is None or o.active.profile == d.target.profile:
        return None
    ended = taken_back(o, d.target.profile)
    if not ended or o.is_own(d.target) or _relieves(o, d):
        return None
    until = ended[0] + SHORT_LIVED * o.policy.rollout.cooldown * 2.0 ** (len(ended) - 1)
    return _rests(o, until, f"as {d.target.profile} was soon replaced when it was promoted today, it is resting")


def tells_nothing(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """No third pod a day is given up for canaries of a profile that tell nothing: users miss it."""
    vain = given_up_in_vain(o, d.target.profile) if d.target is not None else []
    if d.target is None or len(vain) < MOST_IN_VAIN or d.reason in GETS_TO_RUN:
        return None
    why = f"a pod was given up for {len(vain)} canaries of {d.target.profile} today, and they told nothing: resting"
    return _rests(o, min(vain) + DAY, why)


MOST_IN_VAIN = 2
"""Canaries of a profile in a day that may tell nothing where a pod is given up for each."""


def _rests(o: Observation, until: float, why: str) -> tuple[Reason, str] | None:
    if o.now >= until:
        return None
    return Reason.COOLING_DOWN, f"{why} for {format_duration(round(until - o.now))} more"


def changes_exhausted(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """The policy allows so many changes a day. What is turned on to see whether it pays, in vain, takes at most half of
    them; the last two are kept for the way back, to no speculation or to what the manifest says, and the very last for
    pods that have long fallen behind, which must be answered whatever was tried before, where the load of the last day
    says that they may."""
    limit = o.policy.rollout.max_changes_per_day
    # A canary that found no node changed nothing.
    today = [h for h in o.history if seconds_of(h.started_at) > o.now - DAY and h.outcome_reason != NO_CAPACITY]
    in_vain = [
        h
        for h in today
        if h.reason in FINDING_OUT and h.outcome is not Outcome.SUCCESSFUL and h.outcome_reason not in UNTOLD
    ]
    goes_back = o.is_own(d.target) and d.reason not in PROBES and not d.restart
    turns_on = d.target is not None and d.target.speculation is not None and not goes_back
    said = f"{len(today)} changes in 24 hours; spec.rollout.maxChangesPerDay allows {limit}"
    left, kept = limit - len(today), 2 if limit >= ENOUGH_TO_KEEP_TWO else 1
    if left <= 0:
        return Reason.CHANGES_EXHAUSTED, said
    if turns_on and today and left <= kept:
        last = "the last two are" if kept == 2 else "the last is"
        return Reason.CHANGES_EXHAUSTED, f"{said}, and {last} kept for the way back"
    if kept == 2 and left == 1 and may_fall_behind(o) and not (d.reason in GETS_TO_RUN or _relieves(o, d)):
        return Reason.CHANGES_EXHAUSTED, f"{said}, and the last is kept for pods that have long fallen behind"
    if turns_on and d.reason in FINDING_OUT and len(in_vain) >= max(1, limit // 2):
        return Reason.CHANGES_EXHAUSTED, f"{len(in_vain)} of {said}, and half of them at most for what is tried in vain"
    return None


ENOUGH_TO_KEEP_TWO = 4
"""Changes a day of which two are left to find something better."""


def _relieves(o: Observation, d: Decision) -> bool:
    """Whether the pods have long fallen behind, and would less with what is asked for."""
    return d.target is not None and long_behind(o) and o.estimates.makes_room(d.target.profile)


FINDING_OUT = frozenset({Reason.WORTH_A_CANARY, *PROBES})
"""Reasons of changes that are not sure to pay."""


def strategy_forbids(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """`Recreate` says that two versions must not run side by side."""
    workload = o.workload
    if workload is None or workload.strategy.get("type") != "Recreate" or o.policy.rollout.allow_unavailable:
        return None
    if d.target is not None and not d.restart and can_be_live(o, d.target):
        return None
    return (
        Reason.STRATEGY_FORBIDS,
        f"Deployment {workload.name} has strategy Recreate: set spec.rollout.allowUnavailable or use RollingUpdate",
    )


def too_few_requests(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """At the load of now, and of the last hour, the canary would not get the requests that it takes to judge."""
    m, load, rules = o.estimates.measured, o.estimates.load, o.policy.rollout.analysis
    if m is None or load is None or not m.output_length:
        return None
    pods = o.serving
    asked = max(load.tokens_per_second * pods, o.loads.mean(o.now - HOUR, o.now) or 0.0)
    # In the place of a pod, and one of as many, or beside the others.
    in_place = pods == 1 or one_is_given_up(o, for_sure=True) or (d.target is not None and can_be_live(o, d.target))
    expected = asked / (pods if in_place else pods + 1) / m.output_length * rules.longest
    if expected >= rules.minimum_requests:
        return None
    return (
        Reason.TOO_FEW_REQUESTS,
        f"a canary would get about {expected:.0f} requests in {format_duration(rules.longest)}, and it takes"
        f" {rules.minimum_requests} to judge (spec.rollout.analysis.minimumRequests)",
    )


BRAKES: tuple[Brake, ...] = (
    strategy_forbids,
    cooling_down,
    never_lasts,
    tells_nothing,
    restarts_are_rationed,
    changes_exhausted,
    too_few_requests,
)


def held_back(o: Observation, d: Decision) -> tuple[Reason, str] | None:
    """What keeps a change from being made now, and why in words; None: nothing."""
    return next((held for brake in BRAKES if (held := brake(o, d)) is not None), None)


def may_act(o: Observation, d: Decision) -> bool:
    """Whether the decision is carried out now."""
    return d.change and d.held_back is None and o.policy.mode is Mode.AUTO
