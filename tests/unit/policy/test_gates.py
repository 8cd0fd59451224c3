"""The rule, question by question."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specdecode.api.v1alpha1 import BatchRangeStatus, Configuration, HistoryEntry, Outcome
from specdecode.model.knowledge import Knowledge, StepTime
from specdecode.model.loads import DAY
from specdecode.policy.decision import Reason
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation, Problem
from specdecode.rollout.ending import Ending
from specdecode.vllm.speculation import BatchRange
from support.decisions import (
    UNLIKELY,
    entry,
    expecting,
    faster,
    running_ngram,
    seen,
    unable,
    without,
)
from support.world import NOW, menu, observation, option, pod, rendered, spec, traffic, workload

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


@pytest.mark.parametrize(
    ("own", "spread", "wanted"),
    [("disabled", 1.05, True), ("disabled", 2.0, False), ("ngram", 1.05, False)],
    ids=["surely faster", "perhaps", "not what the manifest says"],
)
def test_what_the_manifest_says_comes_back_at_once_where_it_is_surely_faster(
    own: str, spread: float, wanted: bool
) -> None:
    """Users would have been better off without us: it need not be paid back, nor wait for the cool-down."""
    changed = entry(ago=300.0, source=Configuration(profile="disabled"))
    o = running_ngram(acceptance=0.75, batch=4.0, history=(changed,))
    o = replace(o, menu=menu(o.policy, rendered(menu(o.policy), own)))
    here = o.estimates.modelled
    assert here is not None
    here, costs = replace(here, headroom=9.0), replace(expecting(1.0).estimates.outlooks["ngram"], benefit=-1.0)
    predictions = {"ngram": here, "disabled": faster(here, 1.5, spread)}
    d = decide(unable(o, modelled=here, running=here, predictions=predictions, outlooks={"disabled": costs}))
    assert (d.change and d.held_back is None) is wanted
    assert not wanted or ("is what the manifest asks for" in d.message and "paid back" not in d.message)


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
