"""The rule, question by question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from specdecode.api.v1alpha1 import BatchRangeStatus, Configuration, HistoryEntry, Outcome
from specdecode.model.cost import Prediction
from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import Drafts, Knowledge, StepTime
from specdecode.model.loads import BUCKET, DAY, LoadHistory
from specdecode.policy.brakes import changes_exhausted, cooling_down, may_act, too_few_requests
from specdecode.policy.clock import seconds_of, text_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.gates import OWN_MAY_LOSE, PROBE_EVERY, decide
from specdecode.policy.observation import Observation, Problem
from specdecode.policy.outlook import Outlook
from specdecode.policy.past import MEASURED, backoff, fell_behind, lost_today
from specdecode.policy.spare import LONG_AGO, can_spare_one, one_is_given_up
from specdecode.rollout.ending import Ending
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


def slower(ago: float, target: str = "ngram") -> HistoryEntry:
    """A canary that was measured to be slower."""
    return entry(Outcome.FAILED, ago=ago, target=target, outcome_reason=Ending.SLOWER)


def running_ngram(acceptance: float = 0.6, batch: float = 8.0, step: float = 0.021, **kw: Any) -> Observation:
    policy = kw.pop("policy", spec())
    m = menu(policy)
    active = option(m, "ngram")
    return observation(policy, active=active, window=traffic(acceptance=acceptance, batch=batch, step=step), **kw)


def seen(acceptance: float, ago: float = 600.0, step: float | None = 0.021) -> Knowledge:
    """N-gram at K = 5 with this share of its drafted tokens accepted; its steps too, at 8 requests, unless None."""
    times = () if step is None else (StepTime(8.0, 48.0, step, k=5, measured_at=NOW - ago),)
    chance = next(c / 1000 for c in range(1001) if sum((c / 1000) ** i for i in range(1, 6)) >= 5 * acceptance)
    return Knowledge(
        measured_at=NOW - ago,
        acceptance=(acceptance,) * 4,
        drafts=Drafts(1.0, (chance,) * 5, NOW - ago, 1e5),
        tokens_per_step=1 + 5 * acceptance,
        step_times=times,
    )


def without(ago: float = 600.0, **kw: Any) -> dict[str, Knowledge]:
    """The engine was seen without speculation."""
    times = (StepTime(8.0, 8.0, 0.02, measured_at=NOW - ago), StepTime(2.0, 2.0, 0.0195, measured_at=NOW - ago))
    return {"disabled": Knowledge(NOW - ago, step_times=times), **kw}


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


def test_what_is_urgent_does_not_wait_for_another_profiles_failure() -> None:
    d = decide(running_ngram(acceptance=0.2, history=(entry(Outcome.FAILED, ago=5, target="ngram"),)))
    assert d.urgent and d.held_back is None


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
    d = decide(observation(knowledge={"ngram": seen(0.75)}))
    assert d.reason is Reason.CHEAPER_PROFILE
    assert d.gain is not None and d.gain.low > 1.0
    assert not d.protect_tail
    assert "paid back after" in d.message and "expected to last 1h more" in d.message


def test_what_runs_stays_when_it_is_the_fastest() -> None:
    d = decide(running_ngram(acceptance=0.75, batch=4.0, knowledge=without()))
    assert d.reason is Reason.BEST_ALREADY
    assert not d.change
    assert d.target is not None and d.target.profile == "ngram"


def test_a_profile_whose_acceptance_was_just_seen_to_be_low_is_not_tried_again() -> None:
    assert not decide(observation(knowledge={"ngram": seen(0.04, ago=60, step=None)})).change


def test_rest_follows_a_change() -> None:
    d = decide(observation(history=(entry(target="disabled"),)))
    assert d.change and d.held_back is not None
    assert d.held_back[0] is Reason.COOLING_DOWN
    assert not may_act(observation(), d)


@pytest.mark.parametrize(("failures", "factor"), [(0, 1), (1, 2), (2, 4), (3, 8), (9, 16)])
def test_rest_doubles_with_each_failure(failures: int, factor: int) -> None:
    failed = [entry(Outcome.FAILED) for _ in range(failures)]
    o = observation(history=(*failed, entry(target="disabled")))
    assert backoff(o, "ngram") == factor
    assert backoff(o, "disabled") == 1, "what failed is the one, not the other"


@pytest.mark.parametrize(("untold", "factor"), [(1, 1), (2, 2), (4, 4), (9, 16)])
def test_measurements_that_failed_count_half(untold: int, factor: int) -> None:
    """They are no bad results; but what cannot be measured is not to be tried all day."""
    history = tuple(entry(Outcome.INCONCLUSIVE, outcome_reason=Ending.UNEQUAL_LOAD) for _ in range(untold))
    assert backoff(observation(history=history), "ngram") == factor


def test_todays_lost_canaries_are_counted_whatever_the_load_was() -> None:
    ended = (
        slower(600.0),
        entry(Outcome.ERROR, ago=900.0, outcome_reason=Ending.NO_CAPACITY),
        entry(Outcome.INCONCLUSIVE, ago=1000.0, outcome_reason=Ending.TOO_FEW_REQUESTS),
        slower(1200.0),
        entry(Outcome.SUCCESSFUL, ago=3600.0),
        slower(7200.0),
    )
    assert lost_today(observation(history=ended), "ngram") == 2, "until one that succeeded"
    assert lost_today(observation(history=(*ended[:4], slower(DAY + 60))), "ngram") == 2, "of today"
    assert lost_today(observation(history=ended), "disabled") == 0


def test_changes_are_counted_per_day() -> None:
    many = tuple(entry(ago=3600.0 * (i + 2), target="disabled") for i in range(6))
    d = decide(observation(history=many))
    assert d.held_back is not None and d.held_back[0] is Reason.CHANGES_EXHAUSTED


def today(reason: Reason, count: int, outcome: Outcome = Outcome.FAILED) -> tuple[HistoryEntry, ...]:
    """So many changes of another profile; six are allowed."""
    return tuple(entry(outcome, ago=3600.0 * (i + 2), target="other", reason=reason.value) for i in range(count))


SURE, UNSURE = Reason.CHEAPER_PROFILE, Reason.WORTH_A_CANARY


@pytest.mark.parametrize(
    ("wanted", "target", "before", "says"),
    [
        (SURE, "ngram", today(SURE, 3), None),
        (SURE, "ngram", today(SURE, 4), "the last two are kept for the way back"),
        (SURE, "disabled", today(SURE, 4), None),
        (SURE, "disabled", today(SURE, 5), "the last is kept for pods that have long fallen behind"),
        (SURE, "disabled", today(SURE, 6), "allows 6"),
        (UNSURE, "ngram", today(UNSURE, 2), None),
        (UNSURE, "ngram", today(UNSURE, 3), "3 of 3 changes in 24 hours"),
        (UNSURE, "ngram", today(UNSURE, 3, Outcome.SUCCESSFUL), None),
        (UNSURE, "ngram", today(SURE, 3), None),
        (SURE, "ngram", today(UNSURE, 3), None),
        (UNSURE, "disabled", today(UNSURE, 4), None),
    ],
)
def test_a_day_keeps_changes_for_what_users_feel(
    wanted: Reason, target: str, before: tuple[HistoryEntry, ...], says: str | None
) -> None:
    """Half of them are for what may be turned on in vain, and the last two for the way back."""
    o = observation(history=before)
    held = changes_exhausted(o, Decision(wanted, "", option(menu(spec()), target), change=True))
    assert (held is None) if says is None else (held is not None and says in held[1])


@pytest.mark.parametrize(
    ("wanted", "before", "held"),
    [(UNSURE, today(UNSURE, 4), False), (UNSURE, today(SURE, 5), True), (Reason.WORTH_A_PROBE, today(SURE, 4), True)],
    ids=["it is believed to pay", "the last one is left", "it is only a question"],
)
def test_the_last_but_one_is_for_what_the_manifest_says_as_well(
    wanted: Reason, before: tuple[HistoryEntry, ...], held: bool
) -> None:
    own = menu(spec(), rendered(menu(spec()), "ngram"))
    found = changes_exhausted(
        observation(menu=own, history=before), Decision(wanted, "", option(own, "ngram"), change=True)
    )
    assert (found is not None) is held


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


def test_a_schedule_is_not_changed_for_what_the_model_gets_wrong() -> None:
    """At a load far below either threshold both schedules do the same, however far measurement and model are apart."""
    o = running_ngram(acceptance=0.75, batch=2.0, step=0.03)
    assert o.active is not None and o.active.speculation is not None
    ranges = (BatchRange(1, 15, 5), BatchRange(16, 256, 0))
    narrow = replace(o.active, speculation=replace(o.active.speculation, schedule=ranges))
    assert o.estimates.modelled is not None and o.estimates.running is not None
    assert o.estimates.running.tpot != o.estimates.modelled.tpot
    same = unable(o, candidates=(narrow,), predictions={"ngram": o.estimates.modelled})
    assert not decide(same).change


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
    o = observation(knowledge={"ngram": seen(0.75)})
    full = replace(o.estimates.predictions["ngram"], headroom=0.9)
    d = decide(unable(o, predictions={**o.estimates.predictions, "ngram": full}))
    assert d.reason is Reason.GAIN_TOO_SMALL and not d.change
    assert "could not carry the load" in d.message


def test_where_nothing_carries_the_load_more_capacity_is_a_relief() -> None:
    o = observation(knowledge={"ngram": seen(0.75)})
    assert o.estimates.running is not None
    full, fuller = replace(o.estimates.predictions["ngram"], headroom=0.9), replace(o.estimates.running, headroom=0.5)
    d = decide(unable(o, predictions={**o.estimates.predictions, "ngram": full}, running=fuller))
    assert d.change and d.target is not None and d.target.profile == "ngram"


# --- what pays ------------------------------------------------------------------------------------------------------


def faster(p: Prediction, factor: float, spread: float = 1.05) -> Prediction:
    """The same `factor` times as fast."""
    value = p.tpot.value / factor
    return replace(p, tpot=Estimate(value, value / spread, value * spread))


def expecting(
    gain: float,
    *,
    spread: float = 1.05,
    benefit: float = 1000.0,
    duration: float = 7200.0,
    payback: float | None = 900.0,
    **changes: Any,
) -> Observation:
    """Nothing speculates; n-gram is expected to be faster by `gain`, times `spread` or less, and to bring `benefit`."""
    o = observation(**changes)
    modelled = o.estimates.modelled
    assert modelled is not None
    off, ngram = (replace(faster(modelled, f, s), headroom=9.0) for f, s in ((1.0, 1.01), (1 + gain, spread)))
    outlook = replace(o.estimates.outlooks["ngram"], benefit=benefit, duration=duration, payback=payback)
    return unable(
        o, modelled=off, running=off, predictions={"disabled": off, "ngram": ngram}, outlooks={"ngram": outlook}
    )


@pytest.mark.parametrize(
    ("own", "gain", "off"),
    [("ngram", 0.01, False), ("ngram", 0.03, True), ("ngram", 0.08, True), ("disabled", 0.01, True)],
)
def test_speculation_has_to_earn_its_place_so_half_the_gain_is_enough_to_switch_it_off(
    own: str, gain: float, off: bool
) -> None:
    """And none to go back to what the user chose."""
    o = running_ngram(acceptance=0.75, batch=4.0)
    o = replace(o, menu=menu(o.policy, rendered(menu(o.policy), own)))
    here = o.estimates.modelled
    assert here is not None
    here = replace(here, headroom=9.0)
    found = decide(
        unable(
            o,
            modelled=here,
            running=here,
            predictions={"ngram": here, "disabled": faster(here, 1 + gain, 1.002)},
            outlooks={"disabled": expecting(1.0).estimates.outlooks["ngram"]},
        )
    )
    assert (found.reason in (Reason.CHEAPER_PROFILE, Reason.BATCH_ABOVE_BREAK_EVEN)) is off
    assert not off or found.required_gain == (0.0 if own == "disabled" else 0.025)


def test_a_better_threshold_is_a_reason_of_its_own() -> None:
    o = running_ngram(acceptance=0.75, batch=4.0)
    assert o.active is not None and o.active.speculation is not None and o.estimates.modelled is not None
    ranges = (BatchRange(1, 31, 5), BatchRange(32, 256, 0))
    scheduled = replace(o.active, speculation=replace(o.active.speculation, schedule=ranges))
    off = option(menu(spec()), "disabled")
    better = unable(
        o,
        candidates=(scheduled, off),
        predictions={"ngram": faster(o.estimates.modelled, 2.0)},
        outlooks={"ngram": expecting(1.0).estimates.outlooks["ngram"]},
    )
    d = decide(better)
    assert d.reason is Reason.BETTER_THRESHOLD and d.target == scheduled


def test_low_acceptance_does_not_bar_a_better_schedule_of_what_runs() -> None:
    o = running_ngram(acceptance=0.4, batch=4.0, **{"knowledge": without(ngram=seen(0.4))})
    assert o.active is not None and o.active.speculation is not None and o.estimates.modelled is not None
    scheduled = replace(o.active, speculation=replace(o.active.speculation, schedule=(BatchRange(1, 256, 1),)))
    off = option(menu(spec()), "disabled")
    better = unable(
        o,
        candidates=(scheduled, off),
        predictions={
            "ngram": faster(o.estimates.modelled, 1.3, 1.4),
            "disabled": faster(o.estimates.modelled, 0.5),
        },
        outlooks={"ngram": expecting(1.0).estimates.outlooks["ngram"]},
    )
    d = decide(better)
    assert (d.reason, d.target) == (Reason.BETTER_THRESHOLD, scheduled)


@pytest.mark.parametrize(
    ("o", "reason", "change"),
    [
        (expecting(0.3), Reason.CHEAPER_PROFILE, True),
        (expecting(0.3, spread=2.0), Reason.WORTH_A_CANARY, True),
        (expecting(0.3, benefit=-1.0), Reason.LOAD_TOO_SHORT, False),
        (expecting(0.03), Reason.GAIN_TOO_SMALL, False),
        (expecting(0.02), Reason.BEST_ALREADY, False),
        (expecting(-0.3, benefit=-1.0, payback=None), Reason.BEST_ALREADY, False),
    ],
    ids=["sure", "not sure", "too short", "too small", "far too small", "slower"],
)
def test_a_change_pays_when_its_gain_is_large_and_lasts(o: Observation, reason: Reason, change: bool) -> None:
    d = decide(o)
    assert (d.reason, d.change) == (reason, change)
    assert d.target is not None and d.target.profile == ("ngram" if change else "disabled")


@pytest.mark.parametrize(("gain", "nearly"), [(0.02, True), (-0.3, False)])
def test_the_fastest_and_what_is_as_good_are_told_apart(gain: float, nearly: bool) -> None:
    text = decide(expecting(gain, benefit=-1.0)).message
    assert text == f"disabled is expected to be the fastest{', or nearly so' if nearly else ''}"


def test_a_load_that_is_too_short_says_how_long_it_would_have_to_last() -> None:
    text = decide(expecting(0.3, benefit=-1.0, duration=600.0, payback=1800.0)).message
    assert "paid back after 30m" in text and "expected to last 10m more only" in text


def test_a_profile_that_is_barred_says_since_when_it_was_bad() -> None:
    d = decide(expecting(0.3, spread=1.4, knowledge={"ngram": seen(0.3, ago=60.0)}))
    assert d.reason is Reason.GAIN_TOO_SMALL
    assert "but its acceptance was 0.30 1m ago, below 0.5" in d.message


def test_of_several_changes_the_one_that_brings_most_is_made() -> None:
    """The draft model is faster now, n-gram for longer."""
    profiles = [
        {"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5},
        {"name": "draft", "method": "DraftModel", "numSpeculativeTokens": 3, "draftModel": {"model": "small"}},
    ]
    o = expecting(0.2, policy=spec(profiles=profiles), knowledge={"ngram": seen(0.75)})
    e = o.estimates
    both = unable(
        o,
        predictions={**e.predictions, "draft": faster(e.predictions["ngram"], 1.5)},
        outlooks={**e.outlooks, "draft": replace(e.outlooks["ngram"], benefit=e.outlooks["ngram"].benefit / 2)},
    )
    assert "draft" in {c.profile for c in both.estimates.candidates}
    d = decide(both)
    assert d.change and d.target is not None and d.target.profile == "ngram"


# --- a model that is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "believed"), [(1.0, True), (1.5, True), (2.5, False), (0.4, False)])
def test_a_model_that_does_not_explain_what_is_measured_changes_nothing(factor: float, believed: bool) -> None:
    o = expecting(1.0)
    e = o.estimates
    assert e.measured is not None and e.modelled is not None
    assert e.measured.tokens_per_step is not None
    step = e.modelled.tpot.value * e.measured.tokens_per_step * factor
    off = unable(o, measured=replace(e.measured, step_seconds=step))
    d = decide(off)
    assert (d.reason is not Reason.MODEL_MISFIT) is d.change is believed
    assert believed or f"{e.modelled.tpot.value * 1e3:.1f} ms" in d.message


def test_a_guard_needs_no_model() -> None:
    o = running_ngram(acceptance=0.2)
    assert o.estimates.measured is not None
    d = decide(unable(o, measured=replace(o.estimates.measured, step_seconds=9.0)))
    assert d.reason is Reason.ACCEPTANCE_BELOW_FLOOR


# --- no baseline ----------------------------------------------------------------------------------------------------


def test_a_workload_that_was_never_seen_without_speculation_gets_a_canary_without() -> None:
    o = running_ngram(acceptance=0.75, batch=4.0)
    d = decide(replace(o, menu=menu(o.policy, rendered(menu(o.policy), "ngram"))))
    assert d.reason is Reason.NO_BASELINE
    assert d.change and d.target is not None and d.target.profile == "disabled"
    assert d.required_gain == 0.025 and not d.urgent, "what is slower is not promoted, and it waits its turn"


def once_tried(outcome: Outcome, ago: float, target: str = "disabled") -> HistoryEntry:
    return entry(outcome, ago=ago, target=target, outcome_reason=Ending.NO_CAPACITY)


@pytest.mark.parametrize(
    ("changes", "asks"),
    [
        ({}, True),
        ({"knowledge": {"disabled": Knowledge(NOW - 600)}}, True),
        ({"knowledge": without()}, False),
        ({"history": (once_tried(Outcome.ERROR, DAY / 2),)}, False),
        ({"history": (once_tried(Outcome.ERROR, 1.1 * DAY),)}, True),
        ({"history": (once_tried(Outcome.SUCCESSFUL, DAY / 2, "ngram"),)}, True),
    ],
    ids=["nothing is known", "no steps are", "its steps are", "tried today", "tried yesterday", "something else was"],
)
def test_it_is_asked_for_until_it_was_seen_and_at_most_once_a_day(changes: dict[str, Any], asks: bool) -> None:
    assert (decide(running_ngram(acceptance=0.75, batch=4.0, **changes)).reason is Reason.NO_BASELINE) is asks


def test_without_speculation_there_is_nothing_to_ask() -> None:
    o = expecting(-0.5, spread=1.02, benefit=-1.0, payback=None)
    assert decide(replace(o, knowledge={})).reason is Reason.BEST_ALREADY


def test_a_baseline_that_could_not_carry_the_load_is_not_asked_for() -> None:
    o = running_ngram(acceptance=0.75, batch=4.0)
    full = replace(o.estimates.predictions["disabled"], headroom=0.9)
    assert decide(unable(o, predictions={**o.estimates.predictions, "disabled": full})).reason is Reason.BEST_ALREADY


@pytest.mark.parametrize("mode", ["Recommend", "Auto"])
def test_what_only_a_canary_can_tell_is_no_recommendation(mode: str) -> None:
    policy = spec(mode=mode)
    unseen = decide(running_ngram(acceptance=0.75, batch=4.0, policy=policy))
    unlikely = decide(expecting(-0.1, spread=3.0, benefit=-1.0, payback=None, policy=policy))
    assert unseen.change is unlikely.change is (mode == "Auto")
    if mode == "Recommend":
        assert [d.target and d.target.profile for d in (unseen, unlikely)] == ["ngram", "disabled"], "what runs"


# --- a probe --------------------------------------------------------------------------------------------------------

UNLIKELY = {"spread": 3.0, "benefit": -1.0, "payback": None}
"""A win is not likely, but possible, and nobody has looked."""


def test_a_win_that_is_plausible_is_worth_one_pod() -> None:
    d = decide(expecting(-0.1, **UNLIKELY))
    assert d.reason is Reason.WORTH_A_PROBE
    assert d.change and d.target is not None and d.target.profile == "ngram"
    assert d.required_gain == 0.05 and d.protect_tail


@pytest.mark.parametrize(
    "o",
    [
        expecting(-0.1, spread=1.02, benefit=-1.0, payback=None),
        expecting(-0.7, **UNLIKELY | {"spread": 1.3}),
        expecting(-0.1, **UNLIKELY, history=(entry(Outcome.FAILED, ago=3600.0),)),
        unable(observation(), candidates=(option(menu(spec()), "disabled"),)),
    ],
    ids=["it is sure to lose", "a win is out of reach", "it was just tried", "there is nothing to try"],
)
def test_what_has_no_chance_or_was_just_tried_is_not_probed(o: Observation) -> None:
    d = decide(o)
    assert d.reason in (Reason.BEST_ALREADY, Reason.GAIN_TOO_SMALL) and not d.change


def test_probes_that_fail_are_repeated_ever_more_seldom() -> None:
    def tried(failures: int, hours: float) -> Reason:
        history = tuple(entry(Outcome.FAILED, ago=3600.0 * (hours + n)) for n in range(failures))
        return decide(expecting(-0.1, **UNLIKELY, history=history)).reason

    waits = [next(h for h in (1, 2, 5, 9, 20, 40, 70) if tried(n, h) is Reason.WORTH_A_PROBE) for n in (1, 2, 3)]
    assert waits == sorted(set(waits)), "each failure makes it rest longer"


@pytest.mark.parametrize(("give_up_one", "probed"), [(False, True), (True, False)])
def test_while_pods_fall_behind_none_is_given_up_for_a_probe(give_up_one: bool, probed: bool) -> None:
    """One more takes a part of the load."""
    o = expecting(-0.1, **UNLIKELY)
    assert o.estimates.running is not None
    full = unable(o, running=replace(o.estimates.running, headroom=0.9))
    rollout = full.policy.rollout.model_copy(update={"allow_unavailable": give_up_one})
    full = replace(full, policy=full.policy.model_copy(update={"rollout": rollout}))
    assert (decide(full).reason is Reason.WORTH_A_PROBE) is probed


@pytest.mark.parametrize(
    ("allowed", "history", "given_up"),
    [
        (False, (), False),
        (True, (), True),
        (True, (entry(),), False),
        (True, (entry(give_up_one=True), entry(ago=3600.0)), True),
        (True, (entry(Outcome.ERROR, outcome_reason=Ending.NO_CAPACITY),), True),
        (True, (entry(live=True), entry(ago=3600.0, give_up_one=True)), True),
    ],
    ids=["forbidden", "not known", "there was room", "one was", "there was none", "a live change needs none"],
)
def test_whether_a_pod_will_be_given_up_is_told_by_the_last_change(
    allowed: bool, history: tuple[HistoryEntry, ...], given_up: bool
) -> None:
    o = observation(spec(rollout={"allowUnavailable": allowed}), history=history)
    assert one_is_given_up(o) is given_up


LONG_FULL = entry(Outcome.ERROR, ago=LONG_AGO + 60, target="other", outcome_reason=Ending.NO_CAPACITY)
FULL = entry(Outcome.ERROR, ago=3600.0, target="other", outcome_reason=Ending.NO_CAPACITY)
"""A canary found no node."""


def without_a_spare_gpu(
    headroom: float,
    highest: float,
    starts: str = "disabled",
    pods: int = 3,
    history: tuple[HistoryEntry, ...] = (FULL,),
) -> Observation:
    """N-gram is sure to be faster, a pod would have to be given up for it, and the load was higher once by a factor."""
    o = expecting(0.5, policy=spec(rollout={"allowUnavailable": True}), history=history)
    here, now = o.estimates.running, o.loads.at(NOW)
    assert here is not None and now is not None and o.estimates.load is not None
    asked = o.estimates.load.tokens_per_second * pods
    loads = LoadHistory(int(NOW // BUCKET) - 30, (asked * highest, *[asked] * 30), BUCKET)
    m = menu(o.policy)
    if starts != "disabled":
        m = menu(o.policy, rendered(m, starts))
    o = unable(o, running=replace(here, headroom=headroom))
    return replace(o, loads=loads, menu=m, pods=o.pods[:pods])


@pytest.mark.parametrize(
    ("o", "turned_on"),
    [
        (lambda: without_a_spare_gpu(6.0, 1.0), True),
        (lambda: without_a_spare_gpu(6.0, 3.0), True),
        (lambda: without_a_spare_gpu(6.0, 5.0), False),
        (lambda: without_a_spare_gpu(2.0, 1.0), False),
        (lambda: without_a_spare_gpu(2.0, 5.0, history=()), True),
        (lambda: without_a_spare_gpu(2.0, 5.0, history=(LONG_FULL,)), True),
        (lambda: without_a_spare_gpu(2.0, 5.0, starts="ngram"), True),
        (lambda: without_a_spare_gpu(6.0, 5.0, pods=1), True),
    ],
    ids=[
        "there is room",
        "and was at the highest load of the day",
        "there was none then",
        "there is little now",
        "nobody knows yet that there is none",
        "one may have become free since",
        "it is what the user's own manifest says",
        "each change takes one pod alone down, and that is allowed",
    ],
)
def test_without_a_spare_gpu_nothing_is_turned_on_that_could_not_be_taken_back(
    o: Callable[[], Observation], turned_on: bool
) -> None:
    d = decide(o())
    assert d.change is turned_on
    if not turned_on:
        assert "a pod would have to be given up for it" in d.message


# --- what the user chose, when the pods fall behind ----------------------------------------------------------------


def falling_behind(
    starts: str = "ngram", minutes: int = 60, headroom: float = 0.8, untried: bool = True, most: float = 9.0, **kw: Any
) -> Observation:
    """Nothing speculates, the pods carry four fifths of the load, and what the manifest says starts n-gram, which is
    expected to be no faster and to carry so much at most."""
    o = expecting(-0.1, spread=1.02, benefit=-1.0, payback=None, knowledge=without(), **kw)
    here, load = o.estimates.running, o.estimates.load
    assert here is not None and load is not None
    asked = load.tokens_per_second
    full = replace(here, headroom=headroom, capacity=None)
    ngram = replace(
        o.estimates.predictions["ngram"],
        headroom=headroom,
        capacity=Estimate(asked * headroom, asked * headroom / 2, asked * headroom * most),
    )
    quiet, busy = max(0, 24 - minutes // 5), minutes // 5 + 1
    return unable(
        replace(
            o,
            menu=menu(o.policy, rendered(menu(o.policy), starts)),
            loads=LoadHistory(int(NOW // BUCKET) - 24, (asked,) * quiet + (3 * asked,) * busy, BUCKET),
        ),
        running=full,
        modelled=full,
        predictions={"disabled": full, "ngram": ngram},
        own_is_untried=untried,
    )


def forgetful(o: Observation) -> Observation:
    """The load is known of the last minutes only."""
    return replace(o, loads=LoadHistory(int(NOW // BUCKET) - 1, o.loads.tokens_per_second[-2:], BUCKET))


@pytest.mark.parametrize(
    ("o", "asks"),
    [
        (falling_behind(), True),
        (falling_behind("disabled"), False),
        (falling_behind(minutes=15), False),
        (falling_behind(headroom=1.2), False),
        (falling_behind(untried=False), False),
        (falling_behind(most=0.9), False),
        (falling_behind(history=(entry(ago=900.0, target="disabled"),)), False),
        (forgetful(falling_behind()), False),
        (falling_behind(policy=spec(mode="Recommend")), False),
    ],
    ids=[
        "nobody has seen what it carries",
        "it is what runs",
        "not for long",
        "they carry the load",
        "it was seen at such batches",
        "it is sure to carry less",
        "it was only just changed",
        "nobody knows for how long",
        "a recommendation is for what is better",
    ],
)
def test_pods_that_fall_behind_for_long_get_back_what_the_user_chose(o: Observation, asks: bool) -> None:
    """A canary is one pod more, and cannot tell what all of them would carry."""
    d = decide(o)
    assert (d.reason is Reason.OVERLOADED) is d.change is asks
    if asks:
        assert d.target is not None and d.target.profile == "ngram" and d.required_gain == -OWN_MAY_LOSE
        assert "fallen behind with disabled for 30m" in d.message
        assert d.held_back is None


def test_that_the_cache_of_what_the_user_chose_would_be_as_full_is_no_objection_where_requests_wait_for_room() -> None:
    o = falling_behind()
    m = o.estimates.measured
    assert m is not None
    full = replace(m, kv_cache_tokens=100_000.0, engines=1, kv_usage=0.97)
    smaller = {**o.knowledge, "ngram": Knowledge(NOW, kv_cache_tokens=98_000.0)}
    o = unable(replace(o, knowledge=smaller), measured=full)
    assert decide(o).reason is Reason.OVERLOADED


BACK = Decision(SURE, "", option(menu(spec()), "ngram"), change=True)
"""To what the manifest says."""


def carrying(o: Observation, headroom: float) -> Observation:
    """With n-gram."""
    predictions = o.estimates.predictions
    return unable(o, predictions={**predictions, "ngram": replace(predictions["ngram"], headroom=headroom)})


def test_what_the_user_chose_gets_back_as_well_where_it_is_expected_to_carry_more() -> None:
    d = decide(carrying(falling_behind(untried=False), 0.9))
    assert d.reason is Reason.OVERLOADED and "for 30m, and ngram carries more" in d.message


@pytest.mark.parametrize(
    ("o", "headroom", "held"),
    [
        (falling_behind(history=today(SURE, 5)), 0.9, False),
        (falling_behind(history=today(SURE, 5)), 0.8, True),
        (forgetful(falling_behind(history=today(SURE, 5))), 0.9, True),
        (forgetful(falling_behind(history=today(SURE, 4))), 0.9, False),
        (falling_behind(history=today(SURE, 6)), 0.9, True),
    ],
    ids=[
        "they have long fallen behind",
        "and it would be no relief",
        "in a burst, for all that is known",
        "in a burst, with two changes left",
        "none is left",
    ],
)
def test_the_very_last_change_is_kept_for_pods_that_have_long_fallen_behind(
    o: Observation, headroom: float, held: bool
) -> None:
    """Each burst asks for the way back, and each canary is measured after the burst."""
    assert (changes_exhausted(carrying(o, headroom), BACK) is not None) is held


@pytest.mark.parametrize(
    ("gain", "spread", "own", "loads", "held"),
    [
        (1.1, 1.5, "ngram", (1.0,) * 7, False),
        (0.9, 1.5, "ngram", (1.0,) * 7, True),
        (1.1, 2.2, "ngram", (1.0,) * 7, True),
        (1.1, 1.5, "disabled", (1.0,) * 7, True),
        (1.1, 1.5, "ngram", (1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0), True),
        (1.1, 1.5, "ngram", (1.0,), False),
    ],
    ids=[
        "twice as fast with what the manifest says",
        "not quite",
        "that is not sure",
        "the manifest does not say it",
        "a burst",
        "more is not known",
    ],
)
def test_the_very_last_change_is_for_tokens_that_take_twice_as_long_too(
    gain: float, spread: float, own: str, loads: tuple[float, ...], held: bool
) -> None:
    o = expecting(gain, spread=spread, history=today(SURE, 5))
    target = option(o.menu or menu(spec()), "ngram")
    o = replace(
        o,
        menu=menu(o.policy, rendered(menu(o.policy), own)),
        loads=LoadHistory(int(NOW // BUCKET) - len(loads) + 1, tuple(1200.0 * share for share in loads), BUCKET),
    )
    back = Decision(SURE, "", target, change=True, gain=o.estimates.gain(target))
    assert (changes_exhausted(o, back) is not None) is held


def test_nor_is_it_kept_from_pods_that_have_fallen_behind_with_what_nobody_has_seen_to_carry_more() -> None:
    d = decide(falling_behind(history=today(SURE, 5)))
    assert d.reason is Reason.OVERLOADED and d.held_back is None


@pytest.mark.parametrize(("limit", "on", "back"), [(1, 1, 1), (2, 1, 2), (3, 2, 3), (4, 2, 3), (6, 4, 5)])
def test_so_many_changes_find_something_better_and_so_many_go_back(limit: int, on: int, back: int) -> None:
    """Of as many as the policy allows: where it allows few, none is kept for overload."""
    policy = spec(rollout={"maxChangesPerDay": limit})

    def made(target: str) -> int:
        wanted = Decision(SURE, "", option(menu(policy), target), change=True)
        history = (today(SURE, n) for n in range(limit + 1))
        return [changes_exhausted(observation(policy, history=h), wanted) is None for h in history].count(True)

    assert (made("ngram"), made("disabled")) == (on, back)


def test_pods_that_have_long_fallen_behind_do_not_wait_for_what_failed_after_a_burst() -> None:
    often = falling_behind(history=tuple(slower(2400.0 + 60 * i) for i in range(4)))
    assert cooling_down(carrying(often, 0.9), BACK) is None
    assert cooling_down(carrying(often, 0.8), BACK) is not None
    assert cooling_down(forgetful(carrying(often, 0.9)), BACK) is not None


@pytest.mark.parametrize(
    ("rate", "pods", "hour", "full", "expected"),
    [
        (0.25, 3, 1.0, False, None),
        (0.2, 3, 1.0, False, 18),
        (0.2, 3, 1.5, False, None),
        (0.2, 3, 0.5, False, 18),
        (0.2, 3, 1.0, True, None),
        (0.2, 2, 1.0, False, 16),
        (0.2, 1, 1.0, False, None),
        (0.15, 1, 1.0, False, 18),
    ],
    ids=[
        "as many as it takes",
        "three pods and a fourth",
        "more was asked within the hour",
        "less was asked within the hour",
        "it takes the place of one of three",
        "two pods and a third",
        "one pod is replaced",
        "one pod has few as well",
    ],
)
def test_no_canary_is_made_that_would_not_get_the_requests_it_takes_to_judge(
    rate: float, pods: int, hour: float, full: bool, expected: int | None
) -> None:
    """Of 200 tokens each, in two minutes; it takes 20 of them."""
    policy = spec(rollout={"allowUnavailable": full})
    off = option(menu(policy), "disabled")
    serving = tuple(pod(f"p{i}", "old", off, window=traffic(seconds=300.0)) for i in range(pods))
    ended = (entry(Outcome.ERROR, outcome_reason=Ending.NO_CAPACITY, ago=7200.0),) if full else ()
    o = observation(policy, pods=serving, active=off, history=ended)
    m, load = o.estimates.measured, o.estimates.load
    assert m is not None and load is not None
    asked = rate * 200.0
    o = unable(o, measured=replace(m, output_length=200.0), load=replace(load, tokens_per_second=asked))
    o = replace(o, loads=LoadHistory(int(NOW // BUCKET) - 5, (hour * asked * pods,) * 6, BUCKET))
    held = too_few_requests(o, Decision(SURE, "", option(menu(policy), "ngram"), change=True))
    assert (held is None) is (expected is None)
    if held is not None:
        assert held[0] is Reason.TOO_FEW_REQUESTS
        assert held[1].startswith(f"a canary would get about {expected} requests in 2m, and it takes 20 to judge")


def test_where_no_request_finished_yet_a_canary_finds_out() -> None:
    o = observation()
    m = o.estimates.measured
    assert m is not None
    wanted = Decision(SURE, "", option(menu(spec()), "ngram"), change=True)
    assert too_few_requests(unable(o, measured=replace(m, output_length=None)), wanted) is None
    assert too_few_requests(unable(o, measured=None), wanted) is None


def test_a_restart_is_no_way_back() -> None:
    own = menu(spec(), rendered(menu(spec()), "ngram"))
    again = Decision(Reason.RESTART_RESTORES, "", option(own, "ngram"), change=True, restart=True)
    assert changes_exhausted(observation(menu=own, history=today(SURE, 3)), again) is None
    assert changes_exhausted(observation(menu=own, history=today(SURE, 4)), again) is not None


@pytest.mark.parametrize(("waiting", "asks"), [(500.0, True), (0.0, False)], ids=["a queue", "none"])
def test_a_queue_tells_that_pods_fall_behind_whatever_the_model_thinks_that_they_carry(
    waiting: float, asks: bool
) -> None:
    """It does not know how many requests the KV cache has room for."""
    o = falling_behind(headroom=1.5)
    m = o.estimates.measured
    assert m is not None and m.generation_tokens_per_second is not None
    served = replace(m, waiting=waiting, generation_tokens_per_second=0.9 * m.generation_tokens_per_second)
    assert (decide(unable(o, measured=served)).reason is Reason.OVERLOADED) is asks


def test_what_its_canaries_showed_when_there_was_less_to_do_does_not_hold_it_back_but_what_it_came_to_does() -> None:
    probes = tuple(slower(ago=900.0 + i) for i in range(3))
    d = decide(falling_behind(history=probes))
    assert d.reason is Reason.OVERLOADED and d.held_back is None
    failed = entry(Outcome.FAILED, ago=900.0, reason=Reason.OVERLOADED, outcome_reason=Ending.CANARY_CRASH_LOOPING)
    again = decide(falling_behind(history=(failed, *probes)))
    assert again.held_back is not None and again.held_back[0] is Reason.COOLING_DOWN


@pytest.mark.parametrize(
    ("now", "ago", "sure", "back"),
    [(1.0, 3600.0, False, False), (0.4, 3600.0, False, True), (1.0, 1.1 * DAY, False, True), (1.0, 3600.0, True, True)],
    ids=["as much is asked", "less than half is", "that was yesterday", "it is sure to be faster"],
)
def test_what_the_pods_fell_behind_with_does_not_come_back_while_as_much_is_asked(
    now: float, ago: float, sure: bool, back: bool
) -> None:
    went = entry(ago=ago, source=Configuration(profile="ngram"), target="disabled", reason=Reason.OVERLOADED)
    o = expecting(0.5, spread=1.05 if sure else 2.0, history=(went,))
    load = o.loads.at(NOW)
    assert load is not None
    then = (seconds_of(went.started_at) - NOW) // BUCKET
    loads = LoadHistory(int(NOW // BUCKET + then), (load / now, *[-1.0] * int(-then - 1), load), BUCKET)
    o = replace(o, loads=loads)
    assert (fell_behind(o, "ngram") is None) is back
    assert decide(o).change is back


def test_nor_does_a_guard_bring_it_back() -> None:
    low = running_ngram(acceptance=0.2)
    assert decide(low).reason is Reason.ACCEPTANCE_BELOW_FLOOR
    went = entry(ago=3600.0, source=Configuration(profile="disabled"), reason=Reason.OVERLOADED)
    load = low.loads.at(NOW)
    assert load is not None
    loads = LoadHistory(int(NOW // BUCKET) - 20, (load,) * 21, BUCKET)
    assert decide(replace(low, history=(went,), loads=loads)).reason is not Reason.ACCEPTANCE_BELOW_FLOOR


@pytest.mark.parametrize(
    ("carries", "peak", "ago", "starts", "wanted"),
    [
        (9.0, 8.0, 3600.0, "disabled", True),
        (4.0, 8.0, 3600.0, "disabled", False),
        (4.0, 3.0, 3600.0, "disabled", True),
        (5.6, 8.0, 3600.0, "disabled", True),
        (4.0, 8.0, 9000.0, "disabled", True),
        (4.0, 8.0, 3600.0, "ngram", True),
    ],
    ids=[
        "it carries the peak",
        "it does not, and what runs carries more of it",
        "there was none",
        "what runs carries hardly more",
        "that was hours ago",
        "the manifest says it",
    ],
)
def test_nothing_is_turned_on_between_two_spikes_that_carries_less_of_them(
    carries: float, peak: float, ago: float, starts: str, wanted: bool
) -> None:
    """What runs carries six times the load of now."""
    o = expecting(0.5)
    e = o.estimates
    assert e.running is not None and e.load is not None
    asked = 3 * e.load.tokens_per_second
    before = int(ago // BUCKET)
    loads = LoadHistory(int(NOW // BUCKET) - before, (peak * asked, *[asked] * before), BUCKET)
    o = unable(
        replace(o, loads=loads, menu=menu(o.policy, rendered(menu(o.policy), starts))),
        running=replace(e.running, headroom=6.0),
        predictions={**e.predictions, "ngram": replace(e.predictions["ngram"], headroom=carries)},
    )
    d = decide(o)
    assert d.change is wanted
    assert wanted or "tokens/s per pod, and" in d.message


REFUSED = entry(Outcome.ERROR, ago=3600.0, outcome_reason=Ending.NO_CAPACITY)
"""N-gram was wanted, and no pod could be given up for its canary."""


@pytest.mark.parametrize(
    ("gain", "starts", "history", "wanted"),
    [
        (0.01, "ngram", (REFUSED,), True),
        (-0.01, "ngram", (REFUSED,), False),
        (0.01, "disabled", (REFUSED,), False),
        (0.01, "ngram", (FULL,), False),
        (0.01, "ngram", (entry(Outcome.ERROR, ago=1.1 * DAY, outcome_reason=Ending.NO_CAPACITY),), False),
    ],
    ids=["as good", "worse", "it is not the way back", "it never was wanted", "that was yesterday"],
)
def test_the_way_back_that_found_no_pod_to_spare_is_taken_when_one_can_be_spared(
    gain: float, starts: str, history: tuple[HistoryEntry, ...], wanted: bool
) -> None:
    """When it would gain more there is too much to do to give one up."""
    policy = spec(rollout={"allowUnavailable": True})
    o = expecting(gain, spread=1.02, benefit=-1.0, payback=None, policy=policy, history=history)
    d = decide(replace(o, menu=menu(policy, rendered(menu(policy), starts))))
    assert d.change is wanted
    if wanted:
        assert d.target is not None and d.target.profile == "ngram" and d.required_gain == 0.0


@pytest.mark.parametrize(
    ("here", "other", "profile", "kw", "spared"),
    [
        (1.7, 1.0, "ngram", {}, True),
        (1.3, 1.5, "disabled", {}, True),
        (1.3, 1.5, "ngram", {}, False),
        (1.3, 1.25, "disabled", {}, False),
        (1.15, 1.5, "disabled", {}, False),
        (1.3, 1.5, "disabled", {"benefit": -1.0}, False),
        (1.3, 1.5, "disabled", {"own": "ngram"}, False),
        (1.3, 1.5, "disabled", {"own": "ngram", "gain": 0.2}, True),
    ],
    ids=[
        "the others carry it",
        "to switch off",
        "to turn on",
        "where that frees nothing",
        "where they carry too little",
        "where that is not paid back",
        "what the user chose, and perhaps for nothing",
        "what the user chose, for what is surely faster",
    ],
)
def test_to_switch_off_most_of_the_load_will_do_for_the_time_that_pods_start(
    here: float, other: float, profile: str, kw: dict[str, Any], spared: bool
) -> None:
    """Drafts that nobody accepts cost more for hours than a short queue."""
    o, gain = running_ngram(), kw.get("gain", 0.05)
    e = o.estimates
    assert e.running is not None and e.modelled is not None
    tpot = Estimate.log_normal(e.modelled.tpot.value / (1 + gain), 0.05)
    predictions = {**e.predictions, profile: replace(e.predictions[profile], headroom=other, tpot=tpot)}
    o = unable(
        o,
        running=replace(e.running, headroom=here),
        predictions=predictions,
        outlooks={profile: Outlook(3600.0, kw.get("benefit", 100.0), 0.05, 600.0)},
    )
    own = menu(o.policy, rendered(menu(o.policy), kw.get("own", "disabled")))
    assert can_spare_one(replace(o, menu=own), 3, profile) is spared


A_WHILE_AGO = 0.75 * PROBE_EVERY
"""Long enough for another try where things have turned, too short where they have not."""


@pytest.mark.parametrize(("acceptance", "again"), [(0.6, False), (0.2, True)])
def test_when_the_traffic_has_turned_a_profile_that_was_just_tried_is_tried_again(
    acceptance: float, again: bool
) -> None:
    """As the drafts of the profile that ran beside it show: 0.6 of them were accepted then."""
    then, other = seen(0.6, ago=A_WHILE_AGO), seen(acceptance, ago=0.0)
    assert then.drafts is not None
    was = seen(0.6).drafts
    assert was is not None
    ngram = replace(then, drafts=replace(then.drafts, beside=("draft", was.extra)))
    o = expecting(-0.1, **UNLIKELY, history=(slower(A_WHILE_AGO),))
    d = decide(replace(o, knowledge={**o.knowledge, "ngram": ngram, "draft": other}))
    assert (d.reason is Reason.WORTH_A_PROBE) is again


@pytest.mark.parametrize(("factor", "again"), [(1.0, False), (2.0, True)])
def test_so_it_is_where_it_won_then_and_was_switched_off_since(factor: float, again: bool) -> None:
    """A win in other traffic or at another load is no reason to wait, nor do the failures before it count any more."""
    won = entry(ago=A_WHILE_AGO, outcome_reason=Ending.PROMOTED)
    o = expecting(-0.1, **UNLIKELY, history=(entry(ago=1900.0, target="disabled"), won, slower(A_WHILE_AGO + 3600.0)))
    now = o.loads.at(NOW)
    assert now is not None
    past = LoadHistory(int(NOW // BUCKET) - 60, (*[now / factor] * 60, now), BUCKET)
    assert (decide(replace(o, loads=past)).reason is Reason.WORTH_A_PROBE) is again
    assert backoff(replace(o, loads=past), "ngram") == 1


@pytest.mark.parametrize(("headroom", "probed"), [(0.8, True), (1.3, False)])
def test_while_pods_fall_behind_what_may_be_faster_is_tried_though_it_may_not_carry_the_load_either(
    headroom: float, probed: bool
) -> None:
    """Nothing is lost then by a canary beside them."""
    o = expecting(-0.1, **UNLIKELY)
    here, there = o.estimates.running, o.estimates.predictions["ngram"]
    assert here is not None
    here, there = replace(here, headroom=headroom), replace(there, headroom=0.7)
    full = unable(o, modelled=here, running=here, predictions={"disabled": here, "ngram": there})
    assert (decide(full).reason is Reason.WORTH_A_PROBE) is probed


@pytest.mark.parametrize(("ago", "again"), [(0.4, False), (0.6, True)])
def test_however_it_has_turned_a_failure_is_rested_on(ago: float, again: bool) -> None:
    o = expecting(-0.1, **UNLIKELY, history=(slower(ago * PROBE_EVERY),))
    turned = LoadHistory(int(NOW // BUCKET) - 40, (*[1.0] * 40, o.loads.at(NOW) or 0.0), BUCKET)
    assert (decide(replace(o, loads=turned)).reason is Reason.WORTH_A_PROBE) is again


@pytest.mark.parametrize(("factor", "again"), [(1.0, False), (1.3, False), (2.0, True), (0.5, True)])
def test_so_it_is_when_the_load_has_turned(factor: float, again: bool) -> None:
    o = expecting(-0.1, **UNLIKELY, history=(slower(A_WHILE_AGO),))
    now = o.loads.at(NOW)
    assert now is not None
    past = LoadHistory(int(NOW // BUCKET) - 40, (*[now / factor] * 40, now), BUCKET)
    assert (decide(replace(o, loads=past)).reason is Reason.WORTH_A_PROBE) is again
    assert backoff(replace(o, loads=past), "ngram") == (1 if again else 2)


def test_what_the_load_did_after_the_canary_is_not_what_it_was_measured_at() -> None:
    """It fell right after: at the low load nobody tried."""
    o = expecting(-0.1, **UNLIKELY, history=(slower(A_WHILE_AGO),))
    now = o.loads.at(NOW)
    assert now is not None
    since = int(A_WHILE_AGO / BUCKET)
    fell = LoadHistory(int(NOW // BUCKET) - since - 20, (*[4 * now] * 21, *[now] * since), BUCKET)
    assert backoff(replace(o, loads=fell), "ngram") == 1


def test_but_not_for_what_the_load_varies_by_within_an_hour() -> None:
    o = expecting(-0.1, **UNLIKELY, history=(slower(A_WHILE_AGO),))
    now = o.loads.at(NOW)
    assert now is not None
    bursts = LoadHistory(int(NOW // BUCKET) - 40, (*[now / 4, now] * 20, now), BUCKET)
    assert backoff(replace(o, loads=bursts), "ngram") == 2


def test_that_it_does_not_run_is_true_of_any_load() -> None:
    history = (entry(Outcome.FAILED, ago=3600.0, outcome_reason=Ending.CRASH_LOOPING),)
    o = expecting(-0.1, **UNLIKELY, history=history)
    quiet = LoadHistory(int(NOW // BUCKET) - 40, (*[1.0] * 40, o.loads.at(NOW) or 0.0), BUCKET)
    assert backoff(replace(o, loads=quiet), "ngram") == 2


def test_what_failed_for_what_was_measured_is_told_by_the_names_of_the_endings() -> None:
    assert {e.value for e in Ending} >= MEASURED
