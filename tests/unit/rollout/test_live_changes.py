"""A change without a restart, tick by tick."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specdecode.api.v1alpha1 import LiveSchedule, Outcome, RolloutPhase
from specdecode.policy.clock import text_of
from specdecode.policy.decision import Decision
from specdecode.policy.observation import Observation
from specdecode.policy.options import with_fields
from specdecode.rollout.ending import Ending
from specdecode.rollout.live import TAKEN_OVER_AFTER, published
from specdecode.rollout.phases import Step, advance
from specdecode.vllm.live_schedule import Schedule, ScheduleReport
from support.live import FOLLOWS, OTHER, STARTED, better, following, live_spec, server
from support.world import NOW

IDLE = Decision(better(following()).reason, "nothing")
TAKEN = ScheduleReport("Live", OTHER)


def pods(o: Observation, *reports: ScheduleReport, **steps: float) -> Observation:
    """The observation with pods that tell this; `p0=0.01` is the step time of the first."""
    assert o.menu is not None
    made = (server(f"p{i}", o.menu, r, steps.get(f"p{i}", 0.02)) for i, r in enumerate(reports))
    return replace(o, pods=tuple(made))


def begun() -> Observation:
    o = following()
    return then(o, advance(o, better(o)))


def then(o: Observation, step: Step, later: float = 5.0) -> Observation:
    """The next look, with the file as it was published."""
    history = (step.finished, *o.history) if step.finished else o.history
    return replace(o, now=o.now + later, rollout=step.rollout, live_schedule=published(o, step), history=history)


def ranges(live: LiveSchedule | None) -> tuple[list[tuple[int, int, int]], str | None, list[tuple[int, int, int]]]:
    assert live is not None
    rows = [[(r.start, r.end, r.k) for r in s] for s in (live.schedule, live.canary_schedule)]
    return rows[0], live.canary, rows[1]


def rows(schedule: Schedule) -> list[tuple[int, int, int]]:
    return [(r.start, r.end, r.k) for r in schedule]


def analysing(**steps: float) -> Observation:
    """The canary has shown the schedule for 70 s; `p0=0.01` is its step time."""
    o = pods(begun(), TAKEN, FOLLOWS, FOLLOWS)
    o = then(o, advance(o, IDLE))
    assert o.rollout is not None and o.rollout.phase is RolloutPhase.ANALYSING
    rollout = o.rollout.model_copy(update={"canary_ready_at": text_of(NOW - 70), "phase_started_at": text_of(NOW - 70)})
    return pods(replace(o, now=NOW, rollout=rollout), TAKEN, FOLLOWS, FOLLOWS, **steps)


def test_it_begins_on_one_pod_that_serves_and_leaves_the_deployment_alone() -> None:
    o = following()
    step = advance(o, better(o))
    assert step.rollout is not None and step.desired is None
    assert (step.rollout.phase, step.rollout.live_canary) == (RolloutPhase.STARTING, "p0")
    assert ranges(published(o, step)) == (rows(STARTED), "p0", rows(OTHER))


def test_where_the_pods_do_not_follow_it_is_a_roll() -> None:
    o = following()
    o = pods(o, FOLLOWS, FOLLOWS, ScheduleReport("NotStarted"))
    step = advance(o, better(o))
    assert step.rollout is not None and step.desired is not None and step.rollout.live_canary is None
    assert published(o, step) is None


def test_a_fresh_start_of_what_runs_is_a_roll() -> None:
    o = following()
    step = advance(o, better(o, STARTED, restart=True))
    assert step.rollout is not None and step.rollout.live_canary is None


def test_it_waits_for_the_canary_to_show_the_schedule() -> None:
    o = begun()
    step = advance(o, IDLE)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.STARTING
    o = pods(o, TAKEN, FOLLOWS, FOLLOWS)
    step = advance(o, IDLE)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.ANALYSING
    assert step.rollout.canary_ready_at == text_of(o.now)
    assert ranges(published(o, step)) == (rows(STARTED), "p0", rows(OTHER))


def test_what_is_faster_goes_to_all_pods_and_is_done_when_all_show_it() -> None:
    o = analysing(p0=0.01)
    step = advance(o, IDLE)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.PROMOTING
    assert ranges(published(o, step)) == (rows(OTHER), None, [])
    o = then(o, step)
    for reports in ((TAKEN, FOLLOWS, FOLLOWS), (TAKEN, TAKEN, FOLLOWS)):
        step = advance(pods(o, *reports), IDLE)
        assert step.rollout is not None and step.rollout.phase is RolloutPhase.PROMOTING
    o = pods(o, TAKEN, TAKEN, TAKEN)
    step = advance(o, IDLE)
    assert step.rollout is None and step.desired is None and step.finished is not None
    assert (step.finished.outcome, step.finished.live) == (Outcome.SUCCESSFUL, True)
    assert ranges(published(o, step)) == (rows(OTHER), None, [])


def test_what_is_slower_is_taken_back_and_is_over_when_no_pod_shows_it_any_more() -> None:
    o = analysing(p0=0.06)
    step = advance(o, IDLE)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.ROLLING_BACK
    assert published(o, step) is None, "the arguments say it"
    o = then(o, step)
    assert advance(o, IDLE).rollout is not None
    step = advance(pods(o, FOLLOWS, FOLLOWS, FOLLOWS), IDLE)
    assert step.finished is not None
    assert (step.finished.outcome, step.finished.outcome_reason) == (Outcome.FAILED, Ending.SLOWER)


def test_taking_back_restores_the_schedule_before_where_that_was_live_as_well() -> None:
    o = analysing(p0=0.01)
    o = then(o, advance(o, IDLE))
    o = pods(o, TAKEN, TAKEN, TAKEN)
    o = then(o, advance(o, IDLE))
    o = replace(o, active=o.pods[0].option)
    third = (STARTED[0].__class__(1, 64, 5), STARTED[0].__class__(65, 256, 0))
    o = then(o, advance(o, better(o, third)))
    assert ranges(o.live_schedule) == (rows(OTHER), "p0", rows(third))
    o = then(o, advance(replace(o, policy=live_spec(batchSizeTuning={"apply": "Roll"})), IDLE))
    assert ranges(o.live_schedule) == (rows(OTHER), None, [])


def ending(o: Observation) -> tuple[Any, Any]:
    step = advance(o, IDLE)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.ROLLING_BACK
    return step.rollout.outcome, step.rollout.outcome_reason


def test_a_canary_that_does_not_take_it_over_in_time_fails() -> None:
    o = begun()
    assert ending(replace(o, now=o.now + TAKEN_OVER_AFTER)) == (Outcome.FAILED, Ending.NOT_IN_FORCE)


@pytest.mark.parametrize("at", [begun, analysing])
def test_a_canary_that_is_gone_is_no_bad_result(at: Any) -> None:
    o = at()
    assert ending(replace(o, pods=o.pods[1:])) == (Outcome.ERROR, Ending.NOT_MEASURED)


def test_a_canary_that_leaves_the_schedule_while_it_is_measured_fails() -> None:
    assert ending(pods(analysing(), FOLLOWS, FOLLOWS, FOLLOWS)) == (Outcome.FAILED, Ending.NOT_IN_FORCE)


@pytest.mark.parametrize("at", [begun, analysing])
def test_a_template_that_somebody_changes_ends_it_and_takes_the_file_away(at: Any) -> None:
    o = at()
    assert o.workload is not None
    container = {**o.workload.container, "args": [*o.workload.container["args"], "--seed", "1"]}
    o = replace(o, workload=replace(o.workload, container=container))
    assert ending(o) == (Outcome.ERROR, Ending.SUPERSEDED)
    assert published(o, advance(o, IDLE)) is None


@pytest.mark.parametrize("changes", [{"batchSizeTuning": {"apply": "Roll"}}, {"profiles": []}])
def test_a_policy_that_no_longer_asks_for_it_ends_it(changes: dict[str, Any]) -> None:
    o = begun()
    policy = live_spec(**changes) if "profiles" not in changes else o.policy
    menu = o.menu if "profiles" not in changes else replace(o.menu, profiles={})  # type: ignore[type-var]
    assert ending(replace(o, policy=policy, menu=menu)) == (Outcome.ERROR, Ending.POLICY_CHANGED)


def test_a_pod_that_does_not_take_the_promoted_schedule_over_takes_it_back_from_all() -> None:
    o = analysing(p0=0.01)
    o = then(o, advance(o, IDLE))
    o = pods(replace(o, now=o.now + TAKEN_OVER_AFTER), TAKEN, TAKEN, FOLLOWS)
    assert ending(o) == (Outcome.FAILED, Ending.NOT_IN_FORCE)
    step = advance(o, IDLE)
    assert published(o, step) is None


def test_a_taking_back_that_pods_do_not_follow_ends_all_the_same() -> None:
    o = analysing(p0=0.06)
    o = then(o, advance(o, IDLE))
    o = pods(replace(o, now=o.now + TAKEN_OVER_AFTER), TAKEN, FOLLOWS, FOLLOWS)
    assert advance(o, IDLE).finished is not None


def proven() -> Observation:
    """After a change that was promoted."""
    o = analysing(p0=0.01)
    o = then(o, advance(o, IDLE))
    o = pods(o, TAKEN, TAKEN, TAKEN)
    return then(o, advance(o, IDLE))


def test_what_was_promoted_stays_published_until_the_policy_or_the_template_says_otherwise() -> None:
    o = proven()
    assert ranges(published(o, Step())) == (rows(OTHER), None, [])
    assert o.workload is not None and o.menu is not None
    assert published(replace(o, policy=live_spec(batchSizeTuning={"apply": "Roll"})), Step()) is None
    off = replace(o.workload, option=next(x for x in o.menu.options if x.profile == "disabled"))
    assert published(replace(o, workload=off), Step()) is None
    assert published(replace(o, workload=None), Step()) == o.live_schedule, "a moment's absence changes nothing"


def test_a_roll_leaves_the_old_pods_what_they_have() -> None:
    o = proven()
    assert o.menu is not None
    off = next(x for x in o.menu.options if x.profile == "disabled")
    step = advance(o, replace(better(o), target=off))
    assert step.rollout is not None and step.rollout.live_canary is None
    assert published(o, step) == o.live_schedule
    assert with_fields(o.workload.container, step.rollout.source_fields) == o.workload.container  # type: ignore[union-attr]
