"""The brakes: what may be done now."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specdecode.api.v1alpha1 import Configuration, HistoryEntry, Outcome
from specdecode.model.loads import BUCKET, LoadHistory
from specdecode.policy.brakes import (
    changes_exhausted,
    cooling_down,
    may_act,
    never_lasts,
    tells_nothing,
    too_few_requests,
)
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation
from specdecode.policy.past import backoff
from specdecode.rollout.ending import Ending
from support.decisions import (
    carrying,
    entry,
    expecting,
    falling_behind,
    forgetful,
    running_ngram,
    slower,
    unable,
)
from support.world import NOW, menu, observation, option, pod, rendered, spec, traffic, workload


def test_a_guard_that_was_just_proven_wrong_rests_like_everybody() -> None:
    d = decide(running_ngram(acceptance=0.2, history=(entry(Outcome.FAILED, ago=5, target="disabled"),)))
    assert d.held_back is not None and d.held_back[0] is Reason.COOLING_DOWN


def test_what_is_urgent_does_not_wait_for_another_profiles_failure() -> None:
    d = decide(running_ngram(acceptance=0.2, history=(entry(Outcome.FAILED, ago=5, target="ngram"),)))
    assert d.urgent and d.held_back is None


def test_rest_follows_a_change() -> None:
    d = decide(observation(history=(entry(target="disabled"),)))
    assert d.change and d.held_back is not None
    assert d.held_back[0] is Reason.COOLING_DOWN
    assert not may_act(observation(), d)


def turns(*ended: float) -> tuple[HistoryEntry, ...]:
    """N-gram was promoted an hour before each of these, so long before now, when speculation was switched off again."""
    off = Configuration(profile="disabled")
    back = Configuration(profile="ngram")
    pairs = ((entry(ago=t, source=back, target="disabled"), entry(ago=t + 3600, source=off)) for t in ended)
    return tuple(h for pair in pairs for h in pair)


@pytest.mark.parametrize(
    ("history", "held"),
    [
        (turns(1.9 * 3600), True),
        (turns(2.1 * 3600), False),
        (turns(3.9 * 3600, 7 * 3600), True),
        (turns(4.1 * 3600, 7 * 3600), False),
        (turns(7.9 * 3600, 10 * 3600, 13 * 3600), True),
    ],
    ids=["two hours", "and no longer", "four hours the second time", "and no longer than that", "eight the third time"],
)
def test_what_was_soon_taken_back_rests_for_hours_and_twice_as_long_each_time(
    history: tuple[HistoryEntry, ...], held: bool
) -> None:
    """What makes it pay comes and goes faster than pods can be changed for it."""
    o = observation(policy=spec(rollout={"maxChangesPerDay": 20}), history=history)
    wanted = Decision(Reason.CHEAPER_PROFILE, "", option(menu(spec()), "ngram"), change=True)
    for urgent in (False, True):
        brake = never_lasts(o, replace(wanted, urgent=urgent))
        assert (brake is not None and brake[0] is Reason.COOLING_DOWN) is held
        assert brake is None or "as ngram was soon replaced when it was promoted today, it is resting for" in brake[1]
    own = replace(o, menu=menu(spec(), rendered(menu(spec()), "ngram")))
    assert never_lasts(own, wanted) is None, "what the manifest says comes back when it pays"


@pytest.mark.parametrize(
    ("count", "given_up", "ending", "ago", "held"),
    [
        (2, True, Ending.UNEQUAL_LOAD, 6 * 3600.0, True),
        (1, True, Ending.UNEQUAL_LOAD, 6 * 3600.0, False),
        (2, False, Ending.UNEQUAL_LOAD, 6 * 3600.0, False),
        (2, True, Ending.UNEQUAL_LOAD, 25 * 3600.0, False),
        (2, True, Ending.SLOWER, 6 * 3600.0, False),
    ],
    ids=["twice", "once", "one pod more", "yesterday", "they told something"],
)
def test_no_third_pod_is_given_up_for_what_cannot_be_told(
    count: int, given_up: bool, ending: Ending, ago: float, held: bool
) -> None:
    """However urgent it is: the others do its work, and fall behind for that."""
    tried = entry(Outcome.INCONCLUSIVE, ago=ago, outcome_reason=ending, give_up_one=given_up)
    o = observation(history=(tried,) * count)
    wanted = Decision(Reason.ACCEPTANCE_BELOW_FLOOR, "", option(menu(spec()), "ngram"), change=True, urgent=True)
    brake = tells_nothing(o, wanted)
    assert (brake is not None and "they told nothing: resting for" in brake[1]) is held


@pytest.mark.parametrize(("failures", "factor"), [(0, 1), (1, 2), (2, 4), (3, 8), (9, 16)])
def test_rest_doubles_with_each_failure(failures: int, factor: int) -> None:
    failed = [entry(Outcome.FAILED) for _ in range(failures)]
    o = observation(history=(*failed, entry(target="disabled")))
    assert backoff(o, "ngram") == factor
    assert backoff(o, "disabled") == 1, "what failed is the one, not the other"


def test_changes_are_counted_per_day() -> None:
    many = tuple(entry(ago=3600.0 * (i + 2), target="disabled") for i in range(6))
    d = decide(observation(history=many))
    assert d.held_back is not None and d.held_back[0] is Reason.CHANGES_EXHAUSTED


def today(reason: Reason, count: int, outcome: Outcome = Outcome.FAILED) -> tuple[HistoryEntry, ...]:
    """So many changes of another profile; six are allowed."""
    return tuple(entry(outcome, ago=3600.0 * (i + 2), target="other", reason=reason.value) for i in range(count))


def had_to_carry(o: Observation, factor: float) -> Observation:
    """So many times the load of now was asked within the last day."""
    now = o.loads.at(NOW)
    assert now is not None
    return replace(o, loads=LoadHistory(int(NOW // BUCKET) - 1, (factor * now, now), BUCKET))


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
    o = had_to_carry(observation(history=before), 100.0)
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
    o = had_to_carry(observation(menu=own, history=before), 100.0)
    found = changes_exhausted(o, Decision(wanted, "", option(own, "ngram"), change=True))
    assert (found is not None) is held


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


BACK = Decision(SURE, "", option(menu(spec()), "ngram"), change=True)
"""To what the manifest says."""


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


@pytest.mark.parametrize(("highest", "held"), [(1.0, False), (8.0, False), (8.5, True)])
def test_where_the_highest_load_of_the_day_is_carried_none_is_kept_for_overload(highest: float, held: bool) -> None:
    """What runs carries nine times the load of now; a tenth is for what estimates are off by."""
    o = expecting(0.5, history=today(SURE, 5))
    o = replace(o, menu=menu(o.policy, rendered(menu(o.policy), "ngram")))
    assert (changes_exhausted(had_to_carry(o, highest), BACK) is not None) is held
    assert changes_exhausted(replace(o, loads=LoadHistory()), BACK) is not None, "nobody knows"


def test_nor_is_it_kept_from_pods_that_have_fallen_behind_with_what_nobody_has_seen_to_carry_more() -> None:
    d = decide(falling_behind(history=today(SURE, 5)))
    assert d.reason is Reason.OVERLOADED and d.held_back is None


@pytest.mark.parametrize(("limit", "on", "back"), [(1, 1, 1), (2, 1, 2), (3, 2, 3), (4, 2, 3), (6, 4, 5)])
def test_so_many_changes_find_something_better_and_so_many_go_back(limit: int, on: int, back: int) -> None:
    """Of as many as the policy allows: where it allows few, none is kept for overload."""
    policy = spec(rollout={"maxChangesPerDay": limit})

    def made(target: str) -> int:
        wanted = Decision(SURE, "", option(menu(policy), target), change=True)
        days = (had_to_carry(observation(policy, history=today(SURE, n)), 100.0) for n in range(limit + 1))
        return [changes_exhausted(o, wanted) is None for o in days].count(True)

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
