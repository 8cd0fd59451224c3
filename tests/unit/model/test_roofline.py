"""Families of step times: what is believed of the target's forward pass before it was measured."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from specdecode.model.roofline import Array, Families, families
from specdecode.sim.surfaces import load_surface
from specdecode.vllm.speculation import Method
from support.steps import DENSE, LONG, MIXTURE, SMALL

TOKENS = np.geomspace(1.0, 4096.0, 60)


def family(
    knee: float, kappa: float = 1e-6, active: float = 1.0, shared: float = 1.0, *, hiding: bool = False
) -> Families:
    return Families(*(np.array([v]) for v in (knee, kappa, active, shared, float(hiding), 0.0)))


def relative(f: Families, tokens: Array, context: float = 0.0, batch: Array | None = None) -> Array:
    b = tokens if batch is None else batch
    return np.asarray(f.relative(tokens, b, np.full(len(b), context))[0], dtype=np.float64)


def worst(f: Families, name: str) -> float:
    """Largest relative distance of the steps without speculation from the family, the scale m left free."""
    surface = load_surface(name)
    points = np.array(surface.columns[Method.DISABLED, False][0].points)
    off = np.log(points[:, 1] / relative(f, points[:, 0], surface.context))
    return float(np.exp((off.max() - off.min()) / 2) - 1)


@pytest.mark.parametrize(
    ("name", "parameters", "within"),
    [
        (DENSE, (188.0, 6e-6), 0.05),
        (LONG, (140.0, 6e-6), 0.05),
        (SMALL, (360.0, 1.2e-5), 0.10),
        (MIXTURE, (428.0, 1e-6, 1 / 16, 0.18), 0.05),
    ],
)
def test_measured_engines_follow_a_family(name: str, parameters: tuple[float, ...], within: float) -> None:
    assert worst(family(*parameters), name) < within


def test_a_mixture_of_experts_follows_no_dense_family() -> None:
    """More tokens wake more experts: its steps grow long before computing is the limit."""
    every = families()
    dense = np.nonzero(every.active == 1)[0]
    assert min(worst(every.take(dense[i : i + 1]), MIXTURE) for i in range(len(dense))) > 0.2


@pytest.mark.parametrize("name", [DENSE, LONG, MIXTURE])
def test_one_of_the_families_considered_is_near_each_measured_engine(name: str) -> None:
    every = families()
    assert min(worst(every.take(np.array([i])), name) for i in range(len(every.knee))) < 0.06


def test_a_dense_step_is_flat_while_it_reads_and_linear_once_it_computes() -> None:
    g = relative(family(160.0), TOKENS)
    assert g[0] == pytest.approx(1.0, rel=0.01)
    assert relative(family(160.0), np.array([160.0]))[0] == pytest.approx(2**0.5)
    assert relative(family(160.0), np.array([4000.0]))[0] == pytest.approx(4000 / 160, rel=0.01)


def test_a_mixture_reads_the_shared_weights_and_the_experts_that_are_touched() -> None:
    f = family(1e6, active=1 / 16, shared=0.18)
    one, many = relative(f, np.array([1.0, 1000.0]))
    assert one == pytest.approx(0.18 + 0.82 / 16)
    assert many == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("active", [1.0, 1 / 8, 1 / 32])
def test_more_tokens_never_cost_less(active: float) -> None:
    g = relative(family(300.0, active=active, shared=0.2 if active < 1 else 1.0), TOKENS)
    assert all(a <= b for a, b in itertools.pairwise(g))


def test_keys_and_values_are_read_for_every_request_and_token_of_context() -> None:
    f, one = family(200.0, kappa=1e-5), np.array([10.0])
    without = relative(f, one)
    assert relative(f, one, 4000.0) - without == pytest.approx(1e-5 * 10 * 4000)
    assert relative(f, np.array([60.0]), 4000.0, one) - relative(f, np.array([60.0])) == pytest.approx(0.4), (
        "drafts read the keys and values of their request once"
    )


def test_the_prior_is_one_of_dense_models_and_mixtures_and_is_finite() -> None:
    every = families()
    assert np.isfinite(every.log_prior).all()
    prior = np.exp(every.log_prior - every.log_prior.max())
    dense = prior[every.active == 1].sum() / prior.sum()
    assert 0.5 < dense < 0.95
    assert np.isfinite(every.relative(TOKENS, TOKENS, np.full(len(TOKENS), 30_000.0))).all()


def test_all_that_are_considered_are_made_once() -> None:
    assert families() is families()


# --- prompts --------------------------------------------------------------------------------------------------------


def per_prompt_token(f: Families, tokens: Array, length: float) -> Array:
    return np.asarray(f.per_prompt_token(tokens, np.full(len(tokens), length))[0], dtype=np.float64)


@pytest.mark.parametrize("length", [0.0, 256.0], ids=["of unknown length", "of 256 tokens"])
def test_where_prompts_do_not_hide_each_token_of_them_costs_its_computation(length: float) -> None:
    assert per_prompt_token(family(200.0), TOKENS, length) == pytest.approx(1 / 200)


def test_short_prompts_hide_behind_the_memory_the_more_the_fewer_tokens_are_beside_them() -> None:
    f = family(200.0, hiding=True)
    beside = per_prompt_token(f, np.array([1.0, 30.0, 126.0, 1000.0]), 128.0)
    assert list(beside) == sorted(beside)
    assert beside[0] < 0.5 / 200, "most of it is hidden"
    assert beside[-1] == pytest.approx(1 / 200, rel=0.05), "nothing is left to hide behind"


def test_long_prompts_do_not_hide() -> None:
    f = family(200.0, hiding=True)
    by_length = [per_prompt_token(f, np.array([8.0]), length)[0] for length in (16.0, 256.0, 4096.0, 65_536.0)]
    assert by_length == sorted(by_length)
    assert by_length[-1] == pytest.approx(1 / 200, rel=0.01)
    assert per_prompt_token(f, np.array([8.0]), 0.0)[0] == pytest.approx(1 / 200), "nor those of unknown length"


@pytest.mark.parametrize("active", [1.0, 1 / 16])
def test_a_step_with_one_short_prompt_is_a_step_of_that_many_tokens_more(active: float) -> None:
    """All of a mixture's experts are read for a prompt."""
    f, tokens, length = family(200.0, active=active, shared=1.0 if active == 1 else 0.2, hiding=True), 64.0, 128.0
    without = relative(f, np.array([tokens]))[0]
    whole = without + length * per_prompt_token(f, np.array([tokens]), length)[0]
    assert whole == pytest.approx((1 + ((tokens + length) / 200.0) ** 2) ** 0.5)


def test_half_of_the_prior_is_for_prompts_that_hide() -> None:
    every = families()
    prior = np.exp(every.log_prior - every.log_prior.max())
    assert prior[every.hiding > 0].sum() / prior.sum() == pytest.approx(0.5)
