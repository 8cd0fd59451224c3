"""What an output token is expected to cost, and how sure the model is of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.model.cost import OfferedLoad, Option, Prediction
from specdecode.model.equilibrium import settle
from specdecode.model.knowledge import Drafts, Knowledge, StepTime
from specdecode.model.learnt import LearntModel
from specdecode.model.surface import Surface
from specdecode.sim.surfaces import builtin_surfaces, load_surface
from specdecode.vllm.speculation import BatchRange, Method
from support.steps import (
    CHANCE,
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
    drafts,
    k_of,
    known,
    method_of,
    step,
    tokens_per_step,
)

MAX = 256
SPECULATIONS = {o.profile: o.speculation for o in OPTIONS}


def model(knowledge: Mapping[str, Knowledge], limit: int = MAX, graph_limit: float = LIMIT) -> LearntModel:
    return LearntModel(knowledge, SPECULATIONS, limit, graph_limit, NOW)


def learnt(name: str, batches: tuple[float, ...], *options: Option, chance: float = CHANCE) -> LearntModel:
    """Fitted to the steps of a measured engine at some batch sizes."""
    return _learnt(name, batches, tuple(o.profile for o in options), chance)


@cache
def _learnt(name: str, batches: tuple[float, ...], profiles: tuple[str, ...], chance: float) -> LearntModel:
    surface = load_surface(name)
    return model({o.profile: known(surface, o, batches, chance=chance) for o in OPTIONS if o.profile in profiles})


def asked(name: str, tokens_per_second: float, prompts: float = 0.0) -> OfferedLoad:
    return OfferedLoad(tokens_per_second, prompts, load_surface(name).context)


def truth(name: str, option: Option, load: float, chance: float = CHANCE) -> float:
    """TPOT where the load settles on the surface itself; infinite where nothing carries it."""
    surface, k = load_surface(name), k_of(option)
    steps = [surface.step_seconds(method_of(option), k, b) for b in range(1, MAX + 1)]
    settled = settle(np.log(steps) - math.log(tokens_per_step(k, chance)), np.array([load]))
    return float(settled.tpot[0]) if settled.headroom[0] > 1 else math.inf


def width(p: Prediction) -> float:
    return math.log(p.tpot.high / p.tpot.low)


# --- predictions ----------------------------------------------------------------------------------------------------

LOADS = (50.0, 200.0, 500.0, 1000.0, 2000.0, 3000.0)
SPANS = ((1.0, 2.0, 4.0, 8.0), (4.0, 8.0, 16.0, 32.0), (32.0, 64.0, 128.0), (8.0,))


@pytest.mark.parametrize("batches", SPANS, ids=str)
@pytest.mark.parametrize("name", [DENSE, LONG, SMALL])
def test_other_loads_are_within_their_intervals(name: str, batches: tuple[float, ...]) -> None:
    """Measured at a few batch sizes only; the loads ask for batch sizes from 1 to 200."""
    methods = load_surface(name).methods
    options = [o for o in OPTIONS if method_of(o) in methods]
    m, held = learnt(name, batches, *options), []
    for option, load in itertools.product(options, LOADS):
        if math.isfinite(real := truth(name, option, load)):
            tpot = m.predict(option, asked(name, load)).tpot
            held.append(tpot.low <= real <= tpot.high)
    # Draft steps of the small model jump by a third from one batch size to the next.
    assert sum(held) / len(held) >= (0.7 if name == SMALL else 0.85)


@pytest.mark.parametrize("name", builtin_surfaces())
@pytest.mark.parametrize("batches", SPANS, ids=str)
def test_at_the_loads_that_were_measured_what_was_measured_is_found_again(
    name: str, batches: tuple[float, ...]
) -> None:
    m = learnt(name, batches, OFF)
    for b in batches:
        load = b / load_surface(name).step_seconds(Method.DISABLED, 0, b)
        real, tpot = truth(name, OFF, load), m.predict(OFF, asked(name, load)).tpot
        assert tpot.value == pytest.approx(real, rel=0.15)


def test_a_profile_that_was_never_measured_is_wide_one_that_was_is_not() -> None:
    blind, seeing = learnt(DENSE, (2.0, 8.0), OFF), learnt(DENSE, (2.0, 8.0), OFF, NGRAM)
    load = asked(DENSE, 300.0)
    assert width(blind.predict(NGRAM, load)) > 2 * width(seeing.predict(NGRAM, load))
    assert width(seeing.predict(NGRAM, load)) < 0.5


def test_intervals_widen_away_from_what_was_measured() -> None:
    m = learnt(DENSE, (8.0, 16.0), OFF)
    widths = [width(m.predict(OFF, asked(DENSE, 8.0 / 0.018 * 2**n))) for n in range(4)]
    assert widths == sorted(widths)
    assert widths[-1] > 2 * widths[0]


def test_intervals_widen_with_the_age_of_what_was_measured() -> None:
    surface = load_surface(DENSE)

    def aged(ago: float) -> float:
        knowledge = {o.profile: known(surface, o, (4.0, 8.0), ago=ago) for o in (OFF, NGRAM)}
        return width(model(knowledge).predict(NGRAM, asked(DENSE, 100.0)))

    widths = [aged(ago) for ago in (0.0, HOUR, 4 * HOUR)]
    assert widths == sorted(widths)
    assert min(widths[-1], aged(240 * HOUR)) > 2 * widths[0]


def test_with_no_data_at_all_everything_is_possible() -> None:
    p = model({}).predict(NGRAM, OfferedLoad(100.0))
    assert p.tpot.high / p.tpot.low > 5
    assert 0 < p.tpot.low <= p.tpot.value <= p.tpot.high < math.inf


def test_better_acceptance_makes_tokens_faster_step_for_step() -> None:
    quiet = asked(DENSE, 10.0)
    tpots = [learnt(DENSE, (2.0, 8.0), OFF, NGRAM, chance=c).predict(NGRAM, quiet).tpot.value for c in (0.1, 0.5, 0.9)]
    assert tpots == sorted(tpots, reverse=True)
    assert tpots[0] / tpots[-1] == pytest.approx(tokens_per_step(5, 0.9) / tokens_per_step(5, 0.1), rel=0.05)


# --- loads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.profile)
@pytest.mark.parametrize("name", builtin_surfaces())
def test_more_load_never_makes_tokens_faster_and_leaves_less_headroom(name: str, option: Option) -> None:
    methods = load_surface(name).methods
    m = learnt(name, (2.0, 8.0, 32.0), *(o for o in OPTIONS if method_of(o) in methods))
    predictions = [m.predict(option, asked(name, float(load))) for load in np.geomspace(1.0, 100_000.0, 40)]
    for less, more in itertools.pairwise(predictions):
        assert more.headroom < less.headroom
        if not more.saturated:
            # As measured, a step of a larger batch is sometimes the faster one.
            assert more.tpot.value >= less.tpot.value * 0.9
            assert more.batch_size >= less.batch_size * 0.999
    assert not predictions[0].saturated
    assert predictions[-1].saturated
    assert predictions[-1].batch_size == pytest.approx(MAX)


def test_an_option_is_saturated_where_the_largest_batch_does_not_carry_the_load() -> None:
    m = learnt(DENSE, (2.0, 8.0, 32.0, 128.0), OFF)
    capacity = m.predict(OFF, asked(DENSE, 1.0)).headroom
    below, above = (m.predict(OFF, asked(DENSE, capacity * f)) for f in (0.9, 1.01))
    assert not below.saturated and above.saturated
    assert below.headroom == pytest.approx(1 / 0.9)
    assert above.batch_size == pytest.approx(MAX)
    assert capacity == pytest.approx(MAX / load_surface(DENSE).step_seconds(Method.DISABLED, 0, MAX), rel=0.15)


def test_fewer_seats_saturate_earlier() -> None:
    knowledge = {OFF.profile: known(load_surface(DENSE), OFF, (1.0, 8.0))}
    headrooms = [model(knowledge, limit).predict(OFF, asked(DENSE, 1000.0)).headroom for limit in (1, 16, 256)]
    assert headrooms == sorted(headrooms)
    assert headrooms[0] < 1 < headrooms[-1]


def test_a_load_below_one_request_is_a_step_of_one() -> None:
    m = learnt(DENSE, (1.0, 8.0), OFF)
    for load in (0.01, 0.0):
        idle = m.predict(OFF, asked(DENSE, load))
        assert idle.batch_size == pytest.approx(load * idle.tpot.value, rel=0.01, abs=1e-6)
        one = load_surface(DENSE).step_seconds(Method.DISABLED, 0, 1.0)
        assert idle.tpot.value == pytest.approx(one, rel=0.05)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.profile)
def test_several_loads_at_once_are_answered_like_each_alone(option: Option) -> None:
    m, load = learnt(DENSE, (2.0, 8.0, 32.0), *OPTIONS), asked(DENSE, 500.0, 200.0)
    rates = [10.0, 500.0, 1500.0]
    alone = [m.predict(option, replace(load, tokens_per_second=r, prompt_tokens_per_second=r * 0.4)) for r in rates]
    together = m.tpots(option, load, rates)
    assert [e.value for e in together] == pytest.approx([p.tpot.value for p in alone], rel=0.01)
    assert all(e.low <= e.value <= e.high for e in together)
    quickly = np.exp(m.log_tpot(option, load, np.array(rates)))
    assert list(quickly) == pytest.approx([e.value for e in together], rel=0.03)


# --- prompts and context --------------------------------------------------------------------------------------------


def test_prompts_that_share_the_steps_do_not_distort_the_decode_cost() -> None:
    """The same engine, measured while it computes 40 prompt tokens a step: predicted without prompts, the steps of the
    surface come back; unaware of them, they would be taken for slow decoding."""
    surface = load_surface(DENSE)
    decode = known(surface, OFF, (2.0, 8.0, 32.0, 64.0))
    lump = 40 * surface.prompt_token_seconds
    heavy = replace(
        decode, step_times=tuple(replace(t, seconds=t.seconds + lump, prompt_tokens=40.0) for t in decode.step_times)
    )
    blind = replace(heavy, step_times=tuple(replace(t, prompt_tokens=0.0) for t in heavy.step_times))

    def tpot(knowledge: Knowledge) -> float:
        return model({OFF.profile: knowledge}).predict(OFF, asked(DENSE, 400.0)).tpot.value

    assert tpot(heavy) == pytest.approx(tpot(decode), rel=0.1)
    assert tpot(blind) > 1.15 * tpot(decode)


def test_prompts_to_come_slow_the_tokens_down() -> None:
    m = learnt(DENSE, (2.0, 8.0, 32.0), OFF)
    tpots = [m.predict(OFF, asked(DENSE, 400.0, prompts)).tpot.value for prompts in (0.0, 1000.0, 4000.0)]
    assert tpots == sorted(tpots)
    assert tpots[-1] > 1.3 * tpots[0]


def test_short_prompts_may_hide_where_the_steps_tell_that_they_do() -> None:
    """Steps of 4 and 64 requests with 128-token prompts that cost half as much beside the few."""
    surface, steps = load_surface(DENSE), []
    for batch, cost in ((4.0, 45e-6), (64.0, 90e-6)):
        plain = step(surface, OFF, batch)
        steps += [
            replace(plain, seconds=plain.seconds + p * cost, prompt_tokens=p, prompt_length=128.0)
            for p in (0.0, 60.0, 400.0)
        ]
    m = model({OFF.profile: Knowledge(step_times=tuple(steps))})

    def slower(length: float) -> float:
        """What 1,000 prompt tokens a second, in prompts so long, add to the tokens of few requests."""
        quiet = replace(asked(DENSE, 200.0), prompt_length=length)
        busy = replace(quiet, prompt_tokens_per_second=1000.0)
        return m.predict(OFF, busy).tpot.value / m.predict(OFF, quiet).tpot.value

    assert 1.01 < slower(128.0) < slower(4096.0)
    assert slower(4096.0) == pytest.approx(slower(0.0), rel=0.05), "long ones are those that do not hide"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.profile)
def test_a_burst_costs_more_than_a_quiet_minute_saves(option: Option) -> None:
    m, load = learnt(DENSE, (2.0, 8.0, 32.0, 128.0), *OPTIONS), asked(DENSE, 1000.0, 400.0)
    steady, uneven, wild = (m.predict(option, replace(load, variation=v)) for v in (0.0, 0.3, 0.6))
    assert steady.tpot.value < uneven.tpot.value < wild.tpot.value
    assert steady.batch_size < uneven.batch_size < wild.batch_size
    for p in (uneven, wild):
        assert p.tpot.low <= p.tpot.value <= p.tpot.high
        assert p.capacity is not None and steady.capacity is not None
        assert p.capacity.value == pytest.approx(steady.capacity.value, rel=0.01), "what it can carry is the same"


def test_capacity_leaves_room_for_the_prompts_that_more_load_brings() -> None:
    m = learnt(DENSE, (2.0, 8.0, 32.0, 128.0), OFF)
    capacities = [m.predict(OFF, asked(DENSE, load, 5 * load)).capacity for load in (100.0, 400.0, 700.0)]
    values = [c.value for c in capacities if c is not None]
    assert values == pytest.approx([values[0]] * 3, rel=0.01), "it is the same however much is asked for"
    full = m.predict(OFF, asked(DENSE, values[0] * 1.02, 5 * values[0] * 1.02))
    room = m.predict(OFF, asked(DENSE, values[0] * 0.98, 5 * values[0] * 0.98))
    assert full.saturated and not room.saturated


def test_longer_contexts_take_longer() -> None:
    m = learnt(LONG, (1.0, 8.0, 32.0), OFF)
    tpots = [m.predict(OFF, OfferedLoad(2000.0, 0.0, context)).tpot.value for context in (300.0, 3000.0, 12_000.0)]
    assert tpots == sorted(tpots)
    assert tpots[-1] > 1.5 * tpots[0]


# --- schedules ------------------------------------------------------------------------------------------------------


def scheduled(*ranges: BatchRange) -> Option:
    assert NGRAM.speculation is not None
    return Option("ngram", replace(NGRAM.speculation, schedule=ranges))


def test_a_schedule_at_k_0_drafts_nothing_and_still_costs_more_than_off() -> None:
    m = learnt(DENSE, (2.0, 8.0, 32.0), OFF, NGRAM)
    held = m.predict(scheduled(BatchRange(1, MAX, 0)), asked(DENSE, 500.0)).tpot
    off = m.predict(OFF, asked(DENSE, 500.0)).tpot
    assert 1.05 < held.value / off.value < 1.5


def test_a_schedule_costs_what_its_k_costs_at_each_batch_size() -> None:
    m = learnt(DENSE, (2.0, 8.0, 32.0, 64.0), OFF, NGRAM)
    option = scheduled(BatchRange(1, 63, 5), BatchRange(64, MAX, 0))
    quiet, busy = asked(DENSE, 300.0), asked(DENSE, 4500.0)
    assert m.predict(option, quiet).tpot.value == pytest.approx(m.predict(NGRAM, quiet).tpot.value, rel=1e-3)
    assert m.predict(option, busy).headroom > m.predict(NGRAM, busy).headroom
    assert m.predict(option, busy).batch_size > 64


def test_a_threshold_is_a_schedule_of_two_ranges() -> None:
    assert NGRAM.speculation is not None
    threshold = Option("ngram", replace(NGRAM.speculation, disable_by_batch_size=64))
    m = learnt(DENSE, (2.0, 8.0, 32.0), OFF, NGRAM)
    ranges = scheduled(BatchRange(1, 63, 5), BatchRange(64, MAX, 0))
    for load in (100.0, 1000.0, 4000.0):
        assert m.predict(threshold, asked(DENSE, load)) == m.predict(ranges, asked(DENSE, load))


KS = (0, 1, 3, 5)
EVERYWHERE = (1.0, 8.0, 32.0, 64.0, 128.0, 256.0)


@cache
def seen_at_every_k(name: str, chance: float) -> LearntModel:
    """Everything was measured: off, and n-gram as a schedule holds it at several K."""
    surface = load_surface(name)
    times = tuple(step(surface, NGRAM, b, k=k) for k in KS for b in EVERYWHERE)
    ngram = Knowledge(NOW, drafts=drafts(5, chance), step_times=times)
    return model({"disabled": known(surface, OFF, EVERYWHERE), "ngram": ngram})


def tuned(name: str, chance: float, *, one_threshold: bool = False) -> Option | None:
    return seen_at_every_k(name, chance).tuned(NGRAM, asked(name, 500.0), one_threshold=one_threshold)


def real_cost(surface: Surface, option: Option, batch: int, chance: float) -> float:
    """Log of the seconds per token on the surface at the K that the option has there."""
    assert option.speculation is not None
    k = option.speculation.k_at(batch)
    return math.log(surface.step_seconds(Method.NGRAM, k, batch, scheduled=True) / tokens_per_step(k, chance))


SIZES = sorted({round(b) for b in np.geomspace(1, MAX, 60)})
TUNABLE = [(name, chance) for name in (DENSE, LONG, MIXTURE) for chance in (0.3, 0.5, 0.7)]


@pytest.mark.parametrize(("name", "chance"), TUNABLE)
def test_a_tuned_schedule_is_near_the_best_k_at_every_batch_size_in_few_ranges(name: str, chance: float) -> None:
    surface, found = load_surface(name), tuned(name, chance)
    assert found is not None and found.speculation is not None
    schedule = found.speculation.schedule
    assert 2 <= len(schedule) <= 5
    assert schedule[0].start == 1 and schedule[-1].end == MAX
    assert all(a.end + 1 == b.start and a.k != b.k for a, b in itertools.pairwise(schedule))
    best = [min(real_cost(surface, scheduled(BatchRange(1, MAX, k)), b, chance) for k in range(6)) for b in SIZES]
    lost = [real_cost(surface, found, b, chance) - cheapest for b, cheapest in zip(SIZES, best, strict=True)]
    assert np.mean(lost) < 0.05
    assert max(lost) < 0.25


@pytest.mark.parametrize(("name", "chance"), TUNABLE)
def test_the_larger_the_batch_the_fewer_tokens_are_drafted(name: str, chance: float) -> None:
    """But for the few first of a mixture of experts: there drafts wake experts that would not have been read."""
    found = tuned(name, chance)
    assert found is not None and found.speculation is not None
    ks = [r.k for r in found.speculation.schedule if r.end >= 4 or name != MIXTURE]
    assert ks == sorted(ks, reverse=True) and ks[-1] < 5


def test_a_mixture_stays_below_the_graph_limit_as_long_as_that_pays() -> None:
    """Beyond it a step takes 60 ms instead of 27: fewer tokens are drafted, as many as still fit."""
    found = tuned(MIXTURE, 0.7)
    assert found is not None and found.speculation is not None
    for r in found.speculation.schedule:
        assert r.end * (r.k + 1) <= LIMIT
    assert found.speculation.k_at(85) == 5 and found.speculation.k_at(MAX) >= 1


@pytest.mark.parametrize(("chance", "drafts_nothing"), [(0.3, True), (0.7, False)])
def test_it_ends_in_k_0_only_where_that_pays(chance: float, drafts_nothing: bool) -> None:
    found = tuned(DENSE, chance)
    assert found is not None and found.speculation is not None
    assert (found.speculation.schedule[-1].k == 0) is drafts_nothing


def test_an_engine_with_one_threshold_gets_one() -> None:
    surface, found = load_surface(DENSE), tuned(DENSE, 0.5, one_threshold=True)
    assert found is not None and found.speculation is not None
    threshold = found.speculation.disable_by_batch_size
    assert found.speculation.schedule == () and threshold is not None
    always, never = scheduled(BatchRange(1, MAX, 5)), scheduled(BatchRange(1, MAX, 0))
    pays = [real_cost(surface, always, b, 0.5) < real_cost(surface, never, b, 0.5) for b in range(1, MAX + 1)]
    assert threshold == pytest.approx(pays.index(False) + 1, rel=0.3)


def test_where_the_fixed_k_is_right_everywhere_there_is_nothing_to_tune() -> None:
    assert tuned(LONG, 0.9) is None
    assert tuned(DENSE, 0.99, one_threshold=True) is None
    assert seen_at_every_k(DENSE, 0.7).tuned(OFF, asked(DENSE, 500.0), one_threshold=False) is None


# --- where drafting pays --------------------------------------------------------------------------------------------


def pays(name: str, option: Option, chance: float) -> list[bool]:
    """Batch size by batch size, on the surface itself."""
    surface, e = load_surface(name), tokens_per_step(k_of(option), chance)
    return [
        surface.step_seconds(method_of(option), k_of(option), b) / e < surface.step_seconds(Method.DISABLED, 0, b)
        for b in range(1, MAX + 1)
    ]


@pytest.mark.parametrize("chance", [0.5, 0.7])
def test_on_a_dense_model_drafting_pays_up_to_a_batch_size(chance: float) -> None:
    """Measured at small batch sizes only."""
    band = learnt(DENSE, (2.0, 8.0, 32.0), OFF, NGRAM, chance=chance).band(NGRAM, asked(DENSE, 500.0))
    assert band is not None and band.start == 1
    assert band.end == pytest.approx(pays(DENSE, NGRAM, chance).index(False), rel=0.35)


def test_on_a_mixture_of_experts_it_pays_from_one_batch_size_to_another() -> None:
    """The drafts of a single request wake experts that it alone would not have read."""
    band = seen_at_every_k(MIXTURE, 0.5).band(NGRAM, asked(MIXTURE, 500.0))
    assert band is not None
    assert 1 < band.start < 16 < 64 < band.end < MAX


def test_where_it_never_pays_there_is_no_band() -> None:
    """Launching the draft model on an H100 takes longer than the whole step of an 8B."""
    m = learnt(SMALL, (1.0, 8.0, 64.0), OFF, DRAFT, chance=0.5)
    assert m.band(DRAFT, asked(SMALL, 500.0)) is None
    assert m.band(OFF, None) is None


def test_the_band_is_that_of_the_fixed_k_whatever_the_schedule() -> None:
    m = learnt(DENSE, (2.0, 8.0, 32.0), OFF, NGRAM)
    load = asked(DENSE, 500.0)
    assert m.band(scheduled(BatchRange(1, 2, 5), BatchRange(3, MAX, 0)), load) == m.band(NGRAM, load)


def test_better_acceptance_pays_at_larger_batches() -> None:
    ends = [
        band.end if (band := learnt(DENSE, (2.0, 8.0, 32.0), OFF, NGRAM, chance=c).band(NGRAM, None)) else 0
        for c in (0.1, 0.4, 0.7, 0.95)
    ]
    assert ends == sorted(ends)
    assert ends[0] < ends[-1]


# --- acceptance -----------------------------------------------------------------------------------------------------


def test_the_acceptance_that_is_expected_is_the_one_that_was_measured() -> None:
    m = learnt(DENSE, (2.0, 8.0), OFF, NGRAM)
    found = m.acceptance(NGRAM)
    assert found is not None
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx((tokens_per_step(5) - 1) / 5, rel=0.01)
    assert m.acceptance(OFF) is None


def test_an_option_can_be_asked_for_at_another_acceptance() -> None:
    m, load = learnt(DENSE, (2.0, 8.0), OFF, NGRAM), asked(DENSE, 10.0)
    believed = m.acceptance(NGRAM)
    assert believed is not None
    same = m.predict(NGRAM, load, believed.value).tpot.value
    assert same == pytest.approx(m.predict(NGRAM, load).tpot.value, rel=0.01)
    tpots = [m.predict(NGRAM, load, a).tpot.value for a in (0.0, 0.3, 0.6, 1.0)]
    assert tpots == sorted(tpots, reverse=True)
    assert tpots[0] / tpots[-1] == pytest.approx(6.0, rel=0.05), "one token a step, or all six"


# --- whatever was measured ------------------------------------------------------------------------------------------

STEP_TIMES = st.builds(
    lambda batch, drafted, seconds, prompt, length, k: StepTime(
        batch, batch * (1 + drafted), seconds, prompt, length, k=k
    ),
    st.floats(0.01, 2000),
    st.sampled_from([0.0, 0.3, 3.0, 16.0]),
    st.floats(1e-5, 100),
    st.floats(0, 1e5),
    st.just(0.0) | st.floats(0, 1e5),
    st.integers(0, 16),
)
KNOWLEDGE = st.builds(
    Knowledge,
    measured_at=st.none() | st.floats(NOW - 1e7, NOW + 1e7),
    drafts=st.none()
    | st.builds(
        Drafts,
        st.floats(0, 1),
        st.lists(st.floats(0, 1), min_size=1, max_size=6).map(tuple),
        st.floats(NOW - 1e7, NOW + 1e7),
        st.floats(0, 1e9),
    ),
    step_times=st.lists(STEP_TIMES, max_size=6).map(tuple),
)


@given(
    st.dictionaries(st.sampled_from(["disabled", "ngram", "draft", "gone"]), KNOWLEDGE, max_size=4),
    st.sampled_from([*OPTIONS, scheduled(BatchRange(1, 1, 5), BatchRange(2, MAX, 0))]),
    st.builds(
        OfferedLoad,
        st.floats(1e-6, 1e6),
        st.floats(0, 1e6),
        st.floats(0, 1e6),
        st.just(0.0) | st.floats(0, 1e5),
        st.floats(0, 0.8),
    ),
    st.sampled_from([1, 2, 256, 1024]),
)
def test_whatever_was_measured_the_answer_is_a_number(
    knowledge: dict[str, Knowledge], option: Option, load: OfferedLoad, limit: int
) -> None:
    m = model(knowledge, limit)
    p = m.predict(option, load)
    assert 0 < p.tpot.low <= p.tpot.value <= p.tpot.high < math.inf
    assert 0 <= p.batch_size <= limit * (1 + 1e-9)
    assert 0 < p.headroom < math.inf
    band = m.band(option, load)
    assert band is None or 1 <= band.start <= band.end <= limit
    for one_threshold in (False, True):
        better = m.tuned(option, load, one_threshold=one_threshold)
        assert better is None or (better.profile == option.profile and better.speculation is not None)
    rates: Sequence[float] = [0.0, load.tokens_per_second, 1e7]
    assert np.isfinite(m.log_tpot(option, load, np.array(rates))).all()
    assert all(0 < e.low <= e.value <= e.high < math.inf for e in m.tpots(option, load, rates))
