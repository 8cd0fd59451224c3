"""The baselines do what they are said to do; the clairvoyant finds the best path."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from specdecode.model.cost import Option
from specdecode.sim.twin.baselines import (
    AGAIN,
    AcceptedLengthTiers,
    Move,
    Planned,
    ThresholdOnly,
    _moves,
    scheduled_by_hand,
)
from specdecode.sim.twin.oracle import NOISE, choices, plan
from specdecode.sim.twin.scenario import parse_scenario
from specdecode.sim.twin.simulation import Player, Simulation
from specdecode.sim.twin.truth import Truth
from specdecode.sim.twin.world import World, world_of
from specdecode.vllm.speculation import Speculation

PROFILES: list[dict[str, Any]] = [
    {"name": "draft", "method": "DraftModel", "numSpeculativeTokens": 3, "draftModel": {"model": "d"}},
    {"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5},
]


def world(**changes: Any) -> World:
    base = {
        "name": "test",
        "duration": "1h",
        "replicas": 3,
        "rollTime": "30s",
        "arrivals": [{"requestsPerSecond": 6, "mix": {"summarise": 1}, "temperature": 0.0}],
        "policy": {"profiles": PROFILES},
    }
    return world_of(parse_scenario(yaml.safe_dump({**base, **changes})))


def speculation(o: Option) -> Speculation:
    assert o.speculation is not None
    return o.speculation


def threshold_only(w: World) -> ThresholdOnly:
    options = [w.options["draft"], w.options["ngram"]]
    return ThresholdOnly(options, w.options["disabled"], 300.0, give_up_one=w.cramped)


def run(w: World, agent: Any, start: str) -> Simulation:
    simulation = Simulation(w, [Player("agent", agent, w.options[start])], seed=1)
    simulation.run()
    return simulation


def profiles(simulation: Simulation) -> list[str]:
    """What ran, one after the other."""
    return [name for name, _ in itertools.groupby(row[0] for row in simulation.prevailing)]


# --- threshold-only -----------------------------------------------------------------------------------------------


def test_threshold_only_leaves_good_drafts_alone() -> None:
    assert profiles(run(world(), threshold_only(world()), "draft")) == ["draft"]


def test_threshold_only_goes_to_the_next_profile_when_acceptance_falls() -> None:
    w = world(acceptance={"changes": [{"at": "20m", "profile": "draft", "factor": 0.3}]})
    agent = threshold_only(w)
    assert profiles(run(w, agent, "draft")) == ["draft", "ngram"]
    assert agent.rolls == 1


def test_threshold_only_turns_off_when_all_fail_and_tries_again_later() -> None:
    w = world(duration="5h", acceptance={"changes": [{"method": m, "factor": 0.3} for m in ("DraftModel", "NGram")]})
    agent = threshold_only(w)
    simulation = run(w, agent, "draft")
    seen = profiles(simulation)
    assert seen[:3] == ["draft", "ngram", "disabled"]
    assert seen[3] == "draft"
    assert [row[0] for row in simulation.prevailing].index("draft", 10) * 300.0 >= AGAIN


# --- schedule-only ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "how"), [("0.24.0", "schedule"), ("0.33.0", "schedule"), ("0.15.0", "nothing"), ("0.9.2", "threshold")]
)
def test_the_engine_is_configured_as_its_version_allows(version: str, how: str) -> None:
    w = world(vllmVersion=version)
    s = speculation(scheduled_by_hand(w.options["draft"], w.times, w.scenario.version))
    assert bool(s.schedule) == (how == "schedule")
    assert (s.disable_by_batch_size is not None) == (how == "threshold")


def test_the_schedule_of_a_benchmark_drafts_less_the_larger_the_batch() -> None:
    w = world()
    s = speculation(scheduled_by_hand(w.options["draft"], w.times, w.scenario.version))
    ks = [s.k_at(b) for b in (1, 16, 64, 128, 256)]
    assert ks == sorted(ks, reverse=True)
    assert ks[0] == 3
    assert ks[-1] < 3
    assert (s.schedule[0].start, s.schedule[-1].end) == (1, 256)


# --- accepted-length tiers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "k", "accepted", "wanted"),
    [
        ([1, 3, 5], 1, 0.6, 3),  # more than half of what was drafted: up
        ([1, 3, 5], 1, 0.4, 1),
        ([1, 3, 5], 5, 2.2, 3),  # three quarters of a token below the tier below: down
        ([1, 3, 5], 5, 2.4, 5),
        ([1, 3, 5], 3, 2.4, 3),
        ([0, 1], 1, 0.0, 1),  # hysteresis keeps it from ever leaving K = 1 by itself
        ([0], 5, 4.0, 0),
        ([0, 1, 3], 5, 4.0, 3),
    ],
)
def test_tiers_follow_the_accepted_length(tier: list[int], k: int, accepted: float, wanted: int) -> None:
    up, up_from, down, down_to = _moves(tier, k)
    assert (up if accepted > up_from else down if accepted <= down_to else k) == wanted


def test_tiers_move_k_within_the_engine_by_load() -> None:
    steps = [{"at": "0s", "rate": 3}, {"at": "30m", "rate": 75}]
    w = world(arrivals=[{"steps": steps, "mix": {"chat": 1}, "promptTokens": 20}])
    simulation = run(w, AcceptedLengthTiers(w.options["draft"], w.times), "draft")
    assert profiles(simulation) == ["draft"]
    k = w.times.k_at[simulation.fleet.variant[simulation.services[0].serving_rows], 1]
    assert k.tolist() == [0, 0, 0]  # batches beyond 64


# --- the oracle ---------------------------------------------------------------------------------------------------

A, B, C = (Option(name, None) for name in "abc")


@pytest.mark.parametrize("mode", ["Auto", "Off"])
def test_it_has_schedules_where_the_policy_tunes(mode: str) -> None:
    w = world(policy={"profiles": PROFILES, "batchSizeTuning": {"mode": mode}}, vllmVersion="0.24.0")
    found = choices(w)
    assert {o.profile for o in found} == {"draft", "ngram", "disabled"}
    assert any(o.speculation and o.speculation.schedule for o in found) is (mode == "Auto")


def test_a_plan_stays_where_nothing_is_better() -> None:
    assert plan(np.array([[1.0, 2.0]] * 10), [A, B], 300.0, [600.0] * 10, 9) == []


def test_a_plan_rolls_in_time_for_a_change_that_lasts() -> None:
    costs = np.array([[1.0, 3.0]] * 10 + [[3.0, 1.0]] * 10)
    assert plan(costs, [A, B], 300.0, [600.0] * 20, 1) == [Move(9 * 300.0, B)]


def test_a_change_that_is_over_before_the_roll_is_not_followed() -> None:
    costs = np.array([[1.0, 1.5]] * 10 + [[2.0, 1.0]] + [[1.0, 1.5]] * 10)
    assert plan(costs, [A, B], 300.0, [900.0] * 21, 9) == []


def test_of_two_turns_the_one_that_is_worth_more_is_followed_where_one_change_is_allowed() -> None:
    costs = np.array([[1.0, 3.0]] * 5 + [[3.0, 1.0]] * 5 + [[1.0, 3.0]] * 20)
    rolls = [300.0] * 30
    assert [m.option for m in plan(costs, [A, B], 300.0, rolls, 2)] == [B, A]
    assert plan(costs, [A, B], 300.0, rolls, 1) == []
    assert plan(costs, [A, B], 300.0, rolls, 0) == []


@given(st.lists(st.tuples(*[st.floats(0.1, 10)] * 3), min_size=2, max_size=6), st.integers(0, 4))
@settings(deadline=None)
def test_no_path_of_so_many_changes_is_better_than_the_plan(
    rows: list[tuple[float, float, float]], changes: int
) -> None:
    costs, options = np.array(rows), [A, B, C]
    moves = plan(costs, options, 300.0, [300.0] * len(rows), changes)
    assert len(moves) <= changes
    path, moving = [A], {round(m.at / 300.0): m.option for m in moves}
    for b in range(len(rows)):
        path.append(moving.get(b, path[-1]))
    # A state before each bucket, and one after the last.
    ours = _path_cost([options.index(o) for o in path], costs)
    paths = ([0, *p] for p in itertools.product(range(3), repeat=len(rows)))
    allowed = (p for p in paths if sum(a != b for a, b in itertools.pairwise(p)) <= changes)
    best = min(_path_cost(p, costs) for p in allowed)
    assert ours == pytest.approx(best)
    assert ours <= costs[:, 0].sum() + 1e-9  # staying is one of the paths


def _path_cost(states: list[int], costs: Any) -> float:
    total = 0.0
    for b, (before, after) in enumerate(itertools.pairwise(states)):
        total += float(costs[b, before] + costs[b, after]) / 2
        total += NOISE * float(costs[b].mean()) if before != after else 0.0
    return total


def test_a_plan_is_followed_on_time() -> None:
    w = world()
    agent = Planned([Move(600.0, w.options["draft"]), Move(1800.0, w.options["disabled"])], give_up_one=False)
    simulation = run(w, agent, "ngram")
    assert profiles(simulation) == ["ngram", "draft", "disabled"]
    assert simulation.prevailing[1][0] == "ngram"
    assert simulation.prevailing[2][0] == "draft"
    assert agent.rolls == 2


# --- truth --------------------------------------------------------------------------------------------------------


def test_the_best_schedule_is_the_best_at_every_batch_size() -> None:
    w = world()
    truth, mix, draft = Truth(w.times, w.gains), w.demand.mixes[0], w.options["draft"]
    best = truth.of(Option("draft", truth.best_schedule("draft", speculation(draft), mix, 0.0)), mix, 0.0)
    for k in range(4):
        held = truth.tpot("draft", k, mix, 0.0, scheduled=True)
        assert np.all(best[1:] <= held[1:] + 1e-12)


def test_stale_drafts_are_slower_in_truth() -> None:
    w = world(acceptance={"changes": [{"profile": "draft", "halfLife": "1h"}]})
    truth, mix, draft = Truth(w.times, w.gains), w.demand.mixes[0], w.options["draft"]
    fresh, old = (truth.steady(draft, mix, 0.0, 2.0, uptime).tpot for uptime in (0.0, 7200.0))
    assert old > 1.5 * fresh
    off = replace(draft, profile="disabled", speculation=None)
    assert truth.steady(off, mix, 0.0, 2.0, 7200.0) == truth.steady(off, mix, 0.0, 2.0)
