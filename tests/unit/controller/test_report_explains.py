"""What the status says about each option, and about what would change the operator's mind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.api.v1alpha1 import BandStatus, BatchRangeStatus, SpecDecodePolicyStatus
from specdecode.controller import report as reporting
from specdecode.controller.conditions import NO_TROUBLES
from specdecode.controller.report import TURNING, report
from specdecode.model.cost import Band, CostModel
from specdecode.model.estimate import Estimate
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.estimating import Modeller, estimate
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation
from specdecode.policy.outlook import Outlook
from specdecode.policy.turning import Latest, Quantity, TurningPoint
from specdecode.rollout.phases import Step, advance
from specdecode.vllm.speculation import BatchRange
from support.world import NOW, menu, observation, option, pod, spec, traffic

EMPTY = SpecDecodePolicyStatus()
POLICY = spec(mode="Recommend")
INTERVAL = POLICY.metrics.interval


def looking(**changes: Any) -> tuple[Observation, CostModel]:
    latest = Latest(Modeller())
    o = estimate(observation(POLICY, **changes), latest)
    assert latest.model is not None
    return o, latest.model


def after(
    o: Observation, before: SpecDecodePolicyStatus = EMPTY, model: CostModel | None = None
) -> SpecDecodePolicyStatus:
    d = decide(o)
    return report(o, d, Step(), before, NO_TROUBLES, model)


def profile(status: SpecDecodePolicyStatus, name: str) -> Any:
    return next(p for p in status.profiles if p.name == name)


# --- the options --------------------------------------------------------------------------------------------------


def test_headroom_is_told_with_its_interval() -> None:
    o, _ = looking()
    for name, prediction in o.estimates.predictions.items():
        told = profile(after(o), name).headroom
        assert told.low < told.value < told.high
        assert told.value == pytest.approx(prediction.headroom, rel=0.01)


@pytest.mark.parametrize(
    ("band", "told"),
    [
        (None, BandStatus(pays=False)),
        (Band(1, 40), BandStatus(pays=True, start=1, end=40)),
        (Band(8, 40), BandStatus(pays=True, start=8, end=40)),
        (Band(8, 256), BandStatus(pays=True, start=8)),
    ],
    ids=["nowhere", "small batches", "middle ones", "as many as the server runs"],
)
def test_the_band_in_which_a_profile_pays_has_two_ends(band: Band | None, told: BandStatus) -> None:
    o, _ = looking()
    o = replace(o, estimates=replace(o.estimates, bands={"ngram": band}))
    status = after(o)
    assert profile(status, "ngram").band == told
    assert profile(status, "disabled").band is None, "it is what the others are compared with"


def test_the_schedule_that_a_prediction_is_of_is_told() -> None:
    o, _ = looking()
    ngram = next(c for c in o.estimates.candidates if c.profile == "ngram")
    assert ngram.speculation is not None
    tuned = replace(
        ngram, speculation=replace(ngram.speculation, schedule=(BatchRange(1, 8, 5), BatchRange(9, 256, 1)))
    )
    o = replace(o, estimates=replace(o.estimates, candidates=(tuned,)))
    told = profile(after(o), "ngram").schedule
    assert told == [BatchRangeStatus(start=1, end=8, k=5), BatchRangeStatus(start=9, end=256, k=1)]


# --- the recommendation -------------------------------------------------------------------------------------------


def test_a_change_that_is_recommended_says_when_it_is_paid_back_and_how_long_it_lasts() -> None:
    o, _ = looking()
    ngram, e = option(o.menu, "ngram"), o.estimates  # type: ignore[arg-type]
    o = replace(o, estimates=replace(e, outlooks={"ngram": Outlook(3601.0, 100.0, 0.1, 754.0)}))
    gain = Estimate(0.2, 0.1, 0.3)
    status = report(o, Decision(Reason.CHEAPER_PROFILE, "faster", ngram, change=True, gain=gain), Step(), EMPTY)
    assert status.recommendation is not None
    assert (status.recommendation.payback, status.recommendation.load_lasts) == (780.0, 3600.0)
    dumped = json.loads(status.model_dump_json(by_alias=True))["recommendation"]
    assert (dumped["payback"], dumped["loadLasts"]) == ("13m", "1h")


def test_what_stays_has_nothing_to_pay_back() -> None:
    o, _ = looking()
    status = report(o, Decision(Reason.BEST_ALREADY, "fastest", o.active), Step(), EMPTY)
    assert status.recommendation is not None and status.recommendation.payback is None


def test_the_rule_is_told_beside_the_brake_that_holds_it_back() -> None:
    o, _ = looking()
    ngram = option(o.menu, "ngram")  # type: ignore[arg-type]
    held = Decision(Reason.CHEAPER_PROFILE, "faster", ngram, change=True, held_back=(Reason.COOLING_DOWN, "resting"))
    told = report(o, held, Step(), EMPTY).recommendation
    assert told is not None and (told.rule, told.reason) == ("CheaperProfile", "CoolingDown")


# --- turning points -----------------------------------------------------------------------------------------------


@dataclass
class Counted:
    """`turning_points` that counts how often it is asked."""

    found: Sequence[TurningPoint] = ()
    times: int = 0

    def __call__(self, *_: object) -> tuple[TurningPoint, ...]:
        self.times += 1
        return tuple(self.found)


POINT = TurningPoint(
    "disabled", Quantity.LOAD, None, True, Estimate(1234.5, 1000.0, 1500.0), Estimate(400.0, 400.0, 400.0)
)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    found = Counted([POINT])
    monkeypatch.setattr(reporting, "turning_points", found)
    return found


def test_turning_points_are_told_in_three_digits(counted: Counted) -> None:
    o, model = looking()
    status = after(o, EMPTY, model)
    assert status.recommendation is not None
    (told,) = status.recommendation.turning_points
    assert (told.profile, told.quantity, told.of, told.direction) == ("disabled", "Load", None, "Above")
    assert (told.at.value, told.at.low, told.at.high, told.now.value) == (1230.0, 1000.0, 1500.0, 400.0)
    assert SpecDecodePolicyStatus.model_validate(json.loads(status.model_dump_json(by_alias=True))) == status


def test_turning_points_are_looked_for_when_the_decision_changes_or_is_old(counted: Counted) -> None:
    o, model = looking()
    first = after(o, EMPTY, model)
    assert counted.times == 1
    moved, _ = looking(window=traffic(batch=9.0))
    start = NOW - NOW % TURNING
    assert o.now == NOW
    again = after(replace(moved, now=max(NOW, start) + 4 * INTERVAL), first, model)
    assert again is not first and counted.times == 1
    assert again.recommendation is not None and first.recommendation is not None
    assert again.recommendation.turning_points == first.recommendation.turning_points, "they are kept meanwhile"
    after(replace(moved, now=start + TURNING + INTERVAL), first, model)
    assert counted.times == 2
    suspended = replace(o, policy=spec(mode="Recommend", suspend=True))
    assert after(suspended, first, model).recommendation is None
    assert counted.times == 2, "where nothing is recommended nothing turns"


def test_nothing_is_looked_for_when_nothing_is_written(counted: Counted) -> None:
    o, model = looking()
    first = after(o, EMPTY, model)
    for later in (INTERVAL, 10 * INTERVAL, 100 * TURNING):
        assert after(replace(o, now=NOW + later), first, model) is first
    assert counted.times == 1


OFF, NGRAM = (option(menu(POLICY), name) for name in ("disabled", "ngram"))
WINDOWS = st.builds(
    traffic,
    seconds=st.sampled_from([0.0, 20.0]),
    batch=st.sampled_from([0.0, 1e-9, 8.0, 1e6]),
    step=st.sampled_from([1e-6, 0.02, 50.0]),
    acceptance=st.sampled_from([None, 0.0, 0.3, 1.0]),
    rate=st.sampled_from([0.0, 2.0, 1e6]),
)
PODS = st.builds(pod, st.sampled_from("abc"), st.just("old"), st.sampled_from([OFF, NGRAM]), WINDOWS)


@given(st.lists(PODS, min_size=1, max_size=3), st.sampled_from([OFF, NGRAM]))
def test_whatever_is_seen_the_turning_points_are_numbers(pods: list[Any], active: Any) -> None:
    latest = Latest(Modeller())
    o = estimate(observation(POLICY, active=active, pods=tuple(pods)), latest)
    status = after(o, EMPTY, latest.model)
    text = json.dumps(json.loads(status.model_dump_json(by_alias=True)), allow_nan=False)
    assert SpecDecodePolicyStatus.model_validate(json.loads(text)) == status
    for p in status.recommendation.turning_points if status.recommendation else []:
        assert 0 < p.at.low <= p.at.value <= p.at.high


def test_during_a_change_there_are_no_turning_points(counted: Counted) -> None:
    latest = Latest(Modeller())
    o = estimate(observation(spec()), latest)
    d = decide(o)
    step = advance(o, d)
    assert step.rollout is not None
    status = report(o, d, step, EMPTY, NO_TROUBLES, latest.model)
    assert status.recommendation is not None and status.recommendation.turning_points == [] and counted.times == 0
