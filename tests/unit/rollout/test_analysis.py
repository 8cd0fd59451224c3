"""The canary's analysis: every way in which it can end, and what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.api.v1alpha1 import Outcome
from specdecode.model.estimate import Estimate
from specdecode.model.histogram import Quantile
from specdecode.model.measure import Measurement, Percentiles
from specdecode.model.window import Window
from specdecode.policy.observation import Pod
from specdecode.rollout.analysis import PLAIN, Terms, Verdict, in_force, judge
from specdecode.rollout.comparison import BLOCKS, ENOUGH_BLOCKS, Circumstances, Comparison, Figure, compare
from specdecode.vllm.metrics import Page
from support.world import NOW, menu, option, pod, spec, traffic

MENU = menu(spec())
OFF, NGRAM = option(MENU, "disabled"), option(MENU, "ngram")
DURATION = 60.0
POLICY = spec()
REQUIRED = 0.05


def percentiles(p99: float) -> Percentiles:
    exact = Quantile(p99, p99, p99)
    return Percentiles(exact, exact, exact)


def measured(**changes: Any) -> Measurement:
    """A pod that finished 100 requests at 1000 tokens/s."""
    base = Measurement(seconds=60.0, finished=100.0, generation_tokens_per_second=1000.0, tpot_seconds=0.02)
    return replace(base, **changes)


def comparison(gain: tuple[float, float, float] | None = (0.2, 0.1, 0.3), **changes: Any) -> Comparison:
    """One canary and two baseline pods, measured long enough."""
    base = Comparison(
        seconds=DURATION,
        canary=measured(),
        baseline=measured(finished=200.0, generation_tokens_per_second=2000.0),
        pods=(1, 2),
        gain=None if gain is None else Estimate(*gain),
        blocks=BLOCKS,
        wanted=3000.0,
    )
    return replace(base, **changes)


def alone(gain: tuple[float, float, float] | None = (0.2, 0.1, 0.3), **changes: Any) -> Comparison:
    """One replica: before and after."""
    return comparison(gain, baseline=None, pods=(1, 0), before_and_after=True, **changes)


def verdict(
    c: Comparison, policy: Any = POLICY, required: float = REQUIRED, protect_tail: bool = False
) -> Verdict | None:
    return judge(c, policy, Terms(required, protect_tail=protect_tail))


LATE = {"seconds": 2 * DURATION}
SLO = spec(objective={"slo": {"timePerOutputToken": {"p99": "60ms"}, "timeToFirstToken": {"p99": "1s"}}})

OUTCOMES: dict[str, tuple[Comparison, Any, Outcome | None, str]] = {
    "faster": (comparison(), POLICY, Outcome.SUCCESSFUL, "Promoted"),
    "faster, but not for long enough": (comparison(seconds=59.0), POLICY, None, ""),
    "plainly faster, for half of the time": (
        comparison((0.5, 0.4, 0.6), seconds=DURATION / 2),
        POLICY,
        Outcome.SUCCESSFUL,
        "Promoted",
    ),
    "plainly faster, for less than that": (comparison((0.5, 0.4, 0.6), seconds=DURATION / 2 - 1), POLICY, None, ""),
    "faster, but not plainly, for half of the time": (
        comparison((0.5, REQUIRED + PLAIN, 0.75), seconds=DURATION / 2),
        POLICY,
        None,
        "",
    ),
    "plainly faster, with a tail that breaks the limit": (
        comparison((0.5, 0.4, 0.6), seconds=DURATION / 2, canary=measured(tpot=percentiles(0.08))),
        SLO,
        Outcome.FAILED,
        "TailWorse",
    ),
    "plainly faster with little load": (
        comparison((0.5, 0.4, 0.6), seconds=DURATION / 2, canary=measured(generation_tokens_per_second=600.0)),
        POLICY,
        None,
        "",
    ),
    "faster than a start without a baseline": (alone(), POLICY, Outcome.SUCCESSFUL, "Promoted"),
    "surely slower, early": (comparison((-0.3, -0.4, -0.2), seconds=20.0), POLICY, Outcome.FAILED, "Slower"),
    "perhaps slower, early": (comparison((-0.1, -0.3, 0.1), seconds=20.0), POLICY, None, ""),
    "slower under far more load": (
        comparison((-0.3, -0.4, -0.2), canary=measured(generation_tokens_per_second=1600.0)),
        POLICY,
        None,
        "",
    ),
    "a gain too small": (comparison((0.02, 0.01, 0.03)), POLICY, Outcome.FAILED, "GainTooSmall"),
    "a gain that may be large enough": (comparison((0.04, -0.01, 0.09)), POLICY, None, ""),
    "a gain that never gets clear": (comparison((0.04, -0.01, 0.09), **LATE), POLICY, Outcome.INCONCLUSIVE, "NotSure"),
    "no blocks": (comparison(None, **LATE), POLICY, Outcome.INCONCLUSIVE, "NotSure"),
    "few requests, early": (comparison(canary=measured(finished=19.0)), POLICY, None, ""),
    "few requests": (
        comparison(canary=measured(finished=19.0), **LATE),
        POLICY,
        Outcome.INCONCLUSIVE,
        "TooFewRequests",
    ),
    "few requests on the baseline": (
        comparison(baseline=measured(finished=19.0), **LATE),
        POLICY,
        Outcome.INCONCLUSIVE,
        "TooFewRequests",
    ),
    "a canary with little load wins nothing": (
        comparison(canary=measured(generation_tokens_per_second=600.0)),
        POLICY,
        None,
        "",
    ),
    "unequal load": (
        comparison(canary=measured(generation_tokens_per_second=600.0), **LATE),
        POLICY,
        Outcome.INCONCLUSIVE,
        "UnequalLoad",
    ),
    "it takes what comes, the others work off a queue": (
        comparison(canary=measured(generation_tokens_per_second=600.0), queued=(0.0, -800.0)),
        POLICY,
        None,
        "",
    ),
    "a silent canary": (comparison(None, canary=None, **LATE), POLICY, Outcome.ERROR, "NotMeasured"),
    "a silent baseline": (comparison(None, baseline=None, **LATE), POLICY, Outcome.ERROR, "NotMeasured"),
    "requests fail": (
        comparison(canary=measured(client_errors=5.0), seconds=10.0),
        POLICY,
        Outcome.FAILED,
        "RequestsFail",
    ),
    "requests fail everywhere": (
        comparison(
            canary=measured(client_errors=5.0), baseline=measured(finished=200.0, client_errors=10.0), seconds=10.0
        ),
        POLICY,
        None,
        "",
    ),
    "two failures are chance": (comparison(canary=measured(errored=2.0), seconds=10.0), POLICY, None, ""),
    "the limit on TPOT is broken": (
        comparison(canary=measured(tpot=percentiles(0.08))),
        SLO,
        Outcome.FAILED,
        "TailWorse",
    ),
    "the limit on TTFT is broken": (
        comparison(canary=measured(ttft=percentiles(2.0))),
        SLO,
        Outcome.FAILED,
        "TailWorse",
    ),
    "the limit was broken before": (
        comparison(
            canary=measured(tpot=percentiles(0.08)),
            baseline=measured(finished=200.0, generation_tokens_per_second=2000.0, tpot=percentiles(0.09)),
        ),
        SLO,
        Outcome.SUCCESSFUL,
        "Promoted",
    ),
    "the limit holds": (comparison(canary=measured(tpot=percentiles(0.05))), SLO, Outcome.SUCCESSFUL, "Promoted"),
}


@pytest.mark.parametrize("case", OUTCOMES)
def test_an_analysis_ends_as_it_was_measured(case: str) -> None:
    c, policy, outcome, reason = OUTCOMES[case]
    found = verdict(c, policy)
    assert (found and (found.outcome, found.reason)) == (None if outcome is None else (outcome, reason))
    assert found is None or found.message


def test_every_outcome_is_reached() -> None:
    assert {outcome for _, _, outcome, _ in OUTCOMES.values()} == {None, *Outcome}


@pytest.mark.parametrize(
    ("canary", "baseline", "protected", "reason"),
    [
        (0.08, 0.05, True, "TailWorse"),
        (0.08, 0.05, False, "Promoted"),
        (0.05, 0.05, True, "TailWorse"),
        (0.04, 0.05, True, "Promoted"),
    ],
)
def test_a_profile_under_review_must_keep_the_tail(
    canary: float, baseline: float, protected: bool, reason: str
) -> None:
    theirs = measured(finished=200.0, generation_tokens_per_second=2000.0, tpot=percentiles(baseline))
    c = comparison(canary=measured(tpot=percentiles(canary)), baseline=theirs)
    found = verdict(c, protect_tail=protected)
    assert found is not None and found.reason == reason


def test_a_tail_that_the_buckets_cannot_tell_apart_is_not_worse() -> None:
    same_bucket = Quantile(0.05, 0.1, 0.08)
    shown = Percentiles(same_bucket, same_bucket, same_bucket)
    theirs = measured(finished=200.0, generation_tokens_per_second=2000.0, tpot=shown)
    found = verdict(comparison(canary=measured(tpot=shown), baseline=theirs), protect_tail=True)
    assert found is not None and found.outcome is Outcome.SUCCESSFUL


@pytest.mark.parametrize(
    ("gain", "outcome"),
    [
        ((0.1, 0.05, 0.15), Outcome.SUCCESSFUL),
        ((0.0, -0.04, 0.04), Outcome.SUCCESSFUL),
        ((0.02, -0.2, 0.2), None),
        ((-0.1, -0.12, -0.08), Outcome.FAILED),
    ],
)
def test_a_change_that_needs_no_gain_must_only_not_be_worse(gain: Any, outcome: Outcome | None) -> None:
    found = verdict(comparison(gain), required=0.0)
    assert (found and found.outcome) == outcome


def test_but_one_that_was_tried_in_vain_today_must_be_no_worse_for_sure() -> None:
    """Of many tries by chance one looks no worse."""
    looks = comparison((0.02, -0.02, 0.06))
    assert judge(looks, POLICY, Terms(0.0)) is not None
    assert judge(looks, POLICY, Terms(0.0, lost=1)) is None
    sure = judge(comparison((0.09, 0.06, 0.12)), POLICY, Terms(0.0, lost=1))
    assert sure is not None and sure.outcome is Outcome.SUCCESSFUL


@pytest.mark.parametrize(
    ("gain", "p99", "promoted"),
    [((0.32, -0.1, 0.9), 0.05, True), ((-0.02, -0.1, 0.05), 0.05, False), ((0.32, -0.1, 0.9), 0.08, False)],
    ids=["it looks better", "it looks worse", "it breaks a limit"],
)
def test_what_the_user_chose_comes_back_where_nothing_is_clear_in_time(
    gain: tuple[float, float, float], p99: float, promoted: bool
) -> None:
    looks = comparison(gain, canary=measured(tpot=percentiles(p99)))
    late = replace(looks, **LATE)
    back = judge(late, SLO, Terms(0.0, goes_back=True))
    other = judge(late, SLO, Terms(0.0))
    assert back is not None and (back.outcome is Outcome.SUCCESSFUL) is promoted
    assert not promoted or "what the manifest says" in back.message
    assert other is not None and other.outcome is not Outcome.SUCCESSFUL
    if promoted:
        assert judge(looks, SLO, Terms(0.0, goes_back=True)) is None, "not before"


def test_nor_may_what_the_user_chose_be_replaced_by_what_only_looks_no_worse() -> None:
    looks = comparison((0.02, -0.02, 0.06))
    assert judge(looks, POLICY, Terms(0.0, leaves_own=True)) is None
    sure = judge(comparison((0.09, 0.06, 0.12)), POLICY, Terms(0.0, leaves_own=True))
    assert sure is not None and sure.outcome is Outcome.SUCCESSFUL


def test_messages_say_what_was_compared() -> None:
    paired, single = verdict(comparison()), verdict(alone())
    assert paired is not None and paired.message == "promoting: gain +20 % (+10 to +30 %)"
    assert single is not None and single.message.startswith("before and after, for want of a baseline")
    broken = verdict(alone(canary=measured(tpot=percentiles(0.08))), SLO)
    assert broken is not None and "60 ms" in broken.message and "baseline's" not in broken.message
    failing = verdict(comparison(canary=measured(client_errors=5.0)))
    assert failing is not None and failing.message == "5 requests failed on the canary (4.8%; 0.0% on the baseline)"


# --- comparing ----------------------------------------------------------------------------------------------------


def serving(name: str, **kw: Any) -> Pod:
    return pod(name, "new" if name == "canary" else "old", None, traffic(**kw))


def test_the_ratio_of_the_same_minutes_is_the_gain() -> None:
    c = compare((serving("canary", step=0.01),), (serving("a"), serving("b")), NOW - 55, NOW)
    assert c.gain is not None and c.gain.value == pytest.approx(1.0)
    assert c.gain.high - c.gain.low < 1e-6, "even traffic leaves no doubt"
    assert (c.pods, c.before_and_after) == ((1, 2), False)
    assert c.blocks >= ENOUGH_BLOCKS


def test_without_a_baseline_the_time_before_is_what_counts() -> None:
    c = compare((serving("canary", step=0.01),), (), NOW - 55, NOW, Circumstances(before=0.02))
    assert c.before_and_after and c.baseline is None
    assert c.gain is not None and c.gain.value == pytest.approx(1.0)
    unknown = compare((serving("canary"),), (), NOW - 55, NOW)
    assert unknown.gain is None and unknown.blocks == 0


HOT = {"batch": 16.0, "step": 0.03, "rate": 4.0}
"""A pod that gets more than the others, and is slow for it."""


def test_beside_a_hot_spot_a_canary_is_held_against_pods_of_its_own_load() -> None:
    canary, alike, hot = serving("canary"), serving("a"), serving("hot", **HOT)
    c = compare((canary,), (alike, hot), NOW - 55, NOW)
    assert c.gain is not None and c.gain.value == pytest.approx(0.0, abs=1e-6)
    assert c.pods == (1, 1) and c.share_served == pytest.approx(1.0)
    both = compare((canary,), (serving("a"), serving("b")), NOW - 55, NOW)
    assert c.wanted > both.wanted, "what users ask for is asked of all pods"


def test_where_none_is_alike_it_is_held_against_all() -> None:
    c = compare((serving("canary"),), (serving("hot", **HOT), serving("hotter", **HOT)), NOW - 55, NOW)
    assert c.pods == (1, 2) and c.gain is not None and c.gain.value > 0.4


@pytest.mark.parametrize("since", [NOW + 10, NOW, NOW - 6])
def test_before_the_canary_is_warm_nothing_is_compared(since: float) -> None:
    c = compare((serving("canary"),), (serving("a"),), since, NOW)
    assert c.gain is None and c.seconds >= 0


def test_a_canary_that_never_answered_is_not_measured() -> None:
    c = compare((pod("canary", "new", None),), (serving("a"),), NOW - 55, NOW)
    assert c.canary is None and c.gain is None and c.baseline is not None


@given(st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_the_gain_is_that_of_the_means_whatever_they_are(ours: float, theirs: float) -> None:
    c = compare((serving("canary", step=ours),), (serving("a", step=theirs),), NOW - 55, NOW)
    assert c.gain is not None
    assert c.gain.value == pytest.approx(theirs / ours - 1)
    assert -1 < c.gain.low <= c.gain.value + 1e-9 and math.isfinite(c.gain.high)


# --- in force -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "acceptance", "k", "says"),
    [
        (OFF, None, 5, None),
        (OFF, 0.7, 5, "drafts tokens, though disabled has speculation off"),
        (NGRAM, 0.7, 5, None),
        (NGRAM, None, 5, "shows no speculation"),
        (NGRAM, 0.7, 3, "drafts 3 tokens, not 5"),
        (None, 0.7, 5, None),
    ],
)
def test_a_pods_own_metrics_say_whether_it_runs_its_profile(
    runs: Any, acceptance: float | None, k: int, says: str | None
) -> None:
    found = in_force(pod("p", "new", runs, traffic(acceptance=acceptance, k=k)), runs)
    assert found is None if says is None else found is not None and says in found and "pod p" in found


def test_a_pod_that_was_not_read_yet_contradicts_nothing() -> None:
    assert in_force(pod("p", "new", NGRAM), NGRAM) is None


def old_version(**kw: Any) -> Pod:
    """Before vLLM 0.11 there is no request TPOT."""
    window = Window(3600.0)
    for r in traffic(**kw).readings:
        (engine,) = r.page.engines
        window = window.add(Page((replace(engine, tpot=None),), r.page.process_start), r.t)
    return pod("p", "new", None, window)


def test_where_no_tpot_is_exposed_it_is_step_time_over_tokens_per_step() -> None:
    c = compare((old_version(step=0.02, acceptance=0.6),), (old_version(step=0.02),), NOW - 55, NOW)
    assert c.gain is not None and c.gain.value == pytest.approx(3.0), "four tokens a step"


@pytest.mark.parametrize(
    ("decided_at", "seconds", "outcome"),
    [
        (None, DURATION, Outcome.SUCCESSFUL),
        (5000.0, DURATION, Outcome.SUCCESSFUL),
        (1000.0, DURATION, Outcome.SUCCESSFUL),
        (6100.0, DURATION, None),
        (6100.0, 2 * DURATION, Outcome.INCONCLUSIVE),
    ],
    ids=["not known", "less now", "more now", "a lull", "a lull that lasts"],
)
def test_what_a_canary_shows_in_a_lull_proves_nothing(
    decided_at: float | None, seconds: float, outcome: Outcome | None
) -> None:
    """Canary and baseline serve 3,000 tokens/s together."""
    found = judge(comparison(seconds=seconds), POLICY, Terms(REQUIRED, decided_at=decided_at))
    assert (found.outcome if found else None) is outcome
    if outcome is Outcome.INCONCLUSIVE:
        assert found is not None and "fell from 6100 to 3000 tokens/s" in found.message


@pytest.mark.parametrize(
    ("low", "lost", "promoted"),
    [(0.02, 0, True), (0.02, 1, False), (0.05, 1, True), (0.05, 3, False), (0.1, 3, True), (0.08, 9, False)],
)
def test_what_lost_before_must_show_more_each_time(low: float, lost: int, promoted: bool) -> None:
    """Chance alone promotes one in twenty that are no better."""
    c = comparison((0.16, low, 0.3), seconds=2 * DURATION)
    found = judge(c, POLICY, Terms(REQUIRED, lost=lost))
    assert found is not None
    assert found.outcome is (Outcome.SUCCESSFUL if promoted else Outcome.INCONCLUSIVE)
    assert promoted or f"after {lost} that did not prove it today" in found.message


@pytest.mark.parametrize(
    ("c", "outcome", "message"),
    [
        (comparison((-0.1, -0.2, 0.0)), Outcome.SUCCESSFUL, "nothing speaks against it: gain -10 %"),
        (comparison(None), Outcome.SUCCESSFUL, "too few blocks"),
        (comparison((-0.1, -0.2, 0.0), seconds=DURATION - 1), None, ""),
        (comparison((-0.4, -0.5, -0.3), seconds=60.0), Outcome.FAILED, "slower"),
        (comparison(canary=measured(server_errors=9.0)), Outcome.FAILED, "requests failed"),
        (comparison(None, canary=None), None, ""),
        (comparison(None, canary=None, **LATE), Outcome.ERROR, "did not answer"),
        (comparison(canary=measured(finished=3.0)), None, ""),
        (comparison(canary=measured(finished=3.0), **LATE), Outcome.INCONCLUSIVE, "requests finished on the canary"),
        (comparison((0.0, -0.1, 0.1), queued=(0.0, -800.0), fills=True), Outcome.SUCCESSFUL, "promoting"),
        (comparison((-0.4, -0.5, -0.3), queue_elsewhere=True), Outcome.SUCCESSFUL, "promoting"),
    ],
    ids=[
        "no faster",
        "not comparable",
        "not yet",
        "far slower",
        "it fails",
        "it is silent so far",
        "it is silent",
        "few come so far",
        "few come",
        "beside a queue",
        "slower than pods that keep up where others do not",
    ],
)
def test_what_the_user_chose_is_not_to_be_proven_only_to_work(
    c: Comparison, outcome: Outcome | None, message: str
) -> None:
    found = judge(c, POLICY, Terms(-0.25, to_be_proven=False))
    assert (found.outcome if found else None) is outcome
    assert message in (found.message if found else "")


@pytest.mark.parametrize("required", [0.0, REQUIRED])
def test_what_serves_less_than_pods_that_work_off_a_queue_proves_nothing(required: float) -> None:
    """Unless it has more room than they have: then it has to take what comes, no more."""
    busy = comparison(canary=measured(generation_tokens_per_second=600.0), queued=(0.0, -800.0))
    assert judge(busy, POLICY, Terms(required)) is None
    found = judge(busy, POLICY, Terms(required, relief=True))
    assert found is not None and found.outcome is Outcome.SUCCESSFUL
    idle = replace(busy, queued=(0.0, 0.0))
    assert judge(idle, POLICY, Terms(required, relief=True)) is None, "few come to it"


@pytest.mark.parametrize(
    ("serves", "waits", "seconds", "outcome"),
    [
        (800.0, False, DURATION, Outcome.SUCCESSFUL),
        (800.0, True, DURATION, None),
        (800.0, True, 2 * DURATION, Outcome.INCONCLUSIVE),
        (950.0, True, DURATION, Outcome.SUCCESSFUL),
    ],
    ids=["nobody waits", "requests wait", "for too long", "it serves as much"],
)
def test_beside_pods_with_a_queue_a_canary_must_serve_as_much_as_they_do(
    serves: float, waits: bool, seconds: float, outcome: Outcome | None
) -> None:
    """They run at the largest batch that there is, and it would too before long."""
    canary = measured(generation_tokens_per_second=serves)
    found = verdict(comparison(canary=canary, seconds=seconds, queue_of_before=waits))
    assert (found.outcome if found else None) is outcome


def test_a_queue_that_grows_is_no_lull() -> None:
    c = comparison(wanted=7000.0)
    found = judge(c, POLICY, Terms(REQUIRED, decided_at=9000.0))
    assert found is not None and found.outcome is Outcome.SUCCESSFUL


@pytest.mark.parametrize(
    ("figure", "seconds", "outcome"),
    [
        (Figure.TPOT, DURATION, Outcome.SUCCESSFUL),
        (Figure.TTFT, DURATION, None),
        (Figure.REQUEST, DURATION, None),
        (Figure.REQUEST, 2 * DURATION, Outcome.INCONCLUSIVE),
    ],
)
def test_a_first_token_that_waited_before_there_was_a_canary_proves_nothing(
    figure: Figure, seconds: float, outcome: Outcome | None
) -> None:
    found = verdict(comparison(seconds=seconds, figure=figure, queue_of_before=True), required=0.0)
    assert (found.outcome if found else None) is outcome


@pytest.mark.parametrize(
    ("serves", "correction"),
    [(1.0, 0.0), (0.95, 0.0), (0.75, 0.5 * math.log(0.75)), (1.3, 0.0), (0.1, 0.5 * math.log(1 / 1.5))],
    ids=["as much", "nearly", "less", "more", "so little that it proves nothing"],
)
def test_a_canary_with_less_load_does_not_win_by_that(serves: float, correction: float) -> None:
    """Where TPOT grows by the root of the load, a part of the gain is that."""
    canary, other = (pod("p", "new", None, traffic(batch=8.0 * s, rate=2.0 * s)) for s in (serves, 1.0))
    found = compare((canary,), (other,), NOW - 60.0, NOW, Circumstances(steepness=0.5))
    assert found.correction == pytest.approx(correction, abs=1e-6)


def filling(per_reading: float, start: float = 8.0, kind: str = "running") -> Pod:
    """A pod on which so many more requests run at each reading; or wait."""
    even = traffic()
    window = Window(3600.0)
    for i, r in enumerate(even.readings):
        more = {kind: start + i * per_reading}
        engines = tuple(replace(e, **more) for e in r.page.engines)
        window = window.add(replace(r.page, engines=engines), r.t)
    return pod("p", "new", None, window)


@pytest.mark.parametrize(
    ("ours", "theirs", "fills"),
    [(0.0, 0.0, False), (4.0, 0.0, True), (4.0, 4.0, False), (0.0, 4.0, False)],
    ids=["even", "only the canary fills up", "both do: the load grows", "the canary is a relief"],
)
def test_a_canary_on_which_requests_still_pile_up_is_told(ours: float, theirs: float, fills: bool) -> None:
    found = compare((filling(ours),), (filling(theirs),), NOW - 60.0, NOW)
    assert found.fills is fills


def test_what_waits_does_not_slow_what_runs() -> None:
    found = compare((filling(4.0, kind="waiting"),), (filling(0.0),), NOW - 60.0, NOW)
    assert not found.fills
    assert found.queued[0] > 0 == found.queued[1]


def test_a_queue_that_was_there_before_the_canary_is_told() -> None:
    queue, none = filling(0.0, start=50.0, kind="waiting"), filling(0.0)
    assert compare((none,), (queue,), NOW - 60.0, NOW).queue_of_before
    assert not compare((queue,), (queue,), NOW - 60.0, NOW).queue_of_before
    assert not compare((none,), (none,), NOW - 60.0, NOW).queue_of_before


def test_a_queue_on_pods_that_the_canary_is_not_held_against_is_told() -> None:
    """Beside a hot spot it is held against those of its own load, which keep up."""
    even, hot = filling(0.0), pod("hot", "old", option(MENU, "disabled"), traffic(**HOT))
    waits = Window(3600.0)
    for r in hot.window.readings:
        waits = waits.add(replace(r.page, engines=tuple(replace(e, waiting=50.0) for e in r.page.engines)), r.t)
    queue = replace(hot, window=waits)
    assert compare((even,), (even, queue), NOW - 60.0, NOW).queue_elsewhere
    assert not compare((even,), (even, hot), NOW - 60.0, NOW).queue_elsewhere
    assert not compare((even,), (queue,), NOW - 60.0, NOW).queue_elsewhere, "it is held against that one"


def test_without_the_length_of_answers_the_load_is_what_is_served() -> None:
    """Servers of some versions do not export it; their load is no lull."""
    known = traffic()
    unknown = Window(3600.0)
    for r in known.readings:
        unknown = unknown.add(
            replace(r.page, engines=tuple(replace(e, output_length=None) for e in r.page.engines)), r.t
        )
    pods = [(pod("p", "new", None, w),) for w in (known, unknown)]
    with_lengths, without = (compare(p, p, NOW - 60.0, NOW) for p in pods)
    assert without.wanted == with_lengths.wanted > 0


@pytest.mark.parametrize(
    ("seconds", "outcome"), [(DURATION, None), (2 * DURATION, Outcome.INCONCLUSIVE)], ids=["a while", "too long"]
)
def test_a_canary_that_still_fills_up_is_not_promoted(seconds: float, outcome: Outcome | None) -> None:
    found = verdict(comparison(seconds=seconds, fills=True))
    assert (found.outcome if found else None) is outcome


def test_a_canary_that_fills_up_and_is_slower_fails_at_once() -> None:
    found = verdict(comparison((-0.3, -0.4, -0.2), fills=True))
    assert found is not None and found.outcome is Outcome.FAILED
