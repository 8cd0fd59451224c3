"""Quantiles of histograms, checked by counting the observations themselves."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdecode.model.histogram import Quantile, quantile
from specdecode.vllm.metrics import Histogram

BOUNDS = (0.01, 0.025, 0.05, 0.1, math.inf)
observations = st.lists(st.integers(1, 200).map(lambda ms: ms / 1000), max_size=30)


def of(values: list[float], bounds: tuple[float, ...] = BOUNDS) -> Histogram:
    counts = tuple(float(sum(v <= bound for v in values)) for bound in bounds)
    return Histogram(bounds, counts, math.fsum(values), float(len(values)))


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ([0.03] * 4, 0.5, Quantile(0.025, 0.05, pytest.approx(0.0375))),
        ([0.02, 0.03, 0.03, 0.07], 0.5, Quantile(0.025, 0.05, pytest.approx(0.0375))),
        ([0.02, 0.03, 0.03, 0.07], 0.25, Quantile(0.01, 0.025, pytest.approx(0.025))),
        ([0.004] * 99 + [0.07], 0.5, Quantile(0.0, 0.01, None)),
        ([0.004] * 99 + [0.07], 1.0, Quantile(0.05, 0.1, pytest.approx(0.1))),
        ([0.004, 7.0, 7.0], 0.95, Quantile(0.1, math.inf, None)),
        ([], 0.5, None),
    ],
)
def test_a_quantile_is_a_value_in_a_closed_bucket_and_a_bound_in_the_first_and_last(
    values: list[float], q: float, expected: Quantile | None
) -> None:
    assert quantile(of(values), q) == expected
    assert quantile(None, q) is None


@settings(deadline=None)
@given(observations.filter(bool), st.sampled_from((0.1, 0.5, 0.9, 0.95, 0.99, 1.0)))
def test_the_true_quantile_lies_between_the_ends(values: list[float], q: float) -> None:
    found = quantile(of(values), q)
    assert found is not None
    true = sorted(values)[math.ceil(q * len(values) - 1e-9) - 1]
    assert found.low < true <= found.high
    assert found.value is None or found.low <= found.value <= found.high


@pytest.mark.parametrize(
    ("found", "limit", "answer"),
    [
        (Quantile(0.0, 0.01, None), 0.01, False),
        (Quantile(0.0, 0.01, None), 0.005, None),
        (Quantile(0.1, math.inf, None), 0.1, True),
        (Quantile(0.1, math.inf, None), 0.5, None),
        (Quantile(0.025, 0.05, 0.04), 0.03, True),
        (Quantile(0.025, 0.05, 0.04), 0.045, False),
        (Quantile(0.025, 0.05, 0.04), 0.02, True),
    ],
)
def test_a_quantile_says_whether_it_exceeds_a_limit_or_that_it_cannot_tell(
    found: Quantile, limit: float, answer: bool | None
) -> None:
    assert found.exceeds(limit) is answer
