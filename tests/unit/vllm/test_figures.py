"""Rows of totals, held against the figures that they are made of."""

import math
from operator import add

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.vllm.figures import (
    COUNTERS,
    HISTOGRAMS,
    POSITIONS,
    WITH_QUANTILES,
    EngineSample,
    Histogram,
    Totals,
)

BOUNDS = (0.01, 0.1, math.inf)
FEWER = (0.1, math.inf)

counts = st.integers(0, 1000).map(float)
values = st.lists(st.sampled_from((0.005, 0.05, 0.5)), max_size=9)


def of(observed: list[float], bounds: tuple[float, ...] = BOUNDS) -> Histogram:
    below = tuple(float(sum(v <= bound for v in observed)) for bound in bounds)
    return Histogram(bounds, below, math.fsum(observed), float(len(observed)))


@st.composite
def samples(draw: st.DrawFn) -> EngineSample:
    """With some of the figures."""
    known = {name: draw(counts) for name in COUNTERS if draw(st.booleans())}
    of_requests = {
        name: of(draw(values), draw(st.sampled_from((BOUNDS, FEWER)))) for name in HISTOGRAMS if draw(st.booleans())
    }
    positions = tuple(draw(st.lists(counts, max_size=3)))
    return EngineSample(model_name="m", engine="0", accepted_per_position=positions, **known, **of_requests)


def figures(t: Totals) -> dict[str, object]:
    """All that totals tell."""
    return {
        **{name: t.counter(name) for name in COUNTERS},
        **{name: (t.count(name), t.mean(name)) for name in HISTOGRAMS},
        POSITIONS: t.positions,
        **{f"{name} by bucket": t.histogram(name) for name in WITH_QUANTILES},
    }


@given(samples())
def test_a_row_tells_the_figures_of_its_page(sample: EngineSample) -> None:
    found = figures(sample.totals)
    for name in COUNTERS:
        assert found[name] == getattr(sample, name)
    for name in HISTOGRAMS:
        h: Histogram | None = getattr(sample, name)
        assert found[name] == (h and h.count, h.sum / h.count if h is not None and h.count else None)
    assert found[POSITIONS] == sample.accepted_per_position
    assert {name: found[f"{name} by bucket"] for name in WITH_QUANTILES} == {
        name: getattr(sample, name) for name in WITH_QUANTILES
    }
    assert len(sample.totals.row) == sum(sample.totals.shape.parts)


@given(samples(), st.sets(st.sampled_from((*COUNTERS, *HISTOGRAMS, POSITIONS))))
def test_without_some_figures_a_row_is_that_of_a_page_without_them(sample: EngineSample, names: set[str]) -> None:
    known = {n: v for n, v in vars(sample).items() if n not in names and n != "totals"}
    expected = EngineSample(**known).totals
    found = sample.totals.without(names)
    assert (found.shape, figures(found)) == (expected.shape, figures(expected))


@given(samples(), st.data())
def test_a_figure_that_fell_is_named(sample: EngineSample, data: st.DataObject) -> None:
    now = sample.totals
    assert now.beyond(now) is None
    counted = [i for i, v in enumerate(now.row[: -len(HISTOGRAMS)]) if v > 0]
    if not counted:
        return
    i = data.draw(st.sampled_from(counted))
    fell = Totals((*now.row[:i], now.row[i] - 1.0, *now.row[i + 1 :]), now.shape)
    assert now.beyond(fell) in figures(now), "by the name of its field"
    assert fell.beyond(now) is None, "what grew"


@given(st.lists(values, min_size=1, max_size=3))
def test_rows_add_up_as_the_observations_do(parts: list[list[float]]) -> None:
    rows = [EngineSample(model_name="m", engine="0", ttft=of(part)).totals for part in parts]
    row = rows[0].row
    for other in rows[1:]:
        row = (*map(add, row, other.row),)
    whole = Totals(row, rows[0].shape).histogram("ttft")
    everything = of([v for part in parts for v in part])
    assert whole is not None
    assert (whole.counts, whole.count, whole.sum) == (
        everything.counts,
        everything.count,
        pytest.approx(everything.sum),
    )


def test_the_sum_of_a_histogram_may_fall() -> None:
    before, after = (
        EngineSample(model_name="m", engine="0", ttft=Histogram(BOUNDS, (0.0, 1.0, 1.0), total, 1.0)).totals
        for total in (0.05, 0.04)
    )
    assert before.beyond(after) is None
