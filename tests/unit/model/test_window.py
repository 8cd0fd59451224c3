"""The recent readings of a pod."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.model.measure import Activity, Change, Measurement, Reason, Unmeasured, change_between
from specdecode.model.window import Reading, Spread, Window, acceptance_spread, pods_together
from specdecode.vllm.metrics import EngineSample, Histogram, Page


def page(
    generated: float, *, drafted: float = 0.0, accepted: float = 0.0, start: float = 1.0, running: float = 1
) -> Page:
    sample = EngineSample(
        model_name="m",
        engine="0",
        running=running,
        generation_tokens=generated,
        drafts=drafted / 4,
        draft_tokens=drafted,
        accepted_tokens=accepted,
    )
    return Page((sample,), process_start=start)


def window(readings: Iterable[tuple[float, Page]], seconds: float = 300.0, limit: int = 240) -> Window:
    result = Window(seconds, limit)
    for t, read in readings:
        result = result.add(read, t)
    return result


def test_a_window_of_one_reading_says_nothing() -> None:
    for few in (Window(300.0), window([(0.0, page(0))])):
        assert (few.change, few.measurement, few.activity) == (None, None, None)
        assert pods_together([few]) is None
        assert acceptance_spread([few]) is None


def test_adding_a_reading_leaves_the_window_that_it_was_added_to() -> None:
    before = window([(0.0, page(0)), (15.0, page(150))])
    after = before.add(page(600), 30.0)
    assert [r.t for r in before.readings] == [0.0, 15.0]
    assert [r.t for r in after.readings] == [0.0, 15.0, 30.0]


def generated(w: Window) -> list[tuple[float, float | None]]:
    """Seconds and output tokens from reading to reading, where they can be measured."""
    changes = [r.change for r in w.readings if isinstance(r.change, Change)]
    return [(c.seconds, c.totals.counter("generation_tokens")) for c in changes]


def test_the_whole_spans_the_window_and_its_changes_the_readings() -> None:
    w = window([(0.0, page(0)), (15.0, page(150)), (35.0, page(650))])
    assert isinstance(w.measurement, Measurement)
    assert (w.measurement.seconds, w.measurement.generation_tokens) == (35.0, 650.0)
    assert generated(w) == [(15.0, 150.0), (20.0, 500.0)]


def test_old_readings_and_too_many_are_dropped() -> None:
    readings = [(15.0 * n, page(100.0 * n)) for n in range(20)]
    by_age = window(readings, seconds=60.0)
    assert [r.t for r in by_age.readings] == [225.0, 240.0, 255.0, 270.0, 285.0]
    assert isinstance(by_age.measurement, Measurement)
    assert (by_age.measurement.seconds, by_age.measurement.generation_tokens) == (60.0, 400.0)
    stretches = window([(15.0 * n, steps(100.0 * n)) for n in range(20)], seconds=60.0).stretches(50.0)
    assert len(list(stretches)) == 4, "the part that began before the window is not in it"
    assert [r.t for r in window(readings, limit=2).readings] == [270.0, 285.0]
    with pytest.raises(ValueError, match="at least 2"):
        Window(60.0, limit=1)


def test_a_reading_after_a_long_silence_starts_anew() -> None:
    w = window([(0.0, page(0)), (1000.0, page(10))])
    assert [r.t for r in w.readings] == [1000.0]
    assert w.change is None


def test_a_restart_splits_the_readings() -> None:
    w = window([(0.0, page(0)), (15.0, page(150)), (30.0, page(20, start=2.0))])
    assert isinstance(w.change, Unmeasured) and w.change.reason is Reason.RESTARTED
    assert w.measurement is w.change
    assert w.activity is None
    assert generated(w) == [(15.0, 150.0)]

    w = w.add(page(320, start=2.0), 45.0)
    assert isinstance(w.measurement, Measurement)
    assert (w.measurement.seconds, w.measurement.generation_tokens) == (15.0, 300.0)
    assert generated(w) == [(15.0, 150.0), (15.0, 300.0)], "what the old process did still counts"


def test_a_clock_that_goes_back_or_stands_still_starts_the_window_anew() -> None:
    before = window([(0.0, page(0)), (100.0, page(150))])
    for t in (100.0, 50.0, -1e9):
        after = before.add(page(200), t)
        assert [r.t for r in after.readings] == [t]
        assert after.change is None


def test_a_page_that_lost_series_is_not_taken_while_its_process_goes_on() -> None:
    w = window([(0.0, page(0)), (15.0, page(150))])
    (sample,) = page(300).engines
    cut = Page((dataclasses.replace(sample, generation_tokens=None),), process_start=1.0)
    assert w.add(cut, 30.0) is w
    unknown_process = dataclasses.replace(cut, process_start=None)
    taken = w.add(unknown_process, 30.0).change
    assert isinstance(taken, Unmeasured) and taken.reason is Reason.SERIES_VANISHED


@pytest.mark.parametrize(
    ("tokens", "running", "activity"),
    [
        ([0, 10, 20, 30, 40, 50], 1, Activity.SERVING),
        ([0, 10, 10, 10, 10, 10], 1, Activity.STALLED),
        ([0, 10, 20, 20, 20, 20], 1, Activity.WAITING),
        ([10, 10, 10, 10, 10, 20], 1, Activity.SERVING),
        ([0, 10, 20, 20, 20, 20], 0, Activity.IDLE),
    ],
)
def test_a_stall_is_seen_over_several_readings(tokens: list[float], running: float, activity: Activity) -> None:
    assert window((15.0 * n, page(t, running=running)) for n, t in enumerate(tokens)).activity is activity


def test_pods_are_measured_together_where_they_can_be() -> None:
    serving = window([(0.0, page(0, drafted=0)), (10.0, page(100, drafted=100, accepted=80))])
    other = window([(3.0, page(0)), (23.0, page(400, drafted=300, accepted=60))])
    new = window([(5.0, page(0))])
    together = pods_together([serving, other, new])
    assert together is not None
    assert together.engines == 2
    assert together.acceptance_rate == pytest.approx(140 / 400)
    assert together.generation_tokens_per_second == pytest.approx(10.0 + 20.0)


def drafting(*parts: tuple[float, float]) -> Window:
    """A pod by what it drafted and how much of that was accepted, reading by reading."""
    drafted, accepted = (
        itertools.accumulate([0, *(p[0] for p in parts)]),
        itertools.accumulate([0, *(p[1] for p in parts)]),
    )
    return window(
        (1.0 * n, page(n, drafted=d, accepted=a)) for n, (d, a) in enumerate(zip(drafted, accepted, strict=True))
    )


def test_acceptance_is_spread_over_parts_and_pods_by_what_they_drafted() -> None:
    """Drafted at 0.2: 200 tokens, at 0.5: 200, at 0.8: 600; and a part that drafted nothing."""
    one = drafting((200, 40), (200, 100), (0, 0))
    two = drafting((600, 480))
    assert acceptance_spread([one, two]) == Spread(p10=0.2, p50=0.8, p90=0.8, draft_tokens=1000.0)
    assert acceptance_spread([one]) == Spread(p10=0.2, p50=0.2, p90=0.5, draft_tokens=400.0)


def test_readings_with_few_drafts_are_taken_together_until_they_tell() -> None:
    """Twice 100 drafted tokens are one part; what comes after the last whole part is left out."""
    assert acceptance_spread([drafting((100, 100), (100, 20), (150, 0))]) == Spread(0.6, 0.6, 0.6, draft_tokens=200.0)


def test_parts_are_never_mixed_across_pods() -> None:
    assert acceptance_spread([drafting((199, 10)), drafting((199, 190))]) is None


def test_chance_alone_does_not_spread_the_acceptance_of_a_quiet_pod() -> None:
    """Four drafted tokens a reading, each all accepted or none: at most 200 of them make a rate."""
    coins = [(4.0, 4.0 if n % 4 else 0.0) for n in range(200)]
    spread = acceptance_spread([drafting(*coins)])
    assert spread is not None
    assert (spread.p10, spread.p90) == pytest.approx((0.75, 0.75), abs=0.02)


def test_a_restart_does_not_end_a_part() -> None:
    """Drafts count whichever process made them."""
    w = drafting((100, 50)).add(page(0, start=2.0), 2.0).add(page(1, drafted=100, accepted=100, start=2.0), 3.0)
    assert acceptance_spread([w]) == Spread(0.75, 0.75, 0.75, draft_tokens=200.0)


def test_without_counters_there_is_no_spread() -> None:
    def v0(gauge: float) -> Page:
        return Page((EngineSample(model_name="m", engine="0", draft_acceptance_gauge=gauge),))

    w = window([(0.0, v0(0.7)), (15.0, v0(0.8))])
    assert isinstance(w.change, Change)
    assert acceptance_spread([w]) is None


def test_a_stretch_is_as_short_as_its_steps_allow() -> None:
    """Two requests and then ten: it takes five readings of two, or one of ten."""
    window = Window(1000.0)
    count = tokens = 0.0
    for t in range(0, 60, 5):
        batch = 2.0 if t <= 30 else 10.0
        count, tokens = count + 100 * batch, tokens + 100.0
        sample = EngineSample(
            model_name="m",
            engine="0",
            inter_token=Histogram((math.inf,), (count,), count * 0.02, count),
            iteration_tokens=Histogram((math.inf,), (tokens,), tokens, tokens),
        )
        window = window.add(Page((sample,), 1.0), float(t))
    found = [(t, m.seconds, m.requests_per_step) for t, m in window.stretches(900.0)]
    assert found[:2] == [(25.0, 25.0, 2.0), (35.0, 10.0, 6.0)]
    assert found[2:] == [(t, 5.0, 10.0) for t in (40.0, 45.0, 50.0, 55.0)]
    assert not list(window.stretches(1e9)), "the window does not hold as many"
    assert not list(Window(60.0).stretches(1.0))


def steps(count: float, *, start: float | None = 1.0, engines: int = 1, edge: float = math.inf) -> Page:
    """A page of engines that made so many request-steps each; with no edge, one that does not count them."""
    bounds = tuple(dict.fromkeys((edge, math.inf)))
    histogram = Histogram(bounds, (count,) * len(bounds), count * 0.02, count) if edge > 0 else None
    return Page(
        tuple(
            EngineSample(model_name="m", engine=str(i), generation_tokens=count, inter_token=histogram)
            for i in range(engines)
        ),
        process_start=start,
    )


@pytest.mark.parametrize(
    ("pages", "tokens"),
    [
        pytest.param([steps(0), steps(9, start=None), steps(3)], Reason.COUNTER_RESET, id="counters fell"),
        pytest.param([steps(5), steps(0, start=None), steps(7, start=None)], 7.0, id="counters fell, then rose"),
        pytest.param(
            [steps(0), steps(5, start=None), steps(9, start=2.0)], Reason.RESTARTED, id="the start was not always shown"
        ),
        pytest.param([steps(0), steps(5, edge=0.1), steps(9, edge=0.1)], 4.0, id="buckets changed"),
        pytest.param([steps(0), steps(5, engines=2), steps(9, engines=2)], 8.0, id="an engine came"),
        pytest.param([steps(0, edge=0), steps(5), steps(9)], 9.0, id="a series came"),
        pytest.param([steps(0, start=None), steps(5, edge=0, start=None)], Reason.SERIES_VANISHED, id="a series went"),
    ],
)
def test_the_whole_begins_where_the_last_measurable_pages_do(pages: list[Page], tokens: float | Reason) -> None:
    change = window((15.0 * n, p) for n, p in enumerate(pages)).change
    if isinstance(change, Change):
        assert change.totals.counter("generation_tokens") == tokens
    else:
        assert change is not None and change.reason is tokens


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(steps(100, start=2.0), id="restart"),
        pytest.param(steps(20), id="counters fell"),
        pytest.param(steps(1200, edge=0.1), id="buckets changed"),
        pytest.param(steps(1200, engines=2), id="an engine came"),
    ],
)
def test_a_stretch_does_not_reach_over_a_break(broken: Page) -> None:
    w = window([(0.0, steps(0)), (15.0, steps(40)), (30.0, broken)])
    assert not list(w.stretches(50.0))
    grown = dataclasses.replace(
        broken, engines=tuple(dataclasses.replace(e, inter_token=after_100_more(e.inter_token)) for e in broken.engines)
    )
    after = w.add(grown, 45.0)
    ((t, found),) = after.stretches(50.0)
    assert (t, found.seconds, found.request_steps) == (45.0, 15.0, 100.0 * len(broken.engines))
    assert not list(after.stretches(1000.0))


def after_100_more(h: Histogram | None) -> Histogram:
    assert h is not None
    return Histogram(h.bounds, tuple(n + 100 for n in h.counts), h.sum + 2, h.count + 100)


def test_steps_that_are_not_counted_make_no_stretch() -> None:
    assert not list(window([(0.0, steps(0, edge=0)), (15.0, steps(1000, edge=0))]).stretches(1.0))
    w = window([(0.0, steps(0, edge=0)), (15.0, steps(1000)), (30.0, steps(1100))])
    assert [t for t, _ in w.stretches(50.0)] == [30.0], "the counts of the first page are not known"


def test_since_takes_the_readings_from_a_time_on() -> None:
    w = window((15.0 * n, page(100.0 * n)) for n in range(5))
    for t, kept in ((-1.0, 5), (0.0, 5), (1.0, 4), (15.0, 4), (60.0, 1), (61.0, 0)):
        part = w.since(t)
        assert (part.readings, part.seconds, part.limit) == (w.readings[5 - kept :], w.seconds, w.limit)
    assert isinstance(w.since(30.0).measurement, Measurement)


gaps = st.sampled_from((15.0, 15.0, 15.0, 40.0, 0.0, -20.0))
starts = st.sampled_from((1.0, 1.0, 1.0, None, 2.0))
engines, edges = st.sampled_from((1, 1, 1, 2)), st.sampled_from((math.inf, math.inf, 0.1, 0.0))
pages = st.fixed_dictionaries({"start": starts, "engines": engines, "edge": edges})
moves = st.tuples(gaps, st.integers(-2, 9), pages)


@given(st.lists(moves, max_size=12), st.integers(2, 6), st.integers(1, 20))
def test_a_window_says_what_its_pages_say_whatever_they_are(
    what: list[tuple[float, int, dict[str, Any]]], limit: int, wanted: int
) -> None:
    """Against the definitions, read out one by one from the pages."""
    now = count = 0.0
    w, model = Window(60.0, limit), list[Reading]()
    for gap, made, how in what:
        now, count = now + gap, max(0.0, count + made)
        read = steps(count, **how)
        w, model = w.add(read, now), by_definition(model, read, now, limit)
        assert list(w.readings) == model
        assert w.change == whole(model)
        found = [(t, m.seconds, m.request_steps) for t, m in w.stretches(wanted)]
        assert found == stretches(model, wanted)


def by_definition(readings: list[Reading], read: Page, t: float, limit: int) -> list[Reading]:
    if not readings or t <= readings[-1].t:
        return [Reading(t, read, None)]
    last = readings[-1]
    change = change_between(last.page, read, t - last.t)
    same_process = read.process_start is not None and read.process_start == last.page.process_start
    if isinstance(change, Unmeasured) and change.reason is Reason.SERIES_VANISHED and same_process:
        return readings
    return [*(r for r in readings if r.t >= t - 60.0), Reading(t, read, change)][-limit:]


def unbroken(readings: list[Reading]) -> list[Reading]:
    """The newest readings that can all be compared, each with the one before."""
    kept: list[Reading] = []
    for reading in reversed(readings):
        kept.insert(0, reading)
        if not isinstance(reading.change, Change):
            break
    return kept


def whole(readings: list[Reading]) -> Change | Unmeasured | None:
    if len(readings) < 2:
        return None
    first, *_, newest = kept if len(kept := unbroken(readings)) > 1 else readings[-2:]
    return change_between(first.page, newest.page, newest.t - first.t)


def stretches(readings: list[Reading], request_steps: float) -> list[tuple[float, float, float]]:
    found = []
    first = readings[0]
    for reading in readings[1:]:
        own, whole = reading.change, change_between(first.page, reading.page, reading.t - first.t)
        if not isinstance(own, Change) or own.totals.count("inter_token") is None:
            first = reading
            continue
        count = _count_of(whole)
        if isinstance(whole, Change) and count is not None and count >= request_steps:
            found.append((reading.t, whole.seconds, count))
            first = reading
    return found


def _count_of(change: Change | Unmeasured) -> float | None:
    return change.totals.count("inter_token") if isinstance(change, Change) else None
