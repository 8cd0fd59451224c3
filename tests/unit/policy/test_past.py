"""What the history says of a profile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specdecode.api.v1alpha1 import Configuration, HistoryEntry, Outcome
from specdecode.model.loads import BUCKET, DAY, LoadHistory
from specdecode.policy.decision import Reason
from specdecode.policy.gates import PROBE_EVERY, decide
from specdecode.policy.past import HISTORY, MEASURED, SHORT_LIVED, backoff, lost_today, remembered, taken_back
from specdecode.rollout.ending import Ending
from support.decisions import (
    UNLIKELY,
    entry,
    expecting,
    seen,
    slower,
    unable,
)
from support.world import NOW, observation, spec


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


def no_room(ago: float) -> HistoryEntry:
    return entry(Outcome.ERROR, ago=ago, outcome_reason=Ending.NO_CAPACITY)


@pytest.mark.parametrize(
    ("newest_first", "forgotten"),
    [
        ([entry(ago=60.0 * i) for i in range(HISTORY)], None),
        ([entry(ago=60.0 * i) for i in range(HISTORY + 1)], HISTORY),
        ([*(no_room(60.0 * i) for i in range(HISTORY)), entry(ago=0.9 * DAY)], HISTORY - 1),
        ([*(no_room(60.0 * i) for i in range(HISTORY)), entry(ago=1.1 * DAY)], HISTORY),
    ],
    ids=[
        "there is room for all",
        "the oldest",
        "of a day the oldest that changed nothing",
        "what was a day ago counts no more",
    ],
)
def test_the_history_forgets_last_what_the_limit_of_changes_counts(
    newest_first: list[HistoryEntry], forgotten: int | None
) -> None:
    """Canaries that find no node are tried again all day, and would push out the changes that were made."""
    kept = [h for i, h in enumerate(newest_first) if i != forgotten]
    assert remembered(newest_first, NOW) == kept


COOLDOWN = spec().rollout.cooldown


def there_and_back(*ended: float, lasted: float = 3600.0) -> tuple[HistoryEntry, ...]:
    """N-gram was promoted, and replaced so long after that; the ways back ended so long before now, newest first."""
    history: list[HistoryEntry] = []
    for ago in ended:
        history.append(entry(ago=ago, source=Configuration(profile="ngram"), target="disabled"))
        history.append(entry(ago=ago + lasted + 60))
    return tuple(history)


@pytest.mark.parametrize(
    ("history", "times"),
    [
        (there_and_back(600.0), 1),
        (there_and_back(600.0, 9000.0), 2),
        (there_and_back(600.0, DAY), 1),
        (there_and_back(600.0, lasted=1.1 * SHORT_LIVED * COOLDOWN), 0),
        (there_and_back(600.0)[:1], 0),
        ((entry(Outcome.FAILED, source=Configuration(profile="ngram"), target="disabled"), entry(ago=3600.0)), 0),
    ],
    ids=["once", "twice", "once today", "after hours", "it was there before", "it stayed"],
)
def test_what_was_soon_replaced_each_time_that_it_was_promoted_is_counted(
    history: tuple[HistoryEntry, ...], times: int
) -> None:
    o = observation(history=history)
    ended = taken_back(o, "ngram")
    assert len(ended) == times and ended == sorted(ended, reverse=True)
    assert taken_back(o, "draft") == []


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
