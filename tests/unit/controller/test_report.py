"""What is written to the status, and what is an Event."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.api.v1alpha1 import (
    Condition,
    Configuration,
    HistoryEntry,
    Outcome,
    RolloutPhase,
    ServiceStatus,
    SpecDecodePolicyStatus,
)
from specdecode.controller.conditions import Troubles
from specdecode.controller.loop import merge_patch
from specdecode.controller.report import PROFILES, REFRESH_TICKS, Notice, notices, report
from specdecode.model.knowledge import Knowledge, StepTime
from specdecode.model.loads import DAY
from specdecode.model.memory import Trouble, Unusable
from specdecode.model.service import Glance, add
from specdecode.model.window import Window
from specdecode.policy.clock import text_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.estimating import Modeller, estimate
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation, Problem
from specdecode.rollout.phases import Step, advance
from support.fake_api import merge_patched
from support.world import NOW, menu, observation, option, pod, rendered, spec, traffic, workload

EMPTY = SpecDecodePolicyStatus()
INTERVAL = 5.0


def after(o: Observation, before: SpecDecodePolicyStatus = EMPTY) -> SpecDecodePolicyStatus:
    """The status after one tick."""
    d = decide(o)
    return report(o, d, advance(o, d), before)


def dumped(status: SpecDecodePolicyStatus) -> dict[str, Any]:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def condition(status: SpecDecodePolicyStatus, type_: str) -> Condition:
    return next(c for c in status.conditions if c.type == type_)


def looking(**changes: Any) -> Observation:
    """A policy that only recommends: nothing moves by itself."""
    return observation(changes.pop("policy", spec(mode="Recommend")), **changes)


def entry(outcome: Outcome) -> HistoryEntry:
    return HistoryEntry(
        id="x",
        policy_generation=1,
        source=Configuration(profile="ngram"),
        target=Configuration(profile="disabled"),
        reason="CheaperProfile",
        outcome=outcome,
        outcome_reason="r",
        started_at=text_of(NOW - 7200),
        finished_at=text_of(NOW - 7100),
    )


# --- when it is written -------------------------------------------------------------------------------------------


def test_nothing_is_written_when_nothing_changed() -> None:
    first = after(looking())
    for later in (INTERVAL, 100 * INTERVAL, 1e6):
        o = replace(looking(), now=NOW + later)
        assert report(o, decide(o), Step(), first) is first


def test_figures_that_moved_wait_until_the_last_ones_are_a_few_ticks_old() -> None:
    first = after(looking())
    moved = looking(window=traffic(batch=9.0))
    assert after(replace(moved, now=NOW + INTERVAL), first) is first
    written = after(replace(moved, now=NOW + REFRESH_TICKS * INTERVAL), first)
    assert written.observation is not None and written.observation.batch_size == 9.0


def test_what_matters_is_written_at_once() -> None:
    first = after(looking())
    idle = after(replace(looking(window=traffic(batch=0.0, rate=0.0)), now=NOW + 1), first)
    assert idle is not first
    assert condition(idle, "Recommended").reason == Reason.IDLE


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = after(looking())
    later = NOW + 500
    second = after(replace(looking(generation=2), now=later), first)
    assert second is not first
    for was, is_ in zip(first.conditions, second.conditions, strict=True):
        assert (is_.type, is_.last_transition_time) == (was.type, text_of(NOW))
        assert is_.observed_generation == 2
    o = replace(looking(), now=later, problem=Problem("CommandNotUnderstood", "two servers"))
    broken = after(o, second)
    ready = condition(broken, "Ready")
    assert (ready.status, ready.reason, ready.message) == ("False", "CommandNotUnderstood", "two servers")
    assert ready.last_transition_time == text_of(later)
    assert condition(broken, "Degraded").last_transition_time == text_of(NOW)


# --- conditions ---------------------------------------------------------------------------------------------------

REFUSED = replace(pod("p", "old", option(menu(spec()), "disabled")), problem="refused")

CONDITIONS: dict[str, tuple[Any, dict[str, tuple[str, str]]]] = {
    "all is well": (
        looking,
        {
            "Ready": ("True", "Recommending"),
            "MetricsAvailable": ("True", "PodsAnswer"),
            "Progressing": ("False", "NoChange"),
            "Degraded": ("False", "AsExpected"),
            "MixedTraffic": ("Unknown", "NothingDrafted"),
        },
    ),
    "suspended": (lambda: looking(policy=spec(suspend=True)), {"Ready": ("True", "Suspended")}),
    "no such workload": (
        lambda: replace(looking(), workload=None, menu=None, pods=()),
        {"Ready": ("False", "WorkloadMissing"), "MetricsAvailable": ("Unknown", "WorkloadMissing")},
    ),
    "no pod answers": (
        lambda: looking(pods=(REFUSED,)),
        {"Ready": ("True", "Recommending"), "MetricsAvailable": ("False", "MetricsMissing")},
    ),
    "pods of another option answer": (
        lambda: looking(pods=(REFUSED, pod("q", "new", option(menu(spec()), "ngram"), traffic(acceptance=0.7)))),
        {"MetricsAvailable": ("False", "MetricsMissing")},
    ),
    "too early to tell": (
        lambda: looking(window=traffic(seconds=0.0)),
        {"MetricsAvailable": ("Unknown", "MetricsStale"), "Recommended": ("Unknown", "MetricsStale")},
    ),
    "somebody takes the field back": (
        lambda: looking(
            history=(entry(Outcome.SUCCESSFUL).model_copy(update={"target": Configuration(profile="ngram")}),)
        ),
        {
            "Ready": ("False", "FieldContested"),
            "Degraded": ("True", "FieldContested"),
            "MetricsAvailable": ("True", "PodsAnswer"),
        },
    ),
    "what runs is the best": (
        lambda: looking(
            window=traffic(acceptance=0.75, batch=4),
            active=option(menu(spec()), "ngram"),
            knowledge={"disabled": Knowledge(NOW, step_times=(StepTime(4.0, 4.0, 0.02, measured_at=NOW),))},
        ),
        {"Recommended": ("True", "BestAlready"), "MixedTraffic": ("False", "Homogeneous")},
    ),
}


@pytest.mark.parametrize("case", CONDITIONS)
def test_conditions_say_how_it_stands(case: str) -> None:
    make, expected = CONDITIONS[case]
    status = after(make())
    found = {t: (condition(status, t).status, condition(status, t).reason) for t in expected}
    assert found == expected


@pytest.mark.parametrize("case", CONDITIONS)
def test_a_condition_that_is_bad_says_why(case: str) -> None:
    status = after(CONDITIONS[case][0]())
    for type_, bad in (
        ("Ready", "False"),
        ("MetricsAvailable", "False"),
        ("Degraded", "True"),
        ("MixedTraffic", "True"),
    ):
        assert condition(status, type_).status != bad or condition(status, type_).message


def test_a_memory_that_cannot_be_used_is_told_with_an_event_and_so_is_its_end() -> None:
    o = looking()
    d = decide(o)
    well = report(o, d, Step(), EMPTY)
    assert (condition(well, "MemoryUsable").status, condition(well, "MemoryUsable").reason) == ("True", "MemoryKept")
    bad = report(o, d, Step(), well, Troubles(Unusable(Trouble.CORRUPT, "it is not JSON")))
    found = condition(bad, "MemoryUsable")
    assert (found.status, found.reason, found.message) == ("False", "MemoryCorrupt", "it is not JSON")
    assert notices(well, bad) == [Notice("Warning", "MemoryCorrupt", "it is not JSON")]
    again = report(o, d, Step(), bad)
    assert reasons(notices(bad, again)) == [("Normal", "MemoryKept")]


def test_changes_that_fail_again_and_again_need_a_person() -> None:
    for failures, degraded in ((2, "False"), (3, "True")):
        before = EMPTY.model_copy(update={"history": [entry(Outcome.FAILED)] * failures + [entry(Outcome.SUCCESSFUL)]})
        assert condition(after(looking(), before), "Degraded").status == degraded


def test_a_profile_that_cannot_run_here_is_said() -> None:
    o = looking()
    o = replace(o, estimates=replace(o.estimates, unavailable={"draft": "0.24.0 has no such method"}))
    assert "profile draft cannot run: 0.24.0 has no such method" in condition(after(o), "Ready").message


def test_traffic_of_which_a_part_loses_is_told() -> None:
    o = looking(window=traffic(acceptance=0.75), active=option(menu(spec()), "ngram"))
    o = replace(o, estimates=replace(o.estimates, acceptance=(0.7, 0.2, 0.8, 0.9)))
    mixed = condition(after(o), "MixedTraffic")
    assert mixed.status == "True" and "0.20 at the 10th percentile" in mixed.message


def test_a_recommendation_that_is_held_back_says_by_what() -> None:
    status = after(looking(history=(entry(Outcome.SUCCESSFUL),), policy=spec(mode="Auto", rollout={"cooldown": "10h"})))
    assert status.recommendation is not None
    assert status.recommendation.reason == Reason.COOLING_DOWN
    assert "resting" in status.recommendation.message and status.recommendation.profile == "ngram"
    assert status.rollout is None


# --- events -------------------------------------------------------------------------------------------------------


def reasons(found: list[Notice]) -> list[tuple[str, str]]:
    return [(n.type, n.reason) for n in found]


def test_the_same_status_is_no_event() -> None:
    status = after(looking())
    assert notices(status, status) == []
    assert notices(status, after(replace(looking(), now=NOW + 1e5), status)) == []


def test_a_first_look_tells_only_what_is_recommended() -> None:
    assert reasons(notices(EMPTY, after(looking()))) == [("Normal", after(looking()).recommendation.reason)]  # type: ignore[union-attr]


def test_trouble_and_its_end_are_events_once() -> None:
    well = after(looking())
    blind = after(looking(pods=(REFUSED,)), well)
    again = after(replace(looking(pods=(REFUSED,)), now=NOW + 1e4), blind)
    assert reasons(notices(well, blind)) == [("Warning", "MetricsMissing")]
    assert notices(blind, again) == []
    recovered = notices(again, after(replace(looking(), now=NOW + 2e4), again))
    assert ("Normal", "PodsAnswer") in reasons(recovered)
    assert all(n.message for n in recovered)


def test_a_change_is_an_event_when_it_starts_moves_on_and_ends() -> None:
    o = observation()
    first = after(o)
    assert first.rollout is not None
    assert reasons(notices(EMPTY, first)) == [("Normal", "ChangeStarted")]

    def at(phase: RolloutPhase) -> SpecDecodePolicyStatus:
        assert first.rollout is not None
        return first.model_copy(update={"rollout": first.rollout.model_copy(update={"phase": phase})})

    assert notices(at(RolloutPhase.ANALYSING), at(RolloutPhase.ANALYSING)) == []
    assert reasons(notices(first, at(RolloutPhase.ANALYSING))) == [("Normal", "ChangeAnalysing")]
    assert reasons(notices(at(RolloutPhase.ANALYSING), at(RolloutPhase.ROLLING_BACK))) == [
        ("Warning", "ChangeRollingBack")
    ]
    for outcome, kind in ((Outcome.SUCCESSFUL, "Normal"), (Outcome.FAILED, "Warning"), (Outcome.ERROR, "Warning")):
        done = first.model_copy(update={"rollout": None, "recommendation": None, "history": [entry(outcome)]})
        assert reasons(notices(first, done)) == [(kind, f"Change{outcome}")]


# --- what is told of the profiles ---------------------------------------------------------------------------------

HOLD = Decision(Reason.SUSPENDED, "hold")


def test_profiles_that_are_gone_are_not_told_of() -> None:
    known = Knowledge(measured_at=NOW)
    status = report(replace(looking(), knowledge={"ngram": known, "gone": known}), HOLD, Step(), EMPTY)
    assert [p.name for p in status.profiles] == ["ngram", "disabled"]


def test_what_users_got_is_told_of_the_profiles_that_ran_today() -> None:
    seen = Glance(400.0, 390.0, 0.03124, 100.0)
    today, yesterday = (Knowledge(service=add((), t, 1800.0, seen)) for t in (NOW, NOW - 1.1 * DAY))
    o = replace(looking(), knowledge={"ngram": today, "disabled": yesterday})
    ngram, off = report(o, HOLD, Step(), EMPTY).profiles
    assert ngram.in_service == ServiceStatus(time_per_output_token=0.0312, tokens_per_second=400.0, seconds=1800.0)
    assert off.in_service is None


def test_while_the_workload_is_away_what_is_known_is_told_of() -> None:
    o = replace(looking(), menu=None, workload=None, knowledge={"ngram": Knowledge(measured_at=NOW)})
    assert [p.name for p in report(o, decide(o), Step(), EMPTY).profiles] == ["ngram"]


def test_there_are_never_more_profiles_than_the_api_takes() -> None:
    many = spec(profiles=[{"name": f"n{i}", "method": "NGram", "numSpeculativeTokens": 5} for i in range(16)])
    container = {**rendered(menu(spec()), "disabled"), "args": ["--model", "m", "--speculative-config", NGRAM_7]}
    m = menu(many, container)
    assert len(m.options) == PROFILES + 1, "sixteen, disabled and the original"
    o = replace(looking(), policy=many, menu=m)
    assert len(report(o, HOLD, Step(), EMPTY).profiles) == PROFILES


NGRAM_7 = '{"method": "ngram", "num_speculative_tokens": 7, "prompt_lookup_max": 3}'


def test_the_longest_profile_name_can_be_rolled_out() -> None:
    name = "n" * 63
    policy = spec(profiles=[{"name": name, "method": "NGram", "numSpeculativeTokens": 5}])
    status = after(observation(policy))
    assert status.rollout is not None and status.rollout.target.profile == name
    assert SpecDecodePolicyStatus.model_validate(dumped(status)) == status


# --- whatever is seen ---------------------------------------------------------------------------------------------

OFF, NGRAM = (option(menu(spec()), p) for p in ("disabled", "ngram"))
WINDOWS = st.builds(
    traffic,
    seconds=st.sampled_from([0.0, 5.0, 20.0]),
    batch=st.sampled_from([0.0, 1e-9, 8.0, 1e6]),
    step=st.sampled_from([1e-6, 0.02, 50.0]),
    acceptance=st.sampled_from([None, 0.0, 0.3, 1.0]),
    rate=st.sampled_from([0.0, 2.0, 1e6]),
    errors=st.sampled_from([0.0, 5.0]),
)


def learnt(window: Window, profile: str) -> Knowledge:
    """What pods that run a profile teach."""
    return observation(active=option(menu(spec()), profile), window=window).knowledge.get(profile, Knowledge())


KNOWN = st.builds(learnt, WINDOWS, st.sampled_from(["disabled", "ngram"]))
PODS = st.builds(
    pod,
    st.sampled_from("abc"),
    st.sampled_from(["old", "new"]),
    st.sampled_from([OFF, NGRAM, None]),
    st.none() | WINDOWS,
    ready=st.booleans(),
    terminating=st.booleans(),
)


@given(
    st.lists(PODS, max_size=3),
    st.sampled_from([OFF, NGRAM, None]),
    st.sampled_from(["Auto", "Recommend"]),
    st.booleans(),
    st.dictionaries(st.sampled_from(["disabled", "ngram"]), KNOWN, max_size=2),
)
def test_whatever_is_seen_the_status_is_json_that_the_api_takes(
    pods: list[Any], active: Any, mode: str, settled: bool, knowledge: dict[str, Knowledge]
) -> None:
    policy = spec(mode=mode)
    m = menu(policy)
    o = Observation(
        now=NOW,
        policy=policy,
        generation=1,
        menu=m,
        workload=workload(rendered(m, "disabled"), settled=settled),
        active=active,
        pods=tuple(pods),
        knowledge=knowledge,
    )
    status = after(estimate(o, Modeller()))
    text = json.dumps(dumped(status), allow_nan=False)
    assert SpecDecodePolicyStatus.model_validate(json.loads(text)) == status
    for found in status.profiles:
        assert found.predicted is None or 0 < found.predicted.low <= found.predicted.high < math.inf


# --- the patch ----------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=3),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=1), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text("abc", min_size=1, max_size=1), JSON, max_size=3)


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_makes_the_new_of_the_old(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = merge_patch(old, new)
    assert merge_patched(old, patch) == new
    assert bool(patch) is (old != new), "nothing is sent when nothing changed"
    assert merge_patched(new, patch) == new, "sent twice it does no harm"
