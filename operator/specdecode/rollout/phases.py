"""Making one change: the state machine of a roll.

    Starting -> Analysing -> Promoting -> Verifying -> Finishing -> done
        \\___________\\___________\\___________\\-> RollingBack -^

The canary is the first pod of the Deployment's own rolling update: the template is changed with `maxSurge: 1` and a
long `minReadySeconds` (a ready pod serves, but the update goes on only with *available* ones), and the update is paused
as soon as that pod exists. Unpausing promotes; restoring the template takes only the canary away.

Every phase is a pure function of one observation, and says what the Deployment should look like, not what to do to it.
The phase is written to the policy's status before the Deployment is touched, so an operator that died at any line
finds the phase and makes the Deployment so again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from specdecode.api.v1alpha1 import Outcome, RolloutPhase
from specdecode.policy.brakes import may_act
from specdecode.policy.clock import seconds_of, text_of
from specdecode.policy.decision import GETS_TO_RUN, PROBES, Decision
from specdecode.policy.live import can_be_live, wanted
from specdecode.policy.observation import Observation, Pod, Workload
from specdecode.policy.options import Container, Menu, marked, option_of, same, unmarked, with_fields
from specdecode.policy.spare import cannot_go_back, cannot_spare_one
from specdecode.rollout import live
from specdecode.rollout.analysis import in_force
from specdecode.rollout.change import Change, analysing, because, begun, measured_before
from specdecode.rollout.change import Step as Step
from specdecode.rollout.ending import Ending
from specdecode.rollout.patch import Desired, given_back, patch, rest_of_template
from specdecode.vllm.unmanageable import Unmanageable

NO_CAPACITY_AFTER = 60.0
"""Seconds without a node for the canary that count as no capacity, at most: time for the scheduler, not for a new
machine. It is never more than a quarter of the progress deadline, which the start of the model has to meet as well."""


def advance(o: Observation, d: Decision) -> Step:
    """Starts, continues or ends a change."""
    if o.workload is None or o.menu is None:
        return Step(o.rollout)
    if o.rollout is None:
        return _begin(o, o.workload, o.menu, d) if may_act(o, d) else Step()
    if o.rollout.live_canary is not None:
        return live.advance(live.LiveChange(o, o.rollout, o.workload, o.menu))
    change = _Roll(o, o.rollout, o.workload, o.menu)
    if change.superseded:
        # What they changed stays. Our own part goes, if it is still there: it was not proven.
        end = change.roll_back if same(o.workload.container, change.target) else change.finish
        return end(Outcome.ERROR, Ending.SUPERSEDED, "somebody else changed the workload meanwhile: theirs stays")
    if change.outdated:
        return change.roll_back(Outcome.ERROR, Ending.POLICY_CHANGED, "the policy was edited: its canary is taken back")
    return _PHASES[o.rollout.phase](change)


def _begin(o: Observation, workload: Workload, menu: Menu, d: Decision) -> Step:
    if d.target is None or o.active is None:
        return Step()
    target = menu.render(d.target)
    if isinstance(target, Unmanageable):
        return Step()
    if not d.restart and (can_be_live(o, d.target) or (wanted(o) and same(target, workload.container))):
        return live.begin(o, workload, menu, d)
    if d.restart:
        target = marked(target, text_of(o.now))
    rollout = begun(
        o,
        workload,
        d,
        target,
        load_correction=round(o.estimates.load_corrections.get(d.target.profile, 0.0), 4),
        give_up_one=workload.strategy.get("type") == "Recreate",
    )
    return Step() if rollout is None else _Roll(o, rollout, workload, menu).go_on()


@dataclass(frozen=True)
class _Roll(Change):
    """A change by new pods."""

    # --- what is seen ---

    @property
    def target(self) -> Container:
        return with_fields(self.workload.container, self.rollout.target_fields)

    @property
    def source(self) -> Container:
        return with_fields(self.workload.container, self.rollout.source_fields)

    @property
    def canaries(self) -> tuple[Pod, ...]:
        """The pods of the new template, once the Deployment has it."""
        if not same(self.workload.container, self.target):
            return ()
        return tuple(p for p in self.o.pods if p.revision == self.workload.revision and not p.terminating)

    @property
    def baseline(self) -> tuple[Pod, ...]:
        return tuple(p for p in self.o.pods if p.revision != self.workload.revision and p.ready and not p.terminating)

    @property
    def unproven(self) -> bool:
        """Whether there is a canary at most."""
        return self.rollout.phase in (RolloutPhase.STARTING, RolloutPhase.ANALYSING)

    @property
    def superseded(self) -> bool:
        """Whether somebody else changed the template: our fields, or, while nothing is proven, anything else in it."""
        live, phase = self.workload.container, self.rollout.phase
        if phase is RolloutPhase.FINISHING:
            return False
        if self.unproven and self.rollout.template not in (
            None,
            rest_of_template(self.workload.deployment, live["name"]),
        ):
            # A canary of another image than the others' would be compared for that as well.
            return True
        if same(live, self.target):
            return False
        return phase not in (RolloutPhase.STARTING, RolloutPhase.ROLLING_BACK) or not same(live, self.source)

    @property
    def outdated(self) -> bool:
        """Whether the policy no longer asks for what the canary runs."""
        if not self.unproven:
            return False
        option = option_of(self.rollout.target, self.menu)
        rendered = None if option is None else self.menu.render(option)
        return rendered is None or isinstance(rendered, Unmanageable) or not same(rendered, unmarked(self.target))

    def no_capacity(self, canary: Pod) -> bool:
        """Whether the canary has waited for a node long enough. A pod that is still ending still holds its GPU."""
        if canary.unschedulable_since is None or any(p.terminating for p in self.o.pods):
            return False
        waiting = self.o.now - max(canary.unschedulable_since, seconds_of(self.rollout.phase_started_at))
        return waiting > min(NO_CAPACITY_AFTER, self.o.policy.rollout.progress_deadline / 4)

    @property
    def keeps_all_pods(self) -> str | None:
        """Why no pod is given up for the canary; None where one is, as it is while nothing is known of the load."""
        o, r, pods = self.o, self.rollout, len(self.baseline)
        if not o.policy.rollout.allow_unavailable:
            return "free a GPU, or set spec.rollout.allowUnavailable"
        if o.estimates.running is None or pods < 2 or r.reason in GETS_TO_RUN:
            return None
        if missed := cannot_spare_one(o, pods, r.target.profile):
            return missed
        option = option_of(r.target, self.menu)
        turns_on = option is not None and option.speculation is not None and r.target.profile != r.source.profile
        if option is None or not (turns_on or r.reason in PROBES):
            return None
        return cannot_go_back(o, option)

    @property
    def pod_is_missed(self) -> bool:
        """Whether a pod was given up for the canary, more requests wait than run on those that are left, and what the
        canary runs is no way out."""
        o, r = self.o, self.rollout
        if not r.give_up_one or not self.baseline or not o.estimates.queueing:
            return False
        option = option_of(r.target, self.menu)
        return not (o.is_own(r.target) or (option is not None and o.estimates.relieved_by(option)))

    # --- what follows ---

    def desired(self) -> Desired:
        """What the Deployment should look like in the phase that the change is in."""
        phase, was = self.rollout.phase, self.rollout.borrowed
        if phase is RolloutPhase.FINISHING:
            return given_back(self.workload.container, was)
        surge, unavailable = (0, 1) if self.rollout.give_up_one else (1, 0)
        one_by_one = {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable},
        }
        hold = int(self.workload.deployment["spec"].get("progressDeadlineSeconds") or 600) - 1
        return Desired(
            container=self.source if phase is RolloutPhase.ROLLING_BACK else self.target,
            strategy=one_by_one,
            min_ready_seconds=hold if self.unproven else was.min_ready_seconds or 0,
            # Until it has a node, the controller must be free to give up an old pod for it.
            paused=self.unproven and any(p.unschedulable_since is None for p in self.canaries),
        )


def _starting(c: _Roll) -> Step:
    """Until the canary is ready."""
    target = c.rollout.target.profile
    if broken := c.broken(c.canaries):
        return c.roll_back(
            Outcome.FAILED, Ending.CANARY_CRASH_LOOPING, f"the canary of {target} does not start: {broken}"
        )
    if c.late:
        return c.roll_back(
            Outcome.FAILED,
            Ending.CANARY_NOT_READY,
            f"the canary of {target} was not ready within the progress deadline{because(*c.canaries[:1])}",
        )
    canary = next(iter(c.canaries), None)
    if canary is None:
        return c.go_on()
    if c.pod_is_missed:
        return _gives_the_pod_back(c)
    if c.no_capacity(canary):
        why_not = "not even in the place of the one given up" if c.rollout.give_up_one else c.keeps_all_pods
        if why_not is None:
            return c.enter(
                RolloutPhase.STARTING,
                "no node has room for an additional pod: giving one up for the canary",
                give_up_one=True,
            )
        return c.roll_back(
            Outcome.ERROR,
            Ending.NO_CAPACITY,
            f"no node has room for the canary: {why_not}",
        )
    if not canary.ready:
        return c.go_on(f"waiting for canary {canary.name} of {target} to be ready{because(canary)}")
    return c.enter(
        RolloutPhase.ANALYSING,
        f"measuring canary {canary.name} of {target} against {len(c.baseline)} pods of {c.rollout.source.profile}",
        canary_ready_at=text_of(c.o.now),
        **({} if c.rollout.give_up_one else measured_before(c)),
    )


def _analysing(c: _Roll) -> Step:
    """Until there is a verdict, or the pod that was given up for the canary is missed."""
    return _gives_the_pod_back(c) if c.pod_is_missed and not c.broken(c.canaries) else analysing(c)


def _gives_the_pod_back(c: _Roll) -> Step:
    return c.roll_back(
        Outcome.INCONCLUSIVE,
        Ending.POD_MISSED,
        "more requests wait than run on the other pods, without the one that was given up for the canary: it is given"
        " back",
    )


def _promoting(c: _Roll) -> Step:
    """Until all pods are of the new template."""
    if broken := c.broken(c.canaries):
        return c.roll_back(
            Outcome.FAILED, Ending.CRASH_LOOPING, f"while promoting {c.rollout.target.profile}: {broken}"
        )
    if c.late:
        return c.roll_back(
            Outcome.FAILED,
            Ending.PROGRESS_DEADLINE_EXCEEDED,
            "not all pods were replaced within the progress deadline"
            + because(*(p for p in c.canaries if p.diagnosis is not None)),
        )
    if not c.workload.settled:
        return c.go_on()
    return c.enter(RolloutPhase.VERIFYING, f"all pods replaced; verifying that they run {c.rollout.target.profile}")


def _verifying(c: _Roll) -> Step:
    """Until every pod's own metrics say that it runs the target."""
    target = option_of(c.rollout.target, c.menu)
    wrong = [w for p in c.canaries if (w := in_force(p, target))]
    unheard = [p for p in c.canaries if not p.answered]
    if c.workload.settled and not wrong and not unheard:
        return c.finish(Outcome.SUCCESSFUL, Ending.PROMOTED, f"all pods run {c.rollout.target.profile}{c.shown_gain}")
    if c.late:
        what = wrong[0] if wrong else "not every pod answered with its metrics"
        return c.roll_back(
            Outcome.FAILED, Ending.NOT_IN_FORCE, f"{c.rollout.target.profile} could not be verified: {what}"
        )
    return c.go_on()


def _rolling_back(c: _Roll) -> Step:
    """Until only pods of the old template are left, or the deadline: what keeps those from being ready is not ours."""
    r = c.rollout
    if same(c.workload.container, c.source) and (c.workload.settled or c.late):
        return c.finish(r.outcome or Outcome.ERROR, r.outcome_reason or Ending.SUPERSEDED, r.message)
    return c.go_on()


def _finishing(c: _Roll) -> Step:
    """Until the Deployment has back what the change borrowed."""
    desired = c.desired()
    if patch(c.workload.deployment, desired):
        return Step(c.rollout, desired)
    return Step(finished=c.finished())


_PHASES: dict[RolloutPhase, Callable[[_Roll], Step]] = {
    RolloutPhase.STARTING: _starting,
    RolloutPhase.ANALYSING: _analysing,
    RolloutPhase.PROMOTING: _promoting,
    RolloutPhase.VERIFYING: _verifying,
    RolloutPhase.ROLLING_BACK: _rolling_back,
    RolloutPhase.FINISHING: _finishing,
}
