"""The rule, question by question."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specdecode.api.v1alpha1 import BatchRangeStatus, Configuration, HistoryEntry, Outcome
from specdecode.model.cost import RooflineModel
from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import Knowledge, StepTime
from specdecode.policy.clock import text_of
from specdecode.policy.decision import Reason
from specdecode.policy.estimating import estimate
from specdecode.policy.gates import backoff, decide, may_act
from specdecode.policy.observation import Observation, Problem
from specdecode.vllm.speculation import BatchRange
from support.world import NOW, menu, observation, option, pod, rendered, spec, traffic, workload


def entry(outcome: Outcome = Outcome.SUCCESSFUL, ago: float = 60.0, target: str = "ngram", **kw: Any) -> HistoryEntry:
    fields: dict[str, Any] = {
        "id": "x",
        "policy_generation": 1,
        "source": Configuration(profile="disabled"),
        "target": Configuration(profile=target),
        "reason": "CheaperProfile",
        "outcome": outcome,
        "outcome_reason": "r",
        "started_at": text_of(NOW - ago - 60),
        "finished_at": text_of(NOW - ago),
    }
    return HistoryEntry(**(fields | kw))


def running_ngram(acceptance: float = 0.6, batch: float = 8.0, step: float = 0.021, **kw: Any) -> Observation:
    policy = kw.pop("policy", spec())
    m = menu(policy)
    active = option(m, "ngram")
    return observation(policy, active=active, window=traffic(acceptance=acceptance, batch=batch, step=step), **kw)


MAY_WE_JUDGE = {
    "a suspended policy decides nothing": (lambda: observation(spec(suspend=True)), Reason.SUSPENDED),
    "a workload that is not there is said": (lambda: observation(workload=None), Reason.WORKLOAD_MISSING),
    "a command line that is not understood is left alone": (
        lambda: replace(observation(), problem=Problem("CommandNotUnderstood", "a loop")),
        Reason.NOT_MANAGEABLE,
    ),
    "somebody else's roll is waited for": (
        lambda: observation(workload=workload({"name": "vllm"}, settled=False)),
        Reason.WORKLOAD_ROLLING,
    ),
    "no pod answers: no metrics, no decision": (
        lambda: observation(pods=(pod("p", "old", option(menu(spec()), "disabled"), problem="refused"),)),
        Reason.METRICS_MISSING,
    ),
    "one scrape is no measurement": (
        lambda: observation(window=traffic(seconds=0.0)),
        Reason.METRICS_STALE,
    ),
    "an idle workload needs no decision": (lambda: observation(window=traffic(batch=0.0, rate=0.0)), Reason.IDLE),
    "a handful of steps is no evidence": (
        lambda: observation(window=traffic(seconds=10, step=1.0, batch=2.0)),
        Reason.TOO_FEW_SAMPLES,
    ),
}


@pytest.mark.parametrize("case", MAY_WE_JUDGE)
def test_the_first_question_is_whether_there_is_anything_to_judge(case: str) -> None:
    make, reason = MAY_WE_JUDGE[case]
    decision = decide(make())
    assert decision.reason is reason
    assert not decision.change
    assert decision.message


def test_a_problem_tells_the_person_what_it_is() -> None:
    assert decide(replace(observation(), problem=Problem("X", "write it plainly"))).message == "write it plainly"


def test_missing_metrics_say_what_the_pods_answered() -> None:
    o = observation(pods=(pod("p", "old", option(menu(spec()), "disabled"), problem="connection refused"),))
    assert "connection refused" in decide(o).message


def test_low_acceptance_turns_speculation_off_even_while_it_rests() -> None:
    d = decide(running_ngram(acceptance=0.2, history=(entry(ago=5),)))
    assert d.reason is Reason.ACCEPTANCE_BELOW_FLOOR
    assert d.target is not None and d.target.profile == "disabled"
    assert d.change and d.urgent and d.held_back is None
    assert "0.20" in d.message and "0.5" in d.message


def test_the_floor_is_the_users_to_set() -> None:
    policy = spec(guards={"acceptance": {"disableBelow": 0.1}})
    assert decide(running_ngram(acceptance=0.2, policy=policy)).reason is not Reason.ACCEPTANCE_BELOW_FLOOR


def test_a_guard_that_was_just_proven_wrong_rests_like_everybody() -> None:
    d = decide(running_ngram(acceptance=0.2, history=(entry(Outcome.FAILED, ago=5, target="disabled"),)))
    assert d.held_back is not None and d.held_back[0] is Reason.COOLING_DOWN


def test_the_floor_gives_way_to_costs_that_were_measured_on_both_sides() -> None:
    """On a recorded H200 server n-gram at 0.45 made tokens twice as fast: measured cost beats the rule of thumb."""
    without = Knowledge(NOW - 600, step_times=(StepTime(8.0, 8.0, 0.02), StepTime(2.0, 2.0, 0.0195)))
    o = running_ngram(acceptance=0.45, step=0.022, knowledge={"disabled": without})
    assert decide(o).reason is not Reason.ACCEPTANCE_BELOW_FLOOR
    o = running_ngram(acceptance=0.02, step=0.022, knowledge={"disabled": without})
    assert decide(o).reason is Reason.ACCEPTANCE_BELOW_FLOOR


def test_a_batch_above_break_even_turns_speculation_off() -> None:
    known = {"disabled": Knowledge(measured_at=NOW)}
    d = decide(running_ngram(acceptance=0.6, batch=200.0, step=0.14, knowledge=known))
    assert d.reason is Reason.BATCH_ABOVE_BREAK_EVEN
    assert d.target is not None and d.target.profile == "disabled"
    assert d.gain is not None and d.gain.value > 0.05


def test_at_low_load_a_profile_that_was_never_measured_is_worth_a_canary_not_a_roll() -> None:
    d = decide(observation())
    assert d.reason in (Reason.WORTH_A_CANARY, Reason.CHEAPER_PROFILE)
    assert d.target is not None and d.target.profile == "ngram"
    assert d.protect_tail, "nothing is known about its tail"
    assert d.required_gain == 0.05


def test_a_well_measured_profile_that_pays_is_expected_to_pay() -> None:
    known = {"ngram": Knowledge(NOW - 600, (0.75, 0.7, 0.75, 0.8), 4.7, (0.75,) * 5, 4.0, 5.0)}
    d = decide(observation(knowledge=known))
    assert d.reason is Reason.CHEAPER_PROFILE
    assert d.gain is not None and d.gain.low > 1.0
    assert not d.protect_tail


def test_what_runs_stays_when_it_is_the_fastest() -> None:
    d = decide(running_ngram(acceptance=0.75, batch=4.0))
    assert d.reason in (Reason.BEST_ALREADY, Reason.GAIN_TOO_SMALL)
    assert not d.change
    assert d.target is not None and d.target.profile == "ngram"


def test_a_profile_whose_acceptance_was_just_seen_to_be_low_is_not_tried_again() -> None:
    known = {"ngram": Knowledge(NOW - 60, (0.1, 0.1, 0.1, 0.1), 1.5, (0.1,) * 5, 1.5, 5.0)}
    d = decide(observation(knowledge=known))
    assert not d.change


def test_rest_follows_a_change() -> None:
    d = decide(observation(history=(entry(target="disabled"),)))
    assert d.change and d.held_back is not None
    assert d.held_back[0] is Reason.COOLING_DOWN
    assert not may_act(observation(), d)


@pytest.mark.parametrize(("failures", "factor"), [(0, 1), (1, 2), (2, 4), (3, 8), (9, 16)])
def test_rest_doubles_with_each_failure(failures: int, factor: int) -> None:
    failed = [entry(Outcome.FAILED) for _ in range(failures)]
    assert backoff(observation(history=(*failed, entry(target="disabled")))) == factor


def test_changes_are_counted_per_day() -> None:
    many = tuple(entry(ago=3600.0 * (i + 2), target="disabled") for i in range(6))
    d = decide(observation(history=many))
    assert d.held_back is not None and d.held_back[0] is Reason.CHANGES_EXHAUSTED


def test_a_field_that_was_taken_back_is_not_fought_over() -> None:
    d = decide(observation(history=(entry(ago=7200.0),)))
    assert d.reason is Reason.FIELD_CONTESTED
    assert "SPECDECODE_CONFIG" in d.message


@pytest.mark.parametrize(
    "o",
    [
        observation(history=(entry(ago=7200.0),), generation=2),
        observation(history=(entry(ago=7200.0),), adopted_at=NOW - 60),
    ],
    ids=["the policy was edited since", "the workload was changed for another reason since"],
)
def test_a_new_start_ends_the_contest(o: Observation) -> None:
    assert decide(o).reason is not Reason.FIELD_CONTESTED


def test_a_recreate_deployment_is_only_changed_when_a_pod_may_go() -> None:
    m = menu(spec())
    recreate = workload(rendered(m, "disabled"), strategy={"type": "Recreate"})
    assert decide(observation(workload=recreate)).held_back is not None
    policy = spec(rollout={"allowUnavailable": True})
    assert decide(observation(policy, workload=recreate)).held_back is None


@pytest.mark.parametrize(("mode", "acts"), [("Auto", True), ("Recommend", False), ("Observe", False)])
def test_only_auto_acts(mode: str, acts: bool) -> None:
    o = observation(spec(mode=mode))
    d = decide(o)
    assert d.change
    assert may_act(o, d) is acts


def test_the_same_observation_gives_the_same_decision() -> None:
    o = running_ngram()
    assert decide(o) == decide(o)


def test_a_threshold_is_not_moved_for_what_the_model_gets_wrong() -> None:
    """At a load far below either threshold both schedules do the same, however far measurement and model are apart."""
    policy = spec(batchSizeTuning={"mode": "Auto"})
    m = menu(policy)
    fixed = option(m, "ngram")
    assert fixed.speculation is not None
    narrow = replace(fixed.speculation, schedule=(BatchRange(1, 15, 5), BatchRange(16, 256, 0)))
    active = replace(fixed, speculation=narrow)
    known = {"disabled": Knowledge(NOW, step_times=(StepTime(2.0, 2.0, 0.018), StepTime(64.0, 64.0, 0.0207)))}
    pods = tuple(pod(f"p{i}", "old", active, traffic(acceptance=0.75, batch=2.0, step=0.03)) for i in range(3))
    base = observation(policy, menu=m, active=fixed)
    o = estimate(replace(base, active=active, pods=pods, knowledge=known), RooflineModel)
    d = decide(o)
    assert any(c.profile == "ngram" and c != active for c in o.estimates.candidates), "there is another threshold"
    assert not d.change


def waiting_for(**fields: Any) -> str:
    live = workload(rendered(menu(spec()), "disabled"), settled=False)
    spec_, status = fields.pop("spec", {}), fields.pop("status", {})
    changed = dict(live.deployment) | {"spec": {**live.deployment["spec"], **spec_}, "status": status}
    return decide(observation(workload=replace(live, deployment=changed))).message


def test_a_workload_that_is_not_settled_says_what_is_missing() -> None:
    text = waiting_for(status={"updatedReplicas": 3, "availableReplicas": 2})
    assert "of 3, 3 are of its current template and 2 available" in text
    assert "0 available" in waiting_for()
    assert "paused (spec.paused)" in waiting_for(spec={"paused": True})


def test_a_workload_scaled_to_0_is_not_called_broken() -> None:
    o = observation(workload=workload(rendered(menu(spec()), "disabled"), replicas=0), pods=())
    d = decide(o)
    assert d.reason is Reason.METRICS_MISSING and d.message == "Deployment chat is scaled to 0"


def test_a_schedule_that_was_taken_back_is_contested_too() -> None:
    target = Configuration(profile="ngram", schedule=[BatchRangeStatus(start=1, end=31, k=5)])
    d = decide(running_ngram(history=(entry(ago=7200.0, target="ngram").model_copy(update={"target": target}),)))
    assert d.reason is Reason.FIELD_CONTESTED


def test_what_was_changed_last_and_still_runs_is_not_contested() -> None:
    assert decide(running_ngram(history=(entry(ago=7200.0),))).reason is not Reason.FIELD_CONTESTED


def unable(o: Observation, **changes: Any) -> Observation:
    return replace(o, estimates=replace(o.estimates, **changes))


def test_where_there_is_nothing_else_it_says_why() -> None:
    o = observation()
    alone = unable(o, candidates=(option(menu(spec()), "disabled"),), unavailable={"ngram": "0.1.0 has no n-gram"})
    d = decide(alone)
    assert d.reason is Reason.BEST_ALREADY
    assert d.message == "disabled stays: there is nothing else; ngram cannot run: 0.1.0 has no n-gram"


def test_a_profile_that_cannot_carry_the_load_is_not_called_too_small_a_gain() -> None:
    o = observation(knowledge={"ngram": Knowledge(NOW - 600, (0.75, 0.7, 0.75, 0.8), 4.7, (0.75,) * 5, 4.0, 5.0)})
    full = replace(o.estimates.predictions["ngram"], headroom=0.9)
    d = decide(unable(o, predictions={**o.estimates.predictions, "ngram": full}))
    assert d.reason is Reason.GAIN_TOO_SMALL and not d.change
    assert "could not carry the load" in d.message


def test_where_nothing_carries_the_load_more_capacity_is_a_relief() -> None:
    o = observation(knowledge={"ngram": Knowledge(NOW - 600, (0.75, 0.7, 0.75, 0.8), 4.7, (0.75,) * 5, 4.0, 5.0)})
    assert o.estimates.running is not None
    full, fuller = replace(o.estimates.predictions["ngram"], headroom=0.9), replace(o.estimates.running, headroom=0.5)
    d = decide(unable(o, predictions={**o.estimates.predictions, "ngram": full}, running=fuller))
    assert d.change and d.target is not None and d.target.profile == "ngram"


def test_a_profile_that_is_barred_says_since_when_it_was_bad() -> None:
    o = observation(knowledge={"ngram": Knowledge(NOW - 60, (0.3, 0.1, 0.3, 0.5), 2.5, (0.5,) * 5, 1.25, 5.0)})
    d = decide(o)
    assert d.reason is Reason.GAIN_TOO_SMALL
    assert "but its acceptance was 0.30 1m ago, below 0.5" in d.message


def test_a_better_threshold_is_a_reason_of_its_own() -> None:
    o = running_ngram(acceptance=0.75, batch=4.0)
    assert o.active is not None and o.active.speculation is not None
    ranges = (BatchRange(1, 31, 5), BatchRange(32, 256, 0))
    scheduled = replace(o.active, speculation=replace(o.active.speculation, schedule=ranges))
    off = option(menu(spec()), "disabled")
    here = o.estimates.predictions["ngram"]
    faster = replace(here, tpot=Estimate(*(x / 2 for x in (here.tpot.value, here.tpot.low, here.tpot.high))))
    d = decide(unable(o, candidates=(scheduled, off), predictions={"ngram": faster}, running=here))
    assert d.reason is Reason.BETTER_THRESHOLD and d.target == scheduled
