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

from specdecode.model.cost import OfferedLoad, Option, Prediction, RooflineModel
from specdecode.model.knowledge import Knowledge, StepTime
from specdecode.model.surface import Surface
from specdecode.sim.surfaces import builtin_surfaces, load_surface
from specdecode.vllm.speculation import BatchRange, Method, Speculation

NOW = 1_800_000_000.0
HOUR = 3600.0
MAX = 256
OFF = Option("disabled", None)
NGRAM = Option("ngram", Speculation(Method.NGRAM, num_speculative_tokens=5))
DRAFT = Option("draft", Speculation(Method.DRAFT_MODEL, num_speculative_tokens=3, model="small"))
OPTIONS = (OFF, NGRAM, DRAFT)
TOKENS_PER_STEP = 2.77
"""E at an acceptance of 0.7 per token and K = 5."""
DENSE, MIXTURE = "h200-llama32b-draft1b", "h200-qwen3moe30b"


def k_of(option: Option) -> int:
    return (option.speculation.num_speculative_tokens or 0) if option.speculation else 0


def method_of(option: Option) -> Method:
    return option.speculation.method if option.speculation else Method.DISABLED


def known(surface: Surface, option: Option, batches: Sequence[float], ago: float = 0.0) -> Knowledge:
    """What a workload on the surface shows of an option at some batch sizes."""
    k = k_of(option)
    times = (StepTime(b, b * (k + 1), surface.step_seconds(method_of(option), k, b)) for b in batches)
    return Knowledge(
        measured_at=NOW - ago,
        acceptance=(0.5, 0.4, 0.5, 0.6) if k else None,
        tokens_per_step=TOKENS_PER_STEP if k else 1.0,
        drafted_per_step=k,
        step_times=tuple(times),
    )


def model(knowledge: Mapping[str, Knowledge], limit: int = MAX) -> RooflineModel:
    return RooflineModel(knowledge, limit, NOW)


def truth(surface: Surface, option: Option, load: float) -> float:
    """TPOT where the load settles on the surface itself."""
    e = TOKENS_PER_STEP if option.speculation else 1.0
    for b in np.geomspace(0.25, MAX, 1000):
        tpot = surface.step_seconds(method_of(option), k_of(option), max(1.0, float(b))) / e
        if load * tpot <= b:
            return tpot
    return math.inf


def learnt(name: str, batches: tuple[float, ...], *options: Option) -> RooflineModel:
    return _learnt(name, batches, tuple(o.profile for o in options))


@cache
def _learnt(name: str, batches: tuple[float, ...], profiles: tuple[str, ...]) -> RooflineModel:
    surface = load_surface(name)
    return model({o.profile: known(surface, o, batches) for o in OPTIONS if o.profile in profiles})


def inside(name: str, batches: tuple[float, ...], options: tuple[Option, ...], loads: Sequence[float]) -> list[bool]:
    """For each option and load: whether the interval holds the truth. Loads that nothing carries are left out."""
    surface, m = load_surface(name), learnt(name, batches, *options)
    found = []
    for option in options:
        for load in loads:
            if math.isfinite(real := truth(surface, option, load)):
                tpot = m.predict(option, OfferedLoad(load)).tpot
                found.append(tpot.low <= real <= tpot.high)
    return found


LOADS = (50.0, 200.0, 500.0, 1000.0, 2000.0, 3000.0)
SPANS = ((1.0, 2.0, 4.0, 8.0), (4.0, 8.0, 16.0, 32.0), (32.0, 64.0, 128.0), (8.0,))


@pytest.mark.parametrize("batches", SPANS, ids=str)
def test_on_a_dense_model_other_loads_are_within_their_intervals(batches: tuple[float, ...]) -> None:
    """Measured at a few batch sizes only; the loads ask for batch sizes from 1 to 200."""
    held = inside(DENSE, batches, OPTIONS, LOADS)
    assert sum(held) / len(held) >= 0.85


@pytest.mark.parametrize("name", [n for n in builtin_surfaces() if n != MIXTURE])
@pytest.mark.parametrize("batches", SPANS, ids=str)
def test_on_every_dense_surface_steps_without_drafts_are_found_again(name: str, batches: tuple[float, ...]) -> None:
    """At the loads that were measured; away from them the model may be wrong, but not where it has looked."""
    surface, m = load_surface(name), learnt(name, batches, OFF)
    for b in batches:
        real = surface.step_seconds(Method.DISABLED, 0, b)
        tpot = m.predict(OFF, OfferedLoad(b / real)).tpot
        assert tpot.low <= real <= tpot.high
        assert tpot.value == pytest.approx(real, rel=0.1)


def test_what_it_cannot_do_is_a_mixture_of_experts_but_it_knows_that_it_is_no_roofline() -> None:
    """More tokens wake more experts: steps grow long before compute is the limit. From batch sizes of 32 on, the model
    takes them to be flat below and is wrong by a factor; where it has seen the growth, its intervals are wide."""
    surface = load_surface(MIXTURE)
    busy = learnt(MIXTURE, (32.0, 64.0, 128.0), OFF).predict(OFF, OfferedLoad(100.0)).tpot
    assert busy.value > 3 * truth(surface, OFF, 100.0)
    assert not busy.low <= truth(surface, OFF, 100.0) <= busy.high

    def width(name: str) -> float:
        tpot = learnt(name, (1.0, 2.0, 4.0, 8.0), OFF).predict(OFF, OfferedLoad(100.0)).tpot
        return tpot.high / tpot.low

    assert width(MIXTURE) > 2 > 1.2 > width(DENSE)
    assert learnt(MIXTURE, (32.0, 64.0, 128.0), OFF, NGRAM).break_even(NGRAM) is not None, "a threshold, not a band"


def relative_width(p: Prediction) -> float:
    return math.log(p.tpot.high / p.tpot.low)


def test_intervals_widen_away_from_what_was_measured() -> None:
    m = learnt(DENSE, (8.0, 16.0), OFF)
    loads = [8.0 / 0.018 * 2**n for n in range(4)]
    widths = [relative_width(m.predict(OFF, OfferedLoad(load))) for load in loads]
    assert widths == sorted(widths)
    assert widths[-1] > 2 * widths[0]


def test_intervals_widen_with_the_age_of_the_acceptance() -> None:
    surface = load_surface(DENSE)

    def width(ago: float) -> float:
        knowledge = {o.profile: known(surface, o, (4.0, 8.0), ago) for o in (OFF, NGRAM)}
        return relative_width(model(knowledge).predict(NGRAM, OfferedLoad(100.0)))

    widths = [width(ago) for ago in (0.0, HOUR, 4 * HOUR, 24 * HOUR)]
    assert widths == sorted(widths)
    assert widths[-1] > 3 * widths[0]


def test_a_clock_that_went_back_makes_nothing_fresher_than_fresh() -> None:
    surface = load_surface(DENSE)
    loads = OfferedLoad(100.0)
    predictions = [
        model({NGRAM.profile: known(surface, NGRAM, (4.0, 8.0), ago)}).predict(NGRAM, loads) for ago in (0.0, -HOUR)
    ]
    assert predictions[0] == predictions[1]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.profile)
@pytest.mark.parametrize("name", builtin_surfaces())
def test_more_load_never_makes_tokens_faster_and_leaves_less_headroom(name: str, option: Option) -> None:
    methods = load_surface(name).methods
    m = learnt(name, (2.0, 8.0, 32.0), *(o for o in OPTIONS if method_of(o) in methods))
    predictions = [m.predict(option, OfferedLoad(float(load))) for load in np.geomspace(1.0, 50_000.0, 40)]
    for less, more in itertools.pairwise(predictions):
        assert more.tpot.value >= less.tpot.value * (1 - 1e-9)
        assert more.batch_size >= less.batch_size * (1 - 1e-9)
        assert more.headroom < less.headroom
    assert not predictions[0].saturated
    assert predictions[-1].saturated
    assert predictions[-1].batch_size == MAX


def test_an_option_is_saturated_where_no_batch_size_carries_the_load() -> None:
    m = learnt(DENSE, (2.0, 8.0, 32.0, 128.0), OFF)
    capacity = m.predict(OFF, OfferedLoad(1.0)).headroom
    below, above = (m.predict(OFF, OfferedLoad(capacity * f)) for f in (0.99, 1.01))
    assert not below.saturated and above.saturated
    assert below.headroom == pytest.approx(1 / 0.99)
    assert above.batch_size == MAX


def test_fewer_seats_saturate_earlier() -> None:
    knowledge = {OFF.profile: known(load_surface(DENSE), OFF, (1.0, 8.0))}
    headrooms = [model(knowledge, limit).predict(OFF, OfferedLoad(1000.0)).headroom for limit in (1, 16, 256)]
    assert headrooms == sorted(headrooms)
    assert headrooms[0] < 1 < headrooms[-1]


def test_a_load_below_one_request_is_a_step_of_one() -> None:
    m = learnt(DENSE, (1.0, 8.0), OFF)
    idle = m.predict(OFF, OfferedLoad(0.01))
    assert idle.batch_size == pytest.approx(0.01 * idle.tpot.value)
    assert idle.tpot.value == pytest.approx(load_surface(DENSE).step_seconds(Method.DISABLED, 0, 1.0), rel=0.05)


def test_nobody_asks_for_anything() -> None:
    p = learnt(DENSE, (1.0, 8.0), OFF).predict(OFF, OfferedLoad(0.0))
    assert p.headroom == math.inf and not p.saturated and p.batch_size == 0.0


def scheduled(*ranges: BatchRange) -> Option:
    assert NGRAM.speculation is not None
    return Option("ngram", replace(NGRAM.speculation, schedule=ranges))


def test_a_schedule_at_k_0_drafts_nothing_and_still_costs_more_than_off() -> None:
    m = learnt(DENSE, (2.0, 8.0, 32.0), OFF, NGRAM)
    held = m.predict(scheduled(BatchRange(1, MAX, 0)), OfferedLoad(500.0)).tpot
    off = m.predict(OFF, OfferedLoad(500.0)).tpot
    assert 1.05 < held.value / off.value < 1.5


def test_a_schedule_costs_what_its_k_costs_at_each_batch_size() -> None:
    m = learnt(DENSE, (2.0, 8.0, 32.0, 64.0), OFF, NGRAM)
    option = scheduled(BatchRange(1, 63, 5), BatchRange(64, MAX, 0))
    quiet, busy = OfferedLoad(300.0), OfferedLoad(5000.0)
    assert m.predict(option, quiet).tpot == m.predict(NGRAM, quiet).tpot
    assert m.predict(option, busy).headroom > m.predict(NGRAM, busy).headroom
    assert m.predict(option, busy).batch_size > 64


def test_a_threshold_is_a_schedule_of_two_ranges() -> None:
    assert NGRAM.speculation is not None
    threshold = Option("ngram", replace(NGRAM.speculation, disable_by_batch_size=64))
    m = learnt(DENSE, (2.0, 8.0, 32.0), OFF, NGRAM)
    ranges = scheduled(BatchRange(1, 63, 5), BatchRange(64, MAX, 0))
    for load in (100.0, 1000.0, 4000.0):
        assert m.predict(threshold, OfferedLoad(load)) == m.predict(ranges, OfferedLoad(load))


def test_with_no_data_at_all_everything_is_possible() -> None:
    m = model({})
    p = m.predict(NGRAM, OfferedLoad(100.0))
    assert p.tpot.high / p.tpot.low > 10
    assert m.break_even(OFF) is None
    assert m.break_even(NGRAM) is not None, "the prior knows that speculation stops paying"


def test_break_even_lies_where_the_surface_has_it() -> None:
    """Measured at small batch sizes only. On the surface a token costs the same with n-gram and without at about 95."""
    surface = load_surface(DENSE)
    real = next(
        b
        for b in range(1, MAX)
        if surface.step_seconds(Method.NGRAM, 5, b) / TOKENS_PER_STEP >= surface.step_seconds(Method.DISABLED, 0, b)
    )
    found = learnt(DENSE, (2.0, 8.0, 32.0), OFF, NGRAM).break_even(NGRAM)
    assert found is not None
    assert found == pytest.approx(real, rel=0.35)


def test_break_even_is_that_of_the_fixed_k_whatever_the_schedule() -> None:
    m = learnt(DENSE, (2.0, 8.0, 32.0), OFF, NGRAM)
    assert m.break_even(scheduled(BatchRange(1, 2, 5), BatchRange(3, MAX, 0))) == m.break_even(NGRAM)


def test_better_acceptance_breaks_even_later() -> None:
    surface = load_surface(DENSE)
    points = []
    for e in (1.2, 2.0, 3.0, 5.0):
        ngram = replace(known(surface, NGRAM, (2.0, 8.0, 32.0)), tokens_per_step=e)
        m = model({OFF.profile: known(surface, OFF, (2.0, 8.0, 32.0)), NGRAM.profile: ngram})
        points.append(m.break_even(NGRAM) or math.inf)
    assert points == sorted(points)
    assert points[0] < points[-1]


def test_prompts_that_share_the_steps_do_not_distort_the_decode_cost() -> None:
    """The same engine, measured while it computes 40 prompt tokens a step: predicted without prompts, the steps of the
    surface come back; unaware of them, they would be taken for slow decoding."""
    surface = load_surface(DENSE)
    batches = (2.0, 8.0, 32.0, 64.0)
    decode = known(surface, OFF, batches)
    lump = 40 * surface.prompt_token_seconds
    heavy = replace(
        decode, step_times=tuple(replace(t, seconds=t.seconds + lump, prompt_tokens=40.0) for t in decode.step_times)
    )
    blind = replace(heavy, step_times=tuple(replace(t, prompt_tokens=0.0) for t in heavy.step_times))

    def tpot(knowledge: Knowledge) -> float:
        return model({OFF.profile: knowledge}).predict(OFF, OfferedLoad(400.0)).tpot.value

    assert tpot(heavy) == pytest.approx(tpot(decode), rel=0.1)
    assert tpot(blind) > 1.15 * tpot(decode)


def test_prompts_to_come_slow_the_tokens_down() -> None:
    m = learnt(DENSE, (2.0, 8.0, 32.0), OFF)
    tpots = [m.predict(OFF, OfferedLoad(400.0, prompts)).tpot.value for prompts in (0.0, 1000.0, 4000.0)]
    assert tpots == sorted(tpots)
    assert tpots[-1] > 1.3 * tpots[0]


def test_what_was_measured_at_another_k_is_taken_over_position_by_position() -> None:
    """The profile was edited from K = 5 to K = 2: the first two positions are what remains."""
    surface = load_surface(DENSE)
    positions = (0.9, 0.6, 0.3, 0.2, 0.1)
    then = replace(known(surface, NGRAM, (4.0, 8.0)), per_position=positions, tokens_per_step=1 + sum(positions))
    now = replace(then, per_position=positions[:2], tokens_per_step=1 + sum(positions[:2]), drafted_per_step=2.0)
    edited = Option("ngram", Speculation(Method.NGRAM, num_speculative_tokens=2))
    old, new = (model({"ngram": k}).predict(edited, OfferedLoad(100.0)).tpot for k in (then, now))
    assert old.value == pytest.approx(new.value)


@pytest.mark.parametrize("tokens_per_step", [0.0, 0.9, 1e9])
def test_no_step_gives_less_than_a_token_or_more_than_all_drafts(tokens_per_step: float) -> None:
    knowledge = replace(known(load_surface(DENSE), NGRAM, (4.0, 8.0)), tokens_per_step=tokens_per_step)
    p = model({"ngram": knowledge}).predict(NGRAM, OfferedLoad(100.0))
    one = load_surface(DENSE).step_seconds(Method.NGRAM, 5, 1.0)
    assert one / 6 * 0.8 < p.tpot.value < one * 1.2


STEP_TIMES = st.builds(
    lambda batch, k, seconds, prompt: StepTime(batch, batch * (1 + k), seconds, prompt),
    st.floats(0.01, 2000),
    st.sampled_from([0.0, 0.3, 3.0, 16.0]),
    st.floats(1e-5, 100),
    st.floats(0, 1e5),
)
KNOWLEDGE = st.builds(
    Knowledge,
    measured_at=st.none() | st.floats(NOW - 1e7, NOW + 1e7),
    per_position=st.lists(st.floats(0, 1), max_size=6).map(tuple),
    tokens_per_step=st.floats(0, 20),
    drafted_per_step=st.floats(0, 20),
    step_times=st.lists(STEP_TIMES, max_size=6).map(tuple),
)


@given(
    st.dictionaries(st.sampled_from(["disabled", "ngram", "draft", "gone"]), KNOWLEDGE, max_size=4),
    st.sampled_from([*OPTIONS, scheduled(BatchRange(1, 1, 5), BatchRange(2, MAX, 0))]),
    st.builds(OfferedLoad, st.floats(1e-6, 1e6), st.floats(0, 1e6)),
    st.sampled_from([1, 2, 256, 4096]),
)
def test_whatever_was_measured_the_answer_is_a_number(
    knowledge: dict[str, Knowledge], option: Option, load: OfferedLoad, limit: int
) -> None:
    m = model(knowledge, limit)
    p = m.predict(option, load)
    assert 0 < p.tpot.low <= p.tpot.value <= p.tpot.high < math.inf
    assert 0 <= p.batch_size <= limit
    assert 0 < p.headroom < math.inf
    point = m.break_even(option)
    assert point is None or 1 <= point <= limit
