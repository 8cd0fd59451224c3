"""Drafts that get worse with the uptime of a pod: when that is known, and what a restart is."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.api.v1alpha1 import (
    Configuration,
    HistoryEntry,
    Original,
    Outcome,
    RolloutPhase,
    RolloutStatus,
    SpecDecodePolicyStatus,
)
from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import AGES, ROUNDS, Ageing, Drafts, Knowledge, RunningMean
from specdecode.model.measure import Measurement
from specdecode.model.memory import Memory, dump, load
from specdecode.model.window import Window
from specdecode.policy.ageing import aged, freshness, restart_restores, restarts_are_rationed, served
from specdecode.policy.clock import text_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.gates import decide
from specdecode.policy.observation import Freshness, Observation, Pod
from specdecode.policy.options import (
    RESTARTED_AT,
    Menu,
    configuration,
    fields_of,
    fingerprint,
    marked,
    same,
    unmarked,
)
from specdecode.rollout.clearing import cleared
from specdecode.rollout.patch import patch
from specdecode.rollout.phases import advance
from specdecode.vllm.unmanageable import Unmanageable
from specdecode.vllm.version import Version
from support.world import CONTAINER, NOW, deployment, menu, observation, option, pod, rendered, spec, traffic, workload

MENU = menu(spec())
OFF, NGRAM = option(MENU, "disabled"), option(MENU, "ngram")
HOUR = 3600.0
RESTART_COST = 180.0


# --- how long a pod has served ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ready", "started", "seconds"),
    [
        (NOW - 600, None, 600.0),
        (NOW - 600, NOW - 900, 600.0),
        (NOW - 600, NOW - 4 * HOUR, 4 * HOUR),
        (None, NOW - 900, None),
        (NOW + 5, None, 0.0),
    ],
    ids=[
        "since it is ready",
        "the start of its process does not count",
        "unless it was out of service for a moment",
        "not at all",
        "clocks differ",
    ],
)
def test_a_pod_has_served_since_it_is_ready(ready: float | None, started: float | None, seconds: float | None) -> None:
    window = traffic(acceptance=0.7)
    last = window.readings[-1]
    page = replace(last.page, process_start=started)
    seen = pod("p", "r", NGRAM, replace(window, readings=(*window.readings[:-1], replace(last, page=page))))
    assert served(replace(seen, ready_since=ready), NOW, 1800.0) == seconds


# --- what is remembered -------------------------------------------------------------------------------------------


def drafted(length: float, drafts: float = 500.0) -> Measurement:
    return Measurement(seconds=60.0, accepted_length=length, drafts=drafts, draft_tokens=drafts * 5)


def rounds(*shown: tuple[float, float], count: int = 10, scatter: float = 0.01, known: Knowledge | None = None) -> Any:
    """What is known after rounds in which pods of some ages had some accepted lengths."""
    rng, known = random.Random(3), known or Knowledge(NOW, drafts=Drafts(1.0, (0.8,) * 5, NOW, 1e4))
    for i in range(count):
        at = NOW - 120.0 * (count - 1 - i)
        common = rng.gauss(0.0, scatter)
        measured = [(age, drafted(length * math.exp(common + rng.gauss(0, scatter)))) for age, length in shown]
        known = aged(known, measured, at)
    return known


def test_what_pods_of_an_age_got_is_a_mean_of_its_own() -> None:
    known = rounds((600.0, 3.0), (5 * HOUR, 2.5))
    by_age = known.ageing.by_age
    assert [m is not None for m in by_age] == [True, False, False, False, True, False]
    assert math.exp(by_age[0].mean) == pytest.approx(3.0, rel=0.02)
    assert math.exp(by_age[4].mean) == pytest.approx(2.5, rel=0.02)
    assert math.exp(known.ageing.paired.mean) == pytest.approx(3.0 / 2.5, rel=0.02)


@pytest.mark.parametrize(
    "m",
    [
        Measurement(seconds=60.0),
        replace(drafted(3.0), accepted_length=None),
        drafted(3.0, drafts=10.0),
        replace(drafted(3.0), drafts=0.0),
    ],
    ids=["nothing is drafted", "not measured", "too little to tell", "no drafts"],
)
def test_what_does_not_tell_adds_nothing(m: Measurement) -> None:
    known = Knowledge(NOW)
    assert aged(known, [(600.0, m)], NOW) is known


def test_pods_of_an_age_weigh_what_they_drafted() -> None:
    known = aged(Knowledge(NOW), [(60.0, drafted(3.0, 900.0)), (90.0, drafted(2.0, 100.0))], NOW)
    assert known.ageing is not None and known.ageing.by_age[0] is not None
    assert math.exp(known.ageing.by_age[0].mean) == pytest.approx(2.9)


def test_a_mean_of_days_ago_starts_anew() -> None:
    old = Knowledge(NOW, ageing=Ageing((RunningMean(9.0, 1.0, 30.0, NOW - 3 * 86_400),) + (None,) * len(AGES)))
    known = aged(old, [(60.0, drafted(3.0))], NOW)
    assert known.ageing is not None and known.ageing.by_age[0] == RunningMean(math.log(3.0), 0.0, 1.0, NOW)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=60))
def test_a_running_mean_is_the_mean_while_it_remembers_all(values: list[float]) -> None:
    mean: RunningMean | None = None
    for i, value in enumerate(values):
        mean = RunningMean.add(mean, value, NOW + i)
    assert mean is not None and mean.rounds == min(len(values), ROUNDS) and mean.variance >= 0
    assert min(values) - 1e-9 <= mean.mean <= max(values) + 1e-9
    if len(values) <= ROUNDS:
        center = math.fsum(values) / len(values)
        assert mean.mean == pytest.approx(center, abs=1e-9)
        assert mean.variance == pytest.approx(math.fsum((v - center) ** 2 for v in values) / len(values), abs=1e-9)


def test_ageing_survives_a_restart_of_the_operator() -> None:
    known = rounds((600.0, 3.0), (5 * HOUR, 2.5))
    back = load(dump(Memory({"ngram": known})))
    assert isinstance(back, Memory)
    assert back.profiles["ngram"].ageing.paired.rounds == known.ageing.paired.rounds
    assert [m is None for m in back.profiles["ngram"].ageing.by_age] == [m is None for m in known.ageing.by_age]


# --- when it is known ---------------------------------------------------------------------------------------------


def started_at(t: float, acceptance: float = 0.7) -> Window:
    window = traffic(acceptance=acceptance)
    return replace(window, readings=tuple(replace(r, page=replace(r.page, process_start=t)) for r in window.readings))


def old_pods(age: float = 5 * HOUR, count: int = 3, *others: Pod, acceptance: float = 0.7) -> tuple[Pod, ...]:
    window = started_at(NOW - age - 120, acceptance)
    return (
        *(replace(pod(f"p{i}-{age:.0f}", "old", NGRAM, window), ready_since=NOW - age) for i in range(count)),
        *others,
    )


def serving(pods: tuple[Pod, ...] | None = None, **changes: Any) -> Observation:
    base = observation(active=NGRAM, menu=MENU, window=traffic(acceptance=0.7), **changes)
    return replace(base, pods=pods or old_pods())


def one_after_the_other(fresh: float, old: float, **changes: Any) -> Any:
    """All pods aged together: fresh and old were never there at once."""
    return rounds((5 * HOUR, old), known=rounds((600.0, fresh), **changes), **changes)


FRESH_PAYS: dict[str, tuple[Any, tuple[Pod, ...], bool]] = {
    "fresh pods were better": (one_after_the_other(3.07, 2.8), old_pods(), True),
    "and by no more than chance": (one_after_the_other(3.07, 3.05), old_pods(), False),
    "in figures that scatter": (one_after_the_other(3.07, 2.8, scatter=0.2), old_pods(), False),
    "in too few rounds": (one_after_the_other(3.07, 2.8, count=3), old_pods(), False),
    "old pods are better": (one_after_the_other(2.8, 3.07), old_pods(), False),
    "both in the same minutes, and fresh ones are better": (rounds((600.0, 3.07), (5 * HOUR, 2.8)), old_pods(), True),
    "all fell alike": (
        rounds((600.0, 2.8), (5 * HOUR, 2.8), known=one_after_the_other(3.07, 2.8), count=5),
        old_pods(),
        False,
    ),
    "the pods of now are fresh": (one_after_the_other(3.07, 2.8), old_pods(age=600.0), False),
    "most pods of now are fresh": (
        one_after_the_other(3.07, 2.8),
        old_pods(5 * HOUR, 1, *old_pods(600.0, 2)),
        False,
    ),
    "nobody knows how old they are": (
        one_after_the_other(3.07, 2.8),
        tuple(replace(p, ready_since=None) for p in old_pods()),
        False,
    ),
    "only old pods are known": (rounds((5 * HOUR, 2.8)), old_pods(), False),
    "nothing is known": (Knowledge(), old_pods(), False),
    "the profile is not known": (None, old_pods(), False),
}


@pytest.mark.parametrize("case", FRESH_PAYS)
def test_ageing_is_recognised_when_it_is_significant_and_not_the_traffics(case: str) -> None:
    known, pods, found = FRESH_PAYS[case]
    assert (freshness(serving(pods), known, RESTART_COST) is not None) == found


def test_what_a_restart_brings_is_the_gain_in_tokens_per_step_and_how_long_it_lasts() -> None:
    known = one_after_the_other(3.07, 2.8)
    found = freshness(serving(), known, RESTART_COST)
    assert found is not None
    assert found.gain.value == pytest.approx(3.07 / 2.8 - 1, abs=0.01)
    assert found.gain.low < found.gain.value < found.gain.high
    assert found.lasts == pytest.approx(math.sqrt(0.5 * 4) * HOUR), "between half an hour and four hours"
    assert found.benefit == pytest.approx(math.log(3.07 / 2.8) * found.lasts / math.log(2) - RESTART_COST, rel=0.1)
    for age, length, hours in ((2400.0, 2.85, 0.5), (1.5 * HOUR, 3.0, math.sqrt(2 * 4)), (3 * HOUR, 3.0, 4.0)):
        more = freshness(serving(), rounds((age, length), known=known), RESTART_COST)
        assert more is not None and more.lasts == pytest.approx(hours * HOUR)


def test_where_only_some_steps_draft_a_restart_brings_less() -> None:
    known = one_after_the_other(3.07, 2.8)
    all_, some = (
        freshness(serving(), replace(known, drafts=replace(known.drafts, match=match)), RESTART_COST)
        for match in (1.0, 0.3)
    )
    assert all_ is not None and some is not None and some.gain.value < all_.gain.value


def test_the_operator_finds_it_out_by_itself() -> None:
    """Pods of two ages side by side, learnt from and estimated as in every tick."""
    o = observation(active=NGRAM, menu=MENU, pods=old_pods(5 * HOUR, 3, *old_pods(300.0, 1, acceptance=0.75)))
    ageing = o.knowledge["ngram"].ageing
    assert ageing is not None and ageing.paired is not None
    assert ageing.paired.mean == pytest.approx(math.log((1 + 5 * 0.75) / (1 + 5 * 0.7)), rel=1e-6)


# --- the gate -----------------------------------------------------------------------------------------------------

WORTH_IT = Freshness(Estimate(0.1, 0.07, 0.13), (3.07, 2.8), 2 * HOUR, 500.0)


def finding(found: Freshness | None = WORTH_IT, **changes: Any) -> Observation:
    o = serving(**changes)
    return replace(o, estimates=replace(o.estimates, restart=found, candidates=(NGRAM,), outlooks={}))


def test_a_restart_that_pays_is_a_change_to_what_runs() -> None:
    d = decide(finding())
    assert d.reason is Reason.RESTART_RESTORES and d.change and d.restart and d.held_back is None
    assert d.target == NGRAM and d.required_gain == 0.05
    assert d.message == (
        "ngram gets 2.80 tokens per draft step on pods that have served for more than 2h, 3.07 on fresh ones: a restart"
        " is expected to make tokens come +10 % (+7 to +13 %) faster, and half of that to last for 2h"
    )


@pytest.mark.parametrize(
    "o",
    [
        finding(None),
        finding(replace(WORTH_IT, gain=Estimate(0.03, 0.02, 0.04))),
        finding(replace(WORTH_IT, benefit=-1.0)),
        replace(finding(), active=None),
        finding(workload=workload(rendered(MENU, "disabled"))),
    ],
    ids=[
        "nothing is known",
        "too small a gain",
        "it costs more",
        "nothing of ours runs",
        "the profile was edited since",
    ],
)
def test_a_restart_that_does_not_pay_is_not_made(o: Observation) -> None:
    assert restart_restores(o) is None


def restarted(outcome: Outcome, ago: float) -> HistoryEntry:
    here = configuration(NGRAM)
    return HistoryEntry(
        id="x",
        policy_generation=1,
        source=here,
        target=here,
        reason=Reason.RESTART_RESTORES.value,
        outcome=outcome,
        outcome_reason="r",
        started_at=text_of(NOW - ago - 600),
        finished_at=text_of(NOW - ago),
    )


DONE, VAIN = Outcome.SUCCESSFUL, Outcome.FAILED
BRAKED: dict[str, tuple[tuple[HistoryEntry, ...], Reason | None]] = {
    "never before": ((), None),
    "proven the last time": ((restarted(DONE, 2 * HOUR),), None),
    "in vain the last time": ((restarted(VAIN, 5 * HOUR),), Reason.COOLING_DOWN),
    "in vain, long ago": ((restarted(VAIN, 7 * HOUR),), None),
    "inconclusive is not proven": ((restarted(Outcome.INCONCLUSIVE, 5 * HOUR),), Reason.COOLING_DOWN),
    "in vain twice": ((restarted(VAIN, 7 * HOUR), restarted(VAIN, 14 * HOUR)), Reason.COOLING_DOWN),
    "in vain once, and proven before": ((restarted(VAIN, 7 * HOUR), restarted(DONE, 14 * HOUR)), None),
    "often today": (tuple(restarted(DONE, h * HOUR) for h in (3, 6, 9)), Reason.CHANGES_EXHAUSTED),
}


@pytest.mark.parametrize("case", BRAKED)
def test_restarts_rest_after_one_in_vain_and_leave_other_changes_room(case: str) -> None:
    history, reason = BRAKED[case]
    held = decide(finding(history=history)).held_back
    assert (held and held[0]) == reason


def test_other_changes_do_not_rest_for_a_restart_in_vain() -> None:
    o = finding(history=(restarted(VAIN, 5 * HOUR),))
    assert restarts_are_rationed(o, Decision(Reason.CHEAPER_PROFILE, "", OFF, change=True)) is None


# --- the mark -----------------------------------------------------------------------------------------------------

AT = text_of(NOW)
CONTAINERS: dict[str, Any] = {
    "no environment": CONTAINER,
    "an environment": {**CONTAINER, "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {}}]},
    "an empty environment": {**CONTAINER, "env": []},
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_a_mark_is_put_and_taken_off_without_a_trace(case: str) -> None:
    container = CONTAINERS[case]
    fresh = marked(container, AT)
    assert fresh["env"][-1] == {"name": RESTARTED_AT, "value": AT}
    assert not same(fresh, container), "its pods are new ones"
    assert same(unmarked(fresh), container)
    assert same(marked(fresh, "later"), marked(container, "later")), "there is one mark"
    assert fingerprint(fresh) == fingerprint(container)


@pytest.mark.parametrize("profile", ["ngram", "disabled"])
def test_a_marked_container_runs_its_option(profile: str) -> None:
    assert MENU.identify(marked(rendered(MENU, profile), AT)) == option(MENU, profile)


def test_a_mark_is_no_part_of_the_original_nor_of_another_option() -> None:
    version = Version.parse("0.24.0")
    assert version is not None
    adopted = Menu.of(marked(CONTAINER, AT), version, spec().profiles)
    assert isinstance(adopted, Menu)
    assert same(adopted.original, CONTAINER)
    rendering = adopted.render(option(adopted, "ngram"))
    assert not isinstance(rendering, Unmanageable) and same(rendering, rendered(MENU, "ngram"))


def status_with(**fields: Any) -> SpecDecodePolicyStatus:
    original = Original(**fields_of(MENU.original).model_dump(), adopted_at=text_of(NOW))
    return SpecDecodePolicyStatus(original=original, **fields)


def test_a_policy_that_is_deleted_takes_its_mark_along() -> None:
    live = marked(rendered(MENU, "ngram"), AT)
    status = status_with(applied=fingerprint(live))
    restored = cleared(deployment(live), status, restore=True)
    assert restored is not None and same(restored.container, CONTAINER)
    assert cleared(deployment(live), status, restore=False) is None


# --- the change ---------------------------------------------------------------------------------------------------

RESTART = Decision(
    Reason.RESTART_RESTORES, "it pays", NGRAM, change=True, restart=True, gain=WORTH_IT.gain, required_gain=0.05
)
SOURCE = rendered(MENU, "ngram")
HOLD = Decision(Reason.CHANGE_IN_PROGRESS, "going on")


def begun(container: Any = SOURCE) -> RolloutStatus:
    step = advance(serving(workload=workload(container)), RESTART)
    assert step.rollout is not None
    return step.rollout


def under_way(phase: RolloutPhase, container: Any, *pods: Pod, settled: bool = False, **update: Any) -> Observation:
    rollout = begun().model_copy(
        update={
            "phase": phase,
            "phase_started_at": text_of(NOW - 75),
            "canary_ready_at": text_of(NOW - 75),
            **update,
        }
    )
    revision = "old" if same(container, SOURCE) else "new"
    live = workload(container, revision=revision, settled=settled)
    return observation(active=NGRAM, menu=MENU, pods=pods, rollout=rollout, workload=live)


def fresh_canary(acceptance: float = 0.8, **changes: Any) -> Pod:
    return pod("new", "new", NGRAM, traffic(acceptance=acceptance), **changes)


TARGET = marked(SOURCE, AT)


def test_a_restart_is_a_canary_of_the_same_option_with_a_mark() -> None:
    step = advance(serving(), RESTART)
    assert step.rollout is not None and step.desired is not None
    assert step.rollout.source == step.rollout.target == Configuration(profile="ngram")
    assert same(step.desired.container, TARGET)
    assert step.rollout.message.startswith("starting a fresh canary of ngram: ")
    assert step.rollout.load_correction == 0.0


def test_a_second_restart_replaces_the_mark() -> None:
    before = marked(SOURCE, "2026-01-01T00:00:00Z")
    rollout = begun(before)
    assert rollout.target_fields.env == [{"name": RESTARTED_AT, "value": AT}]
    assert rollout.source_fields.env == [{"name": RESTARTED_AT, "value": "2026-01-01T00:00:00Z"}]


@pytest.mark.parametrize(
    ("acceptance", "phase", "reason"),
    [
        (0.8, RolloutPhase.PROMOTING, None),
        (0.7, RolloutPhase.ROLLING_BACK, "GainTooSmall"),
        (0.5, RolloutPhase.ROLLING_BACK, "Slower"),
    ],
)
def test_the_canary_proves_that_a_restart_helps(acceptance: float, phase: RolloutPhase, reason: str | None) -> None:
    step = advance(under_way(RolloutPhase.ANALYSING, TARGET, *old_pods(), fresh_canary(acceptance)), HOLD)
    assert step.rollout is not None and step.desired is not None
    assert (step.rollout.phase, step.rollout.outcome_reason) == (phase, reason)
    assert same(step.desired.container, TARGET if reason is None else SOURCE)


def test_a_restart_ends_like_any_change() -> None:
    fresh = tuple(replace(fresh_canary(), name=f"new-{i}") for i in range(3))
    step = advance(under_way(RolloutPhase.PROMOTING, TARGET, *fresh, settled=True), HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.VERIFYING
    step = advance(under_way(RolloutPhase.VERIFYING, TARGET, *fresh, settled=True), HOLD)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.FINISHING
    o = under_way(RolloutPhase.FINISHING, TARGET, *fresh, outcome=Outcome.SUCCESSFUL, outcome_reason="Promoted")
    step = advance(o, HOLD)
    assert step.finished is not None and step.finished.outcome is Outcome.SUCCESSFUL
    after = replace(o, rollout=None, history=(step.finished,), workload=workload(TARGET))
    assert decide(after).reason is not Reason.FIELD_CONTESTED


def test_a_mark_that_somebody_takes_away_ends_the_restart() -> None:
    step = advance(under_way(RolloutPhase.ANALYSING, SOURCE, *old_pods(), fresh_canary()), HOLD)
    assert step.rollout is not None and step.rollout.outcome_reason == "Superseded"
    assert step.desired is not None and same(step.desired.container, SOURCE)


def test_an_edited_profile_takes_the_fresh_canary_back() -> None:
    edited = spec(profiles=[{"name": "ngram", "method": "NGram", "numSpeculativeTokens": 3}])
    o = under_way(RolloutPhase.ANALYSING, TARGET, *old_pods(), fresh_canary())
    step = advance(replace(o, menu=menu(edited), policy=edited), HOLD)
    assert step.rollout is not None and step.rollout.outcome_reason == "PolicyChanged"


def test_a_policy_deleted_during_a_restart_leaves_the_old_pods_or_the_original() -> None:
    status = status_with(rollout=begun(), applied=fingerprint(TARGET))
    kept = cleared(deployment(TARGET, paused=True), status, restore=False)
    assert kept is not None and same(kept.container, SOURCE) and not kept.paused
    restored = cleared(deployment(TARGET, paused=True), status, restore=True)
    assert restored is not None and same(restored.container, CONTAINER)


@given(
    phase=st.sampled_from([p for p in RolloutPhase if p is not RolloutPhase.FINISHING]),
    written=st.booleans(),
    settled=st.booleans(),
    pods=st.lists(
        st.sampled_from([*old_pods(), fresh_canary(), fresh_canary(ready=False), fresh_canary(restarts=2)]), max_size=5
    ),
)
def test_wherever_the_operator_died_a_restart_is_gone_on_with_or_taken_back(
    phase: RolloutPhase, written: bool, settled: bool, pods: list[Pod]
) -> None:
    """Between status and Deployment, or anywhere else: what is wanted next is the old template or the marked one of
    this change, never a third, and asking twice for it changes nothing."""
    outcome = {"outcome": VAIN, "outcome_reason": "Slower"} if phase is RolloutPhase.ROLLING_BACK else {}
    o = under_way(phase, TARGET if written else SOURCE, *pods, settled=settled, **outcome)
    step = advance(o, HOLD)
    assert step.rollout is not None and step.rollout.id == begun().id, "the same change, not a second one"
    assert step.desired is not None and o.workload is not None
    wanted = step.desired.container
    assert same(wanted, TARGET) or same(wanted, SOURCE)
    if step.rollout.phase is RolloutPhase.ROLLING_BACK:
        assert same(wanted, SOURCE)
    applied = deployment(
        wanted,
        strategy=dict(step.desired.strategy),
        minReadySeconds=step.desired.min_ready_seconds,
        paused=step.desired.paused,
    )
    assert patch(applied, step.desired) == []
