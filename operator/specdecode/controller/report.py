"""What the operator tells: the policy's status, and the Events that a change of it is worth. Pure.

An observation is never quite the same twice, and a status that followed every wobble would be written at every tick. So
the figures are written along with something that matters (a decision, a phase, a condition), and else only when they
have moved and the last ones are a few ticks old.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specdecode.api.conditions import ConditionType
from specdecode.api.v1alpha1 import (
    AcceptanceStatus,
    BandStatus,
    Interval,
    Mode,
    ObservationStatus,
    Original,
    Outcome,
    ProfileStatus,
    Recommendation,
    RolloutPhase,
    ServiceStatus,
    SpecDecodePolicyStatus,
    Summary,
    TurningPointStatus,
)
from specdecode.controller.conditions import NO_TROUBLES, Troubles, condition, conditions
from specdecode.model.cost import CostModel, OfferedLoad, Prediction
from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import Knowledge
from specdecode.model.loads import DAY
from specdecode.model.service import latest
from specdecode.policy.clock import seconds_of, text_of
from specdecode.policy.decision import Decision
from specdecode.policy.estimating import bounds
from specdecode.policy.observation import Observation
from specdecode.policy.options import configuration, fields_of, fingerprint
from specdecode.policy.past import remembered
from specdecode.policy.turning import TurningPoint, turning_points
from specdecode.rollout.live import published
from specdecode.rollout.phases import Step

PROFILES = 17
"""What the API's list takes."""
REFRESH_TICKS = 4
"""Figures alone are written at most every so many ticks."""
TURNING = 300.0
"""Seconds after which turning points are looked for again while the decision stays."""
FOREVER = 30 * 86_400.0
"""Seconds to pay back from which none are told."""
MOST_HEADROOM = 1000.0
"""More is not told: nobody asks for anything."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Notice:
    """A Kubernetes Event to be posted."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


def report(
    o: Observation,
    d: Decision,
    step: Step,
    before: SpecDecodePolicyStatus,
    troubles: Troubles = NO_TROUBLES,
    model: CostModel | None = None,
) -> SpecDecodePolicyStatus:
    """The status after a tick: `before` itself when there is nothing new worth writing.

    `troubles` is what is wrong with the operator's own objects, `model` the one that the estimates are of.
    """
    if o.policy.mode is Mode.OBSERVE and step.rollout is None:
        d = Decision(d.reason, d.message)
    after = _status(o, d, step, before, troubles)
    if _significant(after) == _significant(before) and before.observation is not None:
        written = seconds_of(before.observation.time)
        if o.now - written < REFRESH_TICKS * o.policy.metrics.interval or _timeless(after) == _timeless(before):
            return before
        if o.now // TURNING == written // TURNING:
            return after
    return after if model is None or step.rollout is not None else _with_turning_points(after, o, d, model)


def _with_turning_points(
    status: SpecDecodePolicyStatus, o: Observation, d: Decision, model: CostModel
) -> SpecDecodePolicyStatus:
    """Not for every status: to look for them takes some 30 ms."""
    if status.recommendation is None:
        return status
    found = [_turning_point(p) for p in turning_points(o, d, model)]
    recommendation = status.recommendation.model_copy(update={"turning_points": found})
    return status.model_copy(update={"recommendation": recommendation})


def _turning_point(p: TurningPoint) -> TurningPointStatus:
    return TurningPointStatus(
        profile=p.profile,
        quantity=p.quantity.value,
        of=p.of,
        direction="Above" if p.above else "Below",
        at=_interval(p.at),
        now=_interval(p.now),
    )


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
    ConditionType.MEMORY_USABLE: "False",
    ConditionType.ENGINE_AS_CONFIGURED: "False",
    ConditionType.LIVE_TUNING: "False",
}
"""Conditions whose transitions are Events, and the status that is a warning."""


def _status(
    o: Observation, d: Decision, step: Step, before: SpecDecodePolicyStatus, troubles: Troubles
) -> SpecDecodePolicyStatus:
    history = remembered([step.finished, *before.history], o.now) if step.finished else before.history
    active = before.active if o.active is None else configuration(o.active)
    return before.model_copy(
        update={
            "conditions": conditions(o, d, step, before, troubles),
            "observed_generation": o.generation,
            "vllm_version": str(o.menu.version) if o.menu else before.vllm_version,
            "active_profile": active.profile if active else None,
            "active": active,
            "summary": _summary(o, d),
            "recommendation": _recommendation(o, d, step, before),
            "observation": _observation(o),
            "profiles": _profiles(o),
            "live_schedule": published(o, step),
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


def _recommendation(o: Observation, d: Decision, step: Step, before: SpecDecodePolicyStatus) -> Recommendation | None:
    if step.rollout is not None:
        r = step.rollout
        return Recommendation(**r.target.model_dump(), gain=r.gain, reason=r.reason, rule=r.reason, message=r.message)
    if d.target is None:
        return None
    message = d.message if d.held_back is None else f"{d.message}; {d.held_back[1]}"
    ahead, last = o.estimates.outlooks.get(d.target.profile) if d.change else None, before.recommendation
    return Recommendation(
        **configuration(d.target).model_dump(),
        gain=interval(d.gain) if d.change else None,
        reason=(d.held_back[0] if d.held_back else d.reason).value,
        rule=d.reason.value,
        message=message[:1024],
        payback=_minutes(ahead.payback) if ahead else None,
        load_lasts=_minutes(ahead.duration) if ahead else None,
        turning_points=last.turning_points if last else [],
    )


def _minutes(seconds: float | None) -> float | None:
    """Whole minutes, in seconds; nothing that nobody would wait for."""
    return None if seconds is None or seconds > FOREVER else round(seconds / 60) * 60.0


def _summary(o: Observation, d: Decision) -> Summary:
    acceptance, measured = o.estimates.acceptance, o.estimates.measured
    batch = measured.requests_per_step if measured else None
    return Summary(
        gain=f"{d.gain.value * 100:+.0f} %" if d.gain and d.change else None,
        acceptance=f"{acceptance[0]:.2f}" if acceptance else None,
        batch_size=f"{batch:.1f}" if batch is not None else None,
    )


def _observation(o: Observation) -> ObservationStatus:
    m, load, pods = o.estimates.measured, o.estimates.load, sum(p.answered for p in o.running(o.active))
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
        tokens_per_second=figure(load.tokens_per_second) if load else None,
        prompt_tokens_per_second=figure(load.prompt_tokens_per_second) if load else None,
        context=figure(load.context) if load else None,
    )


def profiles_here(o: Observation) -> list[str]:
    """The profiles that are told of and remembered, at most `PROFILES`.

    Those that are gone from the policy are not; of the others nothing is forgotten only because the workload is away
    for a moment.
    """
    names = [*o.menu.profiles, *(option.profile for option in o.menu.options)] if o.menu else o.knowledge
    return list(dict.fromkeys(names))[:PROFILES]


def _profiles(o: Observation) -> list[ProfileStatus]:
    return [_profile(name, o.knowledge.get(name), o) for name in profiles_here(o)]


def _profile(name: str, known: Knowledge | None, o: Observation) -> ProfileStatus:
    known = known or Knowledge()
    prediction, acceptance = o.estimates.predictions.get(name), known.acceptance
    candidate = o.estimates.candidate(name)
    form = None if candidate is None else configuration(candidate)
    return ProfileStatus(
        name=name,
        measured_at=text_of(known.measured_at) if known.measured_at is not None else None,
        acceptance=acceptance
        and AcceptanceStatus(**dict(zip(("mean", "p10", "p50", "p90"), map(_digits, acceptance), strict=True))),
        accepted_length=figure(known.accepted_length),
        tokens_per_step=figure(known.tokens_per_step) if known.measured_at is not None else None,
        time_per_output_token=figure(known.tpot_seconds),
        in_service=_in_service(known, o.now),
        predicted=interval(prediction.tpot) if prediction else None,
        headroom=_headroom(prediction, o.estimates.load) if prediction else None,
        band=_band(o, name),
        schedule=form.schedule if form else [],
        disable_by_batch_size=form.disable_by_batch_size if form else None,
    )


def _in_service(known: Knowledge, now: float) -> ServiceStatus | None:
    service = latest(known.service, now - DAY)
    if service is None:
        return None
    return ServiceStatus(
        time_per_output_token=_digits(service.tpot),
        tokens_per_second=_digits(service.load),
        seconds=round(service.seconds),
    )


def _headroom(p: Prediction, load: OfferedLoad | None) -> Interval:
    low = high = p.headroom
    if p.capacity is not None and load is not None and load.tokens_per_second > 0:
        low, high = (c / load.tokens_per_second for c in (p.capacity.low, p.capacity.high))
    low, value, high = (min(h, MOST_HEADROOM) for h in (low, p.headroom, high))
    return _interval(Estimate(value, low, high))


def _band(o: Observation, profile: str) -> BandStatus | None:
    if o.menu is None or profile not in o.estimates.bands:
        return None
    band = o.estimates.bands[profile]
    if band is None:
        return BandStatus(pays=False)
    start, end = bounds(band, o.menu.server.max_num_seqs)
    return BandStatus(pays=True, start=start, end=end)


def _significant(status: SpecDecodePolicyStatus) -> Json:
    """What is written at once."""
    recommendation = status.recommendation
    return {
        "conditions": [(c.type, c.status, c.reason) for c in status.conditions],
        "generation": status.observed_generation,
        "active": status.active,
        "recommended": recommendation and (recommendation.profile, recommendation.schedule, recommendation.reason),
        "live": status.live_schedule,
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
    return None if e is None else _interval(e)


def _interval(e: Estimate) -> Interval:
    return Interval(value=_digits(e.value), low=_digits(e.low), high=_digits(e.high))


def figure(value: float | None) -> float | None:
    """Three significant digits: no more is known."""
    return None if value is None else _digits(value)


def _digits(value: float) -> float:
    return float(f"{value:.3g}")
