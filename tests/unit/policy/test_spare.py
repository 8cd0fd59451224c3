"""Without a spare GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from specdecode.api.v1alpha1 import HistoryEntry, Outcome
from specdecode.model.estimate import Estimate
from specdecode.model.loads import BUCKET, DAY, LoadHistory
from specdecode.policy.decision import Reason
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation
from specdecode.policy.outlook import Outlook
from specdecode.policy.spare import LONG_AGO, cannot_spare_one, one_is_given_up
from specdecode.rollout.ending import Ending
from support.decisions import (
    UNLIKELY,
    entry,
    expecting,
    running_ngram,
    unable,
)
from support.world import NOW, menu, observation, option, pod, rendered, spec, traffic


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
    assert (cannot_spare_one(replace(o, menu=own), 3, profile) is None) is spared


@pytest.mark.parametrize(
    ("batches", "spared"),
    [
        ((8.0, 8.0), True),
        ((8.0, 10.0), True),
        ((8.0, 24.0), False),
        ((8.0, 9.0, 24.0), True),
        ((4.0, 8.0, 24.0), False),
    ],
    ids=["alike", "nearly", "three to one", "two of them alike", "all three differ"],
)
def test_no_pod_is_given_up_for_a_canary_that_could_be_held_against_none_of_the_others(
    batches: tuple[float, ...], spared: bool
) -> None:
    """A canary with a third of the load has it too easy to win, one with three times as much proves nothing by losing;
    and users miss the pod."""
    active = option(menu(spec()), "disabled")
    pods = tuple(pod(f"p{i}", "old", active, traffic(batch=batch)) for i, batch in enumerate(batches))
    o = observation(pods=pods)
    assert o.estimates.running is not None
    o = unable(o, running=replace(o.estimates.running, headroom=5.0))
    why = cannot_spare_one(o, len(pods), "ngram")
    assert why is None if spared else why is not None and "held against none of the others" in why
