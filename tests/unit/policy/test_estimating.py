"""From measurements to estimates."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from specdecode.api.v1alpha1 import RolloutPhase
from specdecode.model.cost import Band, OfferedLoad, Option, Prediction
from specdecode.model.equilibrium import Array
from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import Knowledge, StepTime
from specdecode.model.loads import BUCKET, LoadHistory
from specdecode.model.window import Window
from specdecode.policy.clock import text_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.estimating import (
    AGEING,
    DEFAULT_GRAPH_LIMIT,
    DEFAULT_MAX_NUM_SEQS,
    LARGEST_CORRECTION,
    USUAL_START,
    Evidence,
    Modeller,
    bounds,
    estimate,
)
from specdecode.policy.learning import LEARNING
from specdecode.policy.observation import Observation
from specdecode.rollout.phases import advance
from specdecode.vllm.metrics import Page
from specdecode.vllm.speculation import BatchRange, Speculation
from support.world import CONTAINER, NOW, menu, merged, observation, option, pod, rendered, spec, traffic

MENU = menu(spec())
OFF, NGRAM = option(MENU, "disabled"), option(MENU, "ngram")


@dataclass(frozen=True, eq=False)
class Fixed:
    """A model that knows one better form of an option, and what each option costs."""

    better: Speculation | None = None
    seconds: Callable[[Option], float] = lambda _: 0.01
    asked: list[str] = field(default_factory=list)
    """Which forms it was asked for."""

    def predict(self, option: Option, load: OfferedLoad, acceptance: float | None = None) -> Prediction:
        seconds = self.seconds(option)
        return Prediction(Estimate(seconds, seconds, seconds), 1.0, 2.0, Estimate(1e3, 1e3, 1e3))

    def acceptance(self, option: Option) -> Estimate | None:
        return None

    def tpots(self, option: Option, load: OfferedLoad, tokens_per_second: Sequence[float]) -> Sequence[Estimate]:
        return [self.predict(option, load).tpot for _ in tokens_per_second]

    def log_tpot(self, option: Option, load: OfferedLoad, tokens_per_second: Array) -> Array:
        return np.full(len(tokens_per_second), math.log(self.seconds(option)))

    def band(self, option: Option, load: OfferedLoad | None) -> Band | None:
        return Band(1, 63)

    def tuned(self, option: Option, load: OfferedLoad, *, one_threshold: bool) -> Option | None:
        self.asked.append("threshold" if one_threshold else "schedule")
        return replace(option, speculation=self.better) if self.better and option.speculation else None


def candidate(o: Observation, model: Fixed, profile: str = "ngram") -> Option:
    estimated = estimate(o, lambda _: model)
    return next(c for c in estimated.estimates.candidates if c.profile == profile)


class Steep(Fixed):
    """TPOT grows as the load does."""

    def log_tpot(self, option: Option, load: OfferedLoad, tokens_per_second: Array) -> Array:
        return np.log(tokens_per_second)


@pytest.mark.parametrize("allowed", [True, False])
def test_a_pod_that_is_given_up_costs_what_the_others_are_slower_for_it(allowed: bool) -> None:
    """Two of three pods carry half as much again."""
    o = observation(spec(rollout={"allowUnavailable": allowed}))
    cost = estimate(o, lambda _: Steep()).estimates.cost
    assert cost is not None
    assert cost.crowding == pytest.approx(math.log(3 / 2) * 3 * USUAL_START if allowed else 0.0)


def test_without_a_menu_nothing_is_estimated() -> None:
    o = replace(observation(), menu=None)
    assert estimate(o, Modeller()) is o


def test_the_load_is_that_of_a_pod() -> None:
    o = observation()
    load = o.estimates.load
    assert load is not None
    assert load.tokens_per_second == pytest.approx(8 / 0.02 + 2.0), (
        "eight requests, and the first tokens of two a second"
    )
    assert load.prompt_tokens_per_second == pytest.approx(200.0)


def test_a_pod_that_has_only_just_come_does_not_thin_the_load() -> None:
    new = pod("new", "old", OFF, traffic(seconds=0.0))
    with_it = estimate(replace(observation(), pods=(*observation().pods, new)), Modeller())
    assert with_it.estimates.load == observation().estimates.load


def queue(waiting: float, growth: float = 0.0) -> Window:
    """Traffic beside a queue of so many requests at the end, which grew by so many a second."""
    window, readings = Window(3600.0), traffic().readings
    for r in readings:
        (engine,) = r.page.engines
        then = max(0.0, waiting + growth * (r.t - readings[-1].t))
        window = window.add(Page((replace(engine, waiting=then),), r.page.process_start), r.t)
    return window


def test_what_waits_is_load_too() -> None:
    def asked(waiting: float, growth: float = 0.0) -> float:
        load = observation(window=queue(waiting, growth)).estimates.load
        assert load is not None
        return load.tokens_per_second

    served, readings = asked(0.0), traffic().readings
    seconds = readings[-1].t - readings[0].t
    assert asked(seconds, 1.0) - served == pytest.approx(100.0), "it grew by an answer of 100 tokens a second"
    for growth in (-1.0, 0.0):
        assert asked(60.0, growth) - served == pytest.approx(60 * 100 / seconds), "to be served within the window"
        assert asked(1e6, growth) == pytest.approx(2 * served), "as if it were twice as much at most"
    assert asked(1e6, 1e4) - served == pytest.approx(1e6), "but all that it grew by"


def uneven(*rates: float) -> Window:
    """Readings every five seconds between which so many requests finished per second, of 100 tokens each."""
    window, finished = Window(3600.0), 1000.0
    for n, r in enumerate(traffic().readings):
        (engine,) = r.page.engines
        finished += 5.0 * rates[n % len(rates)]
        served = replace(engine, generation_tokens=100 * finished, requests={"stop": finished, "error": 0.0})
        window = window.add(Page((served,), r.page.process_start), r.t)
    return window


@pytest.mark.parametrize(
    ("rates", "low", "high"),
    [((40.0,), 0.0, 0.0), ((36.0, 44.0), 0.0, 0.0), ((20.0, 60.0), 0.3, 0.6), ((1.0, 1.0, 1.0, 200.0), 0.8, 0.8)],
    ids=["even", "as single arrivals make it", "in bursts", "beyond what a window can tell"],
)
def test_a_load_that_comes_in_bursts_is_seen_to_vary(rates: tuple[float, ...], low: float, high: float) -> None:
    load = observation(window=uneven(*rates)).estimates.load
    assert load is not None
    assert low <= load.variation <= high


def test_few_readings_tell_no_variation() -> None:
    pods = (pod("p", "old", OFF, uneven(20.0, 60.0)),)
    few, many = (observation(spec(metrics={"window": w}), pods=pods).estimates.load for w in ("20s", "1m"))
    assert few is not None and many is not None
    assert few.variation == 0.0 < many.variation


def test_the_load_and_the_steps_know_how_long_prompts_are() -> None:
    window = Window(3600.0)
    for r in traffic().readings:
        (engine,) = r.page.engines
        assert engine.output_length is not None
        prompts = replace(engine.output_length, sum=engine.output_length.count * 384)
        window = window.add(Page((replace(engine, prompt_length=prompts),), r.page.process_start), r.t)
    o = observation(window=window, knowledge={})
    assert o.estimates.load is not None and o.estimates.load.prompt_length == pytest.approx(384)
    assert [t.prompt_length for t in o.knowledge["disabled"].step_times] == pytest.approx([384])


def test_a_gain_is_as_sure_as_what_is_not_running() -> None:
    """What runs is seen to cost what it does."""
    e = observation(knowledge={}).estimates
    assert e.modelled is not None
    now, other = e.modelled.tpot, e.predictions["ngram"].tpot
    found = e.gain(NGRAM)
    assert found is not None
    assert (found.low, found.value, found.high) == pytest.approx(
        tuple(now.value / seconds - 1 for seconds in (other.high, other.value, other.low))
    )
    unsure = replace(e, modelled=replace(e.modelled, tpot=replace(now, low=now.low / 3, high=now.high * 3)))
    assert unsure.gain(NGRAM) == found


def test_what_runs_is_predicted_by_what_it_was_measured_at() -> None:
    e = observation().estimates
    assert e.running is not None and e.running.tpot.value == pytest.approx(0.02)
    assert e.running.headroom == e.predictions["disabled"].headroom


def test_pods_teach_about_the_option_that_they_run() -> None:
    canary = pod("c", "new", NGRAM, traffic(acceptance=0.7))
    stranger = pod("s", "new", None, traffic(step=9.0))
    o = estimate(replace(observation(), pods=(*observation().pods, canary, stranger), knowledge={}), Modeller())
    assert set(o.knowledge) == {"disabled", "ngram"}
    assert o.knowledge["ngram"].acceptance_rate == pytest.approx(0.7)
    assert o.knowledge["disabled"].acceptance is None
    assert o.knowledge["disabled"].step_times[0].seconds == pytest.approx(0.02)


def test_what_ran_beside_a_profile_is_noted() -> None:
    """So that later, when the other alone is seen, it is known whether the traffic is still the same."""
    profiles = [
        {"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5},
        {"name": "draft", "method": "DraftModel", "numSpeculativeTokens": 5, "draftModel": {"model": "small"}},
    ]
    m = menu(spec(profiles=profiles))
    draft = option(m, "draft")
    canary = pod("c", "new", option(m, "ngram"), traffic(acceptance=0.7))
    alone = observation(spec(profiles=profiles), menu=m, active=draft, window=traffic(acceptance=0.5), knowledge={})
    both = estimate(replace(alone, pods=(*alone.pods, canary), knowledge={}), Modeller()).knowledge
    assert both["ngram"].drafts is not None and both["draft"].drafts is not None
    assert both["ngram"].drafts.beside == ("draft", pytest.approx(both["draft"].drafts.extra))
    drafts = alone.knowledge["draft"].drafts
    assert drafts is not None and drafts.beside is None


@pytest.mark.parametrize("changes", [{"ready": False}, {"answered": False}], ids=["not ready", "silent"])
def test_a_pod_that_does_not_answer_teaches_nothing(changes: Mapping[str, Any]) -> None:
    quiet = pod("p", "old", OFF, traffic(), **changes)
    o = estimate(replace(observation(), pods=(quiet,), knowledge={"disabled": Knowledge()}), Modeller())
    assert o.knowledge == {"disabled": Knowledge()} and o.estimates.load is None


def test_what_was_learnt_is_not_learnt_again_until_there_is_something_new() -> None:
    o = observation()
    window = o.policy.metrics.window
    soon, later = (replace(o, now=o.now + f * LEARNING * window) for f in (0.9, 1.1))
    assert estimate(soon, Modeller()).knowledge is o.knowledge
    assert estimate(later, Modeller()).knowledge["disabled"].learnt_at == later.now


LONG = traffic(seconds=300.0)
"""Readings over a time that requests of two seconds do not count in."""


def test_the_model_is_held_against_the_tpot_that_users_get() -> None:
    o = observation(window=LONG)
    (residual,) = o.knowledge["disabled"].residuals
    m, p = o.estimates.measured, o.estimates.modelled
    assert m is not None and m.tpot_seconds is not None and p is not None and o.estimates.load is not None
    assert residual.log_ratio == pytest.approx(math.log(m.tpot_seconds / p.tpot.value))
    assert residual.tokens_per_second == o.estimates.load.tokens_per_second


def test_it_is_not_while_canaries_take_a_part_nor_by_requests_that_outlast_the_window() -> None:
    brief = observation(spec(metrics={"interval": "2s", "window": "10s"}), window=LONG)
    assert not brief.knowledge["disabled"].residuals, "they tell of the time before"
    o = observation(window=LONG)
    begun = advance(o, Decision(Reason.WORTH_A_CANARY, "", option(menu(spec()), "ngram"), change=True)).rollout
    assert begun is not None
    changing = estimate(replace(o, rollout=begun, knowledge={}), Modeller())
    assert changing.knowledge["disabled"].step_times and not changing.knowledge["disabled"].residuals


@pytest.mark.parametrize(
    ("profile", "warm_for", "told"), [("ngram", 250.0, 1), ("ngram", -10.0, 0), ("other", 250.0, 0)]
)
def test_the_model_is_held_against_a_canary_of_another_profile(profile: str, warm_for: float, told: int) -> None:
    """Of another schedule of what runs it is not: that would be held against what runs as well."""
    o = observation(window=LONG)
    begun = advance(o, Decision(Reason.WORTH_A_CANARY, "", NGRAM, change=True)).rollout
    assert begun is not None
    ready_at = text_of(NOW - o.policy.rollout.analysis.warmup - warm_for)
    target = begun.target.model_copy(update={"profile": profile})
    analysing = begun.model_copy(
        update={"phase": RolloutPhase.ANALYSING, "canary_ready_at": ready_at, "target": target}
    )
    pods = (*o.pods, pod("c", "new", NGRAM, traffic(seconds=300.0, acceptance=0.6)))
    known = estimate(replace(o, pods=pods, rollout=analysing, knowledge={}), Modeller()).knowledge
    assert known["ngram"].step_times and len(known["ngram"].residuals) == told
    assert not known["disabled"].residuals


def test_without_requests_nothing_is_learnt() -> None:
    o = observation(window=traffic(batch=0.0, rate=0.0), knowledge={})
    assert o.knowledge == {}


def test_only_the_policys_window_counts() -> None:
    policy = spec(metrics={"window": "10s"})
    o = observation(policy, window=traffic(seconds=60.0))
    assert o.estimates.measured is not None and o.estimates.measured.seconds == pytest.approx(10.0)


def test_slow_engines_teach_as_well() -> None:
    """One request at a time and 200 ms a step: no reading holds steps enough to tell."""
    slow = traffic(batch=1.0, step=0.2, rate=0.05, seconds=120.0)
    known = observation(window=slow, knowledge={}).knowledge["disabled"]
    assert [(t.batch_size, round(t.seconds, 6)) for t in known.step_times] == [(1.0, 0.2)]


# --- learning under a schedule --------------------------------------------------------------------------------------

RANGES = (BatchRange(1, 15, 5), BatchRange(16, 63, 2), BatchRange(64, 256, 0))


def with_ranges(*ranges: BatchRange) -> Option:
    assert NGRAM.speculation is not None
    return replace(NGRAM, speculation=replace(NGRAM.speculation, schedule=ranges))


def learnt_from(*windows: Window) -> Knowledge:
    """What pods that run n-gram by the `RANGES` teach."""
    active = with_ranges(*RANGES)
    pods = tuple(pod(f"p{n}", "old", active, window) for n, window in enumerate(windows))
    o = replace(observation(menu=MENU), active=active, pods=pods, knowledge={})
    return estimate(o, Modeller()).knowledge.get("ngram", Knowledge())


DRAFTS_5, DRAFTS_2 = traffic(acceptance=0.75, batch=4.0), traffic(acceptance=0.5, k=2, batch=32.0)
HELD = traffic(acceptance=0.0, k=0, batch=100.0, step=0.03)


def test_steps_are_learnt_for_the_k_that_was_in_force() -> None:
    known = learnt_from(DRAFTS_5, DRAFTS_2, HELD)
    assert {(t.k, round(t.batch_size), round(t.tokens)) for t in known.step_times} == {
        (5, 4, 24),
        (2, 32, 96),
        (0, 100, 100),
    }


def test_drafts_are_judged_at_the_highest_k_that_there_is_enough_of() -> None:
    known = learnt_from(DRAFTS_5, DRAFTS_2, HELD)
    assert known.tokens_per_step == pytest.approx(4.75, rel=0.01)
    assert known.drafts is not None and len(known.drafts.chances) == 5
    assert known.drafts.match == pytest.approx(1.0)
    busy = learnt_from(DRAFTS_2, HELD)
    assert busy.tokens_per_step == pytest.approx(2.0, rel=0.01)
    assert busy.drafts is not None and len(busy.drafts.chances) == 2


def test_steps_that_a_schedule_held_at_zero_say_nothing_about_the_drafts() -> None:
    known = learnt_from(HELD)
    assert known.drafts is None and known.acceptance is None and known.measured_at is None
    assert [t.drafted for t in known.step_times] == [False], "but what such a step costs"


@pytest.mark.parametrize("batch", [14.0, 17.0, 60.0, 70.0])
def test_near_the_edge_of_a_range_steps_of_two_k_are_mixed_and_nothing_is_learnt(batch: float) -> None:
    known = learnt_from(traffic(acceptance=0.5, batch=batch))
    assert known.step_times == () and known.drafts is None


def paced(*shares: float) -> Window:
    """Traffic in which the steps of one reading after the other are so many times as many as the requests' own times
    tell: counted from step to step they take 20 ms over that."""
    window, count = Window(3600.0), 0.0
    for n, r in enumerate(traffic().readings):
        (engine,) = r.page.engines
        assert engine.iteration_tokens is not None
        count += 5.0 / 0.02 * shares[n % len(shares)]
        buckets = tuple(c * count / engine.iteration_tokens.count for c in engine.iteration_tokens.counts)
        steps = replace(engine.iteration_tokens, count=count, counts=buckets)
        window = window.add(Page((replace(engine, iteration_tokens=steps),), r.page.process_start), r.t)
    return window


def test_an_engine_that_stood_still_between_steps_tells_no_step_time() -> None:
    """Counted from step to step it took 40 ms, as its requests felt them 20."""
    o = observation(window=paced(0.5), knowledge={})
    assert o.knowledge["disabled"].step_times == ()


@pytest.mark.parametrize(
    ("shares", "spread"),
    [((1.0,), 0.0), ((1.0, 0.5), math.log(2) / 2), ((1.0, 1.9), math.log(1.9) / 2), ((1.0, 0.5, 1.9), 0.445)],
    ids=["steady", "idle now and then", "full now and then", "in bursts"],
)
def test_where_bursts_are_shorter_than_a_reading_what_looks_steady_is_so_by_chance(
    shares: tuple[float, ...], spread: float
) -> None:
    """It is learnt, but not believed to the last digit."""
    (learnt,) = observation(window=paced(*shares), knowledge={}).knowledge["disabled"].step_times
    assert learnt.seconds == pytest.approx(0.02)
    assert math.sqrt(learnt.variance) == pytest.approx(spread, abs=0.03)


# --- the model ------------------------------------------------------------------------------------------------------


def evidence(**changes: Any) -> Evidence:
    base = Evidence({}, {"disabled": None, "ngram": NGRAM.speculation}, 256, 512.0, NOW)
    return replace(base, **changes)


def test_the_model_is_fitted_once_for_what_is_known() -> None:
    model_of, e = Modeller(), evidence()
    fitted = model_of(e)
    assert model_of(e) is fitted
    assert model_of(replace(e, now=NOW + AGEING / 2)) is fitted


@pytest.mark.parametrize(
    "changes",
    [
        {"known": {"disabled": Knowledge(NOW)}},
        {"speculations": {"disabled": None}},
        {"max_num_seqs": 64},
        {"graph_limit": math.inf},
        {"now": NOW + 2 * AGEING},
        {"now": NOW - 1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_new_is_a_new_model(changes: Mapping[str, Any]) -> None:
    model_of, e = Modeller(), evidence()
    assert model_of(e) is not model_of(replace(e, **changes))


@dataclass(frozen=True, eq=False)
class Counting(Fixed):
    """It counts what it is asked."""

    loads: list[float] = field(default_factory=list)

    def predict(self, option: Option, load: OfferedLoad, acceptance: float | None = None) -> Prediction:
        self.loads.append(load.tokens_per_second)
        return super().predict(option, load, acceptance)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda o: replace(o, now=o.now + 5.0), False),
        (lambda o: replace(o, pods=tuple(replace(p, window=traffic(batch=8.1)) for p in o.pods)), False),
        (lambda o: replace(o, generation=2), True),
        (lambda o: replace(o, active=NGRAM, pods=tuple(replace(p, option=NGRAM) for p in o.pods)), True),
        (lambda o: replace(o, pods=o.pods[:1]), True),
        (lambda o: replace(o, pods=tuple(replace(p, window=traffic(batch=16.0)) for p in o.pods)), True),
    ],
    ids=[
        "five seconds later",
        "a little more load",
        "the policy was edited",
        "another option runs",
        "fewer pods",
        "another load",
    ],
)
def test_a_model_is_asked_again_only_for_something_else(
    change: Callable[[Observation], Observation], again: bool
) -> None:
    o, model = observation(), Counting()
    first = estimate(o, lambda _: model)
    asked = len(model.loads)
    second = estimate(change(o), lambda _: model)
    assert (len(model.loads) > asked) is again
    assert again or second.estimates.predictions == first.estimates.predictions
    assert estimate(o, lambda _: Counting()).estimates.predictions == first.estimates.predictions


@pytest.mark.parametrize(
    ("args", "limit", "graphs"),
    [
        ([], DEFAULT_MAX_NUM_SEQS, DEFAULT_GRAPH_LIMIT),
        (["--max-num-seqs", "96"], 96, DEFAULT_GRAPH_LIMIT),
        (["--enforce-eager"], DEFAULT_MAX_NUM_SEQS, math.inf),
    ],
    ids=["vLLM's defaults", "its own batch size", "no graphs"],
)
def test_the_model_knows_the_servers_limits(args: list[str], limit: int, graphs: float) -> None:
    seen: list[Evidence] = []

    def model_of(e: Evidence) -> Fixed:
        seen.append(e)
        return Fixed()

    m = menu(spec(), merged(CONTAINER, {"args": [*CONTAINER["args"], *args]}))
    estimate(observation(menu=m), model_of)
    assert (seen[0].max_num_seqs, seen[0].graph_limit, seen[0].now) == (limit, graphs, NOW)
    assert seen[0].speculations == {"ngram": NGRAM.speculation, "disabled": None}


# --- the form of an option ------------------------------------------------------------------------------------------


TUNED = spec(batchSizeTuning={"mode": "Auto"})
SCHEDULE = with_ranges(*RANGES)
assert SCHEDULE.speculation is not None and NGRAM.speculation is not None
BETTER = SCHEDULE.speculation


def costing(**seconds: float) -> Callable[[Option], float]:
    """Seconds per token of `fixed`, `better` and any `other` speculation; 10 ms without."""

    def of(option: Option) -> float:
        if option.speculation is None:
            return 0.010
        if option.speculation == BETTER:
            return seconds["better"]
        return seconds["other" if option.speculation.schedule else "fixed"]

    return of


def test_a_candidate_gets_its_schedule_where_that_is_better() -> None:
    o = observation(TUNED)
    assert candidate(o, Fixed(BETTER, costing(fixed=0.010, better=0.008))) == SCHEDULE
    assert candidate(o, Fixed(BETTER, costing(fixed=0.010, better=0.00999))) == NGRAM, "fewer words are easier to trust"
    assert candidate(o, Fixed(None, costing(fixed=0.010, better=0.008))) == NGRAM


def test_disabled_has_no_schedule_and_tuning_can_be_off() -> None:
    costs = costing(fixed=0.010, better=0.005)
    assert candidate(observation(TUNED), Fixed(BETTER, costs), "disabled") == OFF
    assert candidate(observation(spec(batchSizeTuning={"mode": "Off"})), Fixed(BETTER, costs)) == NGRAM


def test_a_schedule_pays_over_the_loads_that_come_not_only_now() -> None:
    """It is quiet now, and was busy: the schedule is for then."""

    class Busy(Fixed):
        def log_tpot(self, option: Option, load: OfferedLoad, tokens_per_second: Array) -> Array:
            cheaper = 0.5 if option.speculation == BETTER else 1.0
            return np.where(tokens_per_second > 2000.0, math.log(cheaper), 0.0)

    o = observation(TUNED)
    quiet, busy = (
        replace(o, loads=LoadHistory(int(NOW // BUCKET) - 100, (3 * each,) * 100, BUCKET)) for each in (400.0, 4000.0)
    )
    assert candidate(quiet, Busy(BETTER)) == NGRAM
    assert candidate(busy, Busy(BETTER)) == SCHEDULE


@pytest.mark.parametrize(
    ("starts", "k", "batch", "untried"),
    [("ngram", 5, 6.0, False), ("ngram", 5, 90.0, True), ("ngram", 3, 6.0, True), ("disabled", 0, 8.0, False)],
    ids=["there", "at other batches", "at another K", "it runs"],
)
def test_what_the_manifest_says_is_untried_until_it_ran_at_batch_sizes_like_those_of_now(
    starts: str, k: int, batch: float, untried: bool
) -> None:
    m = menu(TUNED, rendered(menu(TUNED), starts))
    steps = (StepTime(batch, batch * (k + 1), 0.02, k=k, measured_at=NOW - 600),)
    o = observation(TUNED, menu=m, knowledge={starts: Knowledge(NOW - 600, step_times=steps)})
    assert o.estimates.predictions[starts].batch_size == pytest.approx(6.0, rel=0.4)
    assert o.estimates.own_is_untried is untried


def test_what_the_manifest_would_have_taken_lately_is_the_mean_over_the_tokens_bursts_and_lulls() -> None:
    loads = LoadHistory(int(NOW // BUCKET) - 30, (5e6, *(30.0,) * 29, 300.0), BUCKET)
    own = menu(spec(), rendered(MENU, "disabled"))
    o = estimate(observation(active=NGRAM, menu=own, loads=loads), lambda _: Steep())
    hour = np.array(o.loads.of(NOW - 3600.0, NOW)) / len(o.running(NGRAM))
    assert len(hour) == 13
    assert o.estimates.own_lately == pytest.approx((hour @ hour) / hour.sum())
    assert estimate(observation(menu=own, loads=loads), lambda _: Steep()).estimates.own_lately is None, "it runs"


@pytest.mark.parametrize(("gain", "stays"), [(0.001, True), (0.2, False)])
def test_a_schedule_that_runs_is_not_changed_for_little(gain: float, stays: bool) -> None:
    running = with_ranges(BatchRange(1, 99, 5), BatchRange(100, 256, 0))
    o = observation(TUNED, active=NGRAM, window=traffic(acceptance=0.7))
    o = replace(o, active=running, pods=tuple(replace(p, option=running) for p in o.pods))
    costs = costing(fixed=0.010, other=0.008, better=0.008 * (1 - gain))
    assert (candidate(o, Fixed(BETTER, costs)) == running) is stays


FEWER_DRAFTS: dict[str, tuple[Option, Option, bool]] = {
    "off": (NGRAM, OFF, True),
    "less of the same drafts from some batch size on": (NGRAM, SCHEDULE, True),
    "more of the same drafts": (SCHEDULE, NGRAM, False),
    "drafts where there were none": (OFF, NGRAM, False),
}


@pytest.mark.parametrize("case", FEWER_DRAFTS)
def test_the_models_word_for_what_drafts_more_than_what_runs_is_bounded(case: str) -> None:
    """A canary takes a part of the load, and may stay below the batch size from which it differs."""
    active, target, may = FEWER_DRAFTS[case]

    class Cliff(Fixed):
        def log_tpot(self, option: Option, load: OfferedLoad, tokens_per_second: Array) -> Array:
            steep = 3.0 if option == active else 0.0
            return steep * np.log(tokens_per_second / load.tokens_per_second)

    o = observation(TUNED, active=active, knowledge={})
    begun = advance(o, Decision(Reason.BETTER_THRESHOLD, "", target, change=True)).rollout
    assert begun is not None
    analysing = begun.model_copy(update={"phase": RolloutPhase.ANALYSING})
    corrections = estimate(replace(o, rollout=analysing), lambda _: Cliff()).estimates.load_corrections
    assert corrections == {target.profile: pytest.approx(3.0 * math.log(4 / 3) if may else LARGEST_CORRECTION)}


@pytest.mark.parametrize(("version", "asked"), [("0.24.0", ["schedule"]), ("0.12.0", [])])
def test_a_version_without_a_schedule_gets_none(version: str, asked: list[str]) -> None:
    m = menu(spec(), version=version)
    better = Fixed(BETTER, costing(fixed=0.010, better=0.005))
    found = candidate(observation(TUNED, menu=m), better)
    assert better.asked == asked
    assert (found.speculation == BETTER) is bool(asked)


def test_engines_that_share_a_pod_get_no_schedule() -> None:
    """vLLM refuses a schedule with data parallelism."""
    m = menu(TUNED, merged(CONTAINER, {"args": [*CONTAINER["args"], "--data-parallel-size", "2"]}))
    better = Fixed(BETTER, costing(fixed=0.010, better=0.005))
    assert candidate(observation(TUNED, menu=m), better) == option(m, "ngram")


@pytest.mark.parametrize(
    ("band", "limit", "expected"),
    [
        (None, 256, (1, 0)),
        (Band(1, 256), 256, (1, None)),
        (Band(1, DEFAULT_MAX_NUM_SEQS), None, (1, None)),
        (Band(8, 85), 256, (8, 85)),
    ],
    ids=["nowhere", "up to the limit", "up to vLLM's limit", "between"],
)
def test_a_band_has_bounds(band: Band | None, limit: int | None, expected: tuple[int, int | None]) -> None:
    assert bounds(band, limit) == expected


# --- what comes -----------------------------------------------------------------------------------------------------


def test_the_load_is_remembered_of_all_pods_together_but_not_while_canaries_take_a_part() -> None:
    o = observation()
    assert o.estimates.load is not None
    assert o.loads.at(NOW) == pytest.approx(3 * o.estimates.load.tokens_per_second)
    assert observation(window=traffic(batch=0.0, rate=0.0)).loads == LoadHistory(), "an idle tick tells of no load"


def test_every_other_option_has_an_outlook() -> None:
    e = observation().estimates
    assert set(e.outlooks) == {"ngram"}
    assert observation(window=traffic(seconds=0.0)).estimates.outlooks == {}


# --- what cannot run ------------------------------------------------------------------------------------------------


def test_a_profile_that_cannot_be_written_for_this_version_is_left_out_and_said() -> None:
    profiles = [
        {"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5},
        {"name": "draft", "method": "DraftModel", "numSpeculativeTokens": 3, "draftModel": {"model": "small"}},
    ]
    policy = spec(profiles=profiles)
    o = observation(policy, menu=menu(policy, version="0.10.2"))
    assert [c.profile for c in o.estimates.candidates] == ["ngram", "disabled"]
    assert set(o.estimates.unavailable) == {"draft"} and o.estimates.unavailable["draft"]
    assert "draft" not in o.estimates.predictions


def test_a_method_that_vllm_is_left_to_find_out_gets_no_threshold() -> None:
    """The workload's own arguments may name no method: what works with it is not ours to guess."""
    policy = spec(batchSizeTuning={"mode": "Auto"})
    unnamed = json.dumps({"num_speculative_tokens": 1})
    own = menu(policy, merged(CONTAINER, {"args": [*CONTAINER["args"], "--speculative-config", unnamed]}))
    original = next(o for o in own.options if o.profile == "original")
    assert original.speculation is not None and original.speculation.vllm_method is None
    o = observation(policy, menu=own, active=OFF)
    assert candidate(o, Fixed(BETTER, costing(fixed=0.010, better=0.005)), "original") == original
