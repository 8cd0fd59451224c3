"""The guards: when speculation is off limits whatever it gains on average."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from specdecode.api.v1alpha1 import Configuration, HistoryEntry, Outcome
from specdecode.model.cost import Prediction
from specdecode.model.estimate import Estimate
from specdecode.model.histogram import Quantile
from specdecode.model.knowledge import Drafts, Knowledge, Latencies, StepTime, learn
from specdecode.model.measure import Measurement, Percentiles
from specdecode.policy.clock import text_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.gates import CHAIN, decide
from specdecode.policy.guards import (
    acceptance_below_floor,
    breaks_tpot_limit,
    fills_kv_cache,
    kv_squeezed,
    ttft_bound,
)
from specdecode.policy.observation import Observation
from specdecode.policy.outlook import Outlook
from specdecode.vllm.metrics import Page
from support.world import NOW, menu, observation, option, pod, spec, traffic

LIMITED = {"objective": {"slo": {"timeToFirstToken": {"p99": "1s"}, "timePerOutputToken": {"p99": "60ms"}}}}
TTFT_ONLY = {"objective": {"slo": {"timeToFirstToken": {"p99": "1s"}}}}


def exactly(seconds: float) -> Quantile:
    return Quantile(seconds * 0.99, seconds * 1.01, seconds)


def percentiles(p99: float, p50: float = 0.01) -> Percentiles:
    return Percentiles(exactly(p50), exactly(p99 * 0.9), exactly(p99))


def measured(**changes: Any) -> Measurement:
    """One pod that finished 400 requests in five minutes; nothing is amiss."""
    base = Measurement(
        seconds=300.0,
        finished=400.0,
        tpot_seconds=0.02,
        tpot=percentiles(0.04),
        ttft_seconds=0.3,
        ttft=percentiles(0.5),
        queue_seconds=0.01,
        prompt_length=1000.0,
        generation_tokens_per_second=1000.0,
        preemptions=0.0,
        kv_cache_tokens=100_000.0,
        requests_per_step=8.0,
        request_steps=10_000.0,
    )
    return replace(base, **changes)


def latencies(**changes: Any) -> Latencies:
    """What one pod gave without speculation at the same load."""
    return replace(Latencies(1000.0, 1000.0, 0.02, 0.04, 0.25, 0.0, NOW - 3600), **changes)


def prediction(seconds: float, headroom: float = 3.0) -> Prediction:
    return Prediction(Estimate(seconds, seconds * 0.95, seconds * 1.05), 8.0, headroom)


def kv_window(usage: float) -> Any:
    window = traffic(acceptance=0.7)
    readings = []
    for r in window.readings:
        (engine,) = r.page.engines
        readings.append(replace(r, page=Page((replace(engine, kv_usage=usage),), r.page.process_start)))
    return replace(window, readings=tuple(readings))


def seen(
    m: Measurement, *, active: str = "ngram", usage: float = 0.3, changes: dict[str, Any] | None = None, **fields: Any
) -> Observation:
    """Pods that run a profile and were measured as said; predictions with n-gram faster than off."""
    policy = spec(**(changes or {}))
    made = menu(policy)
    running = option(made, active)
    candidates = (option(made, "ngram"), option(made, "disabled"))
    o = observation(policy, menu=made, active=running, window=kv_window(usage))
    predictions = {"ngram": prediction(0.02), "disabled": prediction(0.03)}
    estimates = replace(
        o.estimates,
        measured=m,
        acceptance=(0.7, 0.65, 0.7, 0.75),
        candidates=candidates,
        predictions=predictions,
        running=predictions[active],
        modelled=predictions[active],
        outlooks={},
    )
    return replace(o, estimates=estimates, knowledge=fields.pop("knowledge", {}), **fields)


def known_off(**changes: Any) -> dict[str, Knowledge]:
    base = Knowledge(NOW - 3600, kv_cache_tokens=150_000.0, latencies=(latencies(),))
    return {"disabled": replace(base, **changes)}


def past(reason: Reason, outcome: Outcome, ago: float = 3600.0) -> HistoryEntry:
    return HistoryEntry(
        id="x",
        policy_generation=1,
        source=Configuration(profile="ngram"),
        target=Configuration(profile="disabled"),
        reason=reason.value,
        outcome=outcome,
        outcome_reason="r",
        started_at=text_of(NOW - ago - 60),
        finished_at=text_of(NOW - ago),
    )


# --- acceptance ---------------------------------------------------------------------------------------------------


def low(**fields: Any) -> Observation:
    o = seen(measured(), **fields)
    return replace(o, estimates=replace(o.estimates, acceptance=(0.4, 0.3, 0.4, 0.5)))


def useless(**fields: Any) -> Observation:
    o = low(**fields)
    return replace(o, estimates=replace(o.estimates, acceptance=(0.1, 0.1, 0.1, 0.1)))


def test_acceptance_below_the_floor_switches_speculation_off_at_once() -> None:
    d = acceptance_below_floor(low())
    assert d is not None and d.target is not None
    assert (d.reason, d.target.profile, d.urgent, d.change) == (
        Reason.ACCEPTANCE_BELOW_FLOOR,
        "disabled",
        True,
        True,
    )


def test_the_floor_gives_way_to_costs_that_were_measured_on_both_sides() -> None:
    o = low(knowledge={"disabled": Knowledge(NOW, step_times=(StepTime(8.0, 8.0, 0.03),))})
    assert acceptance_below_floor(o) is None, "n-gram is half as fast again, and that is no guess"


@pytest.mark.parametrize(
    ("known", "off_seconds"),
    [
        ({}, 0.03),
        ({"disabled": Knowledge(NOW)}, 0.03),
        ({"disabled": Knowledge(NOW, step_times=(StepTime(8.0, 8.0, 0.03),))}, 0.0199),
    ],
    ids=["off was never seen", "its steps were not", "off is the faster"],
)
def test_it_does_not_give_way_to_a_guess_nor_to_a_gain(known: dict[str, Knowledge], off_seconds: float) -> None:
    o = low(knowledge=known)
    predictions = {**o.estimates.predictions, "disabled": prediction(off_seconds)}
    o = replace(o, estimates=replace(o.estimates, predictions=predictions))
    assert acceptance_below_floor(o) is not None


BOTH = {"disabled": Knowledge(NOW, step_times=(StepTime(8.0, 8.0, 0.02),))}
"""What it costs without speculation was measured."""


@pytest.mark.parametrize(("known", "urgent"), [({}, True), (BOTH, False)], ids=["a rule of thumb", "measured"])
def test_only_a_rule_of_thumb_is_urgent(known: dict[str, Knowledge], urgent: bool) -> None:
    """Where the cost of both is known, it is a change like others, and rests after the last one."""
    o = low(knowledge=known)
    o = replace(
        o, estimates=replace(o.estimates, predictions={"ngram": prediction(0.02), "disabled": prediction(0.018)})
    )
    d = acceptance_below_floor(o)
    assert d is not None and d.urgent is urgent


@pytest.mark.parametrize(("usually", "urgent"), [(1.0, True), (0.35, False)], ids=["fell", "as ever"])
def test_traffic_that_turned_does_not_wait_for_the_cool_down(usually: float, urgent: bool) -> None:
    """What the drafts were chosen for is gone; where they were always like this, the choice rests."""
    drafts = Drafts(1.0, (0.3, 0.15), NOW, 1e4, usual=math.log(usually))
    o = useless(knowledge={**BOTH, "ngram": Knowledge(NOW, drafts=drafts)})
    predictions = {"ngram": prediction(0.02), "disabled": prediction(0.018)}
    d = acceptance_below_floor(replace(o, estimates=replace(o.estimates, predictions=predictions)))
    assert d is not None and d.urgent is urgent


@pytest.mark.parametrize(("here", "off", "urgent"), [(1.05, 1.4, True), (1.05, 1.1, False), (1.5, 2.0, False)], ids=str)
def test_where_requests_are_about_to_pile_up_relief_does_not_wait(here: float, off: float, urgent: bool) -> None:
    o = low(knowledge=BOTH)
    running = prediction(0.02, here)
    predictions = {"ngram": running, "disabled": prediction(0.018, off)}
    o = replace(o, estimates=replace(o.estimates, running=running, predictions=predictions))
    d = acceptance_below_floor(o)
    assert d is not None and d.urgent is urgent


@pytest.mark.parametrize(("surely", "speaks"), [(True, False), (False, True)])
def test_in_traffic_that_turned_the_floor_gives_way_only_to_what_is_sure(surely: bool, speaks: bool) -> None:
    drafts = Drafts(1.0, (0.3, 0.15), NOW, 1e4, usual=0.0)
    o = useless(knowledge={**BOTH, "ngram": Knowledge(NOW, drafts=drafts)})
    off = replace(prediction(0.025), tpot=Estimate(0.025, 0.022 if surely else 0.01, 0.05))
    o = replace(o, estimates=replace(o.estimates, predictions={"ngram": prediction(0.02), "disabled": off}))
    assert (acceptance_below_floor(o) is not None) is speaks


@pytest.mark.parametrize(("known", "benefit", "speaks"), [(BOTH, -1.0, False), (BOTH, 100.0, True), ({}, -1.0, True)])
def test_what_was_measured_to_be_a_little_faster_but_does_not_pay_back_does_not_go_off(
    known: dict[str, Knowledge], benefit: float, speaks: bool
) -> None:
    o = low(knowledge=known)
    outlook = Outlook(duration=600.0, benefit=benefit, average=0.1, payback=900.0)
    predictions = {"ngram": prediction(0.02), "disabled": prediction(0.018)}
    o = replace(o, estimates=replace(o.estimates, predictions=predictions, outlooks={"disabled": outlook}))
    assert (acceptance_below_floor(o) is not None) is speaks


@pytest.mark.parametrize(
    ("schedule", "headroom", "speaks"),
    [(0.015, 3.0, False), (0.019, 3.0, True), (0.0199, 3.0, True), (0.015, 0.9, True)],
    ids=["better than off", "worse than off", "worth no change", "could not carry the load"],
)
def test_it_gives_way_to_another_schedule_that_was_measured_to_be_better_than_off(
    schedule: float, headroom: float, speaks: bool
) -> None:
    o = low(knowledge=BOTH)
    predictions = {"ngram": prediction(schedule, headroom), "disabled": prediction(0.018)}
    o = replace(o, estimates=replace(o.estimates, modelled=prediction(0.02), predictions=predictions))
    assert (acceptance_below_floor(o) is not None) is speaks


@pytest.mark.parametrize(
    ("outcome", "ago", "speaks"),
    [
        (Outcome.FAILED, 3600.0, False),
        (Outcome.FAILED, 20_000.0, True),
        (Outcome.ERROR, 3600.0, True),
        (Outcome.INCONCLUSIVE, 3600.0, True),
    ],
)
def test_a_canary_that_showed_the_floor_to_be_wrong_silences_it_for_a_while(
    outcome: Outcome, ago: float, speaks: bool
) -> None:
    o = low(history=(past(Reason.ACCEPTANCE_BELOW_FLOOR, outcome, ago),))
    assert (acceptance_below_floor(o) is not None) is speaks


# --- the KV cache -------------------------------------------------------------------------------------------------

SQUEEZED: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "the cache is full, and larger without the draft": ({}, {"usage": 0.97}, True),
    "the cache is full, and as large without": (
        {},
        {"usage": 0.97, "knowledge": known_off(kv_cache_tokens=100_000.0)},
        False,
    ),
    "nobody knows how large the cache was without": (
        {},
        {"usage": 0.97, "knowledge": known_off(kv_cache_tokens=None)},
        False,
    ),
    "there is room": ({}, {"usage": 0.9}, False),
    "preemptions that there were not before": (
        {"preemptions": 20.0},
        {"usage": 0.9, "knowledge": known_off(kv_cache_tokens=None)},
        True,
    ),
    "preemptions as there were before": (
        {"preemptions": 20.0},
        {"usage": 0.9, "knowledge": known_off(kv_cache_tokens=None, latencies=(latencies(preemptions=0.04),))},
        False,
    ),
    "preemptions at a load that was never seen without": (
        {"preemptions": 20.0},
        {
            "usage": 0.9,
            "knowledge": known_off(kv_cache_tokens=None, latencies=(latencies(tokens_per_second=300.0),)),
        },
        False,
    ),
    "preemptions with room to come without the draft": ({"preemptions": 20.0}, {"usage": 0.9}, True),
    "two preemptions are chance": ({"preemptions": 2.0}, {"usage": 0.9}, False),
    "preemptions that are not counted": ({"preemptions": None}, {"usage": 0.9}, False),
    "no measured cache size": ({"kv_cache_tokens": None}, {"usage": 0.97}, False),
    "speculation is off": ({}, {"usage": 0.97, "active": "disabled"}, False),
    "a canary has just shown that it does not help": (
        {},
        {"usage": 0.97, "history": (past(Reason.KV_SQUEEZED, Outcome.FAILED),)},
        False,
    ),
    "a canary showed that long ago": (
        {},
        {"usage": 0.97, "history": (past(Reason.KV_SQUEEZED, Outcome.FAILED, ago=20_000.0),)},
        True,
    ),
}


@pytest.mark.parametrize("case", SQUEEZED)
def test_a_squeezed_cache_switches_the_draft_off_where_that_makes_room(case: str) -> None:
    figures, fields, off = SQUEEZED[case]
    d = kv_squeezed(seen(measured(**figures), **({"knowledge": known_off()} | fields)))
    assert (d is not None) == off
    if d is not None:
        assert d.reason is Reason.KV_SQUEEZED and d.urgent and d.change
        assert d.target is not None and d.target.profile == "disabled"


def test_a_squeeze_is_told_with_its_figures() -> None:
    d = kv_squeezed(seen(measured(preemptions=20.0), usage=0.97, knowledge=known_off()))
    assert d is not None
    assert d.message == (
        "97% of the KV cache is in use and 20 requests were preempted in 5m with ngram; without speculation the cache"
        " has 1.5 times the room, 65% in use"
    )


def test_a_profile_whose_cache_is_too_small_for_what_runs_is_not_chosen() -> None:
    o = seen(measured(), active="disabled", usage=0.7, knowledge={"ngram": Knowledge(NOW, kv_cache_tokens=70_000.0)})
    why = fills_kv_cache(o, o.estimates.candidates[0])
    assert why == "its KV cache is smaller, and would be 100% full"
    roomy = seen(
        measured(), active="disabled", usage=0.7, knowledge={"ngram": Knowledge(NOW, kv_cache_tokens=90_000.0)}
    )
    assert fills_kv_cache(roomy, roomy.estimates.candidates[0]) is None
    assert fills_kv_cache(seen(measured(), active="disabled", usage=0.7), o.estimates.candidates[0]) is None


# --- the first token ----------------------------------------------------------------------------------------------

BOUND: dict[str, tuple[dict[str, Any], dict[str, Any], str | None]] = {
    "TTFT breaks its limit while off": ({"ttft": percentiles(1.2)}, {"active": "disabled"}, "stays"),
    "TTFT is near its limit while off": ({"ttft": percentiles(0.95)}, {"active": "disabled"}, "stays"),
    "TTFT is well below its limit": ({"ttft": percentiles(0.8)}, {"active": "disabled"}, None),
    "there is no limit of TPOT to keep": (
        {"ttft": percentiles(1.2)},
        {"active": "disabled", "changes": TTFT_ONLY},
        "stays",
    ),
    "TPOT breaks its limit as well": (
        {"ttft": percentiles(1.2), "tpot": percentiles(0.08)},
        {"active": "disabled"},
        None,
    ),
    "TPOT is not measured, and has a limit": ({"ttft": percentiles(1.2), "tpot": None}, {"active": "disabled"}, None),
    "there is no limit of TTFT": ({"ttft": percentiles(1.2)}, {"active": "disabled", "changes": {}}, None),
    "TTFT is not measured": ({"ttft": None}, {"active": "disabled"}, None),
    "few requests finished": ({"ttft": percentiles(1.2), "finished": 20.0}, {"active": "disabled"}, None),
    "most of TTFT is waiting, which capacity helps": (
        {"ttft": percentiles(1.2), "queue_seconds": 0.2},
        {"active": "disabled"},
        None,
    ),
    "waiting is not measured": ({"ttft": percentiles(1.2), "queue_seconds": None}, {"active": "disabled"}, None),
    "it was switched off for TTFT, and there is not much room yet": (
        {"ttft": percentiles(0.8)},
        {"active": "disabled", "history": (past(Reason.TTFT_BOUND, Outcome.SUCCESSFUL),)},
        "stays",
    ),
    "it was switched off for TTFT, and there is room again": (
        {"ttft": percentiles(0.6)},
        {"active": "disabled", "history": (past(Reason.TTFT_BOUND, Outcome.SUCCESSFUL),)},
        None,
    ),
    "speculation adds to TTFT": ({"ttft": percentiles(1.2), "ttft_seconds": 0.3}, {}, "off"),
    "speculation does not add to TTFT": ({"ttft": percentiles(1.2), "ttft_seconds": 0.26}, {}, None),
    "nobody knows TTFT without speculation": ({"ttft": percentiles(1.2)}, {"knowledge": {}}, None),
    "TTFT was measured without speculation, but not of such prompts": (
        {"ttft": percentiles(1.2), "prompt_length": 2000.0},
        {},
        None,
    ),
    "a canary has just shown that it does not help": (
        {"ttft": percentiles(1.2), "ttft_seconds": 0.3},
        {"history": (past(Reason.TTFT_BOUND, Outcome.FAILED),)},
        None,
    ),
}


@pytest.mark.parametrize("case", BOUND)
def test_where_users_wait_for_the_first_token_speculation_is_off(case: str) -> None:
    figures, fields, expected = BOUND[case]
    d = ttft_bound(seen(measured(**figures), **({"changes": LIMITED, "knowledge": known_off()} | fields)))
    if expected is None:
        assert d is None
        return
    assert d is not None and d.reason is Reason.TTFT_BOUND and d.target is not None
    assert d.target.profile == "disabled"
    assert d.change is (expected == "off") and not d.urgent


def test_what_bounds_the_first_token_is_told_with_its_figures() -> None:
    def told(**fields: Any) -> str:
        d = ttft_bound(seen(measured(ttft=percentiles(1.2)), changes=LIMITED, knowledge=known_off(), **fields))
        return "" if d is None else d.message

    assert told(active="disabled") == (
        "P99 TTFT is 1200 ms, its limit 1000 ms, and TPOT keeps its limit: speculation shortens TPOT only, so it stays"
        " off"
    )
    assert told().endswith("on average it is 300 ms with ngram and was 250 ms without speculation at such a load")


def test_a_saturated_workload_is_not_called_bound_by_its_first_token() -> None:
    o = seen(measured(ttft=percentiles(1.2)), active="disabled", changes=LIMITED)
    full = replace(o.estimates, running=prediction(0.03, headroom=0.8))
    assert ttft_bound(replace(o, estimates=full)) is None


# --- the limit of TPOT --------------------------------------------------------------------------------------------


def with_costs(ngram: float, off: float, *, p99: float, active: str = "disabled") -> Observation:
    """P99 of what runs as measured; means as predicted."""
    o = seen(measured(tpot=percentiles(p99)), active=active, changes=LIMITED)
    predictions = {"ngram": prediction(ngram), "disabled": prediction(off)}
    return replace(
        o,
        estimates=replace(
            o.estimates, predictions=predictions, running=predictions[active], modelled=predictions[active]
        ),
    )


COSTS: dict[str, tuple[Observation, str, bool]] = {
    "an option that breaks the limit, while what runs keeps it": (
        with_costs(0.04, 0.03, p99=0.05),
        "ngram",
        True,
    ),
    "an option that keeps the limit": (with_costs(0.02, 0.03, p99=0.05), "ngram", False),
    "an option that keeps it while what runs does not": (with_costs(0.02, 0.03, p99=0.07), "ngram", False),
    "nothing keeps the limit": (with_costs(0.029, 0.03, p99=0.09), "ngram", False),
    "another breaks it, and so does what runs, but a third keeps it": (
        with_costs(0.02, 0.045, p99=0.065, active="ngram"),
        "disabled",
        False,
    ),
}


@pytest.mark.parametrize("case", COSTS)
def test_an_option_that_would_break_the_limit_of_tpot_is_not_chosen_while_another_keeps_it(case: str) -> None:
    o, profile, barred = COSTS[case]
    candidate = next(c for c in o.estimates.candidates if c.profile == profile)
    assert (breaks_tpot_limit(o, candidate) is not None) == barred


def test_what_is_not_known_of_the_tail_forbids_nothing() -> None:
    o = with_costs(0.04, 0.03, p99=0.05)
    first_bucket = Quantile(0.0, 0.01, None)
    for m in (
        None,
        measured(tpot=None),
        measured(tpot=Percentiles(first_bucket, first_bucket, first_bucket)),
        measured(tpot=percentiles(0.05), finished=10.0),
    ):
        assert breaks_tpot_limit(replace(o, estimates=replace(o.estimates, measured=m)), o.estimates.candidates[0]) is (
            None
        )


# --- together -----------------------------------------------------------------------------------------------------


def test_the_guards_come_before_what_pays() -> None:
    names = [gate.__name__ for gate in CHAIN]
    guards = ["acceptance_below_floor", "kv_squeezed", "ttft_bound"]
    assert [n for n in names if n in guards] == guards
    assert names.index("ttft_bound") < names.index("a_change_pays")


def test_an_urgent_guard_does_not_wait_for_the_cool_down() -> None:
    o = seen(
        measured(preemptions=20.0),
        usage=0.97,
        knowledge=known_off(),
        history=(
            past(Reason.CHEAPER_PROFILE, Outcome.SUCCESSFUL, ago=60.0).model_copy(
                update={"source": Configuration(profile="disabled"), "target": Configuration(profile="ngram")}
            ),
        ),
    )
    d = decide(o)
    assert d.reason is Reason.KV_SQUEEZED and d.held_back is None


def test_without_figures_the_guards_say_nothing() -> None:
    o = seen(measured())
    blank = replace(o, estimates=replace(o.estimates, measured=None, acceptance=None, predictions={}, running=None))
    found: list[Decision | None] = [gate(blank) for gate in (acceptance_below_floor, kv_squeezed, ttft_bound)]
    assert found == [None, None, None]


# --- what is remembered -------------------------------------------------------------------------------------------


def test_latencies_are_remembered_of_pods_without_speculation_only() -> None:
    assert learn(None, measured(), None, None, [], NOW).latencies == (
        Latencies(1000.0, 1000.0, 0.01, 0.04, 0.3, 0.0, NOW),
    )
    for m in (
        measured(draft_tokens=0.0),
        measured(finished=10.0),
        measured(tpot=None),
        measured(preemptions=None),
        measured(tpot=Percentiles(exactly(0.01), exactly(0.01), Quantile(80.0, float("inf"), None))),
    ):
        assert learn(None, m, None, None, [], NOW).latencies == ()


def test_latencies_are_kept_per_load_and_bounded() -> None:
    known = Knowledge()
    for i in range(40):
        known = learn(known, measured(generation_tokens_per_second=10.0 * 1.3**i), None, None, [], NOW + i)
    assert len(known.latencies) == 6
    again = learn(known, measured(generation_tokens_per_second=10.0 * 1.3**39, ttft_seconds=9.0), None, None, [], NOW)
    assert len(again.latencies) == 6 and again.latencies[-1].ttft == 9.0, "the newest of a load counts"


@pytest.mark.parametrize(
    ("load", "prompt", "ago", "found"),
    [
        (1000.0, 1000.0, 0.0, True),
        (1400.0, 1000.0, 0.0, True),
        (1600.0, 1000.0, 0.0, False),
        (1000.0, 1600.0, 0.0, False),
        (1000.0, 1000.0, 90_000.0, False),
    ],
)
def test_latencies_hold_for_loads_like_theirs_and_for_a_day(
    load: float, prompt: float, ago: float, found: bool
) -> None:
    known = Knowledge(latencies=(latencies(),))
    assert (known.latencies_like(load, prompt, NOW - 3600 + ago) is not None) == found


def test_the_size_of_the_kv_cache_is_remembered_per_engine() -> None:
    known = learn(None, measured(kv_cache_tokens=300_000.0, engines=3), None, None, [], NOW)
    assert known.kv_cache_tokens == 100_000.0
    assert learn(known, measured(kv_cache_tokens=None), None, None, [], NOW).kv_cache_tokens == 100_000.0


def test_a_pod_is_needed_to_know_how_full_the_cache_is() -> None:
    o = seen(measured(), usage=0.97, knowledge=known_off())
    assert kv_squeezed(replace(o, pods=(pod("p", "old", o.active),))) is None
