"""Pods that fall behind, in a burst or for long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specdecode.api.v1alpha1 import Configuration, Outcome
from specdecode.model.knowledge import Knowledge
from specdecode.model.loads import BUCKET, DAY, LoadHistory
from specdecode.policy.back_to_own import OWN_MAY_LOSE
from specdecode.policy.clock import seconds_of
from specdecode.policy.decision import Reason
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation
from specdecode.policy.past import fell_behind
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
from support.world import NOW, menu, rendered, spec


@pytest.mark.parametrize(
    ("o", "asks"),
    [
        (falling_behind(), True),
        (falling_behind("disabled"), False),
        (falling_behind(headroom=1.05), True),
        (falling_behind(minutes=10), False),
        (falling_behind(headroom=1.2), False),
        (falling_behind(untried=False), False),
        (carrying(falling_behind(untried=False, headroom=1.05), 1.07), False),
        (falling_behind(most=0.9), False),
        (falling_behind(history=(entry(ago=600.0, target="disabled"),)), False),
        (forgetful(falling_behind()), False),
        (falling_behind(policy=spec(mode="Recommend")), False),
    ],
    ids=[
        "nobody has seen what it carries",
        "it is what runs",
        "nobody has seen what it carries, and they just carry it",
        "not for long",
        "they carry the load",
        "it was seen at such batches",
        "it is expected to carry more, and they just carry it",
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
        assert "fallen behind with disabled for 15m" in d.message
        assert d.held_back is None


def test_that_the_cache_of_what_the_user_chose_would_be_as_full_is_no_objection_where_requests_wait_for_room() -> None:
    o = falling_behind()
    m = o.estimates.measured
    assert m is not None
    full = replace(m, kv_cache_tokens=100_000.0, engines=1, kv_usage=0.97)
    smaller = {**o.knowledge, "ngram": Knowledge(NOW, kv_cache_tokens=98_000.0)}
    o = unable(replace(o, knowledge=smaller), measured=full)
    assert decide(o).reason is Reason.OVERLOADED


def test_what_the_user_chose_gets_back_as_well_where_it_is_expected_to_carry_more() -> None:
    d = decide(carrying(falling_behind(untried=False), 0.9))
    assert d.reason is Reason.OVERLOADED and "for 15m, or nearly so, and ngram carries more" in d.message


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


TWO = [{"name": name, "method": "NGram", "numSpeculativeTokens": k} for name, k in (("ngram", 5), ("short", 2))]


@pytest.mark.parametrize(
    ("own", "waiting", "spread", "tried"),
    [
        ("short", 5.0, 3.0, False),
        ("short", 0.0, 3.0, True),
        ("short", 5.0, 1.05, True),
        ("disabled", 5.0, 3.0, True),
        ("ngram", 5.0, 3.0, True),
    ],
    ids=["neither sure nor theirs", "no queue", "sure to be faster", "theirs is what runs", "it is theirs"],
)
def test_while_requests_pile_up_on_what_the_user_did_not_choose_nothing_is_tried_that_only_may_be_faster(
    own: str, waiting: float, spread: float, tried: bool
) -> None:
    """Its canary would cost the time that the way back takes."""
    o = expecting(0.3, spread=spread, policy=spec(profiles=TWO))
    m = o.estimates.measured
    assert m is not None
    o = replace(o, menu=menu(o.policy, rendered(menu(o.policy), own)))
    d = decide(unable(o, measured=replace(m, batch_size=40.0, waiting=waiting)))
    assert (d.reason in (Reason.WORTH_A_CANARY, Reason.CHEAPER_PROFILE)) is d.change is tried
