"""What the operator tells: the policy's status, and the Events that a change of it is worth. Pure.

An observation is never quite the same twice, and a status that followed every wobble would be written at every tick. So
the figures are written along with something that matters (a decision, a phase, a condition), and else only when they
have moved and the last ones are a few ticks old.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdecode.api.conditions import ConditionType
from specdecode.api.v1alpha1 import (
    AcceptanceStatus,
    Interval,
    Mode,
    ObservationStatus,
    Original,
    Outcome,
    ProfileStatus,
    Recommendation,
    RolloutPhase,
    SpecDecodePolicyStatus,
    StepTime,
    Summary,
)
from specdecode.controller.conditions import condition, conditions
from specdecode.model import knowledge
from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import Knowledge
from specdecode.policy.clock import seconds_of, text_of
from specdecode.policy.decision import Decision
from specdecode.policy.observation import Observation
from specdecode.policy.options import configuration, fields_of, fingerprint
from specdecode.rollout.phases import Step

HISTORY = 20
PROFILES = 17
"""What the API's list takes."""
REFRESH_TICKS = 4
"""Figures alone are written at most every so many ticks."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Notice:
    """A Kubernetes Event to be posted."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


def report(o: Observation, d: Decision, step: Step, before: SpecDecodePolicyStatus) -> SpecDecodePolicyStatus:
    """The status after a tick: `before` itself when there is nothing new worth writing."""
    if o.policy.mode is Mode.OBSERVE and step.rollout is None:
        d = Decision(d.reason, d.message)
    after = _status(o, d, step, before)
    if _significant(after) != _significant(before) or before.observation is None:
        return after
    fresh = o.now - seconds_of(before.observation.time) < REFRESH_TICKS * o.policy.metrics.interval
    return before if fresh or _timeless(after) == _timeless(before) else after


def notices(before: SpecDecodePolicyStatus, after: SpecDecodePolicyStatus) -> list[Notice]:
    """Events, on transitions only."""
    found = []
    old, new = before.rollout, after.rollout
    if new is not None and (old is None or old.id != new.id):
        found.append(Notice("Normal", "ChangeStarted", new.message))
    elif new is not None and old is not None and old.phase is not new.phase:
        bad = new.phase is RolloutPhase.ROLLING_BACK
        found.append(Notice("Warning" if bad else "Normal", f"Change{new.phase.value}", new.message))
    if after.history[:1] != before.history[:1]:
        last = after.history[0]
        kind = "Normal" if last.outcome is Outcome.SUCCESSFUL else "Warning"
        found.append(
            Notice(
                kind, f"Change{last.outcome.value}", f"{last.source.profile} to {last.target.profile}: {last.message}"
            )
        )
    for type_, bad_when in _EVENTFUL.items():
        was, is_ = condition(before, type_), condition(after, type_)
        was_bad, is_bad = was is not None and was.status == bad_when, is_ is not None and is_.status == bad_when
        if is_ is not None and was_bad != is_bad:
            text = is_.message or f"{type_.value} is {is_.status}"
            found.append(Notice("Warning" if is_bad else "Normal", is_.reason, text))
    recommended = after.recommendation
    wanted = recommended and after.active and recommended.profile != after.active.profile and after.rollout is None
    if recommended and wanted and (not before.recommendation or before.recommendation.profile != recommended.profile):
        found.append(
            Notice("Normal", recommended.reason, f"{recommended.profile} is recommended: {recommended.message}")
        )
    return found


_EVENTFUL = {
    ConditionType.READY: "False",
    ConditionType.METRICS_AVAILABLE: "False",
    ConditionType.DEGRADED: "True",
    ConditionType.MIXED_TRAFFIC: "True",
}
"""Conditions whose transitions are Events, and the status that is a warning."""


def _status(o: Observation, d: Decision, step: Step, before: SpecDecodePolicyStatus) -> SpecDecodePolicyStatus:
    history = [step.finished, *before.history][:HISTORY] if step.finished else before.history
    active = before.active if o.active is None else configuration(o.active)
    return before.model_copy(
        update={
            "conditions": conditions(o, d, step, before),
            "observed_generation": o.generation,
            "vllm_version": str(o.menu.version) if o.menu else before.vllm_version,
            "active_profile": active.profile if active else None,
            "active": active,
            "summary": _summary(o, d),
            "recommendation": _recommendation(d, step),
            "observation": _observation(o),
            "profiles": _profiles(o),
            "rollout": step.rollout,
            "history": history,
            "original": _original(o, before),
            "applied": _applied(step) or before.applied,
        }
    )


def _applied(step: Step) -> str | None:
    """What the operator is about to write. When it gives back what it borrowed, it leaves the command line alone: that
    may be somebody else's."""
    if step.desired is None or step.rollout is None or step.rollout.phase is RolloutPhase.FINISHING:
        return None
    return fingerprint(step.desired.container)


def _original(o: Observation, before: SpecDecodePolicyStatus) -> Original | None:
    if o.menu is None:
        return before.original
    return Original(**fields_of(o.menu.original).model_dump(), adopted_at=text_of(o.adopted_at))


def _recommendation(d: Decision, step: Step) -> Recommendation | None:
    if step.rollout is not None:
        r = step.rollout
        return Recommendation(**r.target.model_dump(), gain=r.gain, reason=r.reason, message=r.message)
    if d.target is None:
        return None
    message = d.message if d.held_back is None else f"{d.message}; {d.held_back[1]}"
    reason = (d.held_back[0] if d.held_back else d.reason).value
    return Recommendation(
        **configuration(d.target).model_dump(),
        gain=interval(d.gain) if d.change else None,
        reason=reason,
        message=message[:1024],
    )


def _summary(o: Observation, d: Decision) -> Summary:
    acceptance, measured = o.estimates.acceptance, o.estimates.measured
    batch = measured.requests_per_step if measured else None
    return Summary(
        gain=f"{d.gain.value * 100:+.0f} %" if d.gain and d.change else None,
        acceptance=f"{acceptance[0]:.2f}" if acceptance else None,
        batch_size=f"{batch:.1f}" if batch is not None else None,
    )


def _observation(o: Observation) -> ObservationStatus:
    m, pods = o.estimates.measured, sum(p.answered for p in o.running(o.active))
    return ObservationStatus(
        time=text_of(o.now),
        pods=pods,
        batch_size=figure(m.requests_per_step) if m else None,
        waiting=figure(m.waiting / pods) if m and m.waiting is not None and pods else None,
        acceptance_rate=figure(m.acceptance_rate) if m else None,
        accepted_length=figure(m.accepted_length) if m else None,
        time_per_output_token=figure(m.tpot_seconds) if m else None,
        time_to_first_token=figure(m.ttft_seconds) if m else None,
        kv_cache_usage=figure(m.kv_usage) if m else None,
        tokens_per_second=figure(o.estimates.load.tokens_per_second) if o.estimates.load else None,
    )


def _profiles(o: Observation) -> list[ProfileStatus]:
    # What is known of profiles that are gone is forgotten; not of all only because the workload is away for a moment.
    here = [*o.menu.profiles, *(option.profile for option in o.menu.options)] if o.menu else o.knowledge
    return [_profile(name, o.knowledge.get(name), o) for name in list(dict.fromkeys(here))[:PROFILES]]


def _profile(name: str, known: Knowledge | None, o: Observation) -> ProfileStatus:
    known = known or Knowledge()
    prediction = o.estimates.predictions.get(name)
    acceptance = known.acceptance
    point = o.estimates.break_even.get(name)
    return ProfileStatus(
        name=name,
        measured_at=text_of(known.measured_at) if known.measured_at is not None else None,
        acceptance=acceptance
        and AcceptanceStatus(**dict(zip(("mean", "p10", "p50", "p90"), map(_digits, acceptance), strict=True))),
        accepted_length=figure(known.accepted_length),
        tokens_per_step=figure(known.tokens_per_step) if known.measured_at is not None else None,
        drafted_per_step=figure(known.drafted_per_step) if known.measured_at is not None else None,
        time_per_output_token=figure(known.tpot_seconds),
        per_position=[round(p, 4) for p in known.per_position],
        step_times=[
            StepTime(
                batch_size=round(t.batch_size, 2),
                tokens=round(t.tokens, 2),
                prompt_tokens=round(t.prompt_tokens, 2),
                seconds=round(t.seconds, 6),
            )
            for t in known.step_times
        ],
        predicted=interval(prediction.tpot) if prediction else None,
        headroom=figure(min(prediction.headroom, 1000.0)) if prediction else None,
        break_even_batch_size=figure(point),
    )


def knowledge_of(status: SpecDecodePolicyStatus) -> Mapping[str, Knowledge]:
    """What the status remembers about the profiles: the way back from `_profiles`."""
    return {
        p.name: Knowledge(
            measured_at=seconds_of(p.measured_at) if p.measured_at else None,
            acceptance=(p.acceptance.mean, p.acceptance.p10, p.acceptance.p50, p.acceptance.p90)
            if p.acceptance
            else None,
            accepted_length=p.accepted_length,
            per_position=tuple(p.per_position),
            tokens_per_step=p.tokens_per_step or 1.0,
            drafted_per_step=p.drafted_per_step or 0.0,
            tpot_seconds=p.time_per_output_token,
            step_times=tuple(
                knowledge.StepTime(t.batch_size, t.tokens, t.seconds, t.prompt_tokens) for t in p.step_times
            ),
        )
        for p in status.profiles
        if p.measured_at or p.step_times
    }


def _significant(status: SpecDecodePolicyStatus) -> Json:
    """What is written at once."""
    recommendation = status.recommendation
    return {
        "conditions": [(c.type, c.status, c.reason) for c in status.conditions],
        "generation": status.observed_generation,
        "active": status.active,
        "recommended": recommendation and (recommendation.profile, recommendation.schedule, recommendation.reason),
        "rollout": status.rollout,
        "history": status.history,
        "original": status.original,
        "applied": status.applied,
        "pods": status.observation and status.observation.pods,
    }


def _timeless(status: SpecDecodePolicyStatus) -> Json:
    """The status without what changes with time alone."""
    data = status.model_dump(exclude={"observation": {"time"}})
    for profile in data["profiles"]:
        del profile["measured_at"]
    return data


def interval(e: Estimate | None) -> Interval | None:
    """An estimate as the API shows it."""
    if e is None:
        return None
    return Interval(value=_digits(e.value), low=_digits(e.low), high=_digits(e.high))


def figure(value: float | None) -> float | None:
    """Three significant digits: no more is known."""
    return None if value is None else _digits(value)


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
