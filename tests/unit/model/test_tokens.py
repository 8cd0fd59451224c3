"""E: tokens that a request gets per step, and how sure that is."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.model.knowledge import Drafts, Knowledge
from specdecode.model.tokens import MEMORY, moved, tokens
from specdecode.vllm.speculation import Method
from support.steps import HOUR, NOW, drafts

DRAFTERS = [m for m in Method if m is not Method.DISABLED]


@pytest.mark.parametrize("method", [None, Method.NGRAM])
def test_without_drafts_a_step_is_a_token_for_sure(method: Method | None) -> None:
    e = tokens(method, drafts(), 0 if method else 5, NOW)
    assert (e.per_step, e.drafted, e.sd) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("method", DRAFTERS)
def test_what_was_just_measured_is_what_it_is(method: Method) -> None:
    e = tokens(method, Drafts(0.5, (0.8, 0.5, 0.25), NOW, 1e6), 3, NOW)
    assert e.per_step == pytest.approx(1 + 0.5 * (0.8 + 0.4 + 0.1))
    assert e.drafted == pytest.approx(0.5 * 3)
    assert 0 < e.sd < 0.1


@pytest.mark.parametrize("method", DRAFTERS)
def test_a_smaller_k_gets_the_first_positions(method: Method) -> None:
    seen = Drafts(1.0, (0.9, 0.6, 0.3, 0.2, 0.1), NOW, 1e6)
    by_k = [tokens(method, seen, k, NOW).per_step for k in range(6)]
    assert by_k[2] == pytest.approx(1 + 0.9 + 0.54)
    assert by_k == sorted(by_k)
    gains = [b - a for a, b in itertools.pairwise(by_k)]
    assert gains == sorted(gains, reverse=True), "each further token is worth less"


@pytest.mark.parametrize("method", DRAFTERS)
def test_before_it_was_measured_anything_usual_is_possible(method: Method) -> None:
    """Over datasets E at K = 5 is 1.2 to 4.75 (arXiv 2601.11580)."""
    e = tokens(method, None, 5, NOW)
    assert 1.2 < e.per_step < 3.5
    assert 0.1 < e.sd < 1.0


@pytest.mark.parametrize("method", DRAFTERS)
def test_what_was_measured_fades_into_the_prior(method: Method) -> None:
    prior = tokens(method, None, 5, NOW)
    for chance in (0.05, 0.95):
        es = [tokens(method, drafts(5, chance, ago), 5, NOW) for ago in (0.0, HOUR, MEMORY, 4 * MEMORY, 400 * MEMORY)]
        away = [abs(math.log((e.per_step - 1) / (prior.per_step - 1))) for e in es]
        assert away == sorted(away, reverse=True)
        assert away[-1] < 0.01 < away[0]
        assert es[-1].drafted == pytest.approx(prior.drafted)
        assert es[-1].sd == pytest.approx(prior.sd, rel=0.01)
        assert es[0].sd < es[-1].sd


@pytest.mark.parametrize("method", DRAFTERS)
def test_the_longer_ago_the_less_sure_is_what_drafts_add(method: Method) -> None:
    """In log(E - 1), which the spread is stated in."""
    es = [tokens(method, drafts(5, 0.7, ago), 5, NOW) for ago in (0.0, HOUR, 2 * HOUR, 8 * HOUR, 48 * HOUR)]
    spreads = [e.sd * e.per_step / (e.per_step - 1) for e in es]
    assert spreads == sorted(spreads)
    assert spreads[-1] > 3 * spreads[0]


@pytest.mark.parametrize("method", DRAFTERS)
def test_what_is_usual_on_the_workload_takes_the_place_of_the_prior(method: Method) -> None:
    """The last measurement was a bad one; what it fades into is what this workload has mostly shown."""
    bad, usual = drafts(5, 0.1, 1000 * MEMORY), math.log(2.5)
    es = [
        tokens(method, replace(bad, usual=usual, usual_seconds=hours * HOUR), 5, NOW).per_step for hours in (0, 1, 48)
    ]
    assert es[0] == pytest.approx(tokens(method, None, 5, NOW).per_step)
    assert sorted(es, key=lambda e: abs(e - 3.5)) == es[::-1], "the longer it was seen the more it counts"
    assert es[-1] == pytest.approx(3.5, rel=0.06)


def test_what_varies_from_hour_to_hour_fades_into_less_certainty() -> None:
    then = replace(drafts(5, 0.5, 1000 * MEMORY), usual=math.log(1.0), usual_seconds=48 * HOUR)
    es = [tokens(Method.NGRAM, replace(then, usual_variance=v), 5, NOW) for v in (0.0, 0.1, 0.3, 0.6)]
    assert [e.sd for e in es] == sorted({e.sd for e in es}), "even the steadiest is not sure"
    assert es[0].sd > 0.1


def test_where_the_traffic_has_visibly_changed_a_measurement_is_worth_less() -> None:
    es = [tokens(Method.NGRAM, drafts(5, 0.9), 5, NOW, change) for change in (0.0, 0.2, 0.7, 5.0)]
    prior = tokens(Method.NGRAM, None, 5, NOW)
    away = [e.per_step - prior.per_step for e in es]
    assert away == sorted(away, reverse=True)
    assert away[-1] == pytest.approx(0.0, abs=0.02)
    assert es[-1].sd == pytest.approx(prior.sd, rel=0.05)


def noted(now: float, then: float, *, later: float = HOUR) -> dict[str, Knowledge]:
    """N-gram was measured beside a draft model, which was accepted so often then, and is now."""
    beside = ("draft", drafts(3, then).extra)
    return {
        "ngram": Knowledge(NOW - later, drafts=replace(drafts(5, 0.5, later), beside=beside)),
        "draft": Knowledge(NOW, drafts=drafts(3, now)),
    }


def test_whether_it_has_changed_is_seen_by_the_profile_that_runs() -> None:
    assert moved(noted(0.7, 0.7), "ngram") == pytest.approx(0.0)
    assert moved(noted(0.3, 0.7), "ngram") == moved(noted(0.7, 0.3), "ngram") > 0.5


@pytest.mark.parametrize(
    "known",
    [{}, {"ngram": Knowledge(NOW)}, {"ngram": noted(0.3, 0.7)["ngram"]}, noted(0.3, 0.7, later=0.0)],
    ids=["nothing is known", "no drafts", "the other is gone", "not measured since"],
)
def test_without_a_newer_measurement_of_the_other_nothing_is_seen(known: dict[str, Knowledge]) -> None:
    assert moved(known, "ngram") == 0.0


def of_length(then: float | None, now: float | None, *, later: float = HOUR) -> dict[str, Knowledge]:
    """N-gram was measured on prompts of one length; they have another now that nothing is drafted."""
    return {
        "ngram": Knowledge(NOW - later, drafts=drafts(5, 0.1, later), prompt_length=then),
        "disabled": Knowledge(NOW, prompt_length=now),
    }


def test_while_nothing_is_drafted_prompts_of_another_length_tell_that_the_traffic_has_changed() -> None:
    assert moved(of_length(200.0, 200.0), "ngram") == moved(of_length(200.0, 260.0), "ngram") == 0.0
    assert moved(of_length(60.0, 200.0), "ngram") == pytest.approx(moved(of_length(200.0, 60.0), "ngram"))
    prior, seen = tokens(Method.NGRAM, None, 5, NOW).per_step, drafts(5, 0.1, HOUR)
    turned = tokens(Method.NGRAM, seen, 5, NOW, moved(of_length(60.0, 200.0), "ngram")).per_step
    same = tokens(Method.NGRAM, seen, 5, NOW).per_step
    assert abs(turned - prior) < 0.35 * abs(same - prior)


def test_so_they_do_where_the_profile_that_runs_drafts_as_well_as_before() -> None:
    """A draft model is accepted as often in another kind of traffic; n-gram may not be."""
    same = noted(0.7, 0.7)
    then, now = (replace(same[name], prompt_length=length) for name, length in (("ngram", 1000.0), ("draft", 250.0)))
    assert moved({"ngram": then, "draft": now}, "ngram") == moved(of_length(1000.0, 250.0), "ngram") > 1.0


def test_what_is_usual_on_one_kind_of_traffic_is_not_on_another() -> None:
    usual = replace(drafts(5, 0.1, HOUR), usual=math.log(0.1), usual_seconds=10 * HOUR, usual_variance=0.1)
    prior = tokens(Method.NGRAM, None, 5, NOW)
    alike, other = (tokens(Method.NGRAM, usual, 5, NOW, change) for change in (0.0, 5.0))
    assert other.per_step == pytest.approx(prior.per_step, rel=0.02)
    assert alike.per_step < 1.2 < other.per_step


@pytest.mark.parametrize(
    "known",
    [of_length(None, 200.0), of_length(60.0, None), of_length(60.0, 200.0, later=-HOUR)],
    ids=["then", "now", "newer"],
)
def test_prompts_whose_length_is_not_known_tell_nothing(known: dict[str, Knowledge]) -> None:
    assert moved(known, "ngram") == 0.0


def test_a_clock_that_went_back_makes_nothing_fresher_than_fresh() -> None:
    seen = drafts()
    assert tokens(Method.NGRAM, seen, 5, NOW - HOUR) == tokens(Method.NGRAM, seen, 5, NOW)


def test_positions_that_were_never_drafted_are_less_sure() -> None:
    seen = drafts(2)
    spreads = [e.sd * e.per_step / (e.per_step - 1) for k in (2, 3, 5, 8) if (e := tokens(Method.NGRAM, seen, k, NOW))]
    assert spreads == sorted(spreads)
    assert spreads[-1] > 1.5 * spreads[0]


def test_few_drafts_are_less_sure_than_many() -> None:
    few, many = (tokens(Method.NGRAM, Drafts(1.0, (0.7,) * 5, NOW, n), 5, NOW) for n in (10.0, 1e4))
    assert few.sd > 1.3 * many.sd
    assert few.per_step == many.per_step


@given(
    st.sampled_from(DRAFTERS),
    st.none()
    | st.builds(
        Drafts,
        st.floats(0, 1),
        st.lists(st.floats(0, 1), min_size=1, max_size=16).map(tuple),
        st.floats(NOW - 1e8, NOW + 1e8),
        st.floats(0, 1e12),
        st.none() | st.floats(-5, 4),
        st.floats(0, 10),
        st.floats(0, 172_800),
    ),
    st.integers(0, 64),
    st.floats(0, 10),
)
def test_whatever_was_measured_e_is_between_one_token_and_all_of_them(
    method: Method, seen: Drafts | None, k: int, change: float
) -> None:
    e = tokens(method, seen, k, NOW, change)
    assert 1.0 <= e.per_step <= 1 + k
    assert 0.0 <= e.drafted <= k
    assert 0.0 <= e.sd < math.inf
