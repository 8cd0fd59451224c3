"""What users got, half an hour by half an hour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.model.service import HALF_HOUR, KEPT, RECENT, Glance, HalfHour, add, latest

NOW = 1_000_000 * HALF_HOUR
Record = tuple[HalfHour, ...]


def served(*looks: tuple[float, float, Glance]) -> Record:
    """So many seconds after `NOW`, for so many seconds."""
    record: Record = ()
    for after, seconds, seen in looks:
        record = add(record, NOW + after, seconds, seen)
    return record


def at(load: float, tpot: float, prompt_length: float = 100.0) -> Glance:
    return Glance(load, load, tpot, prompt_length)


def test_nothing_is_known_before_the_first_look() -> None:
    assert latest((), NOW) is None
    assert latest(served((1.0, 60.0, at(0.0, 0.02))), NOW) is None, "nothing was served"
    assert latest((HalfHour(int(NOW // HALF_HOUR), 60.0, 1e4, 1e6, 1e4),), NOW) is None, "no record of ours"


def test_each_token_weighs_the_same() -> None:
    service = latest(served((60.0, 60.0, at(100.0, 0.010, 50.0)), (180.0, 120.0, at(400.0, 0.040, 200.0))), NOW)
    assert service is not None
    assert service.seconds == 180.0
    assert service.tpot == pytest.approx((100 * 60 * 0.010 + 400 * 120 * 0.040) / (100 * 60 + 400 * 120))
    assert service.load == pytest.approx((100**2 * 60 + 400**2 * 120) / (100 * 60 + 400 * 120)), "as the mean token met"
    assert service.prompt_length == pytest.approx((100 * 60 * 50 + 400 * 120 * 200) / (100 * 60 + 400 * 120))


def test_what_is_asked_for_is_not_what_is_served() -> None:
    """A queue grows."""
    service = latest(served((60.0, 60.0, Glance(300.0, 200.0, 0.05, 100.0))), NOW)
    assert service is not None and service.load == 300.0 and service.tpot == pytest.approx(0.05)


def test_the_last_hour_of_service_tells_whenever_it_was() -> None:
    looks = [(n * HALF_HOUR, 1500.0, at(100.0, 0.02)) for n in range(4)]
    record = served(*looks, (20 * HALF_HOUR, 1500.0, at(100.0, 0.04)), (22 * HALF_HOUR, 1500.0, at(100.0, 0.04)))
    service = latest(record, NOW)
    assert service is not None and service.seconds == 4500.0 >= RECENT
    assert service.tpot == pytest.approx((2 * 0.04 + 0.02) / 3)


def test_half_hours_that_ended_before_a_time_tell_nothing_any_more() -> None:
    record = served((0.0, 900.0, at(100.0, 0.02)), (4 * HALF_HOUR, 900.0, at(100.0, 0.04)))
    service = latest(record, NOW + 2 * HALF_HOUR)
    assert service is not None and service.seconds == 900.0 and service.tpot == pytest.approx(0.04)
    assert latest(record, NOW + 6 * HALF_HOUR) is None


def test_half_hours_of_less_load_are_passed_over() -> None:
    record = served((0.0, 900.0, at(300.0, 0.02)), (HALF_HOUR, 900.0, at(100.0, 0.01)))
    service = latest(record, NOW, least_load=200.0)
    assert service is not None and service.load == pytest.approx(300.0) and service.tpot == pytest.approx(0.02)
    assert latest(record, NOW, least_load=301.0) is None


LOOKS = st.lists(
    st.tuples(
        st.floats(1.0, 4 * HALF_HOUR),
        st.builds(Glance, st.floats(0.0, 1e5), st.floats(1.0, 1e5), st.floats(1e-3, 1.0), st.floats(0.0, 1e5)),
    ),
    min_size=1,
    max_size=60,
)


@given(LOOKS)
def test_the_record_is_bounded_and_in_order_and_no_mean_is_beyond_what_was_seen(
    looks: list[tuple[float, Glance]],
) -> None:
    record: Record = ()
    now = NOW
    for passed, seen in looks:
        now += passed
        record = add(record, now, min(passed, HALF_HOUR), seen)
    assert len(record) <= KEPT
    assert [h.number for h in record] == sorted({h.number for h in record})
    service = latest(record, NOW)
    if service is not None:
        assert min(s.tpot for _, s in looks) * 0.999 <= service.tpot <= max(s.tpot for _, s in looks) * 1.001
        assert service.load <= max(s.asked for _, s in looks) * 1.001
