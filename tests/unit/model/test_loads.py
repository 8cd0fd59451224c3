"""The load of the last two days, in buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.model.loads import BUCKET, DAY, KEPT, LoadHistory

NOW = 1_800_000_000.0
EMPTY = LoadHistory()


def test_nothing_is_known_before_the_first_load() -> None:
    assert EMPTY.at(NOW) is None


def test_loads_of_one_bucket_are_averaged_by_their_time() -> None:
    history = EMPTY.add(NOW, 100.0, 10.0).add(NOW + 30, 400.0, 30.0)
    assert history.tokens_per_second == (pytest.approx(325.0),)
    assert history.seen == 40.0
    assert history.at(NOW + 1) == history.at(NOW + BUCKET - 1) == pytest.approx(325.0)


def test_the_mean_token_meets_more_load_than_there_is_on_average() -> None:
    history = EMPTY.add(NOW, 100.0, 300.0).add(NOW + BUCKET, 300.0, 300.0)
    assert history.mean(NOW, NOW + BUCKET) == pytest.approx(200.0)
    assert history.crowded(NOW, NOW + BUCKET) == pytest.approx((100**2 + 300**2) / 400)
    assert history.crowded(NOW - DAY, NOW - 1) is None
    assert EMPTY.add(NOW, 0.0, 300.0).crowded(NOW, NOW + 1) is None


def test_each_bucket_begins_anew() -> None:
    history = EMPTY.add(NOW, 100.0, 300.0).add(NOW + BUCKET, 200.0, 5.0)
    assert history.tokens_per_second == (100.0, 200.0)
    assert history.seen == 5.0
    assert (history.at(NOW), history.at(NOW + BUCKET), history.at(NOW + 2 * BUCKET)) == (100.0, 200.0, None)
    assert history.at(NOW - BUCKET) is None


def test_what_was_not_measured_is_not_known_and_not_zero() -> None:
    history = EMPTY.add(NOW, 100.0, 5.0).add(NOW + 3 * BUCKET, 300.0, 5.0)
    assert [history.at(NOW + i * BUCKET) for i in range(4)] == [100.0, None, None, 300.0]
    assert EMPTY.add(NOW, 0.0, 5.0).at(NOW) == 0.0


def test_the_range_and_the_mean_of_loads_from_one_time_to_another() -> None:
    history = EMPTY
    for i, load in enumerate((100.0, 400.0, 200.0)):
        history = history.add(NOW + i * BUCKET, load, BUCKET)
    assert history.between(NOW, NOW + 2 * BUCKET) == (100.0, 400.0)
    assert history.between(NOW + BUCKET, NOW + DAY) == (200.0, 400.0)
    assert history.between(NOW - DAY, NOW) == (100.0, 100.0)
    assert history.between(NOW - DAY, NOW - BUCKET) is None
    assert history.mean(NOW + BUCKET, NOW + DAY) == 300.0
    assert history.add(NOW + 5 * BUCKET, 500.0, BUCKET).mean(NOW + 2 * BUCKET, NOW + DAY) == 350.0, "of what is known"
    assert history.mean(NOW - DAY, NOW - BUCKET) is None


def test_two_days_are_kept() -> None:
    history = EMPTY
    for i in range(3 * KEPT):
        history = history.add(NOW + i * BUCKET, float(i), BUCKET)
    assert len(history.tokens_per_second) == KEPT
    last = NOW + (3 * KEPT - 1) * BUCKET
    assert history.at(last) == 3 * KEPT - 1
    assert history.at(last - DAY) == 3 * KEPT - 1 - DAY / BUCKET
    assert history.at(last - 2 * DAY) is None


@pytest.mark.parametrize("away", [-BUCKET, -DAY, 3 * DAY])
def test_a_clock_that_went_elsewhere_begins_a_new_history(away: float) -> None:
    history = EMPTY.add(NOW, 100.0, 5.0).add(NOW + away, 200.0, 5.0)
    assert history.tokens_per_second == (200.0,)
    assert history.at(NOW + away) == 200.0


def test_a_clock_that_jitters_within_a_bucket_does_no_harm() -> None:
    history = EMPTY.add(NOW + 10, 100.0, 5.0).add(NOW + 5, 200.0, 5.0)
    assert history.tokens_per_second == (pytest.approx(150.0),)


@given(st.lists(st.tuples(st.floats(-1e4, 4e4), st.floats(0, 1e6), st.floats(0.1, 600)), min_size=1, max_size=60))
def test_whatever_comes_the_history_is_bounded_and_ends_now(steps: list[tuple[float, float, float]]) -> None:
    history, now = EMPTY, NOW
    for moved, load, seconds in steps:
        now += moved
        history = history.add(now, load, seconds)
        assert 1 <= len(history.tokens_per_second) <= KEPT
        assert history.first + len(history.tokens_per_second) - 1 == now // BUCKET
        assert 0 < history.seen <= BUCKET
        latest = history.at(now)
        assert latest is not None and 0 <= latest <= 1e6 * (1 + 1e-9)
