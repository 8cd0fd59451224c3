"""Where a pod settles at an offered load, against its Markov chain and against a queue of real requests."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.model import equilibrium
from specdecode.model.equilibrium import Array, Settled

BATCH = np.arange(1.0, 65.0)
ROOFLINE = 0.01 * np.sqrt(1 + (BATCH / 40) ** 2)
"""Seconds per token with so many requests running."""
CLIFF = np.where(BATCH <= 20, 0.010, 0.022)


def settle(tpot: Array, *loads: float, busy: float = 0.0) -> Settled:
    return equilibrium.settle(np.log(tpot), np.array(loads), busy)


def chain(tpot: Array, load: float, queue: int = 4000) -> float:
    """Mean requests running, those that wait not counted, by the stationary distribution of the birth-death chain."""
    limit = len(tpot)
    states = np.arange(1, limit + queue)
    speed = np.minimum(states, limit) / tpot[np.minimum(states, limit) - 1]
    log_pi = np.concatenate([[0.0], np.cumsum(math.log(load) - np.log(speed))])
    pi = np.exp(log_pi - log_pi.max())
    return float(pi[1:] @ np.minimum(states, limit) / pi.sum())


def simulated(tpot: Array, load: float, length: float, requests: int = 4000) -> float:
    """Mean TPOT over requests of `length` tokens that arrive at random and share the engine; nobody waits."""
    rng = random.Random(7)
    t, due, arrived, spent = 0.0, 0.0, 0, 0.0
    left: list[float] = []
    while arrived < requests:
        each = 1 / float(tpot[len(left) - 1]) if left else 0.0
        ends = min(left) / each if left else math.inf
        step = min(ends, due - t)
        spent += step * len(left)
        left = [tokens - step * each for tokens in left]
        if step == ends:
            left.remove(min(left))
        t += step
        if t >= due and step != ends:
            left.append(length)
            arrived += 1
            due = t + rng.expovariate(load / length)
    return spent / (requests * length)


@pytest.mark.parametrize("tpot", [ROOFLINE, CLIFF, np.full(64, 0.01)], ids=["roofline", "cliff", "flat"])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.6, 0.8, 0.9])
def test_it_settles_where_its_markov_chain_does(tpot: Array, share: float) -> None:
    load = share * len(tpot) / float(tpot[-1])
    s = settle(tpot, load)
    assert s.headroom[0] == pytest.approx(1 / share)
    assert s.tpot[0] == pytest.approx(chain(tpot, load) / load, rel=1e-3)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_so_does_a_queue_of_requests_that_all_ask_for_as_much(share: float) -> None:
    """Processor sharing does not care how output lengths are distributed."""
    load = share * 64 / float(ROOFLINE[-1])
    assert simulated(ROOFLINE, load, 30.0) == pytest.approx(float(settle(ROOFLINE, load).tpot[0]), rel=0.06)


def test_nobody_asks_for_anything() -> None:
    s = settle(ROOFLINE, 0.0)
    assert s.tpot[0] == pytest.approx(ROOFLINE[0])
    assert s.batch_size[0] == pytest.approx(0.0, abs=1e-6)
    assert s.headroom[0] > 1e6


def test_a_load_beyond_the_largest_batch_saturates() -> None:
    capacity = 64 / float(ROOFLINE[-1])
    below, above = (settle(ROOFLINE, f * capacity) for f in (0.9, 1.1))
    assert below.headroom[0] > 1 > above.headroom[0]
    assert below.tpot[0] < above.tpot[0]
    assert above.tpot[0] == pytest.approx(ROOFLINE[-1])
    assert above.batch_size[0] == 64


def test_between_two_stable_batch_sizes_each_has_its_weight() -> None:
    """Beyond 20 requests the steps are so slow that more pile up: the same load is stable below and above."""
    batch = np.arange(1.0, 257.0)
    tpot = np.where(batch <= 20, 0.010, 0.022)
    loads = (600.0, 1200.0, 1500.0, 1700.0, 1900.0)
    s = settle(tpot, *loads)
    assert s.tpot[0] == pytest.approx(0.010, rel=0.01), "a spike over the cliff is unlikely"
    assert s.tpot[-1] == pytest.approx(0.022, rel=0.05), "hardly ever below"
    assert all(a <= b for a, b in zip(s.tpot, s.tpot[1:], strict=False))
    assert any(0.011 < t < 0.021 for t in s.tpot), "in between it is not priced as if it stayed on one side"
    for load, t in zip(loads, s.tpot, strict=True):
        assert t == pytest.approx(chain(tpot, load) / load, rel=1e-3)


def test_loads_are_answered_each_for_itself() -> None:
    loads = (10.0, 500.0, 3000.0, 1e6)
    together = settle(ROOFLINE, *loads)
    alone = [settle(ROOFLINE, load) for load in loads]
    assert list(together.tpot) == pytest.approx([float(s.tpot[0]) for s in alone])
    assert list(together.batch_size) == pytest.approx([float(s.batch_size[0]) for s in alone])


def test_prompts_make_every_step_longer_by_their_share() -> None:
    loads = (10.0, 500.0, 1000.0)
    busy, longer = settle(ROOFLINE, *loads, busy=0.25), settle(ROOFLINE / 0.75, *loads)
    for figure in ("tpot", "batch_size"):
        assert list(getattr(busy, figure)) == pytest.approx(list(getattr(longer, figure)))


def test_prompts_may_take_another_share_at_each_load_and_batch_size() -> None:
    loads, share = np.array([10.0, 500.0, 1000.0]), np.linspace(0.0, 0.5, len(BATCH))
    by_size = equilibrium.settle(np.log(ROOFLINE), loads, np.tile(share, (3, 1)))
    longer = settle(ROOFLINE / (1 - share), *loads)
    by_load = equilibrium.settle(np.log(ROOFLINE), loads, np.array([0.1, 0.2, 0.3]))
    alone = [settle(ROOFLINE, load, busy=busy) for load, busy in zip(loads, (0.1, 0.2, 0.3), strict=True)]
    for figure in ("tpot", "batch_size"):
        assert list(getattr(by_size, figure)) == pytest.approx(list(getattr(longer, figure)))
        assert list(getattr(by_load, figure)) == pytest.approx([float(getattr(s, figure)[0]) for s in alone])


@pytest.mark.parametrize("share", [0.3, 0.9, 1.1, 2.0, 10.0])
def test_in_a_full_batch_a_prompt_is_computed_for_each_request_that_ends(share: float) -> None:
    """However many ask: a token costs its part of a step, and its part of the prompt."""
    prompt = 0.0004
    full = float(ROOFLINE[-1]) + 64 * prompt
    load = share * 64 / full
    s = settle(ROOFLINE, load, busy=load * prompt)
    assert s.headroom[0] == pytest.approx(1 / share)
    assert s.tpot[0] == pytest.approx(full) if share > 1 else s.tpot[0] < full


def test_each_load_may_have_a_row_of_its_own() -> None:
    rows = np.stack([np.log(ROOFLINE), np.log(CLIFF)])
    both = equilibrium.settle(rows, np.array([500.0, 500.0]), np.array([0.0, 0.1]))
    assert both.tpot[0] == pytest.approx(settle(ROOFLINE, 500.0).tpot[0])
    assert both.tpot[1] == pytest.approx(settle(CLIFF, 500.0, busy=0.1).tpot[0])


@given(
    st.lists(st.floats(1e-5, 10), min_size=1, max_size=40),
    st.lists(st.floats(0, 1e9), min_size=1, max_size=5),
)
def test_whatever_steps_cost_the_answer_is_between_the_cheapest_and_the_dearest(
    tpot: list[float], loads: list[float]
) -> None:
    s = settle(np.array(tpot), *loads)
    assert all(min(tpot) * 0.999 <= t < math.inf for t in s.tpot)
    assert all(0 <= b <= len(tpot) * (1 + 1e-9) / 0.005 for b in s.batch_size)
    assert all(h > 0 for h in s.headroom)
