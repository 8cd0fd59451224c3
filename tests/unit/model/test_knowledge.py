"""What is learnt from measurements, and what is kept of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import (
    DAY,
    LONGEST_STEP,
    MAX_STEP_TIMES,
    NEWER,
    Drafts,
    Knowledge,
    Residual,
    StepTime,
    learn,
    nearly_same,
)
from specdecode.model.measure import Measurement

NOW = 1_800_000_000.0
ACCEPTANCE = (0.4, 0.3, 0.4, 0.5)


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


def drafting(*per_position: float, drafts: float = 800.0, request_steps: float = 800.0) -> Measurement:
    """Every draft as long as `per_position`, the share of drafts of which each token was accepted."""
    length = 1 + sum(per_position)
    return measured(
        request_steps=request_steps,
        drafts=drafts,
        draft_tokens=drafts * len(per_position),
        per_position=per_position,
        accepted_length=length,
        tokens_per_step=1 + (length - 1) * drafts / request_steps,
    )


DRAFTING = drafting(0.6, 0.4, drafts=80_000.0, request_steps=100_000.0)


def step(batch: float = 8.0, drafted: float = 0.0, seconds: float = 0.02, k: int = 0, at: float = NOW) -> StepTime:
    return StepTime(batch, batch * (1 + drafted), seconds, prompt_tokens=20.0, context=300.0, k=k, measured_at=at)


def drafts_of(known: Knowledge) -> Drafts:
    assert known.drafts is not None
    return known.drafts


# --- drafts ---------------------------------------------------------------------------------------------------------


def test_a_first_measurement_is_what_is_known() -> None:
    known = learn(None, DRAFTING, ACCEPTANCE, 2, [step(drafted=2.0, k=2)], NOW)
    assert (known.measured_at, known.learnt_at, known.acceptance_rate) == (NOW, NOW, 0.4)
    assert (known.accepted_length, known.tokens_per_step, known.tpot_seconds) == (2.0, 1.8, 0.021)
    drafts = drafts_of(known)
    assert (drafts.match, drafts.measured_at, drafts.count) == (0.8, NOW, 80_000.0)
    assert drafts.chances == pytest.approx((0.6, 0.4 / 0.6), abs=1e-3), "of those that got so far"
    assert known.step_times == (step(drafted=2.0, k=2),)
    assert known.step_times[0].drafted


def test_what_is_accepted_adds_up_position_by_position() -> None:
    drafts = Drafts(1.0, (0.5, 0.4), NOW, 1000.0)
    assert drafts.accepted(0) == 0.0
    assert drafts.accepted(1) == pytest.approx(0.5)
    assert drafts.accepted(2) == pytest.approx(0.5 + 0.2)
    assert drafts.accepted(4) == pytest.approx(0.5 + 0.2 + 0.08 + 0.032), "deeper positions are like the last"


def test_few_drafts_change_little() -> None:
    before = learn(None, DRAFTING, ACCEPTANCE, 2, [], NOW)
    after = learn(before, drafting(0.0, 0.0, drafts=2.0), None, 2, [], NOW + 60)
    for old, new in zip(drafts_of(before).chances, drafts_of(after).chances, strict=True):
        assert 0.8 * old < new <= old
    many = learn(before, drafting(0.0, 0.0, drafts=1e5), None, 2, [], NOW + 60)
    assert drafts_of(many).chances[0] < 0.01


NIGHT = learn(None, drafting(0.8, 0.7, 0.6, 0.5, 0.4, drafts=1e6), ACCEPTANCE, 5, [], NOW)
"""A schedule drafts five tokens at night and two by day."""


def test_positions_that_are_not_drafted_now_keep_what_they_showed() -> None:
    day = learn(NIGHT, drafting(0.8, 0.7, drafts=1e6), ACCEPTANCE, 2, [], NOW + 60)
    assert drafts_of(day).chances == pytest.approx(drafts_of(NIGHT).chances, abs=1e-3)


def test_positions_that_are_not_drafted_now_move_with_the_last_that_is() -> None:
    harder = drafts_of(learn(NIGHT, drafting(0.5, 0.25, drafts=1e6), ACCEPTANCE, 2, [], NOW + 60))
    assert harder.chances[:2] == pytest.approx((0.5, 0.5), abs=1e-3)
    # 7:1 became 1:1, so 6:1, 5:1 and 4:1 became a seventh of that.
    assert harder.chances[2:] == pytest.approx((6 / 13, 5 / 12, 4 / 11), abs=1e-3)


def test_positions_that_were_not_drafted_for_long_come_back_with_the_traffic() -> None:
    known = NIGHT
    for n in range(1, 50):
        share = 0.25 if n < 49 else 0.7
        known = learn(known, drafting(0.8, share, drafts=1e6), ACCEPTANCE, 2, [], NOW + 60 * n)
    assert drafts_of(known).chances == pytest.approx(drafts_of(NIGHT).chances, abs=0.01)


def test_what_the_window_lacks_keeps_its_last_value() -> None:
    known = learn(None, DRAFTING, ACCEPTANCE, 2, [], NOW)
    bare = replace(DRAFTING, tokens_per_step=None, tpot_seconds=None, accepted_length=None)
    again = learn(known, bare, None, 2, [], NOW + 5)
    assert again.measured_at == NOW + 5
    assert (again.acceptance, again.tokens_per_step, again.tpot_seconds) == (known.acceptance, 1.8, 0.021)
    old, new = drafts_of(known), drafts_of(again)
    assert (new.match, new.chances, new.measured_at, new.usual) == (old.match, old.chances, old.measured_at, old.usual)


def test_what_is_usual_is_the_mean_over_the_time_that_was_measured() -> None:
    good, bad = drafting(0.9, 0.8, drafts=1e7, request_steps=1e7), drafting(0.1, 0.05, drafts=1e7, request_steps=1e7)
    known = learn(None, good, None, 2, [], NOW)
    assert drafts_of(known).usual == drafts_of(known).extra
    for n in range(1, 11):
        known = learn(known, bad if n > 8 else good, None, 2, [], NOW + 300 * n)
    assert drafts_of(known).usual_seconds == 3000
    assert drafts_of(known).usual == pytest.approx(0.8 * math.log(1.7) + 0.2 * math.log(0.15), abs=0.01)


def test_an_hour_without_a_measurement_is_no_hour_of_it() -> None:
    known = learn(learn(None, DRAFTING, None, 2, [], NOW), DRAFTING, None, 2, [], NOW + 48 * 3600)
    assert 0 < drafts_of(known).usual_seconds <= LONGEST_STEP <= 3600
    for n in range(1, 600):
        known = learn(known, DRAFTING, None, 2, [], NOW + (48 + n / 6) * 3600)
    assert drafts_of(known).usual_seconds <= 2 * DAY


def test_how_much_it_varies_is_learnt_with_what_is_usual() -> None:
    good, bad = drafting(0.9, 0.8, drafts=1e7, request_steps=1e7), drafting(0.1, 0.05, drafts=1e7, request_steps=1e7)

    def variance(*days: Measurement) -> float:
        known = learn(None, days[0], None, 2, [], NOW)
        for n in range(1, 48):
            known = learn(known, days[n % len(days)], None, 2, [], NOW + 3600 * n)
        return drafts_of(known).usual_variance

    half = math.log(1.7 / 0.15) / 2
    assert variance(good) == pytest.approx(0.0, abs=1e-3)
    assert variance(good, bad) == pytest.approx(half**2, rel=0.3)


def test_what_ran_beside_it_is_kept_until_it_is_noted_again() -> None:
    known = learn(None, DRAFTING, None, 2, [], NOW)
    noted = replace(known, drafts=replace(drafts_of(known), beside=("draft", 0.5)))
    assert drafts_of(learn(noted, DRAFTING, None, 2, [], NOW + 60)).beside == ("draft", 0.5)


@pytest.mark.parametrize("window", [None, measured(request_steps=None), measured(request_steps=0.0)])
def test_a_window_without_steps_teaches_nothing(window: Measurement | None) -> None:
    known = learn(None, DRAFTING, ACCEPTANCE, 2, [step()], NOW)
    assert learn(known, window, None, 2, [], NOW + 5) == replace(known, learnt_at=NOW + 5)


def test_a_window_in_which_nothing_was_drafted_says_nothing_about_acceptance_but_what_steps_cost() -> None:
    known = learn(None, DRAFTING, ACCEPTANCE, 2, [step(drafted=2.0, k=2)], NOW)
    again = learn(known, measured(drafts=0.0, draft_tokens=0.0), None, 2, [step()], NOW + 5)
    assert replace(again, step_times=(), learnt_at=NOW) == replace(known, step_times=())
    assert [(t.tokens, t.drafted) for t in again.step_times] == [(8.0, False), (24.0, True)]


def test_where_k_is_not_one_number_drafts_are_not_judged() -> None:
    known = learn(None, DRAFTING, ACCEPTANCE, None, [], NOW)
    assert known.drafts is None


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.7, 0.99])
def test_an_engine_that_counts_no_drafts_is_read_from_its_tokens_per_step(chance: float) -> None:
    """The V0 engine has neither counters of drafts nor of positions: E itself tells the chance, taken to be even."""
    e = 1 + sum(chance**i for i in (1, 2, 3))
    v0 = measured(drafts=None, draft_tokens=None, per_position=None, accepted_length=None, tokens_per_step=e)
    drafts = drafts_of(learn(None, v0, None, 3, [], NOW))
    assert drafts.match == 1.0
    assert drafts.chances == pytest.approx((chance,), abs=1e-3)
    assert drafts.accepted(3) == pytest.approx(e - 1, abs=1e-2)


@pytest.mark.parametrize("counted", [0.97, -1.0, 0.0, None])
def test_a_step_gives_at_least_one_token(counted: float | None) -> None:
    assert learn(None, measured(tokens_per_step=counted), None, 0, [], NOW).tokens_per_step == 1.0


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=8).map(lambda shares: tuple(sorted(shares, reverse=True))),
    st.floats(0, 1e7),
    st.floats(1e-3, 1e7),
    st.integers(1, 8),
)
def test_chances_are_chances_whatever_was_counted(
    per_position: tuple[float, ...], drafts: float, request_steps: float, k: int
) -> None:
    known = learn(None, drafting(*per_position, drafts=drafts, request_steps=request_steps), None, k, [], NOW)
    if known.drafts is None:
        assert drafts == 0
        return
    assert 0 <= known.drafts.match <= 1
    assert len(known.drafts.chances) == min(k, len(per_position))
    assert all(0 <= c <= 1 for c in known.drafts.chances)
    assert 0 <= known.drafts.accepted(16) <= 16


# --- step times -----------------------------------------------------------------------------------------------------


def test_steps_of_one_size_are_averaged_the_newer_counting_more_and_more() -> None:
    known = learn(None, measured(), None, 0, [step()], NOW)
    known = learn(known, measured(), None, 0, [step(seconds=0.03, at=NOW + 5)], NOW + 5)
    (time,) = known.step_times
    assert time.seconds == pytest.approx(0.02 + NEWER * 0.01)
    assert time.measured_at == NOW + 5
    for n in range(60):
        known = learn(known, measured(), None, 0, [step(seconds=0.03)], NOW + n)
    assert known.step_times[0].seconds == pytest.approx(0.03, rel=1e-3)


def test_steps_of_other_sizes_and_of_another_k_are_kept_apart() -> None:
    steps = [step(8.0), step(16.0), step(8.0, 2.0, k=2), step(8.0, 5.0, k=5), step(8.0, 0.4, k=5)]
    known = learn(None, None, None, None, [*steps, *steps], NOW)
    assert set(known.step_times) == set(steps)


def test_steps_that_a_schedule_holds_at_zero_are_kept_apart_from_steps_that_found_no_match() -> None:
    held, no_match = step(8.0, 0.0, k=0), step(8.0, 0.0, k=5)
    known = learn(None, None, None, None, [held, no_match], NOW)
    assert {t.drafted for t in known.step_times} == {False, True}


def test_steps_with_few_prompt_tokens_are_kept_apart_from_steps_with_many() -> None:
    """What prompts add shows where both were seen."""
    steps = [replace(step(), prompt_tokens=tokens) for tokens in (20.0, 130.0, 2000.0)]
    known = learn(None, None, None, 0, [*steps, replace(step(), prompt_tokens=0.0)], NOW)
    assert len(known.step_times) == 3, "few are like none"
    mixed = next(t for t in known.step_times if t.prompt_tokens < 30)
    assert mixed.prompt_tokens == pytest.approx(20.0 - NEWER * 20.0)


def test_how_long_prompts_are_is_averaged_as_well() -> None:
    steps = [replace(step(), prompt_length=length) for length in (100.0, 200.0)]
    (time,) = learn(None, None, None, 0, steps, NOW).step_times
    assert time.prompt_length == pytest.approx(100.0 + NEWER * 100.0)


def test_how_sure_a_step_time_is_is_averaged_as_well() -> None:
    (sure,) = learn(None, None, None, None, [step()], NOW).step_times
    (less,) = learn(Knowledge(step_times=(sure,)), None, None, None, [replace(step(), variance=0.25)], NOW).step_times
    assert (sure.variance, less.variance) == (0.0, pytest.approx(0.05))


def test_an_old_busy_hour_is_not_forgotten_when_the_night_is_quiet() -> None:
    busy = step(200.0, seconds=0.04)
    known = learn(None, None, None, 0, [busy], NOW)
    for n in range(1000):
        known = learn(known, None, None, 0, [step(1.0 + n % 3, at=NOW + n)], NOW + n)
    assert known.step_times[-1] == busy


def test_the_oldest_bins_go_first() -> None:
    known = Knowledge()
    for n in range(2 * MAX_STEP_TIMES):
        known = learn(known, None, None, 0, [step(2.0 ** (n / 2), at=NOW + n)], NOW + n)
    assert len(known.step_times) == MAX_STEP_TIMES
    assert min(t.measured_at for t in known.step_times) == NOW + MAX_STEP_TIMES


@given(
    st.lists(
        st.tuples(st.floats(0.1, 4000), st.floats(0, 16), st.floats(1e-4, 5), st.integers(0, 16), st.floats(0, 1e6)),
        max_size=60,
    )
)
def test_what_is_kept_is_bounded_in_order_and_within_what_was_seen(
    seen: list[tuple[float, float, float, int, float]],
) -> None:
    known = Knowledge()
    for b, drafted, seconds, k, ago in seen:
        known = learn(known, None, None, k, [step(b, drafted, seconds, k, NOW - ago)], NOW)
    keys = [(t.k, t.tokens) for t in known.step_times]
    assert len(keys) <= MAX_STEP_TIMES and keys == sorted(keys)
    assert bool(keys) is bool(seen)
    lowest, highest = min((s for _, _, s, _, _ in seen), default=0.0), max((s for _, _, s, _, _ in seen), default=0.0)
    assert all(lowest * 0.999 <= t.seconds <= highest * 1.001 for t in known.step_times)


# --- estimates ------------------------------------------------------------------------------------------------------


def test_an_estimate_of_a_positive_quantity_has_an_interval_around_its_median() -> None:
    e = Estimate.log_normal(2.0, 0.1)
    assert e.low * e.high == pytest.approx(4.0)
    assert e.high / e.value == pytest.approx(1.1788, abs=1e-4), "1.645 standard deviations"
    assert str(e) == "2 (1.7 to 2.36)"
    assert Estimate.log_normal(2.0, 0.0) == Estimate(2.0, 2.0, 2.0)


KNOWN = Knowledge(
    step_times=(step(),),
    drafts=Drafts(0.8, (0.6, 0.5), NOW, 1000.0),
    residuals=(Residual(100.0, 0.1, NOW), Residual(400.0, -0.1, NOW)),
    prompt_length=400.0,
)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"measured_at": NOW, "tokens_per_step": 3.0}, True),
        ({"step_times": (step(seconds=0.0202, at=NOW + 60),)}, True),
        ({"step_times": (step(seconds=0.0215),)}, False),
        ({"step_times": (step(batch=9.0, seconds=0.0206),)}, True),
        ({"step_times": (step(batch=9.0, seconds=0.0190),)}, False),
        ({"step_times": (step(batch=9.0, seconds=0.0235),)}, False),
        ({"step_times": (step(k=3),)}, False),
        ({"step_times": (replace(step(), variance=0.002),)}, True),
        ({"step_times": (replace(step(), variance=0.01),)}, False),
        ({"step_times": (step(), step(batch=16.0))}, False),
        ({"drafts": Drafts(0.8, (0.603, 0.5), NOW + 60, 1000.0)}, True),
        ({"drafts": Drafts(0.8, (0.65, 0.5), NOW, 1000.0)}, False),
        ({"drafts": Drafts(0.7, (0.66, 0.54), NOW, 1000.0)}, False),
        ({"drafts": None}, False),
        ({"residuals": (Residual(390.0, -0.12, NOW), Residual(100.0, 0.1, NOW))}, True),
        ({"residuals": (Residual(100.0, 0.1, NOW), Residual(400.0, -0.2, NOW))}, False),
        ({"residuals": ()}, False),
        ({"prompt_length": 410.0}, True),
        ({"prompt_length": 450.0}, False),
        ({"prompt_length": None}, False),
    ],
    ids=[
        "what the model does not read",
        "a step a little slower",
        "a step slower",
        "slower for more work",
        "quicker for more work",
        "slower than for more work",
        "another K",
        "a step that is hardly less sure",
        "a step that is less sure",
        "another batch size",
        "drafts a little better",
        "drafts better",
        "fewer drafts, each better",
        "no drafts",
        "the model a little further off, in another order",
        "the model further off",
        "the model never held against anything",
        "prompts a little longer",
        "longer prompts",
        "prompts of no known length",
    ],
)
def test_what_the_model_could_hardly_tell_apart_is_nearly_the_same(changes: dict[str, Any], same: bool) -> None:
    assert nearly_same(KNOWN, replace(KNOWN, **changes)) is same
