from hypothesis import given
from hypothesis import strategies as st

from specdecode.lab.backoff import BackOff


def test_restarts_wait_as_long_as_with_a_kubelet() -> None:
    assert [BackOff().delay(restarts) for restarts in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]


@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(0.01, 1000))
def test_a_wait_never_shrinks_and_never_passes_the_cap(restarts: int, base: float, cap: float) -> None:
    back_off = BackOff(base, cap)
    assert back_off.delay(restarts) <= back_off.delay(restarts + 1) <= cap


def test_only_a_run_longer_than_twice_the_cap_ends_a_series_of_crashes() -> None:
    back_off = BackOff(base=1.0, cap=30.0)
    assert back_off.series_after(4, ran_for=60.0) == 4
    assert back_off.series_after(4, ran_for=60.1) == 0
