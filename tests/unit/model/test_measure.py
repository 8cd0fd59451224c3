"""What two readings say, on readings written by hand."""

import dataclasses
import math
from typing import Any

import pytest

from specdecode.model.histogram import Quantile
from specdecode.model.measure import (
    Activity,
    Change,
    Measurement,
    Reason,
    Unmeasured,
    change_between,
    gauges,
    measure,
    measurement,
)
from specdecode.vllm.metrics import EngineSample, Histogram, Page

BOUNDS = (0.01, 0.025, math.inf)


def observed(count: float, total: float, *cumulative: float) -> Histogram:
    """With `cumulative` counts at 0.01 and 0.025; all in the middle bucket unless said."""
    return Histogram(BOUNDS, (*(cumulative or (0.0, count)), count), total, count)


def sample(**figures: Any) -> EngineSample:
    return EngineSample(**{"model_name": "m", "engine": "0"} | figures)


BEFORE = sample(
    running=4.0,
    waiting=0.0,
    kv_usage=0.1,
    kv_cache_tokens=1000.0,
    preemptions=1.0,
    prompt_tokens=5000.0,
    generation_tokens=1000.0,
    requests={"stop": 10.0, "length": 2.0, "abort": 1.0, "error": 0.0},
    drafts=400.0,
    draft_tokens=1200.0,
    accepted_tokens=500.0,
    accepted_per_position=(250.0, 150.0, 100.0),
    ttft=observed(14, 1.4),
    inter_token=observed(450, 9.0),
    tpot=observed(13, 0.13),
    iteration_tokens=observed(120, 6000.0),
    queue_time=observed(13, 0.0),
    prompt_length=observed(13, 1300.0),
    output_length=observed(13, 900.0),
)
AFTER = sample(
    running=8.0,
    waiting=3.0,
    kv_usage=0.4,
    kv_cache_tokens=1000.0,
    preemptions=2.0,
    prompt_tokens=6000.0,
    generation_tokens=1510.0,
    requests={"stop": 16.0, "length": 4.0, "abort": 2.0, "error": 1.0},
    drafts=560.0,
    draft_tokens=1680.0,
    accepted_tokens=812.0,
    accepted_per_position=(378.0, 246.0, 188.0),
    ttft=observed(24, 2.4),
    inter_token=observed(650, 13.0),
    tpot=observed(23, 0.23),
    iteration_tokens=observed(145, 7510.0),
    queue_time=observed(23, 5.0),
    prompt_length=observed(23, 2300.0),
    output_length=observed(23, 1700.0),
)


def pages(before: EngineSample, after: EngineSample) -> tuple[Page, Page]:
    return Page((before,), process_start=1.0), Page((after,), process_start=1.0)


def test_two_readings_give_every_figure() -> None:
    found = measure(*pages(BEFORE, AFTER), 10.0)
    assert isinstance(found, Measurement)
    expected = {
        "seconds": 10.0,
        "engines": 1,
        "activity": Activity.SERVING,
        "acceptance_rate": 312 / 480,
        "accepted_length": 1 + 312 / 160,
        "per_position": (128 / 160, 96 / 160, 88 / 160),
        "tokens_per_step": (510 - 10) / 200,
        "step_seconds": 4.0 / 200,
        "tpot_seconds": 0.1 / 10,
        "ttft_seconds": 1.0 / 10,
        "queue_seconds": 0.5,
        "batch_size": 8.0,
        "requests_per_step": 200 / 25,
        "waiting": 3.0,
        "kv_usage": 0.4,
        "kv_cache_tokens": 1000.0,
        "preemptions": 1.0,
        "generation_tokens_per_second": 51.0,
        "prompt_tokens_per_second": 100.0,
        "prompt_length": 100.0,
        "output_length": 80.0,
        "finished": 8.0,
        "aborted": 1.0,
        "errored": 1.0,
        "client_errors": 0.0,
        "server_errors": 0.0,
        "drafts": 160.0,
        "draft_tokens": 480.0,
        "accepted_tokens": 312.0,
        "generation_tokens": 510.0,
        "steps": 25.0,
        "request_steps": 200.0,
    }
    rest = {name: getattr(found, name) for name in ("tpot", "ttft")}
    assert expected.keys() | rest.keys() == {f.name for f in dataclasses.fields(Measurement)}
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value), name
    assert found.tpot is not None
    assert found.tpot.p50 == Quantile(0.01, 0.025, pytest.approx(0.0175))
    assert found.tpot.p99 == Quantile(0.01, 0.025, pytest.approx(0.02485))


def changed(**figures: Any) -> EngineSample:
    return dataclasses.replace(AFTER, **figures)


@pytest.mark.parametrize(
    ("before", "after", "unknown"),
    [
        pytest.param(
            dataclasses.replace(BEFORE, drafts=None, draft_tokens=None, accepted_tokens=None, accepted_per_position=()),
            changed(drafts=None, draft_tokens=None, accepted_tokens=None, accepted_per_position=()),
            {"acceptance_rate", "accepted_length", "per_position", "drafts", "draft_tokens", "accepted_tokens"},
            id="no speculation",
        ),
        pytest.param(
            BEFORE,
            changed(
                drafts=400.0, draft_tokens=1200.0, accepted_tokens=500.0, accepted_per_position=(250.0, 150.0, 100.0)
            ),
            {"acceptance_rate", "accepted_length", "per_position"},
            id="K = 0 drafts nothing",
        ),
        pytest.param(
            dataclasses.replace(BEFORE, drafts=None, accepted_per_position=()),
            changed(drafts=None, accepted_per_position=()),
            {"accepted_length", "per_position", "drafts"},
            id="0.8.3 does not count drafts",
        ),
        pytest.param(
            dataclasses.replace(BEFORE, tpot=None),
            changed(tpot=None),
            {"tpot_seconds", "tpot"},
            id="no TPOT before 0.11",
        ),
        pytest.param(BEFORE, changed(tpot=BEFORE.tpot), {"tpot_seconds", "tpot"}, id="nothing finished"),
        pytest.param(BEFORE, changed(ttft=BEFORE.ttft), {"ttft_seconds", "ttft"}, id="nothing started"),
        pytest.param(
            BEFORE,
            changed(inter_token=BEFORE.inter_token),
            {"step_seconds", "tokens_per_step"},
            id="prefills only",
        ),
        pytest.param(
            dataclasses.replace(BEFORE, prompt_tokens=None),
            AFTER,
            {"prompt_tokens_per_second"},
            id="a series that was not there before",
        ),
        pytest.param(
            BEFORE, changed(running=None, kv_usage=None), {"batch_size", "kv_usage"}, id="gauges that are NaN"
        ),
    ],
)
def test_what_cannot_be_measured_is_none_and_the_rest_is_measured(
    before: EngineSample, after: EngineSample, unknown: set[str]
) -> None:
    found = measure(*pages(before, after), 10.0)
    assert isinstance(found, Measurement)
    assert {f.name for f in dataclasses.fields(found) if getattr(found, f.name) is None} == unknown


def test_a_draft_of_which_nothing_is_accepted_is_measured() -> None:
    after = changed(accepted_tokens=500.0, accepted_per_position=(250.0, 150.0, 100.0))
    found = measure(*pages(BEFORE, after), 10.0)
    assert isinstance(found, Measurement)
    assert (found.acceptance_rate, found.accepted_length, found.per_position) == (0.0, 1.0, (0.0, 0.0, 0.0))


def test_the_v0_engine_shows_acceptance_by_its_gauge() -> None:
    off = {"drafts": None, "draft_tokens": None, "accepted_tokens": None, "accepted_per_position": ()}
    before = dataclasses.replace(BEFORE, draft_acceptance_gauge=0.6, **off)
    found = measure(*pages(before, changed(draft_acceptance_gauge=0.7, **off)), 10.0)
    assert isinstance(found, Measurement)
    assert (found.acceptance_rate, found.accepted_length, found.draft_tokens) == (0.7, None, None)


@pytest.mark.parametrize(
    ("before", "after", "seconds", "reason"),
    [
        (Page((BEFORE,), 1.0), Page((AFTER,), 2.0), 10.0, Reason.RESTARTED),
        (Page((AFTER,), 1.0), Page((BEFORE,), 1.0), 10.0, Reason.COUNTER_RESET),
        (Page((AFTER,)), Page((BEFORE,)), 10.0, Reason.COUNTER_RESET),
        (Page((BEFORE,)), Page((changed(ttft=observed(1, 0.1)),)), 10.0, Reason.COUNTER_RESET),
        (Page((BEFORE,)), Page((changed(requests={**AFTER.requests, "abort": 0.0}),)), 10.0, Reason.COUNTER_RESET),
        (Page((BEFORE,)), Page((changed(accepted_per_position=(249.0, 250.0, 100.0)),)), 10.0, Reason.COUNTER_RESET),
        (Page((BEFORE,)), Page((changed(accepted_per_position=(378.0,)),)), 10.0, Reason.SERIES_VANISHED),
        (Page((BEFORE,)), Page((changed(generation_tokens=None),)), 10.0, Reason.SERIES_VANISHED),
        (Page((BEFORE,)), Page((changed(tpot=None),)), 10.0, Reason.SERIES_VANISHED),
        (Page((BEFORE,)), Page((changed(requests={"stop": 16.0}),)), 10.0, Reason.SERIES_VANISHED),
        (
            Page((BEFORE,), http_requests={("/v1/completions", "2xx"): 1.0}),
            Page((AFTER,)),
            10.0,
            Reason.SERIES_VANISHED,
        ),
        (
            Page((BEFORE,), http_requests={("/v1/completions", "2xx"): 2.0}),
            Page((AFTER,), http_requests={("/v1/completions", "2xx"): 1.0}),
            10.0,
            Reason.COUNTER_RESET,
        ),
        (Page((BEFORE,)), Page((AFTER, changed(engine="1"))), 10.0, Reason.ENGINES_CHANGED),
        (Page((BEFORE,)), Page((changed(model_name="other"),)), 10.0, Reason.ENGINES_CHANGED),
        (Page((BEFORE,)), Page((AFTER,)), 0.0, Reason.CLOCK_WENT_BACK),
        (Page((BEFORE,)), Page((AFTER,)), -5.0, Reason.CLOCK_WENT_BACK),
        (Page((BEFORE,)), Page((AFTER,)), math.nan, Reason.CLOCK_WENT_BACK),
    ],
)
def test_readings_that_cannot_be_compared_give_a_reason_instead(
    before: Page, after: Page, seconds: float, reason: Reason
) -> None:
    found = measure(before, after, seconds)
    assert isinstance(found, Unmeasured)
    assert found.reason is reason
    assert str(found).startswith(f"{reason}: ")


def test_failed_answers_are_counted_from_their_first() -> None:
    before = Page((BEFORE,), http_requests={("/v1/completions", "2xx"): 7.0, ("/v1/completions", "4xx"): 1.0})
    after = Page(
        (AFTER,),
        http_requests={
            ("/v1/completions", "2xx"): 9.0,
            ("/v1/completions", "4xx"): 4.0,
            ("/v1/chat/completions", "4xx"): 2.0,
            ("/v1/completions", "5xx"): 1.0,
        },
    )
    found = measure(before, after, 10.0)
    assert isinstance(found, Measurement)
    assert (found.client_errors, found.server_errors) == (5.0, 1.0)


@pytest.mark.parametrize(("finished", "failed"), [(0.0, 3.0), (12.0, 0.0)])
def test_answers_of_a_page_that_was_cut_before_them_are_not_taken_for_new_ones(finished: float, failed: float) -> None:
    before = Page((dataclasses.replace(BEFORE, requests={"stop": finished}),))
    after = Page((changed(requests={"stop": 20.0}),), http_requests={("/v1/completions", "4xx"): 3.0})
    found = measure(before, after, 10.0)
    assert isinstance(found, Measurement)
    assert found.client_errors == failed


def test_a_reason_that_was_not_there_before_is_not_counted() -> None:
    before = dataclasses.replace(BEFORE, requests={"stop": 10.0})
    found = measure(*pages(before, AFTER), 10.0)
    assert isinstance(found, Measurement)
    assert (found.finished, found.aborted) == (6.0, 0.0)


@pytest.mark.parametrize(
    ("was", "now", "seconds", "activity"),
    [
        ({"running": 0.0}, {"running": 0.0}, 300.0, Activity.IDLE),
        ({"running": 2.0}, {"running": 0.0}, 300.0, Activity.IDLE),
        ({"running": 0.0}, {"running": 2.0}, 300.0, Activity.WAITING),
        ({"running": 2.0}, {"running": 2.0}, 59.0, Activity.WAITING),
        ({"running": 2.0}, {"running": 2.0}, 60.0, Activity.STALLED),
        ({"running": 0.0, "waiting": 1.0}, {"running": 0.0, "waiting": 3.0}, 60.0, Activity.STALLED),
        ({"running": 2.0}, {"running": 2.0, "generation_tokens": 1001.0}, 60.0, Activity.SERVING),
        ({"running": 2.0}, {"running": 0.0, "prompt_tokens": 5001.0}, 60.0, Activity.SERVING),
    ],
)
def test_a_pod_without_progress_is_idle_or_stalled(
    was: dict[str, float], now: dict[str, float], seconds: float, activity: Activity
) -> None:
    quiet = dataclasses.replace(BEFORE, waiting=0.0)
    found = measure(*pages(dataclasses.replace(quiet, **was), dataclasses.replace(quiet, **now)), seconds)
    assert isinstance(found, Measurement)
    assert found.activity is activity


def test_engines_of_a_pod_are_added_before_they_are_divided() -> None:
    """Two engines: one drafts 480 tokens of which 312 are accepted, the other 100 of which none is."""
    start = dataclasses.replace(BEFORE, engine="1")
    end = dataclasses.replace(
        start, engine="1", draft_tokens=1300.0, drafts=450.0, generation_tokens=1050.0, running=2.0, kv_usage=0.1,
        kv_cache_tokens=3000.0, inter_token=observed(500, 11.5), iteration_tokens=observed(145, 6000.0),
    )  # fmt: skip
    found = measure(Page((BEFORE, start)), Page((AFTER, end)), 10.0)
    assert isinstance(found, Measurement)
    assert found.engines == 2
    assert found.acceptance_rate == pytest.approx(312 / 580)
    assert found.accepted_length == pytest.approx(1 + 312 / 210)
    assert found.per_position == pytest.approx((128 / 210, 96 / 210, 88 / 210))
    assert found.batch_size == 10.0
    assert found.requests_per_step == pytest.approx(250 / 50), "per engine"
    assert found.step_seconds == pytest.approx((4.0 + 2.5) / 250)
    assert found.tokens_per_step == pytest.approx((500 + 50) / 250)
    assert found.kv_usage == pytest.approx((0.4 * 1000 + 0.1 * 3000) / 4000)
    assert found.kv_cache_tokens == 4000.0
    assert found.generation_tokens_per_second == pytest.approx(56.0)
    assert found.finished == 8.0


def test_pods_add_their_rates_over_their_own_times_and_lack_what_one_lacks() -> None:
    whole = change_between(*pages(BEFORE, AFTER), 10.0)
    slow = change_between(*pages(BEFORE, AFTER), 20.0)
    old = change_between(*pages(dataclasses.replace(BEFORE, tpot=None), changed(tpot=None, kv_cache_tokens=None)), 10.0)
    assert isinstance(whole, Change) and isinstance(slow, Change) and isinstance(old, Change)

    both = measurement([whole, slow])
    assert both.generation_tokens_per_second == pytest.approx(51.0 + 25.5)
    assert (both.seconds, both.engines, both.batch_size, both.finished) == (20.0, 2, 16.0, 16.0)
    assert both.acceptance_rate == pytest.approx(312 / 480)
    assert both.tpot_seconds == pytest.approx(0.01)
    assert both.tpot is not None and both.tpot.p50 == Quantile(0.01, 0.025, pytest.approx(0.0175))
    assert both.ttft is not None and both.ttft.p50 == Quantile(0.01, 0.025, pytest.approx(0.0175))

    mixed = measurement([whole, old])
    assert (mixed.tpot_seconds, mixed.kv_cache_tokens) == (None, None)
    assert mixed.kv_usage == pytest.approx(0.4), "the plain mean where a size is not known"
    with pytest.raises(ValueError, match="no changes"):
        measurement([])


def test_pods_with_other_buckets_have_no_percentiles_together_and_their_means_still() -> None:
    def wider(h: Histogram | None) -> Histogram:
        assert h is not None
        return Histogram((0.02, math.inf), h.counts[1:], h.sum, h.count)

    others = {"ttft", "prompt_length"}
    ours = change_between(*pages(BEFORE, AFTER), 10.0)
    theirs = change_between(
        *pages(*(dataclasses.replace(e, **{n: wider(getattr(e, n)) for n in others}) for e in (BEFORE, AFTER))), 10.0
    )
    assert isinstance(ours, Change) and isinstance(theirs, Change)
    both = measurement([ours, theirs])
    assert (both.ttft, both.ttft_seconds) == (None, None)
    assert both.prompt_length == pytest.approx(100.0)
    assert both.tpot is not None


def test_more_positions_than_before_are_not_known_by_position() -> None:
    found = measure(*pages(BEFORE, changed(accepted_per_position=(378.0, 246.0, 188.0, 1.0))), 10.0)
    assert isinstance(found, Measurement)
    assert (found.per_position, found.accepted_tokens) == (None, 312.0)


def test_a_stalled_engine_shows_though_others_serve() -> None:
    busy = dataclasses.replace(BEFORE, engine="1", running=3.0)
    found = measure(Page((BEFORE, busy)), Page((AFTER, busy)), 60.0)
    assert isinstance(found, Measurement)
    assert found.activity is Activity.STALLED


def test_one_page_gives_its_gauges() -> None:
    found = gauges(Page((AFTER, changed(engine="1", kv_usage=0.2))))
    assert found == Measurement(
        seconds=0.0, engines=2, batch_size=16.0, waiting=6.0, kv_usage=pytest.approx(0.3), kv_cache_tokens=2000.0
    )
