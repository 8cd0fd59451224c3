"""A canary takes a part of the load; what it shows is corrected for the load that comes back after the promotion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.api.v1alpha1 import Outcome, RolloutPhase
from specdecode.model.cost import Band, CostModel, OfferedLoad, Option, Prediction
from specdecode.model.estimate import Estimate
from specdecode.policy.clock import text_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.estimating import LARGEST_CORRECTION, Evidence, estimate
from specdecode.policy.observation import Observation, Pod
from specdecode.policy.outlook import Array
from specdecode.rollout.analysis import Terms, judge
from specdecode.rollout.comparison import Circumstances, Figure, compare, value_of
from specdecode.rollout.ending import Ending
from specdecode.rollout.phases import Step, advance
from specdecode.vllm.unmanageable import Unmanageable
from support.live import STARTED
from support.world import NOW, menu, observation, option, pod, rendered, spec, traffic, workload

MENU = menu(spec())
OFF, NGRAM = option(MENU, "disabled"), option(MENU, "ngram")


class Crossing:
    """TPOT of n-gram crosses that of off at a load: `slope` is the log by which it loses per doubling of the load."""

    def __init__(self, even: float, slope: float) -> None:
        self._even, self._slope = even, slope

    def _tpot(self, option: Option, load: float) -> float:
        off = 0.02 * (1 + load / 1e4)
        return off if option.speculation is None else off * math.exp(self._slope * math.log2(load / self._even))

    def predict(self, option: Option, load: OfferedLoad, acceptance: float | None = None) -> Prediction:
        value = self._tpot(option, load.tokens_per_second)
        return Prediction(Estimate(value, value * 0.9, value * 1.1), 8.0, 5.0)

    def acceptance(self, option: Option) -> Estimate | None:
        return None

    def tpots(self, option: Option, load: OfferedLoad, tokens_per_second: Sequence[float]) -> Sequence[Estimate]:
        return [self.predict(option, replace(load, tokens_per_second=asked)).tpot for asked in tokens_per_second]

    def log_tpot(self, option: Option, load: OfferedLoad, tokens_per_second: Array) -> Array:
        return np.log([self._tpot(option, asked) for asked in tokens_per_second])

    def band(self, option: Option, load: OfferedLoad | None) -> Band | None:
        return None

    def tuned(self, option: Option, load: OfferedLoad, *, one_threshold: bool) -> Option | None:
        return None


def serving(replicas: int, model: CostModel, **changes: Any) -> Observation:
    """Pods without speculation under an even load."""
    pods = tuple(pod(f"p{i}", "old", OFF, traffic()) for i in range(replicas))
    base = observation(pods=pods, workload=workload(rendered(MENU, "disabled"), replicas=replicas), menu=MENU)
    again = replace(base, knowledge={}, **changes)

    def fitted(_: Evidence) -> CostModel:
        return model

    return estimate(again, fitted)


def load_of(o: Observation) -> float:
    assert o.estimates.load is not None
    return o.estimates.load.tokens_per_second


LOAD = load_of(serving(2, Crossing(100.0, 0.0)))


# --- how large it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("replicas", "share"), [(1, 1 / 2), (2, 2 / 3), (8, 8 / 9)])
def test_the_correction_is_what_the_model_says_of_the_two_loads(replicas: int, share: float) -> None:
    o = serving(replicas, Crossing(LOAD, 0.1))
    assert o.estimates.load_corrections["ngram"] == pytest.approx(0.1 * math.log2(share))
    assert o.estimates.load_corrections["disabled"] == 0.0, "what runs is not corrected"


@pytest.mark.parametrize(("slope", "correction"), [(3.0, -LARGEST_CORRECTION), (-3.0, LARGEST_CORRECTION), (0.0, 0.0)])
def test_the_correction_is_bounded(slope: float, correction: float) -> None:
    o = serving(2, Crossing(LOAD, slope))
    assert o.estimates.load_corrections["ngram"] == pytest.approx(correction)


@pytest.mark.parametrize(
    ("slope", "correction"), [(3.0, 0.0), (-3.0, LARGEST_CORRECTION), (-0.1, 0.1 * math.log2(3 / 2))]
)
def test_the_models_word_only_speaks_for_what_the_user_chose(slope: float, correction: float) -> None:
    own = menu(spec(), rendered(MENU, "ngram"))
    o = estimate(replace(serving(2, Crossing(LOAD, slope)), menu=own, knowledge={}), lambda _: Crossing(LOAD, slope))
    assert o.estimates.load_corrections["ngram"] == pytest.approx(correction)


@pytest.mark.parametrize(("slope", "correction"), [(3.0, 3.0 * math.log2(3 / 2)), (-3.0, -LARGEST_CORRECTION)])
def test_it_may_speak_for_no_speculation_as_far_as_it_is_borne_out(slope: float, correction: float) -> None:
    window = traffic(acceptance=0.2)
    pods = tuple(pod(f"p{i}", "old", NGRAM, window) for i in range(2))
    base = observation(pods=pods, active=NGRAM, menu=MENU, workload=workload(rendered(MENU, "ngram"), replicas=2))
    o = estimate(replace(base, knowledge={}), lambda _: Crossing(LOAD, slope))
    assert o.estimates.load_corrections["disabled"] == pytest.approx(correction)


def test_the_models_own_corrections_are_finite_and_bounded() -> None:
    for window in (traffic(), traffic(batch=1.0), traffic(batch=200.0, step=0.1)):
        corrections = observation(window=window).estimates.load_corrections
        assert corrections and all(abs(c) <= LARGEST_CORRECTION for c in corrections.values())


# --- what it does -------------------------------------------------------------------------------------------------


def canary(step: float) -> Pod:
    return pod("new", "new", NGRAM, traffic(acceptance=0.2, step=step))


def old(count: int) -> tuple[Pod, ...]:
    return tuple(pod(f"old-{i}", "old", OFF, traffic(step=0.02)) for i in range(count))


def wants_ngram() -> Decision:
    return Decision(Reason.CHEAPER_PROFILE, "it pays", NGRAM, change=True, required_gain=0.05)


def analysed(o: Observation, canary_step: float, model: CostModel | None = None, **update: Any) -> Step:
    """The change that begins with `o`, when its canary has been measured for long enough; `model`: what is thought of
    the load by then. Without one: nothing, so that what was thought at the beginning counts."""
    begun = advance(o, wants_ngram()).rollout
    assert begun is not None and o.workload is not None
    phase = {
        "phase": RolloutPhase.ANALYSING,
        "phase_started_at": text_of(NOW - 75),
        "canary_ready_at": text_of(NOW - 75),
    }
    replicas = o.workload.replicas
    live = workload(rendered(MENU, "ngram"), revision="new", settled=False, replicas=replicas)
    during = observation(
        active=OFF,
        menu=MENU,
        pods=(*old(replicas), canary(canary_step)),
        workload=live,
        rollout=begun.model_copy(update=phase | update),
    )
    if model is None:
        during = replace(during, estimates=replace(during.estimates, load_corrections={}))
    else:
        during = estimate(during, lambda _: model)
    return advance(during, Decision(Reason.CHANGE_IN_PROGRESS, "going on"))


LOSING = Crossing(LOAD, 0.15)
NEAR_BREAK_EVEN = serving(2, LOSING)
"""Two pods: with the canary each has two thirds of the load, where n-gram gains 9 %. At the whole of it, nothing."""


def test_two_pods_near_break_even_are_not_promoted_for_the_canarys_share_of_the_load() -> None:
    gaining = 0.04 / math.exp(0.15 * math.log2(3 / 2)) / 1.02
    step = analysed(NEAR_BREAK_EVEN, gaining)
    assert step.rollout is not None
    assert step.rollout.load_correction == pytest.approx(-0.15 * math.log2(3 / 2), abs=1e-4)
    assert (step.rollout.outcome, step.rollout.outcome_reason) == (Outcome.FAILED, "GainTooSmall")
    assert step.rollout.message == ("too small: gain +2 % (+2 to +2 %), -8 % of it for the load that it would have")
    naive = analysed(NEAR_BREAK_EVEN, gaining, load_correction=0.0)
    assert naive.rollout is not None and naive.rollout.phase is RolloutPhase.PROMOTING, "as measured, it seems to pay"


def test_a_gain_that_is_still_one_at_the_whole_load_is_promoted() -> None:
    step = analysed(NEAR_BREAK_EVEN, 0.03)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.PROMOTING
    assert step.rollout.gain is not None
    assert step.rollout.gain.value == pytest.approx(4 / 3 * math.exp(-0.15 * math.log2(3 / 2)) - 1, abs=1e-3)


def test_what_would_gain_more_with_the_load_must_have_shown_enough_without() -> None:
    """A mixture of experts gains most at middle batch sizes: that is the model's word, and not measured. What runs did
    not become faster when the canary came."""
    small, enough = (analysed(serving(2, Crossing(LOAD, -0.15)), 0.04 / gain) for gain in (1.01, 1.06))
    assert small.rollout is not None and enough.rollout is not None
    assert small.rollout.outcome_reason == "GainTooSmall" and "of it for the load" not in small.rollout.message
    assert enough.rollout.phase is RolloutPhase.PROMOTING


@pytest.mark.parametrize(("of_the_same", "counts"), [(True, True), (False, False)], ids=["less", "more"])
def test_for_less_of_the_same_drafts_the_model_may_speak_as_for_none(of_the_same: bool, counts: bool) -> None:
    """What they cost at the whole load is known of those that run. Of more, it takes a canary that has surely won."""
    assert NGRAM.speculation is not None
    less = replace(NGRAM, speculation=replace(NGRAM.speculation, schedule=STARTED))
    active, target = (NGRAM, less) if of_the_same else (less, NGRAM)
    was, is_to_be = (MENU.render(it) for it in (active, target))
    assert not isinstance(was, Unmanageable) and not isinstance(is_to_be, Unmanageable)
    old = tuple(pod(f"old-{i}", "old", active, traffic(acceptance=0.2)) for i in range(2))
    before = observation(active=active, menu=MENU, pods=old, workload=workload(was, replicas=2))
    begun = advance(before, Decision(Reason.BETTER_THRESHOLD, "it pays", target, change=True)).rollout
    assert begun is not None and begun.target.profile == begun.source.profile == "ngram"
    measured_since = text_of(NOW - 75)
    phase = {"phase_started_at": measured_since, "canary_ready_at": measured_since, "load_correction": 0.1}
    during = observation(
        active=active,
        menu=MENU,
        pods=(*old, pod("new", "new", target, traffic(acceptance=0.2))),
        workload=workload(is_to_be, revision="new", settled=False, replicas=2),
        rollout=begun.model_copy(update={"phase": RolloutPhase.ANALYSING, **phase}),
    )
    during = replace(during, estimates=replace(during.estimates, load_corrections={}))
    step = advance(during, Decision(Reason.CHANGE_IN_PROGRESS, "going on"))
    assert step.rollout is not None and step.rollout.gain is not None
    assert step.rollout.gain.value == pytest.approx(math.expm1(0.1 if counts else 0.0), abs=1e-3)


def test_a_canary_in_the_place_of_another_pod_is_not_corrected() -> None:
    step = analysed(NEAR_BREAK_EVEN, 0.037, give_up_one=True)
    assert step.rollout is not None and step.rollout.phase is RolloutPhase.PROMOTING
    assert step.rollout.gain is not None and step.rollout.gain.value == pytest.approx(0.04 / 0.037 - 1, abs=1e-3)
    assert "load" not in step.rollout.message


@pytest.mark.parametrize(("slope", "promoted"), [(0.15, False), (0.0, True), (-0.15, True)])
def test_while_it_is_measured_the_correction_is_what_is_thought_by_then(slope: float, promoted: bool) -> None:
    """The canary, a tenth faster at two thirds of the load, teaches what its profile costs."""
    step = analysed(NEAR_BREAK_EVEN, 0.04 / 1.1, Crossing(LOAD, slope))
    assert step.rollout is not None
    assert (step.rollout.phase is RolloutPhase.PROMOTING) is promoted
    correction = min(-slope * math.log2(3 / 2), 0.0)
    assert step.rollout.gain is not None
    assert step.rollout.gain.value == pytest.approx(1.1 * math.exp(correction) - 1, abs=1e-3)


def test_while_a_canary_is_there_the_load_of_now_is_what_it_leaves() -> None:
    """Each of the two has two thirds of what they had, and will have."""
    begun = advance(NEAR_BREAK_EVEN, wants_ngram()).rollout
    assert begun is not None
    during = replace(NEAR_BREAK_EVEN, rollout=begun.model_copy(update={"phase": RolloutPhase.ANALYSING}))
    asked: list[float] = []

    class Listening(Crossing):
        def log_tpot(self, option: Option, load: OfferedLoad, tokens_per_second: Array) -> Array:
            asked.extend(tokens_per_second.tolist())
            return super().log_tpot(option, load, tokens_per_second)

    corrections = estimate(during, lambda _: Listening(LOAD, 0.15)).estimates.load_corrections
    assert set(corrections) == {"ngram"}, "nothing else is measured"
    assert asked[-4:-2] == pytest.approx([1.5 * LOAD, LOAD])


@pytest.mark.parametrize(
    ("before", "asked", "believed"),
    [
        (0.04, 1.0, 0.3),
        (0.025, 1.0, math.log(1.25)),
        (0.021, 1.0, LARGEST_CORRECTION),
        (0.01, 1.0, LARGEST_CORRECTION),
        (0.04, 1.3, LARGEST_CORRECTION),
        (0.04, 0.7, LARGEST_CORRECTION),
        (0.04, None, LARGEST_CORRECTION),
        (None, 1.0, LARGEST_CORRECTION),
    ],
    ids=[
        "the baseline is twice as fast since",
        "a quarter faster",
        "hardly",
        "slower",
        "more was asked before",
        "less was asked before",
        "nobody knows what was asked before",
        "nobody knows how fast it was",
    ],
)
def test_what_the_model_says_of_the_whole_load_counts_as_far_as_the_baseline_felt_the_relief(
    before: float | None, asked: float | None, believed: float
) -> None:
    """Near the limit of the pods one more makes all of them fast, and hides what is wrong with what runs."""
    now = compare((canary(0.02),), old(2), NOW - 55, NOW).wanted
    found = compare(
        (canary(0.02),),
        old(2),
        NOW - 55,
        NOW,
        Circumstances(before=before, asked_before=asked and asked * now, correction=0.3),
    )
    assert found.correction == pytest.approx(believed, abs=1e-3)


@pytest.mark.parametrize(
    ("step", "before", "believed"),
    [(0.036, 0.04, 0.3), (0.036, 0.022, math.log(1.1)), (0.036, 0.018, 0.0), (0.036, None, 0.0), (0.044, 0.04, 0.0)],
    ids=[
        "the baseline is twice as fast since",
        "a tenth faster",
        "slower",
        "nobody knows how fast it was",
        "but the canary is slower",
    ],
)
def test_for_drafts_it_counts_where_they_won_and_as_far_as_the_baseline_became_faster(
    step: float, before: float | None, believed: float
) -> None:
    """What the baseline would lose again with the canary's share of the load is measured; what the canary would lose is
    not, and is less than nothing at best."""
    pods = (canary(step),), old(2)
    now = compare(*pods, NOW - 55, NOW).wanted
    found = compare(
        *pods, NOW - 55, NOW, Circumstances(before=before, asked_before=now, correction=0.3, speaks_for_what_won=True)
    )
    assert found.correction == pytest.approx(believed, abs=1e-3)


@pytest.mark.parametrize(
    ("in_place", "before", "asked", "gain"),
    [
        (True, 0.008, 1.0, -0.2),
        (True, 0.03, 1.0, 1.0),
        (True, None, 1.0, 1.0),
        (True, 0.008, 1.3, 1.0),
        (True, 0.008, None, 1.0),
        (False, 0.008, 1.0, 1.0),
    ],
    ids=[
        "they were faster",
        "they were slower",
        "nobody knows how fast they were",
        "more was asked before",
        "nobody knows what was asked before",
        "one pod more",
    ],
)
def test_a_canary_in_the_place_of_a_pod_does_not_win_by_the_backlog_of_the_others(
    in_place: bool, before: float | None, asked: float | None, gain: float
) -> None:
    """They had to do its work while it started, and take 20 ms now, the canary 10."""
    now = compare((canary(0.02),), old(2), NOW - 55, NOW).wanted
    found = compare(
        (canary(0.02),),
        old(2),
        NOW - 55,
        NOW,
        Circumstances(before=before, asked_before=asked and asked * now, in_place=in_place),
    )
    assert found.gain is not None
    assert found.gain.value == pytest.approx(gain, abs=0.01)


@given(st.floats(-0.2, 0.1), st.floats(0.005, 0.1))
def test_the_correction_moves_the_whole_interval_and_nothing_else(correction: float, step: float) -> None:
    pods = (canary(step),), old(2)
    plain = compare(*pods, NOW - 55, NOW)
    moved = compare(*pods, NOW - 55, NOW, Circumstances(correction=correction))
    assert plain.gain is not None and moved.gain is not None
    for f in ("value", "low", "high"):
        assert 1 + getattr(moved.gain, f) == pytest.approx((1 + getattr(plain.gain, f)) * math.exp(correction))
    assert replace(moved, gain=plain.gain, correction=0.0) == plain


# --- what else a canary is compared by ----------------------------------------------------------------------------


def waiting(name: str, revision: str, ttft: float, step: float = 0.02) -> Pod:
    """A pod whose requests wait for their first token for so long."""
    seen = traffic(step=step)
    readings = []
    for r in seen.readings:
        (engine,) = r.page.engines
        assert engine.ttft is not None
        first = replace(engine.ttft, sum=engine.ttft.count * ttft)
        readings.append((replace(r.page, engines=(replace(engine, ttft=first),)), r.t))
    window = replace(seen, readings=())
    for page, t in readings:
        window = window.add(page, t)
    return pod(name, revision, OFF, window)


@pytest.mark.parametrize(
    ("figure", "ours", "theirs", "gain"),
    [
        (Figure.TTFT, (0.2, 0.03), (0.3, 0.02), 0.5),
        (Figure.TPOT, (0.2, 0.03), (0.3, 0.02), -1 / 3),
        (Figure.REQUEST, (1.0, 0.02), (3.0, 0.02), (0.02 + 0.03) / (0.02 + 0.01) - 1),
    ],
)
def test_a_canary_is_compared_by_what_its_change_is_for(
    figure: Figure, ours: tuple[float, float], theirs: tuple[float, float], gain: float
) -> None:
    c = compare(
        (waiting("new", "new", *ours),), (waiting("old", "old", *theirs),), NOW - 55, NOW, Circumstances(figure=figure)
    )
    assert c.gain is not None and c.gain.value == pytest.approx(gain)


def test_a_change_for_the_first_token_is_promoted_when_that_comes_sooner_though_the_next_come_later() -> None:
    c = compare(
        (waiting("new", "new", 0.2, 0.03),),
        (waiting("old", "old", 0.3),),
        NOW - 70,
        NOW,
        Circumstances(figure=Figure.TTFT),
    )
    verdict = judge(c, spec(), Terms(0.05))
    assert verdict is not None and (verdict.outcome, verdict.reason) == (Outcome.SUCCESSFUL, Ending.PROMOTED)
    assert verdict.message == "promoting: gain in TTFT +50 % (+50 to +50 %)"


@pytest.mark.parametrize(
    ("reason", "figure"),
    [
        (Reason.TTFT_BOUND, Figure.TTFT),
        (Reason.KV_SQUEEZED, Figure.REQUEST),
        (Reason.RESTART_RESTORES, Figure.STEPS),
        (Reason.CHEAPER_PROFILE, Figure.TPOT),
        (Reason.ACCEPTANCE_BELOW_FLOOR, Figure.TPOT),
    ],
)
def test_a_change_remembers_what_it_will_be_compared_by_without_a_baseline(reason: Reason, figure: Figure) -> None:
    o = observation(active=NGRAM, menu=MENU, window=traffic(acceptance=0.7))
    assert o.estimates.measured is not None
    begun = advance(o, Decision(reason, "because", OFF, change=True)).rollout
    assert begun is not None and begun.before == value_of(figure, o.estimates.measured)


def test_fresh_pods_are_compared_by_what_their_steps_give() -> None:
    """Steps that take longer by chance are not held against the drafts."""
    fresh = pod("new", "new", NGRAM, traffic(acceptance=0.8, step=0.03))
    aged = pod("old", "old", NGRAM, traffic(acceptance=0.6, step=0.02))
    c = compare((fresh,), (aged,), NOW - 55, NOW, Circumstances(figure=Figure.STEPS))
    assert c.gain is not None and c.gain.value == pytest.approx(5 / 4 - 1)


def test_what_is_not_measured_is_not_compared() -> None:
    silent = replace(
        observation().estimates.measured or pytest.fail("not measured"), ttft_seconds=None, tokens_per_step=None
    )
    assert value_of(Figure.STEPS, silent) is None
    assert value_of(Figure.TTFT, silent) is None and value_of(Figure.REQUEST, silent) is None
    assert value_of(Figure.REQUEST, replace(silent, ttft_seconds=1.0, output_length=None)) is None
