"""What every change has in common, a roll and one without a restart: its transitions, and the measuring."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from specdecode.api.v1alpha1 import HistoryEntry, Interval, Outcome, RolloutPhase, RolloutStatus
from specdecode.model.cost import Option
from specdecode.model.window import pods_together
from specdecode.policy.clock import seconds_of, text_of
from specdecode.policy.decision import GETS_TO_RUN, Decision, Reason
from specdecode.policy.learning import ENOUGH_FINISHED
from specdecode.policy.observation import Observation, Pod, Workload
from specdecode.policy.options import Container, Menu, configuration, describe, fields_of, option_of
from specdecode.policy.past import lost_today
from specdecode.rollout.analysis import Terms, in_force, judge
from specdecode.rollout.comparison import Circumstances, Figure, compare, value_of, wanted
from specdecode.rollout.ending import Ending
from specdecode.rollout.patch import Desired, borrowed, rest_of_template


@dataclass(frozen=True)
class Step:
    """What one tick makes of a change."""

    rollout: RolloutStatus | None = None
    """The change as it now stands; None: none is being made."""
    desired: Desired | None = None
    """What the Deployment should look like; None: leave it alone."""
    finished: HistoryEntry | None = None
    """The change that ended with this tick."""


def begun(o: Observation, workload: Workload, d: Decision, target: Container, **fields: Any) -> RolloutStatus | None:
    """The status of a change that begins; None: there is nothing to change."""
    if d.target is None or o.active is None:
        return None
    return RolloutStatus(
        id=f"{d.target.profile[:48]}-{int(o.now)}",
        phase=RolloutPhase.STARTING,
        policy_generation=o.generation,
        source=configuration(o.active),
        target=configuration(d.target),
        reason=d.reason.value,
        message=f"starting a {'fresh ' if d.restart else ''}canary of {describe(d.target)}: {d.message}"[:1024],
        required_gain=d.required_gain,
        protect_tail=d.protect_tail,
        before=value_of(_compared_by(d.reason), o.estimates.measured) if o.estimates.measured else None,
        started_at=text_of(o.now),
        phase_started_at=text_of(o.now),
        source_fields=fields_of(workload.container),
        target_fields=fields_of(target),
        borrowed=borrowed(workload.deployment),
        template=rest_of_template(workload.deployment, workload.container["name"]),
        **fields,
    )


def _compared_by(reason: str) -> Figure:
    """What a change is for is what its canary has to show."""
    return _FIGURES.get(reason, Figure.TPOT)


_FIGURES = {
    Reason.TTFT_BOUND.value: Figure.TTFT,
    Reason.KV_SQUEEZED.value: Figure.REQUEST,
    Reason.RESTART_RESTORES.value: Figure.STEPS,
}


@dataclass(frozen=True)
class Change:
    """A change in the light of one observation."""

    o: Observation
    rollout: RolloutStatus
    workload: Workload
    menu: Menu

    # --- what is seen ---

    @property
    def canaries(self) -> tuple[Pod, ...]:
        """The pods that run the target."""
        raise NotImplementedError

    @property
    def baseline(self) -> tuple[Pod, ...]:
        """The ready pods that do not."""
        raise NotImplementedError

    @property
    def age(self) -> float:
        """Seconds in this phase."""
        return self.o.now - seconds_of(self.rollout.phase_started_at)

    @property
    def late(self) -> bool:
        """Whether this phase has taken longer than the policy allows."""
        return self.age > self.o.policy.rollout.progress_deadline

    def broken(self, pods: tuple[Pod, ...]) -> str | None:
        """A pod that keeps dying will not get better."""
        for pod in pods:
            if pod.restarts >= 2 or (pod.restarts and pod.waiting == "CrashLoopBackOff"):
                return f"pod {pod.name} restarted {pod.restarts} times{because(pod)}"
        return None

    @property
    def shown_gain(self) -> str:
        """What the canary showed, as the end of a sentence."""
        gain = self.rollout.gain
        if gain is None:
            return ""
        percent = f"{gain.value * 100:.0f} %"
        return f"; the canary was {percent} faster" if gain.value >= 0 else f"; the gain of the canary was {percent}"

    # --- what follows ---

    def desired(self) -> Desired | None:
        """What the Deployment should look like in the phase that the change is in; None: leave it alone."""
        return None

    def go_on(self, message: str | None = None, **update: Any) -> Step:
        """Stays in the phase."""
        if message is not None:
            update["message"] = message[:1024]
        change = replace(self, rollout=self.rollout.model_copy(update=update))
        return Step(change.rollout, change.desired())

    def enter(self, phase: RolloutPhase, message: str, **update: Any) -> Step:
        """Goes to another phase."""
        return self.go_on(message, phase=phase, phase_started_at=text_of(self.o.now), **update)

    def roll_back(self, outcome: Outcome, reason: Ending, message: str, gain: Interval | None = None) -> Step:
        """Takes the change back."""
        return self.enter(
            RolloutPhase.ROLLING_BACK,
            message,
            outcome=outcome,
            outcome_reason=str(reason),
            gain=gain or self.rollout.gain,
        )

    def finish(self, outcome: Outcome, reason: Ending | str, message: str) -> Step:
        """The template is what it shall be: give the borrowed fields back."""
        return self.enter(RolloutPhase.FINISHING, message, outcome=outcome, outcome_reason=str(reason))

    def finished(self) -> HistoryEntry:
        """The change as the history keeps it."""
        r = self.rollout
        return HistoryEntry(
            id=r.id,
            policy_generation=r.policy_generation,
            source=r.source,
            target=r.target,
            reason=r.reason,
            live=r.live_canary is not None,
            outcome=r.outcome or Outcome.ERROR,
            outcome_reason=r.outcome_reason or Ending.SUPERSEDED,
            message=r.message,
            gain=r.gain,
            give_up_one=r.give_up_one,
            started_at=r.started_at,
            finished_at=text_of(self.o.now),
        )


def because(*pods: Pod) -> str:
    """What is known to be wrong with the first of the pods, as the end of a sentence."""
    diagnosis = pods[0].diagnosis if pods else None
    return f"; {diagnosis}" if diagnosis is not None else ""


def analysing(c: Change) -> Step:
    """Until canary and baseline can be told apart, or it is clear that they cannot."""
    if broken := c.broken(c.canaries):
        return c.roll_back(Outcome.FAILED, Ending.CANARY_CRASH_LOOPING, f"the canary failed under load: {broken}")
    canaries = tuple(p for p in c.canaries if p.ready)
    source, target = (option_of(it, c.menu) for it in (c.rollout.source, c.rollout.target))
    if wrong := next((w for p in canaries if (w := in_force(p, target))), None):
        return c.roll_back(
            Outcome.FAILED, Ending.NOT_IN_FORCE, f"the canary does not run {c.rollout.target.profile}: {wrong}"
        )
    # After a restart of the operator the windows are empty: what was measured before is measured again.
    ready_at = seconds_of(c.rollout.canary_ready_at or c.rollout.phase_started_at)
    since = max(ready_at, c.o.observing_since) + c.o.policy.rollout.analysis.warmup
    comparison = compare(canaries, c.baseline, since, c.o.now, _circumstances(c, source, target))
    verdict = judge(comparison, c.o.policy, _terms(c, target))
    if verdict is None:
        if c.late:
            return c.roll_back(Outcome.ERROR, Ending.ANALYSIS_OVERDUE, "no verdict within the progress deadline")
        return c.go_on()
    shown = verdict.gain
    gain = None if shown is None else Interval(**shown.rounded())
    if verdict.outcome is Outcome.SUCCESSFUL:
        return c.enter(RolloutPhase.PROMOTING, verdict.message, gain=gain)
    return c.roll_back(verdict.outcome, verdict.reason, verdict.message, gain)


def measured_before(c: Change) -> dict[str, float]:
    """What the pods did while the canary started, and had the whole load to themselves: what is to be updated in the
    status. What was measured when the change was decided may be of the quieter minutes before it."""
    windows = [p.window.since(seconds_of(c.rollout.started_at)) for p in c.baseline if p.answered]
    m = pods_together(windows)
    value = None if m is None or m.finished < ENOUGH_FINISHED else value_of(_compared_by(c.rollout.reason), m)
    return {} if value is None else {"before": value, "asked_before": wanted(windows)}


def _circumstances(c: Change, source: Option | None, target: Option | None) -> Circumstances:
    figure, profile = _compared_by(c.rollout.reason), c.rollout.target.profile
    # A canary in the place of another pod has the load that it will have.
    correction = c.o.estimates.load_corrections.get(profile, c.rollout.load_correction)
    if c.rollout.give_up_one or c.rollout.live_canary or figure is not Figure.TPOT:
        correction = 0.0
    drafts_no_more = target is not None and source is not None and target.drafts_no_more(source)
    return Circumstances(
        figure=figure,
        before=c.rollout.before,
        asked_before=c.rollout.asked_before or _decided_at(c),
        in_place=c.rollout.give_up_one,
        correction=correction,
        speaks_for_what_won=not drafts_no_more and not c.o.is_own(c.rollout.target),
        steepness=c.o.estimates.steepness.get(profile, 0.0) if figure is Figure.TPOT else 0.0,
    )


def _terms(c: Change, target: Option | None) -> Terms:
    goes_back = c.o.is_own(c.rollout.target)
    return Terms(
        c.rollout.required_gain,
        protect_tail=c.rollout.protect_tail,
        decided_at=_decided_at(c),
        lost=lost_today(c.o, c.rollout.target.profile),
        relief=target is not None and c.o.estimates.relieved_by(target),
        leaves_own=c.o.is_own(c.rollout.source) and not goes_back,
        goes_back=goes_back,
        to_be_proven=c.rollout.reason not in GETS_TO_RUN,
    )


def _decided_at(c: Change) -> float | None:
    """The load of the whole workload when the change began, in tokens/s."""
    return c.o.loads.at(seconds_of(c.rollout.started_at))
