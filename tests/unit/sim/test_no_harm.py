"""Random services under the operator: never worse off than left alone, but for what its canaries cost."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from specdecode.sim.twin.world import world_of
from support.benchmarks import script


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("bench_no_harm", monkeypatch)


@pytest.mark.parametrize("seed", [0, 2, 7])
def test_a_random_service_is_not_harmed(bench: ModuleType, seed: int) -> None:
    judged = bench.judge(yaml.safe_dump(bench.random_scenario(seed, hours=3), sort_keys=False))
    assert judged["harm"] <= bench.NOISE, judged["history"]
    assert judged["most_changes_in_a_day"] <= judged["limit"]
    assert judged["exhausted"] == {"changes": 0, "restarts": 0}


def test_random_scenarios_can_be_run_and_are_what_their_seed_says(bench: ModuleType) -> None:
    for seed in range(12):
        world_of(bench.scenario_of(yaml.safe_dump(bench.random_scenario(seed, hours=1))))
    drawn = [bench.random_scenario(seed) for seed in range(40)]
    assert drawn == [bench.random_scenario(seed) for seed in range(40)]
    assert len({json.dumps(scenario) for scenario in drawn}) == 40
    assert {scenario["start"] for scenario in drawn} == {"disabled", "draft", "ngram"}
    assert {scenario["replicas"] for scenario in drawn} == {2, 3, 4}


@pytest.mark.parametrize(
    ("times", "most"), [([], 0), ([5.0], 1), ([0.0, 86_399.0], 2), ([0.0, 86_400.0], 1), ([0.0, 50_000.0, 90_000.0], 2)]
)
def test_changes_are_counted_over_any_24_hours(bench: ModuleType, times: list[float], most: int) -> None:
    assert bench.most_in_a_day(times) == most


def test_a_canary_costs_what_it_lost_for_the_requests_that_it_served(bench: ModuleType) -> None:
    scenario = bench.scenario_of(yaml.safe_dump({**bench.random_scenario(0), "spareGpus": 1, "rollTime": "100s"}))
    row = {"requests_per_second": 2.0, "pods": 3}
    lost = {"time": "2026-01-01T00:05:00Z", "finished": "2026-01-01T00:15:00Z", "canary_gain": {"value": -0.2}}
    won = {**lost, "canary_gain": {"value": 0.2}}
    unknown = {**lost, "canary_gain": None}
    result = SimpleNamespace(
        timeline=[{"t": t, **row} for t in range(0, 6000, 300)], duration_seconds=6000.0, changes=[lost, won, unknown]
    )
    # Of 600 s the canary served 500, of 6000 in all, a quarter of the requests, at 1 / 0.8 of the time per token.
    assert bench.probe_cost(result, scenario) == pytest.approx(500 / 6000 / 4 * 0.25)


def test_a_pod_that_is_given_up_costs_what_the_others_are_slower_by_while_pods_start(bench: ModuleType) -> None:
    scenario = bench.scenario_of(yaml.safe_dump({**bench.random_scenario(0), "rollTime": "100s"}))
    row = {"requests_per_second": 2.0, "operator tpot": 0.03, "alone tpot": 0.02}
    lost = {
        "time": "2026-01-01T00:05:00Z",
        "finished": "2026-01-01T00:15:00Z",
        "gave_up_one": True,
        "outcome": "Failed",
    }
    others = [{**lost, "gave_up_one": False}, {**lost, "outcome": "Successful"}]
    result = SimpleNamespace(
        timeline=[{"t": t, **row} for t in range(0, 6000, 300)], duration_seconds=6000.0, changes=[lost, *others]
    )
    # Twice 100 s of 6000, half as slow again.
    assert bench.given_up_cost(result, scenario) == pytest.approx(200 / 6000 * 0.5)


def judged(
    name: str, slower: float, cost: float, waiting: tuple[int, int] = (0, 0), requests: float = 0.0
) -> dict[str, object]:
    """A day of 10,000 requests that are so much slower, of which so many wait at its end with the operator, and with
    the service alone."""
    return {
        "name": name, "slower": slower, "probe_cost": cost, "given_up_cost": 0.0, "harm": slower - cost, "changes": 2,
        "limit": 6,
        "waiting_at_end": {"operator": waiting[0], "alone": waiting[1]},
        "requests": 10_000, "requests_slower": requests,
        "most_changes_in_a_day": 2, "exhausted": {"changes": 0, "restarts": 0}, "predictions": 10, "covered": 9,
        "informed": {"harm": 0.0, "requests_slower": 0.0, "waiting_at_end": {"operator": 0, "alone": 0}, "rolls": 1},
    }  # fmt: skip


def test_the_summary_tells_harm_from_what_canaries_cost(bench: ModuleType) -> None:
    found = bench.summary([judged("probed", 0.02, 0.018), judged("harmed", 0.02, 0.001), judged("won", -0.2, 0.0)], [])
    assert (found["scenarios"], found["harmed"], found["worst"][0]["name"]) == (3, 1, "harmed")
    assert (found["slower_by_1_percent_or_more"], found["faster_by_1_percent_or_more"]) == (2, 1)
    assert found["interval_coverage"] == 0.9


def test_what_another_seed_does_not_show_was_chance(bench: ModuleType) -> None:
    """Nor is a day harmed that only looks so with other seeds: its own is one of them."""
    days = [
        judged("always", 0.02, 0.0) | {"harm_with_other_seeds": [0.02, 0.015]},
        judged("by chance", 0.006, 0.0) | {"harm_with_other_seeds": [0.001, -0.002]},
    ]
    found = bench.summary(days, [])
    assert (found["harmed"], found["harmed_by_chance"], found["worst"][0]["name"]) == (1, 1, "always")


def test_who_knows_all_of_the_present_is_judged_alike_but_for_canaries(bench: ModuleType) -> None:
    informed = {"harm": 0.1, "requests_slower": 0.1, "waiting_at_end": {"operator": 0, "alone": 0}, "rolls": 3}
    days = [
        judged("both", 0.2, 0.0) | {"informed": informed},
        judged("informed only", 0.0, 0.0) | {"informed": informed},
        judged("waits less", 0.0, 0.0) | {"informed": informed | {"requests_slower": -0.1}},
    ]
    found = bench.summary(days, [])
    assert (found["informed_harmed"], found["harmed_both"], found["informed_worst_harm"]) == (2, 1, 0.1)


@pytest.mark.parametrize(
    ("operator", "alone", "harmed"),
    [(0, 0, True), (500, 500, True), (500, 599, True), (500, 700, False), (700, 500, True)],
    ids=["nobody waits", "as many", "hardly fewer", "fewer", "more"],
)
def test_who_serves_those_that_would_still_wait_is_no_worse_for_slower_tokens(
    bench: ModuleType, operator: int, alone: int, harmed: bool
) -> None:
    found = bench.summary([judged("full", 0.2, 0.0, (operator, alone))], [])
    assert (found["harmed"], found["slower_but_wait_less"]) == ((1, 0) if harmed else (0, 1))
    assert found["worst_harm"] == pytest.approx(0.2 if harmed else 0.0)


@pytest.mark.parametrize(("requests", "harmed"), [(0.2, True), (-0.005, True), (-0.1, False)])
def test_whose_requests_take_less_for_having_waited_less_is_no_worse_for_slower_tokens(
    bench: ModuleType, requests: float, harmed: bool
) -> None:
    found = bench.summary([judged("waits less", 0.2, 0.0, requests=requests)], [])
    assert (found["harmed"], found["slower_but_wait_less"]) == ((1, 0) if harmed else (0, 1))


def test_whose_tokens_are_as_fast_and_whose_requests_wait_more_is_told_of(bench: ModuleType) -> None:
    days = [judged("waits more", 0.0, 0.0, requests=0.1), judged("harmed", 0.2, 0.0, requests=0.1)]
    assert bench.summary(days, [])["not_harmed_but_wait_more"] == 1


def test_days_are_kept_and_not_run_again_but_for_other_code(bench: ModuleType, tmp_path: Path) -> None:
    code, file = tmp_path / "rules.py", tmp_path / "new" / "days.jsonl"
    code.write_text("one = 1")
    days = {7: judged("seven", 0.1, 0.0), 3: judged("three", 0.0, 0.0)}
    kept = bench.Kept(file, [code])
    for seed, day in days.items():
        kept.add(seed, day)
    assert bench.Kept(file, [code]).days == kept.days == days
    with file.open("a") as half:
        half.write('{"seed": 8, "na')
    bench.Kept(file, [code]).add(9, days[3])
    assert bench.Kept(file, [code]).days == {**days, 9: days[3]}, "killed while writing: that day is run again"
    code.write_text("one = 2")
    with pytest.raises(SystemExit, match="days of other code: remove it, or name another"):
        bench.Kept(file, [code])
    assert len(file.read_text().splitlines()) == 4, "nothing is lost"
