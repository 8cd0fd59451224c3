"""What would change the operator's mind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from specdecode.api.v1alpha1 import Configuration, HistoryEntry, Outcome
from specdecode.model.cost import CostModel, OfferedLoad, Prediction
from specdecode.model.knowledge import Knowledge
from specdecode.policy.clock import text_of
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.estimating import Modeller, estimate
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation
from specdecode.policy.outlook import Outlook
from specdecode.policy.turning import HALVINGS, LOWEST, Latest, Quantity, TurningPoint, turning_points
from specdecode.sim.surfaces import load_surface
from support.steps import DENSE, DRAFT, MIXTURE, NGRAM, OFF, known
from support.world import NOW, menu, observation, option, spec, traffic

SURFACE = load_surface(DENSE)
BATCHES = (1.0, 4.0, 16.0, 64.0, 128.0, 256.0)
PROFILES = [
    {"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5},
    {"name": "draft", "method": "DraftModel", "numSpeculativeTokens": 3, "draftModel": {"model": "small"}},
]
POLICY = spec(profiles=PROFILES, batchSizeTuning={"mode": "Off"}, objective={"minimumGain": "5%"})
MENU = menu(POLICY)
EVERYTHING = {o.profile: known(SURFACE, o, BATCHES) for o in (OFF, NGRAM, DRAFT)}


@cache
def looking(
    active: str = "disabled", batch: float = 8.0, acceptance: float | None = None
) -> tuple[Observation, CostModel]:
    """A workload on the dense surface of which everything is known, and the model of its estimates."""
    return looked_at(EVERYTHING, active, batch, acceptance)


def looked_at(
    knowledge: Mapping[str, Knowledge], active: str, batch: float, acceptance: float | None = None, **changes: Any
) -> tuple[Observation, CostModel]:
    runs = option(MENU, active)
    k = (runs.speculation.num_speculative_tokens or 0) if runs.speculation else 0
    method = {"disabled": OFF, "ngram": NGRAM, "draft": DRAFT}[active]
    step = next(s.seconds for s in known(SURFACE, method, [batch]).step_times)
    window = traffic(batch=batch, step=step, acceptance=acceptance, k=k)
    latest = Latest(Modeller())
    o = observation(POLICY, active=active and runs, window=window, knowledge=knowledge, **changes)
    o = estimate(o, latest)
    assert latest.model is not None
    return o, latest.model


def points_of(o: Observation, model: CostModel) -> dict[tuple[str, Quantity, str | None, bool], TurningPoint]:
    return {(p.profile, p.quantity, p.of, p.above): p for p in turning_points(o, decide(o), model)}


def gain(ours: Prediction, theirs: Prediction) -> float:
    return ours.tpot.value / theirs.tpot.value - 1


def at_load(o: Observation, asked: float) -> OfferedLoad:
    load = o.estimates.load
    assert load is not None
    prompts = load.prompt_tokens_per_second * asked / load.tokens_per_second
    return replace(load, tokens_per_second=asked, prompt_tokens_per_second=prompts)


# --- where it turns -----------------------------------------------------------------------------------------------


LOW = {**EVERYTHING, "ngram": known(SURFACE, NGRAM, BATCHES, chance=0.4)}
"""N-gram that does not get much accepted: the draft model is the one to beat."""


def test_a_load_is_a_turning_point_where_the_least_gain_worth_a_change_is_gone() -> None:
    o, model = looked_at(LOW, "disabled", 32.0)
    assert decide(o).target == option(MENU, "draft")
    point = points_of(o, model)["disabled", Quantity.LOAD, None, True]
    assert o.estimates.load is not None and point.now.value == o.estimates.load.tokens_per_second
    for factor, stays in ((0.95, False), (1.05, True)):
        load = at_load(o, point.at.value * factor)
        off, *others = (model.predict(option(MENU, n), load) for n in ("disabled", "ngram", "draft"))
        best = max((gain(off, p) for p in others if not p.saturated), default=0.0)
        assert (best < 0.05) is stays, f"at {factor} of the turning point the best gain is {best:.3f}"


@pytest.mark.parametrize(("active", "acceptance"), [("disabled", None), ("ngram", 0.55)])
def test_an_acceptance_is_a_turning_point_where_another_profile_is_as_good(
    active: str, acceptance: float | None
) -> None:
    o, model = looking(active, 8.0, acceptance)
    target, load = decide(o).target, o.estimates.load
    assert target is not None and load is not None
    points = [p for p in points_of(o, model).values() if p.quantity is Quantity.ACCEPTANCE and p.of == target.profile]
    (point,) = points
    assert not point.above and point.at.value < point.now.value
    here = model.predict(target, load, point.at.value)
    rival = model.predict(option(MENU, point.profile), load)
    # The least gain that is worth a change, and the width of the last stretch that is searched.
    width = (point.now.value / LOWEST) ** (0.5**HALVINGS)
    assert gain(rival, here) == pytest.approx(0.0, abs=0.05 + (width - 1))


def test_acceptance_that_is_learnt_to_be_beyond_the_turning_point_changes_the_decision() -> None:
    o, model = looked_at(LOW, "disabled", 32.0)
    assert decide(o).target == option(MENU, "draft")
    point = points_of(o, model)["ngram", Quantity.ACCEPTANCE, "ngram", True]
    for factor, expected in ((0.9, "draft"), (1.1, "ngram")):
        rate = point.at.value * factor
        chance = next(c / 1000 for c in range(1000) if sum((c / 1000) ** i for i in range(1, 6)) / 5 >= rate)
        again, _ = looked_at({**LOW, "ngram": known(SURFACE, NGRAM, BATCHES, chance=chance)}, "disabled", 32.0)
        target = decide(again).target
        assert target is not None and target.profile == expected


NOT_MEASURED = HistoryEntry(
    id="x",
    policy_generation=1,
    source=Configuration(profile="ngram"),
    target=Configuration(profile="disabled"),
    reason=Reason.NO_BASELINE.value,
    outcome=Outcome.ERROR,
    outcome_reason="NoCapacity",
    started_at=text_of(NOW - 3700),
    finished_at=text_of(NOW - 3600),
)
"""There was no room for the canary that would have shown what the engine does without speculation."""


def test_the_floor_of_acceptance_is_a_turning_point_where_it_decides_first() -> None:
    unknown = {name: k for name, k in EVERYTHING.items() if name != "disabled"}
    o, model = looked_at(unknown, "ngram", 8.0, 0.7, history=(NOT_MEASURED,))
    assert decide(o).reason is Reason.BEST_ALREADY
    point = points_of(o, model)["disabled", Quantity.ACCEPTANCE, "ngram", False]
    assert point.at.value == pytest.approx(POLICY.guards.acceptance.disable_below, abs=0.02)


def test_a_canary_for_want_of_a_baseline_is_no_choice() -> None:
    """The decision is a canary without speculation; what would make it the choice is told as ever."""
    unknown = {name: k for name, k in EVERYTHING.items() if name != "disabled"}
    o, model = looked_at(unknown, "ngram", 8.0, 0.7)
    assert decide(o).reason is Reason.NO_BASELINE
    assert ("disabled", Quantity.ACCEPTANCE, "ngram", False) in points_of(o, model)


def test_a_load_that_ends_too_soon_turns_with_the_time_that_it_lasts() -> None:
    o, model = looked_at(LOW, "ngram", 32.0, 0.15)
    short = Outlook(duration=1800.0, benefit=-60.0, average=0.0, payback=900.0)
    o = replace(o, estimates=replace(o.estimates, outlooks={"draft": short}))
    (point,) = turning_points(o, Decision(Reason.LOAD_TOO_SHORT, "", o.active), model)
    assert (point.profile, point.quantity, point.above, point.now.value) == ("draft", Quantity.DURATION, True, 1800.0)
    faster = o.estimates.gain(option(MENU, "draft"))
    assert faster is not None and faster.value > 0.05
    assert point.at.value == pytest.approx(1800.0 + 60.0 / math.log1p(faster.value)), "what is lost is made good"


# --- what they are like -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [("disabled", 8.0, None), ("disabled", 200.0, None), ("ngram", 8.0, 0.7), ("draft", 64.0, 0.8)]
)
def test_every_turning_point_lies_beyond_now_in_its_interval(case: tuple[str, float, float | None]) -> None:
    o, model = looking(*case)
    d = decide(o)
    assert d.target is not None
    points = turning_points(o, d, model)
    assert points, "something would change its mind"
    for p in points:
        assert p.at.low <= p.at.value <= p.at.high
        assert (p.at.value > p.now.value) is p.above
        assert p.profile != d.target.profile and (p.of is not None) is (p.quantity is Quantity.ACCEPTANCE)


def test_a_model_that_knows_less_has_wider_turning_points() -> None:
    little = {"disabled": known(SURFACE, OFF, (8.0,))}
    unsure, sure = (
        [p.at for p in points_of(*looked).values() if p.quantity is Quantity.ACCEPTANCE]
        for looked in (looked_at(little, "disabled", 8.0), looking(batch=8.0))
    )
    assert unsure and sure
    assert min(a.high - a.low for a in unsure) > max(a.high - a.low for a in sure)


def test_a_mixture_of_experts_turns_below_and_above() -> None:
    surface = load_surface(MIXTURE)
    policy = spec(batchSizeTuning={"mode": "Off"})
    m = menu(policy)
    knowledge = {o.profile: known(surface, o, BATCHES) for o in (OFF, NGRAM)}
    window = traffic(batch=24.0, step=next(s.seconds for s in known(surface, OFF, [24.0]).step_times))
    latest = Latest(Modeller())
    o = estimate(observation(policy, menu=m, window=window, knowledge=knowledge), latest)
    assert latest.model is not None and decide(o).target == option(m, "ngram")
    loads = {p.above: p for p in turning_points(o, decide(o), latest.model) if p.quantity is Quantity.LOAD}
    assert {p.profile for p in loads.values()} == {"disabled"} and True in loads


# --- when there are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": spec(profiles=PROFILES, suspend=True)},
        {"workload": None, "menu": None},
        {"pods": ()},
    ],
    ids=["suspended", "no workload", "no pods"],
)
def test_who_cannot_decide_has_no_turning_points(changes: dict[str, Any]) -> None:
    o, model = looking()
    o = replace(o, **changes)
    assert turning_points(o, decide(o), model) == ()


def test_without_a_load_there_are_no_turning_points() -> None:
    o, model = looking()
    o = replace(o, estimates=replace(o.estimates, load=None, modelled=None))
    assert turning_points(o, Decision(Reason.IDLE, "idle", o.active), model) == ()


def test_a_workload_that_has_nothing_else_to_run_has_no_turning_points() -> None:
    o, model = looking()
    alone = replace(
        o.estimates,
        candidates=(option(MENU, "disabled"),),
        predictions={"disabled": o.estimates.predictions["disabled"]},
    )
    o = replace(o, estimates=alone)
    assert turning_points(o, decide(o), model) == ()


def test_the_factory_keeps_the_model_that_the_estimates_are_of() -> None:
    o, model = looking()
    assert o.estimates.load is not None
    assert model.predict(option(MENU, "ngram"), o.estimates.load) == o.estimates.predictions["ngram"]
