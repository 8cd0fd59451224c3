"""Making one change without a restart: another schedule of K by batch size, through the file that the pods follow.

    Starting -> Analysing -> Promoting -> done
        \\___________\\___________\\-> RollingBack -> done

The phases are those of a roll. The canary is a pod that serves already: the file has an entry for it. What the file
says follows from the phase, as the Deployment does in a roll, and is written to the status first. Every step waits
until the pods' own metrics show what the file says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from specdecode.api.v1alpha1 import LiveSchedule, Outcome, RolloutPhase
from specdecode.policy.clock import text_of
from specdecode.policy.decision import Decision
from specdecode.policy.live import is_about, live_schedule, wanted
from specdecode.policy.observation import Observation, Pod, Workload
from specdecode.policy.options import Menu, describe, option_of, same, with_fields
from specdecode.rollout.change import Change, Step, analysing, begun
from specdecode.rollout.ending import Ending

TAKEN_OVER_AFTER = 300.0
"""Seconds in which a mounted ConfigMap is renewed for sure: the kubelet looks once a minute and may be a minute behind
(`syncFrequency` and the age of its cache)."""


@dataclass(frozen=True)
class LiveChange(Change):
    """A change of the schedule alone, in the light of one observation."""

    @property
    def serving(self) -> tuple[Pod, ...]:
        """The pods that users are served by."""
        return tuple(p for p in self.o.pods if p.ready and not p.terminating)

    @property
    def canaries(self) -> tuple[Pod, ...]:
        """The pod that the file has an entry for."""
        return tuple(p for p in self.serving if p.name == self.rollout.live_canary)

    @property
    def baseline(self) -> tuple[Pod, ...]:
        """All others."""
        return tuple(p for p in self.serving if p.name != self.rollout.live_canary)

    @property
    def overdue(self) -> bool:
        """Whether the pods had time to take the file over."""
        return self.age > min(TAKEN_OVER_AFTER, self.o.policy.rollout.progress_deadline)

    @property
    def superseded(self) -> bool:
        """Whether somebody changed the template meanwhile."""
        return not same(self.workload.container, with_fields(self.workload.container, self.rollout.source_fields))

    @property
    def outdated(self) -> bool:
        """Whether the policy no longer asks for this."""
        return not wanted(self.o) or option_of(self.rollout.target, self.menu) is None

    def finish(self, outcome: Outcome, reason: Ending | str, message: str) -> Step:
        """The file says what it shall say, and there is nothing to give back."""
        end = {"outcome": outcome, "outcome_reason": str(reason), "message": message[:1024]}
        rollout = self.rollout.model_copy(update=end)
        return Step(finished=LiveChange(self.o, rollout, self.workload, self.menu).finished())


def begin(o: Observation, workload: Workload, menu: Menu, d: Decision) -> Step:
    """Starts a change on one of the pods; nothing while none is ready."""
    canary = min((p.name for p in o.running(o.active)), default=None)
    rollout = None if canary is None else begun(o, workload, d, workload.container, live_canary=canary)
    return Step() if rollout is None else LiveChange(o, rollout, workload, menu).go_on()


def advance(c: LiveChange) -> Step:
    """Continues or ends a change."""
    if c.rollout.phase is not RolloutPhase.ROLLING_BACK:
        if c.superseded:
            return c.roll_back(Outcome.ERROR, Ending.SUPERSEDED, "somebody else changed the workload meanwhile")
        if c.outdated:
            return c.roll_back(
                Outcome.ERROR, Ending.POLICY_CHANGED, "the policy was edited: its schedule is taken back"
            )
    return _PHASES[c.rollout.phase](c)


def published(o: Observation, step: Step) -> LiveSchedule | None:
    """What the file shall say after a tick; None: nothing, and the arguments rule."""
    change = step.rollout or o.rollout
    if o.workload is None or o.menu is None or (change is not None and change.live_canary is None):
        return o.live_schedule  # nobody knows better, or a roll: the pods of the old template keep what they have
    started = o.workload.option.speculation if o.workload.option else None
    if change is None or started is None:
        # What the policy does not want any more goes, and so does what is about no pod.
        here = wanted(o) and o.live_schedule is not None and is_about(o.live_schedule, o.workload.option)
        return o.live_schedule if here else None
    if LiveChange(o, change, o.workload, o.menu).superseded:
        return None
    source, target = (option_of(c, o.menu) for c in (change.source, change.target))
    old, new = (x.speculation.schedule if x and x.speculation else started.schedule for x in (source, target))
    if step.finished is not None:
        return live_schedule(started, new if step.finished.outcome is Outcome.SUCCESSFUL else old)
    if change.phase in (RolloutPhase.STARTING, RolloutPhase.ANALYSING):
        return live_schedule(started, old, change.live_canary, new)
    return live_schedule(started, new if change.phase is RolloutPhase.PROMOTING else old)


def _starting(c: LiveChange) -> Step:
    """Until the canary shows the schedule."""
    target = option_of(c.rollout.target, c.menu)
    canary = next(iter(c.canaries), None)
    if canary is None or target is None:
        return c.roll_back(Outcome.ERROR, Ending.NOT_MEASURED, f"the canary {c.rollout.live_canary} is gone")
    if canary.option != target:
        if c.overdue:
            return c.roll_back(Outcome.FAILED, Ending.NOT_IN_FORCE, f"{canary.name} did not take the schedule over")
        return c.go_on(f"waiting for {canary.name} to take the schedule over")
    return c.enter(
        RolloutPhase.ANALYSING,
        f"measuring {canary.name} with {describe(target)} against {len(c.baseline)} pods; nothing was restarted",
        canary_ready_at=text_of(c.o.now),
    )


def _analysing(c: LiveChange) -> Step:
    """Until canary and baseline can be told apart, or it is clear that they cannot."""
    if not c.canaries:
        return c.roll_back(Outcome.ERROR, Ending.NOT_MEASURED, f"the canary {c.rollout.live_canary} is gone")
    return analysing(c)


def _promoting(c: LiveChange) -> Step:
    """Until all pods show the schedule."""
    target = option_of(c.rollout.target, c.menu)
    if target is None:
        return c.go_on()
    behind = [p.name for p in c.serving if p.option != target]
    if behind and c.overdue:
        return c.roll_back(Outcome.FAILED, Ending.NOT_IN_FORCE, f"{behind[0]} did not take the schedule over")
    if behind:
        return c.go_on()
    return c.finish(
        Outcome.SUCCESSFUL, Ending.PROMOTED, f"all pods run {describe(target)} without a restart{c.shown_gain}"
    )


def _rolling_back(c: LiveChange) -> Step:
    """Until all pods show the old schedule again, or had time to: what keeps them from it is not ours."""
    r, source = c.rollout, option_of(c.rollout.source, c.menu)
    if c.overdue or all(p.option == source for p in c.serving):
        return c.finish(r.outcome or Outcome.ERROR, r.outcome_reason or Ending.SUPERSEDED, r.message)
    return c.go_on()


_PHASES: dict[RolloutPhase, Callable[[LiveChange], Step]] = {
    RolloutPhase.STARTING: _starting,
    RolloutPhase.ANALYSING: _analysing,
    RolloutPhase.PROMOTING: _promoting,
    RolloutPhase.ROLLING_BACK: _rolling_back,
}
