"""Step times learnt from a workload's own steps, against engines that were measured whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.model.cost import Option
from specdecode.model.estimate import Z90
from specdecode.model.knowledge import Knowledge, StepTime
from specdecode.model.steptime import Points, StepModel
from specdecode.model.surface import Surface
from specdecode.sim.surfaces import builtin_surfaces, load_surface
from specdecode.vllm.speculation import Method
from support.steps import (
    DENSE,
    DRAFT,
    HOUR,
    LIMIT,
    LONG,
    MIXTURE,
    NGRAM,
    NOW,
    OFF,
    OPTIONS,
    SMALL,
    k_of,
    known,
    method_of,
    step,
)

METHODS: Mapping[str, Method | None] = {
    o.profile: None if o.speculation is None else o.speculation.method for o in OPTIONS
}
NO_STEPS: Sequence[float] = ()


def model(knowledge: Mapping[str, Knowledge], limit: float = LIMIT) -> StepModel:
    return StepModel(knowledge, METHODS, limit, NOW)


def fitted(name: str, off: Sequence[float], *others: tuple[Option, Sequence[float]], ago: float = 0.0) -> StepModel:
    """Fitted to steps of a measured engine at some batch sizes."""
    surface = load_surface(name)
    return model({o.profile: known(surface, o, batches, ago=ago) for o, batches in ((OFF, off), *others)})


def asked(
    m: StepModel, option: Option, batch: float, *, k: int | None = None, context: float = 256.0
) -> tuple[float, float]:
    """Median seconds of a step, and the standard deviation of its logarithm."""
    k = k_of(option) if k is None else k
    b, t, c = (np.array([v]) for v in (batch, batch * (k + 1), context))
    mean, sd = m.log_seconds(m.points(option.profile if option.speculation else "", k, t, b, c))
    return math.exp(mean[0]), float(sd[0])


def inside(m: StepModel, surface: Surface, method: Method) -> list[bool]:
    """For every measured step of a method, whether its 90 % interval holds it."""
    option = next(o for o in OPTIONS if method_of(o) is method)
    found = []
    for (own, _), columns in surface.columns.items():
        for column, (tokens, seconds) in ((c, p) for c in columns for p in c.points):
            if own is method:
                batch = tokens / (column.k + 1)
                median, sd = asked(m, option, batch, k=column.k, context=surface.context)
                found.append(abs(math.log(seconds / median)) <= Z90 * sd)
    return found


def share(found: Sequence[bool]) -> float:
    assert found
    return sum(found) / len(found)


# --- away from what was measured ------------------------------------------------------------------------------------

THREE = ((1.0, 8.0, 64.0), (8.0, 32.0, 64.0))
MEASURED = [(name, m) for name in builtin_surfaces() for m in load_surface(name).methods]


@pytest.mark.parametrize("batches", THREE, ids=str)
@pytest.mark.parametrize(("name", "method"), MEASURED)
def test_three_steps_without_speculation_tell_the_steps_of_every_method(
    name: str, method: Method, batches: Sequence[float]
) -> None:
    """Of drafts nothing was seen. The small model on the H100 is the hard one: drafting takes longer there than for
    any other."""
    found = inside(fitted(name, batches), load_surface(name), method)
    assert share(found) >= (0.6 if name == SMALL else 0.85)


@pytest.mark.parametrize("batches", THREE, ids=str)
@pytest.mark.parametrize("name", builtin_surfaces())
def test_and_what_is_told_of_steps_without_speculation_is_near(name: str, batches: Sequence[float]) -> None:
    surface, m = load_surface(name), fitted(name, batches)
    for tokens, seconds in surface.columns[Method.DISABLED, False][0].points:
        median, _ = asked(m, OFF, tokens, context=surface.context)
        limit = 0.15 if min(batches) <= tokens <= max(batches) else 0.5
        assert median == pytest.approx(seconds, rel=limit)


@pytest.mark.parametrize("name", [DENSE, MIXTURE])
def test_an_interval_tells_something(name: str) -> None:
    """It would be easy to hold everything by saying nothing."""
    _, sd = asked(fitted(name, (1.0, 8.0, 64.0)), NGRAM, 8.0)
    assert sd < 0.35


# --- near what was measured -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option", "batches"),
    [
        (DENSE, NGRAM, (2.0, 8.0, 32.0)),
        (DENSE, DRAFT, (16.0, 32.0, 64.0)),
        (LONG, NGRAM, (8.0, 32.0, 64.0)),
        (MIXTURE, NGRAM, (8.0, 16.0, 48.0)),
    ],
)
def test_near_the_steps_of_a_profile_its_steps_are_known(name: str, option: Option, batches: tuple[float, ...]) -> None:
    surface, m = load_surface(name), fitted(name, (1.0, 8.0, 64.0), (option, batches))
    for batch in (b * f for b in batches for f in (0.8, 1.0, 1.25)):
        median, sd = asked(m, option, batch, context=surface.context)
        assert median == pytest.approx(step(surface, option, batch).seconds, rel=0.1)
        assert sd < 0.15


@pytest.mark.parametrize("name", builtin_surfaces())
def test_what_was_measured_makes_its_own_steps_surer_and_leaves_the_others_alone(name: str) -> None:
    surface = load_surface(name)
    option = NGRAM if Method.NGRAM in surface.methods else DRAFT
    other = DRAFT if option is NGRAM else NGRAM
    before, after = fitted(name, (1.0, 8.0, 64.0)), fitted(name, (1.0, 8.0, 64.0), (option, (4.0, 16.0)))
    assert asked(after, option, 8.0)[1] < 0.8 * asked(before, option, 8.0)[1]
    assert asked(after, option, 200.0)[1] > asked(after, option, 8.0)[1]
    assert asked(after, other, 8.0)[1] > 2 * asked(after, option, 8.0)[1]


def test_a_profile_that_was_never_measured_is_wide() -> None:
    m = fitted(DENSE, (1.0, 8.0, 64.0), (NGRAM, (1.0, 8.0, 64.0)))
    off, ngram, draft = (asked(m, o, 8.0)[1] for o in (OFF, NGRAM, DRAFT))
    assert draft > 3 * max(off, ngram)


HEAVY = 3.0
"""Times its prior: what this drafter adds to a step."""


def heavy(batch: float, *, prompt: float = 0.0, prompt_seconds: float = 0.0) -> StepTime:
    """A step of the small engine with a drafter that takes three times as long as drafters do."""
    surface = load_surface(SMALL)
    at = np.array([4 * batch]), np.array([batch]), np.array([256.0])
    prior = float(Points.of(Method.DRAFT_MODEL, 3, *at, (0.0, 0.0), LIMIT).overhead[0])
    seconds = surface.step_seconds(Method.DISABLED, 0, 4 * batch) + HEAVY * prior + prompt_seconds
    return replace(step(surface, DRAFT, batch), seconds=seconds, prompt_tokens=prompt, prompt_length=8 * prompt)


def test_a_drafter_far_from_what_is_usual_is_believed_where_it_was_seen() -> None:
    """One such was measured: drafting takes most of its steps."""
    off = known(load_surface(SMALL), OFF, (1.0, 8.0, 64.0))
    m = model({"disabled": off, "draft": Knowledge(step_times=(heavy(10.0), heavy(12.0)))})
    median, sd = asked(m, DRAFT, 11.0)
    assert median == pytest.approx(heavy(11.0).seconds, rel=0.05)
    assert sd < 0.1
    near, far = asked(m, DRAFT, 30.0), asked(m, DRAFT, 100.0)
    assert far[0] == pytest.approx(heavy(100.0).seconds, rel=0.3)
    assert sd < near[1] < far[1], "the further away, the less sure"


def test_what_prompts_take_is_not_laid_at_the_drafters_door() -> None:
    """Beside few requests and long prompts nearly all of a step is prompt."""
    off = known(load_surface(SMALL), OFF, (1.0, 8.0, 64.0))
    busy = tuple(heavy(b, prompt=1500.0, prompt_seconds=0.25) for b in (1.0, 1.5))
    m = model({"disabled": off, "draft": Knowledge(step_times=busy)})
    assert asked(m, DRAFT, 1.2)[0] < 3 * heavy(1.2).seconds


# --- the cliff ------------------------------------------------------------------------------------------------------

SIX = replace(NGRAM, speculation=replace(NGRAM.speculation, num_speculative_tokens=6)) if NGRAM.speculation else NGRAM


def jump(m: StepModel, option: Option) -> float:
    """A step just beyond the graph limit over one just below."""
    b = LIMIT / (k_of(option) + 1)
    return asked(m, option, b * 1.001)[0] / asked(m, option, b * 0.999)[0]


def mixture(*batches: float) -> Mapping[str, Knowledge]:
    surface = load_surface(MIXTURE)
    seen = Knowledge(step_times=tuple(step(surface, SIX, b, k=6) for b in batches))
    return {"disabled": known(surface, OFF, (1.0, 8.0, 64.0)), "ngram": seen}


def test_the_graph_limit_is_a_cliff_where_it_was_measured() -> None:
    """448 tokens take 27 ms on this engine, 896 take 72 ms: launched kernel by kernel."""
    m = model(mixture(1.0, 8.0, 32.0, 64.0, 128.0, 256.0))
    assert jump(m, SIX) > 1.6
    surface = load_surface(MIXTURE)
    for b in (64.0, 128.0):
        assert asked(m, SIX, b)[0] == pytest.approx(step(surface, SIX, b, k=6).seconds, rel=0.1)


def test_it_is_expected_before_it_was_seen_and_how_high_it_is_is_not_sure() -> None:
    m = model(mixture(1.0, 8.0, 32.0, 64.0))
    assert jump(m, SIX) > 1.3
    assert asked(m, SIX, 80.0)[1] > 2 * asked(m, SIX, 64.0)[1]


def test_where_computing_takes_longer_than_launching_there_is_none() -> None:
    """At 512 tokens the 32B model takes 60 ms and more either way."""
    assert jump(fitted(DENSE, (1.0, 8.0, 64.0, 256.0)), NGRAM) < 1.35


def test_without_graphs_there_is_none() -> None:
    assert jump(model(mixture(1.0, 8.0, 32.0, 64.0), math.inf), SIX) == pytest.approx(1.0, abs=0.01)


# --- prompts --------------------------------------------------------------------------------------------------------


def with_prompts(length: float, cost: float, *, hidden: float = 1.0) -> StepModel:
    """Steps of the dense engine, each with few and with many tokens of prompts so long. A token costs `cost` seconds
    beside 64 requests, and `hidden` of that beside 4."""
    steps = []
    for batch, share in ((4.0, hidden), (64.0, 1.0)):
        plain = step(load_surface(DENSE), OFF, batch)
        for prompt in (0.0, 60.0, 400.0):
            seconds = plain.seconds + prompt * cost * share
            steps.append(replace(plain, seconds=seconds, prompt_tokens=prompt, prompt_length=length))
    return model({"disabled": Knowledge(step_times=tuple(steps))})


def prompt_token(m: StepModel, batch: float, length: float) -> float:
    return float(m.prompt_seconds(np.array([batch]), length)[0][0])


@pytest.mark.parametrize("cost", [30e-6, 90e-6, 200e-6])
def test_what_a_prompt_token_costs_is_learnt_from_steps_that_have_few_and_many(cost: float) -> None:
    m = with_prompts(0.0, cost)
    assert prompt_token(m, 32.0, 0.0) == pytest.approx(cost, rel=0.35)
    assert prompt_token(m, 1.0, 0.0) == prompt_token(m, 500.0, 0.0), "long prompts cost as much beside any others"


def test_whether_short_prompts_hide_is_learnt() -> None:
    """On a recorded server they cost half as much beside few requests as beside many."""
    hiding, plain = with_prompts(128.0, 90e-6, hidden=0.5), with_prompts(128.0, 90e-6)
    ratios = [prompt_token(m, 4.0, 128.0) / prompt_token(m, 64.0, 128.0) for m in (hiding, plain)]
    assert ratios[0] < ratios[1] - 0.1
    assert ratios[0] < 0.8


def test_where_no_length_of_prompts_is_known_none_of_them_hides() -> None:
    m = with_prompts(0.0, 90e-6, hidden=0.5)
    assert prompt_token(m, 4.0, 128.0) == prompt_token(m, 64.0, 128.0)


# --- age, order, nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [OFF, NGRAM])
def test_what_is_old_is_less_sure(option: Option) -> None:
    days = (0.0, 1.0, 4.0, 30.0)
    widths = [asked(fitted(DENSE, (2.0, 8.0), (NGRAM, (2.0, 8.0)), ago=24 * HOUR * d), option, 4.0)[1] for d in days]
    assert widths == sorted(widths)
    assert widths[-1] > 2 * widths[0]


def test_of_two_that_contradict_each_other_the_newer_is_believed() -> None:
    def times(ago: float, factor: float) -> tuple[StepTime, ...]:
        return tuple(
            replace(t, batch_size=t.batch_size * factor, tokens=t.tokens * factor, seconds=t.seconds * factor**4)
            for t in known(load_surface(DENSE), OFF, (4.0, 8.0), ago=ago).step_times
        )

    m = model({"disabled": Knowledge(step_times=times(0.0, 1.0) + times(300 * 24 * HOUR, 1.1))})
    assert asked(m, OFF, 8.0)[0] == pytest.approx(0.018, rel=0.1)


def test_of_two_that_contradict_each_other_the_surer_is_believed() -> None:
    """Whatever came last: a service that came in bursts has become a steady one, or the other way round."""
    surface = load_surface(DENSE)
    right, wrong = step(surface, OFF, 32.0, ago=HOUR), step(surface, OFF, 33.0)
    wrong = replace(wrong, seconds=4 * wrong.seconds)

    def believed(variance: float) -> float:
        steps = (step(surface, OFF, 2.0), right, replace(wrong, variance=variance))
        return asked(model({"disabled": Knowledge(NOW, step_times=steps)}), OFF, 32.0)[0] / right.seconds

    assert believed(0.25) == pytest.approx(1.0, abs=0.05)
    assert believed(0.0) > 1.5, "equally sure, none of them is right"


def test_a_clock_that_went_back_makes_nothing_fresher_than_fresh() -> None:
    fresh, ahead = (fitted(DENSE, (2.0, 8.0), ago=ago) for ago in (0.0, -24 * HOUR))
    assert asked(fresh, OFF, 4.0) == asked(ahead, OFF, 4.0)


BATCHES = (1.0, 4.0, 16.0, 200.0)
KNOWN = {o.profile: known(load_surface(DENSE), o, BATCHES) for o in OPTIONS}


@pytest.mark.parametrize("profiles", list(itertools.permutations(KNOWN)), ids=", ".join)
def test_the_order_in_which_it_was_learnt_does_not_matter(profiles: Sequence[str]) -> None:
    shuffled = {p: replace(KNOWN[p], step_times=KNOWN[p].step_times[::-1]) for p in profiles}
    ordered, other = model(KNOWN), model(shuffled)
    for option, batch in itertools.product(OPTIONS, (1.0, 30.0, 250.0)):
        assert asked(other, option, batch) == pytest.approx(asked(ordered, option, batch), rel=1e-6)


def test_without_evidence_it_answers_with_what_engines_usually_take() -> None:
    m = model({})
    for option in OPTIONS:
        median, sd = asked(m, option, 8.0)
        assert 0.002 < median < 0.1
        assert 0.6 < sd < 3.0
    assert asked(m, OFF, 1.0)[0] < asked(m, NGRAM, 1.0)[0] < asked(m, DRAFT, 1.0)[0]
    (per_token,), (spread,) = m.prompt_seconds(np.array([8.0]), 0.0)
    assert 1e-6 < per_token < 1e-2 and 0 < spread < 5


def test_what_is_known_of_profiles_that_are_gone_is_left_out() -> None:
    surface = load_surface(DENSE)
    here = {"disabled": known(surface, OFF, (2.0, 8.0))}
    gone = {**here, "gone": known(load_surface(SMALL), OFF, (2.0, 8.0))}
    assert asked(model(gone), OFF, 4.0) == asked(model(here), OFF, 4.0)


def test_no_points_no_answers() -> None:
    m = fitted(DENSE, (2.0, 8.0))
    none = np.empty(0)
    mean, sd = m.log_seconds(Points.joined([m.points("ngram", 5, none, none, none)]))
    assert len(mean) == len(sd) == 0


STEPS = st.builds(
    lambda batch, drafted, seconds, prompt, length, context, k, ago: StepTime(
        batch, batch * (1 + drafted), seconds, prompt, length, context, k, NOW - ago
    ),
    st.floats(0.01, 4096),
    st.floats(0, 16),
    st.floats(1e-5, 100),
    st.floats(0, 1e5),
    st.just(0.0) | st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.integers(0, 16),
    st.floats(-1e7, 1e8),
)


@given(
    st.dictionaries(
        st.sampled_from(["disabled", "ngram", "draft", "gone"]),
        st.builds(Knowledge, step_times=st.lists(STEPS, max_size=8).map(tuple)),
    ),
    st.sampled_from([1.0, 512.0, math.inf]),
)
def test_whatever_was_measured_the_answer_is_a_number(knowledge: dict[str, Knowledge], limit: float) -> None:
    m = model(knowledge, limit)
    for option, batch in itertools.product(OPTIONS, (1.0, 100.0, 4096.0)):
        median, sd = asked(m, option, batch, context=1e5)
        assert 0 < median < math.inf
        assert 0 < sd < math.inf
    for length in (0.0, 1.0, 256.0, 1e6):
        mean, sd = m.prompt_seconds(np.array([1.0, 64.0, 8192.0]), length)
        assert np.isfinite(mean).all() and (mean > 0).all()
        assert np.isfinite(sd).all() and (sd >= 0).all()
