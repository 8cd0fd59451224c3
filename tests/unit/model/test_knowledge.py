"""What is learnt from measurements, and what is kept of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import MAX_STEP_TIMES, NEWER, Knowledge, StepTime, learn
from specdecode.model.measure import Measurement

NOW = 1_800_000_000.0


def measured(**changes: Any) -> Measurement:
    """100 engine steps of 8 requests, 20 ms each, over 5 s, without speculation."""
    base = Measurement(
        seconds=5.0,
        requests_per_step=8.0,
        step_seconds=0.02,
        steps=100.0,
        request_steps=800.0,
        tokens_per_step=1.0,
        tpot_seconds=0.021,
        prompt_tokens_per_second=400.0,
    )
    return replace(base, **changes)


DRAFTING = measured(
    draft_tokens=4000.0, tokens_per_step=3.0, accepted_length=3.5, acceptance_rate=0.4, per_position=(0.6, 0.4)
)


def test_a_first_measurement_is_what_is_known() -> None:
    known = learn(None, DRAFTING, (0.4, 0.3, 0.4, 0.5), [DRAFTING], NOW)
    assert (known.measured_at, known.acceptance_rate, known.accepted_length) == (NOW, 0.4, 3.5)
    assert (known.tokens_per_step, known.drafted_per_step, known.per_position) == (3.0, 5.0, (0.6, 0.4))
    assert known.step_times == (StepTime(8.0, 8.0 * 6, 0.02, 20.0),)
    assert known.step_times[0].drafted


def test_what_the_window_lacks_keeps_its_last_value() -> None:
    known = learn(None, DRAFTING, (0.4, 0.3, 0.4, 0.5), [], NOW)
    bare = measured(draft_tokens=800.0, tokens_per_step=None, tpot_seconds=None)
    again = learn(known, bare, None, [], NOW + 5)
    assert (again.measured_at, again.drafted_per_step) == (NOW + 5, 1.0)
    assert (again.acceptance, again.tokens_per_step, again.tpot_seconds) == (known.acceptance, 3.0, 0.021)


def test_a_window_in_which_nothing_was_drafted_says_nothing_about_acceptance_but_what_steps_cost() -> None:
    known = learn(None, DRAFTING, (0.4, 0.3, 0.4, 0.5), [DRAFTING], NOW)
    held = measured(draft_tokens=0.0)
    again = learn(known, held, None, [held], NOW + 5)
    assert replace(again, step_times=()) == replace(known, step_times=())
    assert [(t.tokens, t.drafted) for t in again.step_times] == [(8.0, False), (48.0, True)]


@pytest.mark.parametrize(
    "part",
    [
        measured(step_seconds=None),
        measured(requests_per_step=None),
        measured(request_steps=None),
    ],
    ids=["no step time", "no batch size", "no count"],
)
def test_a_part_that_cannot_tell_is_no_step_time(part: Measurement) -> None:
    assert learn(None, measured(), None, [part], NOW).step_times == ()


def test_without_a_count_of_steps_prompts_are_not_known() -> None:
    known = learn(None, measured(), None, [measured(steps=None), measured(prompt_tokens_per_second=None)], NOW)
    assert known.step_times[0].prompt_tokens == 0.0


@pytest.mark.parametrize("counted", [0.97, -1.0, 0.0, None])
def test_a_step_gives_at_least_one_token(counted: float | None) -> None:
    assert learn(None, measured(tokens_per_step=counted), None, [], NOW).tokens_per_step == 1.0


def test_steps_of_one_size_are_averaged_the_newer_counting_more_and_more() -> None:
    known = learn(None, measured(), None, [measured()], NOW)
    known = learn(known, measured(), None, [measured(step_seconds=0.03)], NOW + 5)
    (time,) = known.step_times
    assert time.seconds == pytest.approx(0.02 + NEWER * 0.01)
    for n in range(30):
        known = learn(known, measured(), None, [measured(step_seconds=0.03)], NOW + n)
    assert known.step_times[0].seconds == pytest.approx(0.03, rel=1e-3)


def test_an_old_busy_hour_is_not_forgotten_when_the_night_is_quiet() -> None:
    busy = measured(requests_per_step=200.0, step_seconds=0.04)
    known = learn(None, busy, None, [busy], NOW)
    for n in range(1000):
        known = learn(known, measured(), None, [measured(requests_per_step=1.0 + n % 3)], NOW + n)
    assert known.step_times[-1] == StepTime(200.0, 200.0, 0.04, 20.0)


@given(st.lists(st.tuples(st.floats(0.1, 4000), st.floats(0, 16), st.floats(1e-4, 5)), max_size=60))
def test_what_is_kept_is_bounded_and_in_order(seen: list[tuple[float, float, float]]) -> None:
    known = Knowledge()
    for b, drafted, seconds in seen:
        part = measured(requests_per_step=b, draft_tokens=drafted * 800, step_seconds=seconds)
        known = learn(known, part, None, [part], NOW)
    tokens = [t.tokens for t in known.step_times]
    assert len(tokens) <= MAX_STEP_TIMES and tokens == sorted(tokens)
    assert bool(tokens) is bool(seen)
    lowest, highest = min((s for *_, s in seen), default=0.0), max((s for *_, s in seen), default=0.0)
    assert all(lowest * 0.999 <= t.seconds <= highest * 1.001 for t in known.step_times)


def test_an_estimate_of_a_positive_quantity_has_an_interval_around_its_median() -> None:
    e = Estimate.log_normal(2.0, 0.1)
    assert e.low * e.high == pytest.approx(4.0)
    assert e.high / e.value == pytest.approx(1.1788, abs=1e-4), "1.645 standard deviations"
    assert str(e) == "2 (1.7 to 2.36)"
    assert Estimate.log_normal(2.0, 0.0) == Estimate(2.0, 2.0, 2.0)
