"""From measurements to estimates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from specdecode.model.cost import OfferedLoad, Option, Prediction, RooflineModel
from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import Knowledge
from specdecode.model.window import Window
from specdecode.policy.estimating import SAME_THRESHOLD, estimate
from specdecode.policy.observation import Observation
from specdecode.vllm.metrics import Page
from specdecode.vllm.speculation import BatchRange
from support.world import CONTAINER, menu, merged, observation, option, pod, spec, traffic

MENU = menu(spec())
OFF, NGRAM = option(MENU, "disabled"), option(MENU, "ngram")


@dataclass(frozen=True)
class Fixed:
    """A model that knows one break-even."""

    point: float | None = None

    def predict(self, option: Option, load: OfferedLoad) -> Prediction:
        return Prediction(Estimate(0.01, 0.009, 0.011), 1.0, 2.0)

    def break_even(self, option: Option) -> float | None:
        return self.point if option.speculation else None


def candidate(o: Observation, point: float | None, profile: str = "ngram") -> Option:
    estimated = estimate(o, lambda *_: Fixed(point))
    return next(c for c in estimated.estimates.candidates if c.profile == profile)


def threshold(o: Option) -> int | None:
    assert o.speculation is not None
    return next((r.start for r in o.speculation.schedule if r.k == 0), None)


def test_without_a_menu_nothing_is_estimated() -> None:
    o = replace(observation(), menu=None)
    assert estimate(o, RooflineModel) is o


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
    with_it = estimate(replace(observation(), pods=(*observation().pods, new)), RooflineModel)
    assert with_it.estimates.load == observation().estimates.load


def queue(growth: float) -> Window:
    """Traffic beside a queue that grows by so many requests a second."""
    window = Window(3600.0)
    for n, r in enumerate(traffic().readings):
        (engine,) = r.page.engines
        waiting = max(0.0, 500.0 + growth * 5.0 * n)
        window = window.add(Page((replace(engine, waiting=waiting),), r.page.process_start), r.t)
    return window


def test_a_queue_that_grows_is_load_too_one_that_shrinks_was() -> None:
    loads = {g: observation(window=queue(g)).estimates.load for g in (-1.0, 0.0, 1.0)}
    served, shrinking, growing = loads[0.0], loads[-1.0], loads[1.0]
    assert served is not None and growing is not None
    assert shrinking == served
    assert growing.tokens_per_second - served.tokens_per_second == pytest.approx(100.0), "answers of 100 tokens"


def test_what_runs_is_predicted_by_what_it_was_measured_at() -> None:
    e = observation().estimates
    assert e.running is not None and e.running.tpot.value == pytest.approx(0.02)
    assert e.running.headroom == e.predictions["disabled"].headroom


def test_pods_teach_about_the_option_that_they_run() -> None:
    canary = pod("c", "new", NGRAM, traffic(acceptance=0.7))
    stranger = pod("s", "new", None, traffic(step=9.0))
    o = estimate(replace(observation(), pods=(*observation().pods, canary, stranger), knowledge={}), RooflineModel)
    assert set(o.knowledge) == {"disabled", "ngram"}
    assert o.knowledge["ngram"].acceptance_rate == pytest.approx(0.7)
    assert o.knowledge["disabled"].acceptance is None
    assert o.knowledge["disabled"].step_times[0].seconds == pytest.approx(0.02)


@pytest.mark.parametrize("changes", [{"ready": False}, {"answered": False}], ids=["not ready", "silent"])
def test_a_pod_that_does_not_answer_teaches_nothing(changes: Mapping[str, Any]) -> None:
    quiet = pod("p", "old", OFF, traffic(), **changes)
    o = estimate(replace(observation(), pods=(quiet,), knowledge={"disabled": Knowledge()}), RooflineModel)
    assert o.knowledge == {"disabled": Knowledge()} and o.estimates.load is None


def test_only_the_policys_window_counts() -> None:
    policy = spec(metrics={"window": "10s"})
    o = observation(policy, window=traffic(seconds=60.0))
    assert o.estimates.measured is not None and o.estimates.measured.seconds == pytest.approx(10.0)


# --- the batch size above which speculation stops -------------------------------------------------------------------


TUNED = spec(batchSizeTuning={"mode": "Auto"})


@pytest.mark.parametrize(
    ("point", "expected"),
    [(None, None), (63.6, 64), (1.0, 2), (256.0, 256), (300.0, None)],
    ids=["pays everywhere", "rounded", "never pays", "at the limit", "beyond the limit"],
)
def test_a_candidate_drafts_up_to_its_break_even(point: float | None, expected: int | None) -> None:
    assert threshold(candidate(observation(TUNED), point)) == expected


def test_disabled_has_no_threshold_and_tuning_can_be_off() -> None:
    assert candidate(observation(TUNED), 64.0, "disabled") == OFF
    assert candidate(observation(spec()), 64.0) == NGRAM


def test_the_servers_own_limit_ends_the_schedule() -> None:
    m = menu(spec(), {"name": "vllm", "image": "i", "args": ["--model", "m", "--max-num-seqs", "96"]})
    found = candidate(observation(TUNED, menu=m), 64.0)
    assert found.speculation is not None and found.speculation.schedule == (BatchRange(1, 63, 5), BatchRange(64, 96, 0))
    assert threshold(candidate(observation(TUNED, menu=m), 100.0)) is None


@pytest.mark.parametrize(("factor", "stays"), [(1.4, True), (1 / 1.4, True), (1.6, False), (1 / 1.6, False)])
def test_a_threshold_that_runs_is_not_changed_for_little(factor: float, stays: bool) -> None:
    assert 1.4 < SAME_THRESHOLD < 1.6
    running = Option("ngram", candidate(observation(TUNED), 100.0).speculation)
    o = observation(TUNED, active=running, window=traffic(acceptance=0.7))
    assert (candidate(o, 100.0 * factor) == running) is stays


def test_a_version_without_a_schedule_gets_none() -> None:
    m = menu(spec(), version="0.12.0")
    assert candidate(observation(TUNED, menu=m), 64.0) == option(m, "ngram")


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


def test_steps_that_a_schedule_held_at_zero_say_nothing_about_the_drafts() -> None:
    """One pod drafts, the other is above the threshold: what a draft is worth is asked of the first alone."""
    assert NGRAM.speculation is not None
    ranges = (BatchRange(1, 31, 5), BatchRange(32, 256, 0))
    active = replace(NGRAM, speculation=replace(NGRAM.speculation, schedule=ranges))
    drafts, shadow = traffic(acceptance=0.75, batch=4.0), traffic(acceptance=0.0, k=0, batch=100.0, step=0.03)
    o = observation(menu=MENU, active=NGRAM, pods=())
    pods = (pod("a", "old", active, drafts), pod("b", "old", active, shadow))
    known = estimate(replace(o, active=active, pods=pods, knowledge={}), RooflineModel).knowledge["ngram"]
    assert known.tokens_per_step == pytest.approx(4.75, rel=0.01)
    assert known.drafted_per_step == pytest.approx(5.0)
    assert {t.drafted for t in known.step_times} == {True, False}, "both tell what their steps cost"


def test_a_method_that_vllm_is_left_to_find_out_gets_no_threshold() -> None:
    """The workload's own arguments may name no method: what works with it is not ours to guess."""
    policy = spec(batchSizeTuning={"mode": "Auto"})
    unnamed = json.dumps({"num_speculative_tokens": 1})
    own = menu(policy, merged(CONTAINER, {"args": [*CONTAINER["args"], "--speculative-config", unnamed]}))
    original = next(o for o in own.options if o.profile == "original")
    assert original.speculation is not None and original.speculation.vllm_method is None
    o = observation(policy, menu=own, active=OFF)
    assert candidate(o, 40.0, "original") == original
