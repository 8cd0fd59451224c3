"""What the model of the steps leaves unexplained, as it was seen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from specdecode.model.cost import OfferedLoad
from specdecode.model.knowledge import DAY, MAX_RESIDUALS, Knowledge, Residual
from specdecode.model.learnt import LearntModel
from specdecode.model.misfit import Misfit
from specdecode.sim.surfaces import load_surface
from support.steps import DENSE, DRAFT, NOW, OFF, OPTIONS, known

LOADS = np.array([100.0, 1000.0, 10_000.0])


def off_by(log_ratio: float, *loads: float, age: float = 0.0) -> Knowledge:
    return Knowledge(residuals=tuple(Residual(load, log_ratio, NOW - age) for load in loads))


def test_a_model_that_was_never_held_against_anything_is_believed() -> None:
    mean, variance = Misfit({"ngram": Knowledge()}, NOW).at("ngram", LOADS)
    assert mean == pytest.approx([0.0] * 3) and variance == pytest.approx([0.0] * 3)


def test_a_model_that_explains_what_is_seen_stays_as_sure_as_it_was() -> None:
    right = {"ngram": off_by(0.01, 100.0, 300.0, 1000.0, 3000.0)}
    mean, variance = Misfit(right, NOW).at("ngram", LOADS)
    assert np.abs(mean).max() < 0.02 and np.sqrt(variance).max() < 0.06


def test_what_was_seen_at_a_load_is_expected_there_and_not_at_quite_another() -> None:
    mean, variance = Misfit({"ngram": off_by(0.4, 900.0, 1100.0)}, NOW).at("ngram", LOADS)
    assert mean[1] == pytest.approx(0.4, abs=0.03)
    assert abs(mean[0]) < 0.1 and abs(mean[2]) < 0.1
    assert variance[0] > 4 * variance[1], "far away it may be anything"


def test_half_of_it_is_expected_of_options_that_were_not_seen() -> None:
    """A service that is bursty is so for all."""
    misfit = Misfit({"ngram": off_by(0.4, 900.0, 1100.0)}, NOW)
    assert misfit.at("disabled", LOADS)[0][1] == pytest.approx(0.2, abs=0.03)


def test_each_option_has_its_own() -> None:
    misfit = Misfit({"ngram": off_by(0.5, 1000.0), "disabled": off_by(0.0, 1000.0)}, NOW)
    (ngram,), (disabled,) = (misfit.at(name, LOADS[1:2])[0] for name in ("ngram", "disabled"))
    assert ngram > 0.3 and abs(disabled) < 0.15


def test_windows_that_differ_at_one_load_make_the_next_one_unsure() -> None:
    steady, bursty = Knowledge(), Knowledge()
    for i in range(40):
        steady = steady.with_residual(Residual(1000.0, 0.4, NOW))
        bursty = bursty.with_residual(Residual(1000.0, 0.4 + (0.3 if i % 2 else -0.3), NOW))
    (sure, unsure) = (Misfit({"ngram": k}, NOW).at("ngram", LOADS) for k in (steady, bursty))
    assert unsure[0][1] == pytest.approx(sure[0][1], abs=0.12), "as much is expected"
    assert np.sqrt(unsure[1][1]) == pytest.approx(0.3, rel=0.2) and np.sqrt(sure[1][1]) < 0.1
    assert unsure[1][2] < unsure[1][1] + 0.1, "at another load they say less"


def test_it_says_less_with_age() -> None:
    fresh, old = (Misfit({"ngram": off_by(0.4, 1000.0, age=age)}, NOW) for age in (0.0, 2 * DAY))
    assert abs(old.at("ngram", LOADS)[0][1]) < 0.8 * fresh.at("ngram", LOADS)[0][1]


def test_few_are_kept_one_per_half_octave_the_newest() -> None:
    knowledge = Knowledge()
    for i in range(2 * MAX_RESIDUALS):
        knowledge = knowledge.with_residual(Residual(100.0 * 2 ** (i / 2), 0.1, NOW + i))
    assert [r.measured_at - NOW for r in knowledge.residuals] == [*range(MAX_RESIDUALS, 2 * MAX_RESIDUALS)]


def test_at_one_load_they_are_averaged_and_what_is_old_gives_way() -> None:
    first = Knowledge().with_residual(Residual(1000.0, 0.0, NOW))
    soon = first.with_residual(Residual(1001.0, 1.0, NOW + 60))
    late = first.with_residual(Residual(1001.0, 1.0, NOW + 2 * DAY))
    assert [k.residuals[0].log_ratio for k in (soon, late)] == pytest.approx([0.2, 1.0])


def test_the_models_answers_move_with_it_and_say_what_part_of_them_it_is() -> None:
    plain = known(load_surface(DENSE), OFF, (4.0, 16.0, 64.0))
    off = replace(plain, residuals=off_by(0.4, 400.0, 500.0, 700.0).residuals)
    here = OfferedLoad(500.0, 100.0, 400.0, 200.0)
    speculations = {o.profile: o.speculation for o in OPTIONS}
    before, after = (LearntModel({OFF.profile: k}, speculations, 256, 512, NOW) for k in (plain, off))
    was, found = before.predict(OFF, here), after.predict(OFF, here)
    assert was.unexplained == 0.0 and found.unexplained == pytest.approx(0.4, abs=0.03)
    assert found.tpot.value == pytest.approx(was.tpot.value * math.exp(found.unexplained))
    assert math.log(found.tpot.high / found.tpot.low) > math.log(was.tpot.high / was.tpot.low)
    (curve,) = after.log_tpot(OFF, here, np.array([500.0])) - before.log_tpot(OFF, here, np.array([500.0]))
    assert curve == pytest.approx(found.unexplained, abs=0.02)
    (estimate,) = after.tpots(OFF, here, [500.0])
    assert estimate.value == pytest.approx(before.tpots(OFF, here, [500.0])[0].value * math.exp(found.unexplained))
    assert after.predict(DRAFT, here).unexplained == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(("asked", "moves"), [(500.0, False), (20_000.0, True)], ids=["with room", "overloaded"])
def test_pods_that_fall_behind_have_the_capacity_that_their_tokens_show(asked: float, moves: bool) -> None:
    """At the largest batch, batch size over TPOT is what they serve; below it, waiting explains TPOT as well."""
    plain = known(load_surface(DENSE), OFF, (4.0, 16.0, 64.0))
    off = replace(plain, residuals=off_by(-0.4, asked).residuals)
    here = OfferedLoad(asked, 0.2 * asked, 400.0, 200.0)
    was, found = (
        LearntModel({OFF.profile: k}, {OFF.profile: None}, 256, 512, NOW).predict(OFF, here) for k in (plain, off)
    )
    assert found.unexplained < -0.2 and was.saturated is moves
    more = math.exp(-found.unexplained) if moves else 1.0
    assert found.headroom == pytest.approx(was.headroom * more)
    assert found.capacity is not None and was.capacity is not None
    assert found.capacity.value == pytest.approx(was.capacity.value * more)
