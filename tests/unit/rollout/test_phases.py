"""A change, phase by phase, on observations that a Deployment would give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.api.v1alpha1 import (
    Original,
    Outcome,
    RolloutPhase,
    RolloutStatus,
    SpecDecodePolicyStatus,
)
from specdecode.model.loads import BUCKET, LoadHistory
from specdecode.model.window import pods_together
from specdecode.policy.clock import text_of
from specdecode.policy.decision import GETS_TO_RUN, Decision, Reason
from specdecode.policy.observation import Observation, Pod, Workload
from specdecode.policy.options import fields_of, fingerprint, same
from specdecode.rollout.clearing import cleared
from specdecode.rollout.patch import borrowed, patch
from specdecode.rollout.phases import NO_CAPACITY_AFTER, Step, advance
from specdecode.vllm.startup import Diagnosis
from specdecode.vllm.startup_failures import Failure
from support.decisions import slower
from support.world import NOW, deployment, menu, observation, option, pod, rendered, spec, traffic, workload

MENU = menu(spec())
OFF, NGRAM = option(MENU, "disabled"), option(MENU, "ngram")
HOLD = Decision(Reason.CHANGE_IN_PROGRESS, "going on")
OLD = tuple(pod(f"old-{i}", "old", OFF, traffic(at=NOW)) for i in range(3))


def wants_ngram(**changes: Any) -> Decision:
    return Decision(Reason.CHEAPER_PROFILE, "it pays", NGRAM, change=True, required_gain=0.05, **changes)


def started() -> RolloutStatus:
    step = advance(observation(), wants_ngram())
    assert step.rollout is not None
    return step.rollout


def canary(**changes: Any) -> Pod:
    window = changes.pop("window", traffic(acceptance=0.75))
    return pod("new-0", "new", NGRAM, window, **changes)


def during(phase: RolloutPhase, *pods: Pod, age: float = 5.0, profile: str = "ngram", **changes: Any) -> Observation:
    """An observation in a phase that is `age` seconds old."""
    policy = changes.pop("policy", spec())
    update: dict[str, Any] = {"phase": phase, "phase_started_at": text_of(NOW - age)}
    if phase is not RolloutPhase.STARTING:
        update["canary_ready_at"] = text_of(NOW - age)
    update |= changes.pop("rollout", {})
    settled = changes.pop("settled", False)
    live = changes.pop("workload", None) or workload(
        rendered(MENU, profile), revision="new" if profile == "ngram" else "old", settled=settled
    )
    return observation(
        policy, pods=pods, rollout=started().model_copy(update=update), workload=live, active=OFF, **changes
    )


def test_nothing_starts_without_a_decision_to_change() -> None:
    assert advance(observation(), HOLD) == Step()


@pytest.mark.parametrize("mode", ["Observe", "Recommend"])
def test_nothing_starts_in_a_mode_that_only_looks(mode: str) -> None:
    assert advance(observation(spec(mode=mode)), wants_ngram()) == Step()


def test_nothing_starts_while_a_brake_holds() -> None:
    d = wants_ngram(held_back=(Reason.COOLING_DOWN, "resting"))
    assert advance(observation(), d) == Step()


def test_a_change_starts_with_one_pod_more_and_a_long_wait_for_availability() -> None:
    step = advance(observation(), wants_ngram())
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.STARTING
    assert step.desired is not None
    assert step.desired.strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert step.desired.min_ready_seconds == 599, "below the Deployment's own progress deadline, as the API demands"
    assert not step.desired.paused, "paused, the controller would not make the canary"
    assert same(step.desired.container, rendered(MENU, "ngram"))


def test_what_is_borrowed_is_remembered() -> None:
    o = observation()
    assert o.workload is not None
    assert started().borrowed == borrowed(o.workload.deployment)


def test_the_update_is_paused_as_soon_as_the_canary_exists() -> None:
    step = advance(during(RolloutPhase.STARTING, *OLD, canary(ready=False)), HOLD)
    assert step.desired is not None and step.desired.paused
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.STARTING


def test_a_ready_canary_is_analysed() -> None:
    step = advance(during(RolloutPhase.STARTING, *OLD, canary()), HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.ANALYSING
    assert step.rollout.canary_ready_at is not None
    assert step.desired is not None and step.desired.paused


BROKEN = {
    "a crash loop": (
        canary(ready=False, restarts=1, waiting="CrashLoopBackOff"),
        5.0,
        Outcome.FAILED,
        "CanaryCrashLooping",
    ),
    "two restarts": (canary(ready=False, restarts=2), 5.0, Outcome.FAILED, "CanaryCrashLooping"),
    "never ready": (canary(ready=False), 601.0, Outcome.FAILED, "CanaryNotReady"),
    "no node has room": (
        canary(ready=False, unschedulable_since=NOW - NO_CAPACITY_AFTER - 1),
        70.0,
        Outcome.ERROR,
        "NoCapacity",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_canary_that_does_not_start_is_taken_back(case: str) -> None:
    broken, age, outcome, reason = BROKEN[case]
    step = advance(during(RolloutPhase.STARTING, *OLD, broken, age=age), HOLD)
    assert step.rollout is not None and step.desired is not None
    assert step.rollout.phase is RolloutPhase.ROLLING_BACK
    assert (step.rollout.outcome, step.rollout.outcome_reason) == (outcome, reason)
    assert same(step.desired.container, rendered(MENU, "disabled"))
    assert not step.desired.paused


TOO_BIG = Diagnosis(Failure.KV_CACHE_TOO_SMALL, "no room for a KV cache", "a smaller draft")


def test_the_message_of_a_crash_loop_says_why_and_what_to_do() -> None:
    o = during(RolloutPhase.STARTING, canary(ready=False, restarts=2, diagnosis=TOO_BIG), *OLD)
    step = advance(o, HOLD)
    assert step.rollout is not None and step.rollout.outcome is Outcome.FAILED
    told = "the canary of ngram does not start: pod new-0 restarted 2 times; no room for a KV cache: a smaller draft"
    assert step.rollout.message == told


def test_what_keeps_a_canary_from_starting_is_told_while_it_is_waited_for() -> None:
    image = Diagnosis(Failure.IMAGE_UNAVAILABLE, "the image cannot be pulled", "correct its name")
    waiting = canary(ready=False, waiting="ImagePullBackOff", diagnosis=image)
    step = advance(during(RolloutPhase.STARTING, waiting, *OLD), HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.STARTING
    assert step.rollout.message.endswith("to be ready; the image cannot be pulled: correct its name")
    late = advance(during(RolloutPhase.STARTING, waiting, *OLD, age=601.0), HOLD)
    assert late.rollout is not None and late.rollout.outcome_reason == "CanaryNotReady"
    assert late.rollout.message.endswith("within the progress deadline; the image cannot be pulled: correct its name")


def test_one_restart_is_not_a_crash_loop() -> None:
    step = advance(during(RolloutPhase.STARTING, *OLD, canary(ready=False, restarts=1)), HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.STARTING


def test_where_no_gpu_is_free_one_pod_is_given_up_if_the_policy_allows() -> None:
    waiting = canary(ready=False, unschedulable_since=NOW - NO_CAPACITY_AFTER - 1)
    policy = spec(rollout={"allowUnavailable": True})
    step = advance(during(RolloutPhase.STARTING, *OLD, waiting, age=70.0, policy=policy), HOLD)
    assert step.rollout is not None and step.rollout.give_up_one
    assert step.desired is not None
    assert step.desired.strategy["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert not step.desired.paused, "the controller must be free to remove an old pod"


def no_room(
    running: float,
    target: float,
    *old: Pod,
    allowed: bool = True,
    waiting_requests: float = 0.0,
    own: bool = True,
    highest: float = 1.0,
    minutes: int = 60,
    reason: str | None = None,
) -> Step:
    """There is no node for the canary, and this is the headroom of what runs and of what is to run. `own`: that is what
    the user's own manifest says. `highest`: the highest load of the day, over that of now, which has lasted for so many
    minutes."""
    waiting = canary(ready=False, unschedulable_since=NOW - NO_CAPACITY_AFTER - 1)
    policy = spec(rollout={"allowUnavailable": allowed})
    o = during(RolloutPhase.STARTING, *(old or OLD), waiting, age=70.0, policy=policy)
    assert o.estimates.load is not None and o.rollout is not None
    o = replace(o, rollout=o.rollout.model_copy(update={"reason": reason or o.rollout.reason}))
    now = o.estimates.load.tokens_per_second * len(old or OLD)
    buckets = minutes // 5
    loads = LoadHistory(int(NOW // BUCKET) - buckets, (highest * now, *(now,) * buckets), BUCKET)
    o = replace(o, menu=menu(policy, rendered(MENU, "ngram")) if own else MENU, loads=loads)
    e = o.estimates
    assert e.running is not None and e.measured is not None
    predictions = {**e.predictions, "ngram": replace(e.predictions["ngram"], headroom=target)}
    measured = replace(e.measured, waiting=waiting_requests)
    estimates = replace(e, running=replace(e.running, headroom=running), predictions=predictions, measured=measured)
    return advance(replace(o, estimates=estimates), HOLD)


@pytest.mark.parametrize(
    ("began", "in_place", "known"),
    [(NOW - 60, False, True), (NOW - 60, True, False), (NOW, False, False)],
    ids=["they had the whole load to themselves", "one of them was missing", "too short a time"],
)
def test_what_the_pods_did_while_the_canary_started_is_what_it_is_seen_in_the_light_of(
    began: float, in_place: bool, known: bool
) -> None:
    """When the change was decided, the window may still have been full of quieter minutes."""
    rollout = {"started_at": text_of(began), "give_up_one": in_place, "before": 1.0}
    step = advance(during(RolloutPhase.STARTING, *OLD, canary(), rollout=rollout), HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.ANALYSING
    measured = pods_together(p.window.since(began) for p in OLD)
    if known:
        assert measured is not None and step.rollout.before == measured.tpot_seconds
        assert step.rollout.asked_before == measured.generation_tokens_per_second
    else:
        assert (step.rollout.before, step.rollout.asked_before) == (1.0, None)


@pytest.mark.parametrize(
    ("running", "target", "given_up"),
    [(3.0, 5.0, True), (1.7, 5.0, True), (1.5, 5.0, False), (0.9, 1.5, True), (0.9, 0.8, False)],
    ids=["at ease", "two carry it", "two would not", "overloaded, and this is a relief", "overloaded, and it is none"],
)
def test_a_pod_is_given_up_only_where_the_others_carry_the_load(running: float, target: float, given_up: bool) -> None:
    rollout = no_room(running, target).rollout
    assert rollout is not None and rollout.give_up_one is given_up
    if not given_up:
        assert rollout.outcome_reason == "NoCapacity" and "could not carry the load" in rollout.message


def test_in_a_burst_no_pod_is_given_up() -> None:
    """It would be over before the canary had started."""
    rollout = no_room(0.9, 1.5, minutes=10).rollout
    assert rollout is not None and not rollout.give_up_one


@pytest.mark.parametrize("reason", GETS_TO_RUN)
def test_pods_that_fall_behind_may_lose_one_to_what_the_user_chose(reason: Reason) -> None:
    rollout = no_room(0.9, 0.8, reason=reason).rollout
    assert rollout is not None and rollout.give_up_one


@pytest.mark.parametrize(
    ("running", "highest", "given_up"),
    [(3.0, 1.0, True), (2.0, 1.0, False), (3.0, 1.5, True), (3.0, 2.5, False)],
    ids=["at ease", "with little room", "at the highest load of the day too", "but not then"],
)
def test_what_the_users_own_manifest_does_not_say_must_be_possible_to_take_back(
    running: float, highest: float, given_up: bool
) -> None:
    rollout = no_room(running, 5.0, own=False, highest=highest).rollout
    assert rollout is not None and rollout.give_up_one is given_up
    if not given_up:
        assert rollout.outcome_reason == "NoCapacity" and "to take it back" in rollout.message


def test_pods_with_a_long_queue_are_overloaded_whatever_the_model_says() -> None:
    """Else a change that was a mistake could not be taken back where no GPU is free."""
    stuck, relieved = (no_room(1.2, 1.5, waiting_requests=n).rollout for n in (3.0, 5000.0))
    assert stuck is not None and not stuck.give_up_one
    assert relieved is not None and relieved.give_up_one


def test_one_pod_alone_may_always_be_given_up_where_that_is_allowed() -> None:
    alone, forbidden = no_room(1.05, 1.0, OLD[0]).rollout, no_room(1.05, 1.0, OLD[0], allowed=False).rollout
    assert alone is not None and alone.give_up_one
    assert forbidden is not None and not forbidden.give_up_one
    assert "set spec.rollout.allowUnavailable" in forbidden.message


WAITS = {
    "just now": (1.0, ()),
    "and the pod is still ending": (200.0, (replace(OLD[0], terminating=True),)),
}


@pytest.mark.parametrize("case", WAITS)
def test_a_pod_that_was_given_up_is_waited_for(case: str) -> None:
    age, leaving = WAITS[case]
    waiting = canary(ready=False, unschedulable_since=NOW - 300.0)
    policy = spec(rollout={"allowUnavailable": True})
    given_up = during(
        RolloutPhase.STARTING, *OLD[1:], *leaving, waiting, age=age, policy=policy, rollout={"give_up_one": True}
    )
    step = advance(given_up, HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.STARTING


def test_a_pod_that_was_given_up_in_vain_comes_back() -> None:
    waiting = canary(ready=False, unschedulable_since=NOW - 300.0)
    policy = spec(rollout={"allowUnavailable": True})
    given_up = during(RolloutPhase.STARTING, *OLD[1:], waiting, age=200.0, policy=policy, rollout={"give_up_one": True})
    step = advance(given_up, HOLD)
    assert step.rollout is not None and step.rollout.outcome_reason == "NoCapacity"


def queueing(
    phase: RolloutPhase,
    waiting: float = 5000.0,
    *,
    given_up: bool = True,
    own: str = "disabled",
    relief: bool = False,
    restarts: int = 0,
) -> RolloutStatus:
    """Requests wait on the pods that are left beside a canary of n-gram."""
    pods = (*OLD[1:], canary(ready=phase is RolloutPhase.ANALYSING, restarts=restarts))
    o = during(phase, *pods, policy=spec(rollout={"allowUnavailable": True}), rollout={"give_up_one": given_up})
    e = o.estimates
    assert e.running is not None and e.measured is not None
    headroom = 2.0 if relief else 0.9
    predictions = {**e.predictions, "ngram": replace(e.predictions["ngram"], headroom=headroom)}
    estimates = replace(
        e,
        running=replace(e.running, headroom=0.9),
        predictions=predictions,
        measured=replace(e.measured, waiting=waiting),
    )
    step = advance(replace(o, estimates=estimates, menu=menu(o.policy, rendered(MENU, own))), HOLD)
    assert step.rollout is not None
    return step.rollout


@pytest.mark.parametrize("phase", [RolloutPhase.STARTING, RolloutPhase.ANALYSING])
def test_a_pod_that_was_given_up_and_is_missed_comes_back(phase: RolloutPhase) -> None:
    """Requests pile up on the others: users pay for what is to be found out."""
    missed = queueing(phase)
    assert (missed.outcome, missed.outcome_reason) == (Outcome.INCONCLUSIVE, "PodMissed")
    assert missed.phase is RolloutPhase.ROLLING_BACK and "it is given back" in missed.message


@pytest.mark.parametrize("phase", [RolloutPhase.STARTING, RolloutPhase.ANALYSING])
def test_a_canary_that_keeps_dying_beside_a_queue_is_told_of_as_such(phase: RolloutPhase) -> None:
    dies = queueing(phase, restarts=3)
    assert (dies.outcome, dies.outcome_reason) == (Outcome.FAILED, "CanaryCrashLooping")


@pytest.mark.parametrize(
    "kept",
    [
        {"waiting": 1.0},
        {"given_up": False},
        {"own": "ngram"},
        {"relief": True},
    ],
    ids=["hardly any requests wait", "none was given up", "the manifest asks for it", "it is the way out"],
)
@pytest.mark.parametrize("phase", [RolloutPhase.STARTING, RolloutPhase.ANALYSING])
def test_a_canary_goes_on_beside_a_queue_where(phase: RolloutPhase, kept: dict[str, Any]) -> None:
    assert queueing(phase, **kept).phase is phase


def analysed(canary_step: float, *, age: float = 75.0, acceptance: float = 0.75, **changes: Any) -> Step:
    """`canary_step` without what the model says of the load after a promotion: `test_load_correction`."""
    new = canary(window=traffic(acceptance=acceptance, step=canary_step))
    o = during(RolloutPhase.ANALYSING, *OLD, new, age=age, **changes)
    return advance(replace(o, estimates=replace(o.estimates, load_corrections={"ngram": 0.0})), HOLD)


FIFTH = 0.02 / 1.2 * 4.75
"""Seconds of a step that is a fifth faster, token for token."""


def test_a_faster_canary_is_promoted() -> None:
    step = analysed(0.022)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.PROMOTING
    assert step.rollout.gain is not None and step.rollout.gain.low > 1
    assert step.desired is not None and not step.desired.paused
    assert step.desired.min_ready_seconds == 0, "given back for the rest of the roll"


def test_no_verdict_before_the_time_is_over() -> None:
    """Ten seconds of warm-up and a minute."""
    step = analysed(FIFTH, age=60.0)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.ANALYSING
    step = analysed(FIFTH)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.PROMOTING


@pytest.mark.parametrize(("age", "phase"), [(35.0, RolloutPhase.ANALYSING), (45.0, RolloutPhase.PROMOTING)])
def test_half_of_the_time_is_enough_where_it_is_plain(age: float, phase: RolloutPhase) -> None:
    step = analysed(0.022, age=age)
    assert step.rollout is not None and step.rollout.phase is phase


@pytest.mark.parametrize(
    ("own", "phase"), [("ngram", RolloutPhase.PROMOTING), ("disabled", RolloutPhase.ANALYSING)], ids=["back", "away"]
)
def test_what_is_no_slower_may_lead_back_to_what_the_user_chose_but_not_away(own: str, phase: RolloutPhase) -> None:
    """A change that needs no gain: a guard asks for it. It is 1 % slower."""
    step = analysed(0.0202 * 4.75, menu=menu(spec(), rendered(MENU, own)), rollout={"required_gain": -0.02})
    assert step.rollout is not None and step.rollout.phase is phase


def test_what_the_user_chose_has_nothing_to_prove_however_often_it_was_no_better() -> None:
    """It is 1 % slower, which may be chance."""
    own = menu(spec(), rendered(MENU, "ngram"))
    step = analysed(0.0202 * 4.75, menu=own, rollout={"required_gain": -0.02}, history=(slower(600.0), slower(1200.0)))
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.PROMOTING


def test_harm_is_ended_early() -> None:
    step = analysed(0.2, age=50.0)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.ROLLING_BACK
    assert (step.rollout.outcome, step.rollout.outcome_reason) == (Outcome.FAILED, "Slower")


def test_a_gain_too_small_is_taken_back() -> None:
    step = analysed(0.0935)
    assert step.rollout is not None
    assert (step.rollout.outcome, step.rollout.outcome_reason) == (Outcome.FAILED, "GainTooSmall")


@pytest.mark.parametrize(
    ("slower", "phase"),
    [(1.1, RolloutPhase.PROMOTING), (1.5, RolloutPhase.ROLLING_BACK)],
    ids=["by a tenth", "by half"],
)
@pytest.mark.parametrize("reason", GETS_TO_RUN)
def test_what_the_user_chose_gets_to_run_for_what_users_got_though_its_canary_is_slower(
    reason: Reason, slower: float, phase: RolloutPhase
) -> None:
    step = analysed(0.02 * 4.75 * slower, rollout={"reason": reason.value, "required_gain": -0.25})
    assert step.rollout is not None and step.rollout.phase is phase
    worth_it = analysed(0.02 * 4.75 * slower).rollout
    assert worth_it is not None and worth_it.phase is RolloutPhase.ROLLING_BACK


def test_a_canary_that_fails_requests_is_taken_back_at_once() -> None:
    new = canary(window=traffic(acceptance=0.75, errors=0.2))
    step = advance(during(RolloutPhase.ANALYSING, *OLD, new, age=30.0), HOLD)
    assert step.rollout is not None
    assert (step.rollout.outcome, step.rollout.outcome_reason) == (Outcome.FAILED, "RequestsFail")


def test_a_canary_that_does_not_run_its_profile_is_taken_back() -> None:
    silent = canary(window=traffic(acceptance=None))
    step = advance(during(RolloutPhase.ANALYSING, *OLD, silent), HOLD)
    assert step.rollout is not None and step.rollout.outcome_reason == "NotInForce"


def test_what_could_not_be_measured_is_an_error_not_a_failure() -> None:
    mute = pod("new-0", "new", NGRAM)
    step = advance(during(RolloutPhase.ANALYSING, *OLD, mute, age=200.0), HOLD)
    assert step.rollout is not None and step.rollout.outcome is Outcome.ERROR


def test_too_few_requests_are_inconclusive() -> None:
    new = canary(window=traffic(acceptance=0.75, rate=0.1))
    step = advance(during(RolloutPhase.ANALYSING, *OLD, new, age=200.0), HOLD)
    assert step.rollout is not None
    assert (step.rollout.outcome, step.rollout.outcome_reason) == (Outcome.INCONCLUSIVE, "TooFewRequests")


def test_after_a_restart_of_the_operator_the_canary_is_measured_again() -> None:
    step = analysed(0.022, age=300.0, observing_since=NOW - 20)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.ANALYSING


def test_an_edited_policy_takes_an_unproven_canary_back() -> None:
    edited = spec(profiles=[{"name": "ngram", "method": "NGram", "numSpeculativeTokens": 3}])
    o = during(RolloutPhase.ANALYSING, *OLD, canary(), policy=edited, menu=menu(edited))
    step = advance(o, HOLD)
    assert step.rollout is not None and step.rollout.outcome_reason == "PolicyChanged"


def new_pods(count: int, **changes: Any) -> tuple[Pod, ...]:
    return tuple(replace(canary(**changes), name=f"new-{i}") for i in range(count))


def test_promoted_pods_are_verified_and_then_all_is_given_back() -> None:
    step = advance(during(RolloutPhase.PROMOTING, *new_pods(3), settled=True), HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.VERIFYING
    step = advance(during(RolloutPhase.VERIFYING, *new_pods(3), settled=True), HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.FINISHING
    assert step.desired is not None
    o = observation()
    assert o.workload is not None
    assert step.desired.strategy == o.workload.strategy
    ended = {"outcome": Outcome.SUCCESSFUL, "give_up_one": True}
    step = advance(during(RolloutPhase.FINISHING, *new_pods(3), rollout=ended), HOLD)
    assert step.rollout is None and step.finished is not None
    assert step.finished.outcome is Outcome.SUCCESSFUL and step.finished.give_up_one


def test_a_pod_that_does_not_answer_is_not_verified() -> None:
    mute = pod("new-2", "new", NGRAM)
    step = advance(during(RolloutPhase.VERIFYING, *new_pods(2), mute, settled=True), HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.VERIFYING


@pytest.mark.parametrize("phase", [RolloutPhase.PROMOTING, RolloutPhase.VERIFYING])
def test_a_promotion_that_gets_stuck_is_taken_back(phase: RolloutPhase) -> None:
    step = advance(during(phase, *new_pods(1), *OLD, age=601.0), HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.ROLLING_BACK


def test_a_roll_back_ends_when_only_the_old_pods_are_left() -> None:
    back = {"outcome": Outcome.FAILED, "outcome_reason": "Slower"}
    o = during(RolloutPhase.ROLLING_BACK, *OLD, profile="disabled", settled=False, rollout=back)
    step = advance(o, HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.ROLLING_BACK
    o = during(RolloutPhase.ROLLING_BACK, *OLD, profile="disabled", settled=True, rollout=back)
    step = advance(o, HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.FINISHING
    assert step.rollout.outcome is Outcome.FAILED


def test_a_roll_back_does_not_wait_for_ever_for_pods_that_are_broken_anyway() -> None:
    back = {"outcome": Outcome.FAILED, "outcome_reason": "Slower"}
    o = during(RolloutPhase.ROLLING_BACK, *OLD, profile="disabled", settled=False, rollout=back, age=601.0)
    step = advance(o, HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.FINISHING


@pytest.mark.parametrize(
    "phase", [RolloutPhase.STARTING, RolloutPhase.ANALYSING, RolloutPhase.PROMOTING, RolloutPhase.VERIFYING]
)
def test_somebody_elses_template_stays_and_gets_the_borrowed_fields_back(phase: RolloutPhase) -> None:
    theirs = {"name": "vllm", "image": "vllm/vllm-openai:v0.24.0", "args": ["--model", "another"]}
    o = during(phase, *OLD, workload=workload(theirs, revision=None))
    step = advance(o, HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.FINISHING
    assert step.rollout.outcome_reason == "Superseded"
    assert step.desired is not None and same(step.desired.container, theirs)
    assert not step.desired.paused


def other_image(profile: str, **changes: Any) -> Workload:
    """The Deployment after somebody else set another image."""
    return workload({**rendered(MENU, profile), "image": "vllm/vllm-openai:v0.24.0-theirs"}, **changes)


@pytest.mark.parametrize("revision", [None, "theirs"])
@pytest.mark.parametrize("phase", [RolloutPhase.STARTING, RolloutPhase.ANALYSING])
def test_an_image_that_changed_under_a_canary_supersedes_it(phase: RolloutPhase, revision: str | None) -> None:
    """Whether the controller was paused or not: a canary of another image would be compared for that as well."""
    o = during(phase, *OLD, canary(), workload=other_image("ngram", revision=revision))
    step = advance(o, HOLD)
    assert step.rollout is not None and step.rollout.outcome_reason == "Superseded"
    assert step.desired is not None and same(step.desired.container, rendered(MENU, "disabled"))
    assert not step.desired.paused


def test_an_image_that_changed_before_the_canary_was_made_stops_the_change() -> None:
    step = advance(during(RolloutPhase.STARTING, *OLD, workload=other_image("disabled", revision="theirs")), HOLD)
    assert step.rollout is not None and step.rollout.outcome_reason == "Superseded"
    assert step.rollout.phase is RolloutPhase.FINISHING


@pytest.mark.parametrize("phase", [RolloutPhase.PROMOTING, RolloutPhase.VERIFYING])
def test_what_is_proven_may_ride_on_somebody_elses_image(phase: RolloutPhase) -> None:
    live = other_image("ngram", revision="theirs", settled=False)
    step = advance(during(phase, *OLD, *new_pods(1), workload=live), HOLD)
    assert step.rollout is not None and step.rollout.phase is phase


def test_a_crash_between_status_and_deployment_is_made_good() -> None:
    """The status says Starting, the Deployment is untouched: the same patch is made."""
    o = during(RolloutPhase.STARTING, *OLD, profile="disabled")
    step = advance(o, HOLD)
    assert step.rollout is not None and step.desired is not None and o.workload is not None
    assert step.rollout.id == started().id, "the same change, not a second one"
    assert any(op["path"].endswith("/args") for op in patch(o.workload.deployment, step.desired))


@pytest.mark.parametrize("restore", [True, False])
def test_a_deleted_policy_never_leaves_an_unproven_change(restore: bool) -> None:
    status = status_with(rollout=started())
    desired = cleared(deployment(rendered(MENU, "ngram"), paused=True, minReadySeconds=599), status, restore=restore)
    assert desired is not None and not desired.paused and desired.min_ready_seconds == 0
    assert same(desired.container, rendered(MENU, "disabled"))
    assert desired.strategy == started().borrowed.strategy


def status_with(**fields: Any) -> SpecDecodePolicyStatus:
    original = Original(**fields_of(MENU.original).model_dump(), adopted_at=text_of(NOW))
    return SpecDecodePolicyStatus(original=original, **fields)


def test_a_deleted_policy_restores_or_keeps_as_it_says() -> None:
    ours = rendered(MENU, "ngram")
    status = status_with(applied=fingerprint(ours))
    assert cleared(deployment(ours), status, restore=False) is None
    restored = cleared(deployment(ours), status, restore=True)
    assert restored is not None and same(restored.container, rendered(MENU, "disabled"))


def test_a_command_line_that_is_not_ours_is_not_restored() -> None:
    theirs = {"name": "vllm", "args": ["--model", "another"]}
    assert cleared(deployment(theirs), status_with(applied="0123"), restore=True) is None
    given = cleared(deployment(theirs, paused=True), status_with(rollout=started()), restore=True)
    assert given is not None and same(given.container, theirs) and not given.paused


def test_a_policy_that_changed_nothing_leaves_everything() -> None:
    assert cleared(deployment(rendered(MENU, "ngram")), status_with(), restore=True) is None


PODS = st.builds(
    pod,
    st.sampled_from(["a", "b", "c", "d"]),
    st.sampled_from(["old", "new"]),
    st.sampled_from([OFF, NGRAM, None]),
    st.sampled_from([None, traffic(), traffic(acceptance=0.75), traffic(acceptance=0.75, step=0.3)]),
    ready=st.booleans(),
    restarts=st.integers(0, 3),
    waiting=st.sampled_from([None, "CrashLoopBackOff"]),
    terminating=st.booleans(),
    unschedulable_since=st.sampled_from([None, NOW - 5, NOW - 500]),
)


@given(
    phase=st.sampled_from(list(RolloutPhase)),
    profile=st.sampled_from(["ngram", "disabled"]),
    pods=st.lists(PODS, max_size=5),
    age=st.sampled_from([0.0, 30.0, 75.0, 200.0, 700.0]),
    settled=st.booleans(),
    outcome=st.sampled_from([None, *Outcome]),
)
def test_whatever_is_seen_an_unproven_change_is_never_let_loose(
    phase: RolloutPhase, profile: str, pods: list[Pod], age: float, settled: bool, outcome: Outcome | None
) -> None:
    """The target runs unpaused only while the canary does not exist yet, or after a verdict of Successful."""
    o = during(phase, *pods, age=age, profile=profile, settled=settled, rollout={"outcome": outcome})
    step = advance(o, HOLD)
    if step.rollout is None or step.desired is None:
        return
    after = step.rollout.phase
    target = same(step.desired.container, rendered(MENU, "ngram"))
    if after is RolloutPhase.STARTING:
        assert step.desired.min_ready_seconds == 599
    if after is RolloutPhase.ANALYSING and any(p.revision == "new" and not p.terminating for p in pods):
        assert step.desired.paused or any(p.unschedulable_since for p in pods)
    if after is RolloutPhase.PROMOTING and phase is RolloutPhase.ANALYSING:
        assert step.rollout.gain is not None and step.rollout.gain.value >= 0.05
    if after is RolloutPhase.ROLLING_BACK:
        assert not target
        assert not step.desired.paused
        assert step.rollout.outcome is not Outcome.SUCCESSFUL or phase is RolloutPhase.ROLLING_BACK
