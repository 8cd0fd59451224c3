"""Is a change worth it: the gain over what the load is expected to be, against what the change costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.model.estimate import Estimate
from specdecode.model.loads import BUCKET, DAY, KEPT, LoadHistory
from specdecode.policy.outlook import LONGEST, USUAL, Array, Cost, GainOf, Outlook, outlook, worth_of_trying

NOW = 1_800_000_000.0
HOUR = 3600.0
COST = Cost(delay=300.0, restart=180.0, commitment=2100.0)
QUIET, BUSY = 800.0, 5000.0


def history(loads: Sequence[float], *, until: float = NOW) -> LoadHistory:
    """Loads of the buckets that end with the one of now; the newest was seen whole."""
    return LoadHistory(int(until // BUCKET) - len(loads) + 1, tuple(loads), BUCKET)


def buckets(hours: float, load: float) -> list[float]:
    return [load] * round(hours * HOUR / BUCKET)


def pays_when_busy(gain: float = 0.3, loss: float = -0.3) -> GainOf:
    def gain_of(loads: Array) -> Array:
        return np.where(loads > 1000.0, gain, loss)

    return gain_of


def always(gain: float) -> GainOf:
    return lambda loads: np.full(len(loads), gain)


def now_busy(loads: Sequence[float], gain: float = 0.3, loss: float = -0.3, cost: Cost = COST) -> Outlook:
    return outlook(history(loads), NOW, BUSY, pays_when_busy(gain, loss), cost)


# --- how long it lasts ----------------------------------------------------------------------------------------------


def test_without_a_history_a_load_is_expected_to_last_as_usual() -> None:
    assert outlook(LoadHistory(), NOW, BUSY, always(0.3), COST).duration == USUAL


def test_what_has_lasted_is_expected_to_last_as_long_again() -> None:
    durations = [now_busy(buckets(12, QUIET) + buckets(h, BUSY)).duration for h in (0.5, 2, 4, 24)]
    assert durations == pytest.approx([USUAL, 2 * HOUR, 4 * HOUR, LONGEST], abs=BUCKET)


def bursts(each: float, pause: float, times: int, then: float) -> list[float]:
    """Bursts of so many hours with pauses between them, and one that has lasted `then` hours."""
    before = [*buckets(each, BUSY), *buckets(pause, QUIET)] * times
    return [*buckets(pause, QUIET), *before, *buckets(then, BUSY)]


def test_stretches_of_the_past_tell_how_long_this_one_will_last() -> None:
    short = now_busy(bursts(0.5, 1, 12, 0.1)).duration
    long = now_busy(bursts(8, 2, 4, 0.1)).duration
    assert short < 0.7 * HOUR
    assert long > 4 * HOUR


def test_a_stretch_that_outlasts_all_others_is_of_a_new_kind() -> None:
    young, old = (now_busy(bursts(0.5, 1, 12, h)).duration for h in (0.25, 3))
    assert young < old == pytest.approx(3 * HOUR, abs=BUCKET)


# --- whether it pays ------------------------------------------------------------------------------------------------


def test_short_bursts_are_left_to_the_schedule() -> None:
    """A quarter of an hour busy, an hour quiet, all day: when the pods are rolled it is almost quiet again."""
    slow = Cost(delay=900.0, restart=180.0, commitment=3600.0)
    assert now_busy(bursts(0.25, 1, 12, 0.1), loss=-0.6, cost=slow).benefit < 0
    assert now_busy(bursts(8, 1, 2, 0.1), loss=-0.6, cost=slow).benefit > 0


def test_bursts_that_weigh_more_than_the_time_between_them_are_acted_on() -> None:
    """None of them lasts as long as a change takes; but most tokens are theirs, and it is not taken back between."""
    slow = Cost(delay=900.0, restart=180.0, commitment=3600.0)
    found = now_busy(bursts(0.25, 1, 12, 0.1), loss=-0.1, cost=slow)
    assert found.duration < slow.delay
    assert found.benefit > 0
    young = now_busy(bursts(0.25, 1, 1, 0.1), loss=-0.1, cost=slow)
    assert young.benefit < found.benefit, "one burst is no habit"


@pytest.mark.parametrize("hours", [0.5, 1, 4])
def test_a_shift_that_lasts_is_acted_on(hours: float) -> None:
    assert now_busy(buckets(20, QUIET) + buckets(hours, BUSY)).benefit > 0


def test_yesterday_tells_what_comes_after() -> None:
    """An hour busy so far. Yesterday at this time it stayed busy for long, or went quiet at once."""
    evening = [buckets(23, load) + buckets(1, BUSY) for load in (BUSY, QUIET)]
    stays, ends = (now_busy([*buckets(1, BUSY), *day], cost=Cost(300.0, 180.0, 6 * HOUR)) for day in evening)
    assert stays.benefit > max(0.0, ends.benefit)
    assert stays.average == pytest.approx(0.3)
    assert ends.average < 0.3


def test_what_was_not_measured_is_not_taken_for_a_quiet_time() -> None:
    gap = history([*buckets(2, BUSY), *buckets(6, -1.0), *buckets(2, BUSY)])
    whole = history([*buckets(2, BUSY), *buckets(6, BUSY), *buckets(2, BUSY)])
    found = [outlook(h, NOW, BUSY, pays_when_busy(), COST) for h in (gap, whole)]
    assert found[0].average == pytest.approx(0.3)
    assert found[0].benefit > 0 and found[1].benefit > 0


def test_a_gain_is_held_against_what_the_change_costs() -> None:
    dear = Cost(COST.delay, 3 * HOUR, COST.commitment)
    loads = buckets(20, BUSY)
    assert now_busy(loads).benefit > 0 > now_busy(loads, cost=dear).benefit
    assert now_busy(loads).benefit - now_busy(loads, cost=dear).benefit == pytest.approx(3 * HOUR - COST.restart)


def test_it_saves_nothing_before_it_is_in_force() -> None:
    loads = buckets(20, BUSY)
    benefits = [now_busy(loads, cost=Cost(delay, 180.0, 2100.0)).benefit for delay in (0.0, 600.0, 3600.0, 24 * HOUR)]
    assert benefits == sorted(benefits, reverse=True)
    assert benefits[-1] == -180.0


@pytest.mark.parametrize("gain", [0.05, 0.3, 1.0])
def test_payback_is_when_the_gain_has_made_up_for_the_restart(gain: float) -> None:
    found = outlook(LoadHistory(), NOW, BUSY, always(gain), COST)
    assert found.payback == pytest.approx(COST.delay + COST.restart / gain)


@pytest.mark.parametrize("gain", [0.0, -0.2])
def test_what_gains_nothing_never_pays_back(gain: float) -> None:
    found = outlook(history(buckets(10, BUSY)), NOW, BUSY, always(gain), COST)
    assert found.payback is None and found.benefit < 0


# --- whatever comes -------------------------------------------------------------------------------------------------

LOADS = st.lists(st.floats(0, 1e5) | st.just(-1.0), max_size=KEPT)
COSTS = st.builds(Cost, st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 2 * DAY))


@given(LOADS, st.floats(1e-3, 1e5), st.floats(-3, 3), st.floats(-3, 3), COSTS, st.floats(-2 * DAY, 2 * DAY))
def test_whatever_the_history_it_has_an_answer(
    loads: list[float], load: float, quiet: float, busy: float, cost: Cost, off: float
) -> None:
    past = history(loads, until=NOW + off)
    found = outlook(past, NOW, load, lambda x: np.where(x > 1000, busy, quiet), cost)
    assert 0 <= found.duration <= 2 * DAY
    assert math.isfinite(found.benefit) and math.isfinite(found.average)
    assert min(quiet, busy, 0.0) - 1e-9 <= found.average <= max(quiet, busy, 0.0) + 1e-9
    assert found.payback is None or found.payback >= cost.delay


@given(LOADS, st.floats(1e-3, 1e5), st.floats(0.001, 1), st.floats(1, 10), COSTS)
def test_a_larger_gain_never_brings_less(
    loads: list[float], load: float, gain: float, factor: float, cost: Cost
) -> None:
    less, more = (outlook(history(loads), NOW, load, always(g), cost) for g in (gain, gain * factor))
    assert less.benefit <= more.benefit + 1e-6
    assert less.duration == more.duration
    assert less.payback is not None and more.payback is not None and more.payback <= less.payback


# --- what an uncertain gain is worth trying ---------------------------------------------------------------------------


def between(low: float, high: float) -> Estimate:
    """A gain whose 90 % interval this is."""
    return Estimate(math.sqrt((1 + low) * (1 + high)) - 1, low, high)


@pytest.mark.parametrize(
    ("gain", "worth"),
    [
        (between(-0.5, 1.0), True),
        (between(-0.35, 0.30), True),
        (between(-0.12, -0.08), False),
        (between(-0.8, -0.4), False),
    ],
    ids=["as likely as not", "rather not", "sure to lose a little", "far from it"],
)
def test_a_canary_is_worth_its_pod_where_a_win_is_possible(gain: Estimate, worth: bool) -> None:
    assert (worth_of_trying(gain, 0.05, 4 * HOUR, COST, 3) > 0) is worth


def test_a_win_is_one_that_is_worth_a_change() -> None:
    """Sure to be 3 % faster: where that is enough there is something to win, where 10 % are asked for there is not."""
    sure = between(0.01, 0.05)
    assert worth_of_trying(sure, 0.0, 4 * HOUR, COST, 3) > 0 > worth_of_trying(sure, 0.1, 4 * HOUR, COST, 3)


def test_a_canary_costs_the_less_the_more_pods_there_are() -> None:
    worths = [worth_of_trying(between(-0.4, 0.2), 0.0, 4 * HOUR, COST, pods) for pods in (1, 2, 10, 100)]
    assert worths == sorted(worths)
    assert worths[0] < worths[-1]


def test_what_is_promoted_brings_all_of_its_gain() -> None:
    """Not only what it gains beyond the least that is asked for: 5 % for hours outweigh a canary."""
    unlikely = between(-0.25, 0.10)
    cost = Cost(delay=1200.0, restart=130.0, commitment=3000.0)
    assert worth_of_trying(unlikely, 0.05, 6 * HOUR, cost, 3) > 0 > worth_of_trying(unlikely, 0.05, 1 * HOUR, cost, 3)


def test_what_the_others_lose_by_a_pod_that_is_given_up_is_no_less_for_many_pods() -> None:
    crowded = Cost(COST.delay, COST.restart, COST.commitment, crowding=200.0)
    for pods in (2, 100):
        less = worth_of_trying(between(-0.4, 0.5), 0.05, 4 * HOUR, COST, pods)
        assert worth_of_trying(between(-0.4, 0.5), 0.05, 4 * HOUR, crowded, pods) == pytest.approx(less - 200.0)
    assert now_busy(buckets(5, BUSY), cost=crowded).benefit == now_busy(buckets(5, BUSY)).benefit - 200.0


def test_the_less_sure_the_more_there_is_to_win() -> None:
    worths = [worth_of_trying(between(1 / f - 1, f - 1), 0.05, 4 * HOUR, COST, 3) for f in (1.02, 1.1, 1.3, 2.0)]
    assert worths == sorted(worths)
    assert worths[0] < 0 < worths[-1]


@given(st.floats(-0.9, 2), st.floats(0.001, 1), COSTS, st.integers(1, 1000))
def test_what_is_better_is_never_worth_less(value: float, sd: float, cost: Cost, pods: int) -> None:
    def worth(mean: float) -> float:
        centre, half = math.log1p(mean), sd * 1.645
        gain = Estimate(mean, math.expm1(centre - half), math.expm1(centre + half))
        return worth_of_trying(gain, 0.05, 3 * cost.delay + 3600.0, cost, pods)

    here = worth(value)
    assert math.isfinite(here)
    assert worth(value + 0.5) >= here
