"""What users got with what we chose, held against what they got with what they chose themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specdecode.api.v1alpha1 import Configuration, HistoryEntry, Outcome
from specdecode.model.knowledge import Knowledge
from specdecode.model.loads import BUCKET, DAY, LoadHistory
from specdecode.model.service import HALF_HOUR, Glance, HalfHour, add
from specdecode.policy.back_to_own import IN_A_LULL, OWN_MAY_LOSE
from specdecode.policy.brakes import changes_exhausted
from specdecode.policy.decision import Reason
from specdecode.policy.estimating import Modeller, estimate
from specdecode.policy.gates import decide
from specdecode.policy.learning import LEARNING
from specdecode.policy.observation import Observation
from specdecode.policy.track_record import was_slower
from specdecode.rollout.ending import Ending
from support.decisions import entry, expecting, running_ngram, slower, unable, without
from support.world import NOW, menu, observation, rendered, spec

LOAD = 400.0
"""Tokens per second and pod."""


def record(
    tpot: float, load: float = LOAD, seconds: float = 3600.0, ago: float = 0.0, prompt: float = 100.0
) -> tuple[HalfHour, ...]:
    """Service of so many seconds that ended so long ago."""
    found: tuple[HalfHour, ...] = ()
    end = NOW - ago
    for i in reversed(range(int(seconds // 300))):
        found = add(found, end - 300 * i, 300.0, Glance(load, load, tpot, prompt))
    return found


def with_record(
    ours: tuple[HalfHour, ...], own: tuple[HalfHour, ...], asked: float = LOAD, o: Observation | None = None
) -> Observation:
    """Nothing speculates, the manifest says n-gram, and the pods were asked for so much in the last hour."""
    o = o or expecting(-0.1, spread=1.02, benefit=-1.0, payback=None, knowledge=without())
    knowledge = {
        "disabled": replace(o.knowledge.get("disabled", Knowledge()), service=ours),
        "ngram": replace(o.knowledge.get("ngram", Knowledge()), service=own),
    }
    loads = LoadHistory(int(NOW // BUCKET) - 24, (asked * o.serving,) * 25, BUCKET)
    own_menu = menu(o.policy, rendered(menu(o.policy), "ngram"))
    return replace(o, knowledge=knowledge, loads=loads, menu=own_menu)


FAST, SLOW = record(0.020, ago=7200.0), record(0.030)


@pytest.mark.parametrize(
    ("o", "slower"),
    [
        (with_record(SLOW, FAST), True),
        (with_record(record(0.0201), FAST), False),
        (with_record(record(0.021, seconds=3600.0), FAST), True),
        (with_record(record(0.021, seconds=1800.0), FAST), False),
        (with_record(record(0.100, seconds=900.0), FAST), True),
        (with_record(record(0.100, seconds=300.0), FAST), False),
        (with_record(SLOW, record(0.020, load=0.9 * LOAD, ago=7200.0)), False),
        (with_record(SLOW, record(0.020, load=1.5 * LOAD, ago=7200.0)), True),
        (with_record(SLOW, record(0.020, seconds=600.0, ago=7200.0)), True),
        (with_record(record(0.023), record(0.020, seconds=600.0, ago=7200.0)), False),
        (with_record(SLOW, ()), False),
        (with_record((), FAST), False),
        (with_record(SLOW, record(0.020, ago=1.1 * DAY)), False),
        (with_record(SLOW, record(0.020, ago=7200.0, prompt=200.0)), False),
        (with_record(SLOW, FAST, asked=LOAD / 1.05), True),
        (with_record(SLOW, FAST, asked=LOAD / 1.2), False),
    ],
    ids=[
        "by half",
        "by what is chance",
        "by little, for long",
        "by little, not for long",
        "by much, soon",
        "by much, in one look",
        "the manifest's own was never asked for as much",
        "it was asked for more, and was faster still",
        "it was not seen for long, but was far faster",
        "it was not seen for long",
        "it was never seen",
        "what runs has only begun",
        "that was yesterday",
        "requests were of another kind",
        "the load of now is hardly less",
        "the load of now is another",
    ],
)
def test_what_does_worse_than_what_the_manifest_says_at_no_more_load_is_told(o: Observation, slower: bool) -> None:
    assert (was_slower(o, "disabled", NOW - DAY) is not None) is slower


def test_a_quiet_hour_of_what_the_manifest_says_does_not_hide_a_busy_one() -> None:
    busy, quiet = record(0.020, ago=7200.0), record(0.010, load=50.0, seconds=1800.0, ago=3600.0)
    found = was_slower(with_record(SLOW, (*busy, *quiet)), "disabled", NOW - DAY)
    assert found is not None and found[1].tpot == pytest.approx(0.020)


def test_what_the_manifest_says_gets_to_run_where_users_were_better_off_with_it() -> None:
    d = decide(with_record(SLOW, FAST))
    assert d.reason is Reason.MANIFEST_WAS_FASTER and d.change and d.held_back is None
    assert d.target is not None and d.target.profile == "ngram" and d.required_gain == -OWN_MAY_LOSE
    assert "over 1h of service with disabled a token took 30.0 ms, at 400 tokens/s per pod" in d.message
    assert "with ngram, which the manifest asks for, it took 20.0 ms at 400" in d.message


def test_what_ran_before_the_last_change_is_not_held_against_what_runs() -> None:
    """It may be another schedule, or the same at another time of day."""
    o = with_record(SLOW, FAST)
    changed = entry(ago=600.0, source=Configuration(profile="ngram"), target="disabled")
    assert decide(replace(o, history=(changed,))).reason is Reason.MANIFEST_WAS_FASTER, "a part of this half hour"
    before = record(0.030, ago=2 * HALF_HOUR)
    assert decide(replace(with_record(before, FAST), history=(changed,))).reason is not Reason.MANIFEST_WAS_FASTER


def test_what_the_manifest_says_is_not_held_against_itself() -> None:
    o = with_record(SLOW, FAST)
    own = menu(o.policy, rendered(menu(o.policy), "disabled"))
    assert decide(replace(o, menu=own)).reason is not Reason.MANIFEST_WAS_FASTER


def by_the_model(own: float | None, o: Observation) -> Observation:
    """What the manifest says would have taken so many seconds per token in the last hour."""
    return unable(o, own_lately=own)


FEW_ASKED = record(0.020, load=LOAD / 4, ago=7200.0)


@pytest.mark.parametrize(
    ("o", "gets"),
    [
        (by_the_model(0.020, with_record(SLOW, ())), True),
        (by_the_model(0.020, with_record(SLOW, FEW_ASKED)), True),
        (by_the_model(0.020, with_record(SLOW, record(0.030, ago=7200.0))), False),
        (by_the_model(0.027, with_record(SLOW, ())), False),
        (by_the_model(0.020, with_record(record(0.030, seconds=1500.0), ())), False),
        (by_the_model(None, with_record(SLOW, ())), False),
    ],
    ids=[
        "it was never seen",
        "it was seen with little to do",
        "it was seen at such a load, and was no faster",
        "models err by as much",
        "not for long",
        "the model does not know",
    ],
)
def test_it_gets_to_run_too_where_the_model_says_that_bursts_cost_more_than_lulls_gain(
    o: Observation, gets: bool
) -> None:
    """A burst may be over before a canary can show it."""
    d = decide(o)
    assert (d.reason is Reason.MANIFEST_WAS_FASTER) is d.change is gets
    if gets:
        assert d.target is not None and d.target.profile == "ngram" and d.required_gain == -IN_A_LULL
        assert "a token took 30.0 ms, bursts and lulls" in d.message and "is expected to take 20.0 ms" in d.message


def disproved(ago: float) -> HistoryEntry:
    return entry(Outcome.FAILED, ago=ago, reason=Reason.MANIFEST_WAS_FASTER, outcome_reason=Ending.SLOWER)


def test_a_canary_that_shows_otherwise_settles_that_for_the_day() -> None:
    shown = disproved(7200.0)
    o = by_the_model(0.020, with_record(SLOW, ()))
    assert decide(replace(o, history=(shown,))).reason is not Reason.MANIFEST_WAS_FASTER
    yesterday = disproved(1.1 * DAY)
    assert decide(replace(o, history=(yesterday,))).reason is Reason.MANIFEST_WAS_FASTER


def test_what_its_canaries_showed_in_lulls_does_not_hold_it_back() -> None:
    probes = tuple(slower(ago=900.0 + i) for i in range(3))
    d = decide(replace(by_the_model(0.020, with_record(SLOW, ())), history=probes))
    assert d.reason is Reason.MANIFEST_WAS_FASTER and d.held_back is None


def test_it_is_no_recommendation_where_no_changes_are_made() -> None:
    o = with_record(SLOW, FAST)
    assert decide(replace(o, policy=spec(mode="Recommend"))).reason is not Reason.MANIFEST_WAS_FASTER


def test_what_did_worse_does_not_come_back_while_as_much_is_asked() -> None:
    """Whatever its canary would show."""

    def wanted(asked: float) -> Observation:
        o = expecting(0.5)
        o = with_record(record(0.020, ago=7200.0), record(0.030, ago=3600.0), asked, o)
        return replace(o, menu=menu(o.policy, rendered(menu(o.policy), "disabled")))

    kept = decide(wanted(LOAD))
    assert not kept.change and "a token took 30.0 ms with it, and 20.0 ms with what the manifest says" in kept.message
    assert decide(wanted(LOAD / 2)).change


def test_nor_does_a_guard_bring_it_back() -> None:
    low = running_ngram(acceptance=0.2)
    assert decide(low).reason is Reason.ACCEPTANCE_BELOW_FLOOR
    assert decide(with_record(SLOW, FAST, o=low)).reason is not Reason.ACCEPTANCE_BELOW_FLOOR


def test_the_last_change_of_the_day_is_not_kept_from_it() -> None:
    before = tuple(entry(Outcome.FAILED, ago=7200.0 * (i + 1), target="other") for i in range(5))
    o = with_record(SLOW, FAST, o=expecting(-0.1, spread=1.02, benefit=-1.0, payback=None, history=before))
    asked = o.loads.tokens_per_second
    o = replace(o, loads=replace(o.loads, tokens_per_second=(100 * asked[0], *asked[1:])))
    d = decide(o)
    assert d.reason is Reason.MANIFEST_WAS_FASTER and d.held_back is None
    assert changes_exhausted(o, replace(d, reason=Reason.CHEAPER_PROFILE)) is not None, "it is kept for overload"


# --- what is noted ------------------------------------------------------------------------------------------------


def noted(o: Observation) -> tuple[HalfHour, ...]:
    later = replace(o, now=o.now + 1.1 * LEARNING * o.policy.metrics.window)
    return estimate(later, Modeller()).knowledge["disabled"].service


def test_what_users_get_is_noted_as_often_as_anything_is_learnt() -> None:
    o = observation()
    passed = 1.1 * LEARNING * o.policy.metrics.window
    (half_hour,) = noted(o)
    m = o.estimates.measured
    assert m is not None and m.generation_tokens_per_second is not None
    assert half_hour.seconds == pytest.approx(passed)
    assert half_hour.asked / passed == pytest.approx(m.generation_tokens_per_second / 3, rel=0.01)
    assert half_hour.felt / half_hour.served == pytest.approx(0.02)


def test_nothing_is_noted_while_pods_are_changed_or_have_just_been() -> None:
    o = observation()
    assert o.workload is not None
    window = o.policy.metrics.window
    assert noted(replace(o, workload=replace(o.workload, settled=False))) == ()
    just = entry(ago=0.1 * window, source=Configuration(profile="ngram"), target="disabled")
    assert noted(replace(o, history=(just,))) == ()
    long_ago = entry(ago=2 * window, source=Configuration(profile="ngram"), target="disabled")
    assert noted(replace(o, history=(long_ago,)))
