"""Mixed traffic: when it is seen, and when what looks like it is something else."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.api.v1alpha1 import DISABLED
from specdecode.model.histogram import Quantile
from specdecode.model.knowledge import Knowledge, Latencies
from specdecode.model.measure import Percentiles
from specdecode.model.window import DraftingPart, Window
from specdecode.policy.observation import Observation, Pod
from specdecode.policy.traffic import Sign, clusters, traffic
from specdecode.vllm.metrics import Histogram, Page
from support.world import NOW, menu, observation, option, pod, spec
from support.world import traffic as served

MENU = menu(spec())
OFF, NGRAM = option(MENU, "disabled"), option(MENU, "ngram")


def parts(*rates: float, drafted: float = 300.0) -> list[DraftingPart]:
    """Parts in the order in which they ended."""
    return [DraftingPart(rate, drafted, float(t)) for t, rate in enumerate(rates)]


def around(mean: float, count: int, sd: float = 0.03, seed: int = 1) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(mean, sd) for _ in range(count)]


def shuffled(*rates: float) -> list[float]:
    mixed = list(rates)
    random.Random(7).shuffle(mixed)
    return mixed


HALF_AND_HALF = shuffled(*around(0.82, 12), *around(0.38, 8))
TRAFFICS: dict[str, tuple[list[DraftingPart], bool]] = {
    "60 % at 0.82 and 40 % at 0.38, as the framework has it": (parts(*HALF_AND_HALF), True),
    "one kind": (parts(*around(0.65, 20)), False),
    "one kind that varies a lot": (parts(*around(0.65, 20, sd=0.12)), False),
    "an even spread": (parts(*shuffled(*(0.3 + i * 0.03 for i in range(20)))), False),
    "two kinds that are near": (parts(*shuffled(*around(0.62, 10, 0.01), *around(0.75, 10, 0.01))), False),
    "a tenth of another kind": (parts(*shuffled(*around(0.8, 27), *around(0.3, 3))), False),
    "traffic that changed from one kind to the other": (parts(*around(0.82, 12), *around(0.38, 8)), False),
    "two odd readings": (parts(*shuffled(*around(0.8, 7), 0.3, 0.3)), False),
    "too few parts": (parts(0.8, 0.3, 0.8, 0.3, 0.8), False),
    "nothing": ([], False),
    "all the same": (parts(*([0.7] * 20)), False),
}


@pytest.mark.parametrize("case", TRAFFICS)
def test_two_clusters_are_seen_where_there_are_two(case: str) -> None:
    found, mixed = TRAFFICS[case]
    assert (clusters(found) is not None) == mixed


def test_clusters_come_with_their_figures() -> None:
    found = clusters(parts(*HALF_AND_HALF))
    assert found is not None
    assert found.low == pytest.approx(0.38, abs=0.02) and found.high == pytest.approx(0.82, abs=0.02)
    assert found.share == pytest.approx(0.4)


def test_parts_weigh_what_they_drafted() -> None:
    light = [DraftingPart(rate, 30.0 if rate < 0.6 else 300.0, float(t)) for t, rate in enumerate(HALF_AND_HALF)]
    assert clusters(light) is None, "the lower cluster holds 6 % of the tokens"


def test_pods_that_differ_are_two_clusters_too() -> None:
    """Sticky sessions: each pod has one kind of requests, over the same minutes."""
    pods = [DraftingPart(rate, 300.0, float(t)) for t in range(6) for rate in (0.8, 0.4)]
    assert clusters(pods) is not None


def test_what_was_mixed_stays_so_at_a_lower_threshold() -> None:
    near = parts(*shuffled(*around(0.55, 10, 0.01), *around(0.73, 10, 0.01)))
    assert clusters(near) is None and clusters(near, 0.75) is not None


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(200, 1e6), st.floats(0, 1e6)), max_size=40).map(
        lambda found: [DraftingPart(*part) for part in found]
    )
)
def test_whatever_the_parts_both_clusters_count_and_order_does_not(found: list[DraftingPart]) -> None:
    two = clusters(found)
    assert two == clusters(found[::-1])
    if two is not None:
        assert 0.2 <= two.share <= 0.8 and two.high - two.low >= 0.2


# --- the tail of TPOT ---------------------------------------------------------------------------------------------


def exactly(seconds: float) -> Quantile:
    return Quantile(seconds, seconds, seconds)


def shape(p50: float | Quantile, p99: float | Quantile) -> Percentiles:
    a, b = (q if isinstance(q, Quantile) else exactly(q) for q in (p50, p99))
    return Percentiles(a, b, b)


BEFORE = Latencies(1000.0, 100.0, 0.02, 0.04, 0.1, 0.0, NOW - 60)


def speculating(tpot: Percentiles | None, **known: Any) -> Observation:
    o = observation(active=NGRAM, menu=MENU, window=served(acceptance=0.7))
    assert o.estimates.measured is not None
    measured = replace(
        o.estimates.measured, tpot=tpot, finished=400.0, generation_tokens_per_second=3000.0, prompt_length=100.0
    )
    knowledge = {DISABLED: Knowledge(NOW, latencies=(replace(BEFORE, **known),))}
    return replace(o, knowledge=knowledge, estimates=replace(o.estimates, measured=measured))


FIRST, LAST = Quantile(0.0, 0.01, None), Quantile(80.0, float("inf"), None)
TAILS: dict[str, tuple[Observation, bool]] = {
    "P50 improves and P99 worsens": (speculating(shape(0.015, 0.06)), True),
    "both improve": (speculating(shape(0.01, 0.02)), False),
    "the gap widens, but P99 is better too": (speculating(shape(0.008, 0.035)), False),
    "all is slower alike": (speculating(shape(0.03, 0.06)), False),
    "P99 is a little worse": (speculating(shape(0.019, 0.042)), False),
    "P50 is in the first bucket": (speculating(shape(FIRST, 0.06)), True),
    "P50 was in the first bucket before": (speculating(shape(FIRST, 0.06), tpot_p50=0.0), False),
    "P99 is in the last bucket": (speculating(shape(0.015, LAST)), True),
    "TPOT is not measured": (speculating(None), False),
    "before, the load was another": (speculating(shape(0.015, 0.06), tokens_per_second=3000.0), False),
    "before was two days ago": (speculating(shape(0.015, 0.06), measured_at=NOW - 200_000.0), False),
}


@pytest.mark.parametrize("case", TAILS)
def test_a_tail_that_left_the_median_since_speculation_is_on_is_seen(case: str) -> None:
    o, widened = TAILS[case]
    found = traffic(o, was_mixed=False)
    assert (found.sign is Sign.TAIL_WIDENED) == widened and found.mixed is widened


def test_a_widened_tail_is_told_with_its_figures_and_a_way_out() -> None:
    found = traffic(speculating(shape(0.015, 0.06)), was_mixed=False)
    assert found.message.startswith(
        "P99 of TPOT is 4.0 times P50 with speculation (60 and 15 ms), 2.0 times without at such a load (40 and 20 ms)"
    )
    assert "split the Deployment" in found.message


@cache
def paced(tpot: tuple[float, float], acceptance: float | None) -> Window:
    """A pod whose requests finish with P50 and P99 of TPOT as said."""
    window = Window(3600.0)
    for r in served(acceptance=acceptance, rate=4.0).readings:
        (engine,) = r.page.engines
        n = engine.tpot.count if engine.tpot else 0.0
        bounds = (tpot[0] * 0.99, tpot[0], tpot[1] * 0.99, tpot[1], float("inf"))
        slow = Histogram(bounds, (0.0, 0.9 * n, 0.9 * n, n, n), n * tpot[0], n)
        window = window.add(Page((replace(engine, tpot=slow),), r.page.process_start), r.t)
    return window


def canary_beside(ours: tuple[float, float], theirs: tuple[float, float], **changes: Any) -> Observation:
    new = pod("new", "new", NGRAM, paced(ours, 0.7), **changes)
    old = [pod(f"old-{i}", "old", OFF, paced(theirs, None)) for i in range(2)]
    return observation(active=OFF, menu=MENU, pods=(new, *old))


@pytest.mark.parametrize(
    ("ours", "changes", "sign"),
    [
        ((0.015, 0.06), {}, Sign.TAIL_WIDENED),
        ((0.01, 0.02), {}, Sign.NOTHING_DRAFTED),
        ((0.015, 0.06), {"ready": False}, Sign.NOTHING_DRAFTED),
        ((0.015, 0.06), {"answered": False}, Sign.NOTHING_DRAFTED),
        ((0.015, 0.06), {"terminating": True}, Sign.NOTHING_DRAFTED),
        ((0.015, 0.06), {"option": None}, Sign.NOTHING_DRAFTED),
    ],
)
def test_a_canary_shows_its_tail_beside_the_baseline(
    ours: tuple[float, float], changes: dict[str, Any], sign: Sign
) -> None:
    found = traffic(canary_beside(ours, (0.02, 0.04), **changes), was_mixed=False)
    assert found.sign is sign
    if sign is Sign.TAIL_WIDENED:
        assert "on the pods without" in found.message


# --- together -----------------------------------------------------------------------------------------------------


def drafting(*rates: float, pods: int = 3) -> Observation:
    """Pods that draft 300 tokens at each of the rates, one after the other."""

    def window(shift: int) -> Window:
        made, drafted, accepted = Window(3600.0), 0.0, 0.0
        base = served(acceptance=0.7, seconds=5.0 * (len(rates) + 1))
        for i, r in enumerate(base.readings[: len(rates) + 1]):
            (engine,) = r.page.engines
            if i:
                drafted += 300.0
                accepted += 300.0 * rates[(i - 1 + shift) % len(rates)]
            sample = replace(
                engine, draft_tokens=drafted, accepted_tokens=accepted, drafts=drafted / 5, accepted_per_position=()
            )
            made = made.add(Page((sample,), 1.0), NOW - 5.0 * (len(rates) - i))
        return made

    seen: list[Pod] = [pod(f"p{i}", "old", NGRAM, window(i)) for i in range(pods)]
    return observation(active=NGRAM, menu=MENU, pods=tuple(seen))


SPREAD = (0.85, 0.62, 0.78, 0.68, 0.72, 0.56, 0.8, 0.75, 0.82)
KINDS: dict[str, tuple[Observation, bool, Sign, bool | None]] = {
    "one kind": (drafting(*([0.7] * 10)), False, Sign.HOMOGENEOUS, False),
    "two kinds": (drafting(*([0.85, 0.4] * 5)), False, Sign.TWO_CLUSTERS, True),
    "a low tail": (drafting(0.45, *SPREAD), False, Sign.LOW_TAIL, True),
    "a tail that has just risen above the floor": (drafting(0.52, *SPREAD), False, Sign.HOMOGENEOUS, False),
    "the same, seen before": (drafting(0.52, *SPREAD), True, Sign.LOW_TAIL, True),
    "all below the floor is not mixed but bad": (drafting(*([0.3] * 10)), False, Sign.HOMOGENEOUS, False),
    "nothing is drafted": (observation(), False, Sign.NOTHING_DRAFTED, None),
}


@pytest.mark.parametrize("case", KINDS)
def test_what_traffic_looks_like_has_one_name(case: str) -> None:
    o, was_mixed, sign, mixed = KINDS[case]
    found = traffic(o, was_mixed=was_mixed)
    assert (found.sign, found.mixed) == (sign, mixed)
    assert bool(found.message) == bool(found.mixed)
