"""A scenario from the file to the figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from specdecode.cli.main import app
from specdecode.sim.twin.agents import Look
from specdecode.sim.twin.result import Result
from specdecode.sim.twin.run import simulate
from specdecode.sim.twin.scenario import ScenarioError, parse_scenario

SCENARIO: dict[str, Any] = {
    "name": "short",
    "duration": "75m",
    "replicas": 2,
    "rollTime": "30s",
    "arrivals": [{"requestsPerSecond": 3, "mix": {"summarise": 1}, "temperature": 0.0}],
    "policy": {
        "profiles": [{"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5}],
        "objective": {"slo": {"timePerOutputToken": {"p99": "40ms"}}},
        "rollout": {"analysis": {"minimumRequests": 20, "duration": "3m"}},
    },
}
BASELINES = ("oracle", "alone", "static:disabled", "static:ngram", "threshold-only", "schedule-only", "ema")


def text(**changes: Any) -> str:
    return yaml.safe_dump({**SCENARIO, **changes})


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(parse_scenario(text()))


def test_everybody_serves_the_same_requests(result: Result) -> None:
    assert set(result.agents) == {"operator", *BASELINES}
    for name, figures in result.agents.items():
        assert figures["requests"] == pytest.approx(3 * 75 * 60, rel=0.05), name
        assert figures["tokens"] == pytest.approx(figures["requests"] * 199, rel=0.03), name
        assert figures["waiting_at_end"] == 0, name
        assert 0 < figures["tpot_p50"] <= figures["tpot_p99"]
        assert 0 < figures["ttft_mean"] <= figures["ttft_p99"]
        assert 0 <= figures["slo_attainment"]["time_per_output_token"] <= 1 + 1e-9
        assert figures["slo_attainment"]["time_to_first_token"] is None


def test_nobody_who_begins_alike_is_faster_than_who_knows_everything(result: Result) -> None:
    best = result.agents["oracle"]["tpot_mean"]
    for name, figures in result.agents.items():
        # The others begin with a profile that speculates, to which the oracle has to roll.
        assert figures["tpot_mean"] >= best * (0.999 if name in ("operator", "alone", "static:disabled") else 0.95), (
            name
        )
        assert figures["regret"] == pytest.approx(figures["tpot_mean"] / best - 1)


def test_leaving_the_workload_alone_is_what_runs_at_first(result: Result) -> None:
    assert result.agents["alone"]["tpot_mean"] == pytest.approx(result.agents["static:disabled"]["tpot_mean"], rel=1e-3)


def test_the_operator_finds_what_pays_and_says_how_sure_it_was(result: Result) -> None:
    out = result.as_json()
    promoted = [c for c in out["changes"] if c["outcome"] == "Successful"]
    assert [(c["from"]["profile"], c["to"]["profile"]) for c in promoted[:1]] == [("disabled", "ngram")]
    assert promoted[0]["predicted_gain"]["low"] <= promoted[0]["predicted_gain"]["value"]
    assert promoted[0]["canary_gain"]["low"] > 0
    operator = out["agents"]["operator"]
    assert operator["rolls"] >= 1
    assert operator["canary_pod_seconds"] > 0
    assert out["ratio_to_alone"] > 1.2
    assert out["ratio_to_oracle"] <= 1.0
    calibration = out["calibration"]
    assert 0 <= calibration["covered"] <= calibration["predictions"]
    assert calibration["predictions"] >= 10
    assert sum(p["predictions"] for p in calibration["by_profile"].values()) == calibration["predictions"]
    assert calibration["canaries"] >= 1


def test_the_figures_of_a_result_keep_their_names(result: Result) -> None:
    out = json.loads(json.dumps(result.as_json()))
    assert list(out) == [
        "scenario", "seed", "duration_seconds", "pods", "wall_seconds", "agents", "best_static", "ratio_to_oracle",
        "ratio_to_best_static", "ratio_to_threshold_only", "ratio_to_schedule_only", "ratio_to_ema", "ratio_to_alone",
        "changes", "calibration",
    ]  # fmt: skip
    assert list(out["agents"]["operator"]) == [
        "tpot_mean", "tpot_p50", "tpot_p99", "ttft_mean", "ttft_p99", "slo_attainment", "tokens", "requests",
        "waiting_at_end", "rolls", "canaries", "canary_pod_seconds", "regret",
    ]  # fmt: skip
    assert list(out["changes"][0]) == [
        "time", "finished", "from", "to", "trigger", "outcome", "reason", "message", "predicted_gain", "canary_gain",
        "gave_up_one",
    ]  # fmt: skip


def test_the_timeline_shows_what_ran_and_how_fast(result: Result) -> None:
    assert len(result.timeline) == 15
    first, last = result.timeline[0], result.timeline[-1]
    assert (first["t"], first["pods"], first["requests_per_second"]) == (0, 2, 3)
    assert last["operator profile"] == "ngram"
    assert last["operator tpot"] < first["operator tpot"]


def test_the_same_seed_gives_the_same_result() -> None:
    s = parse_scenario(text(duration="20m"))
    one, two, other = (simulate(s, ["operator"], seed=n).agents["operator"] for n in (5, 5, 6))
    assert one == two != other


def test_every_tick_can_be_watched() -> None:
    looks: list[Look] = []
    simulate(parse_scenario(text(duration="10m")), ["operator"], watch=looks.append)
    assert [look.t for look in looks[:2]] == [15.0, 30.0]
    assert len(looks) == 39
    assert looks[-1].observation.estimates.load is not None


def test_the_operator_makes_do_without_a_spare_gpu_and_with_pods_that_come_and_go() -> None:
    policy = {**SCENARIO["policy"], "rollout": {**SCENARIO["policy"]["rollout"], "allowUnavailable": True}}
    replicas = [{"at": "0s", "count": 3}, {"at": "30m", "count": 4}]
    result = simulate(parse_scenario(text(policy=policy, replicas=replicas, spareGpus=0)), ["operator"])
    assert any(c["outcome"] == "Successful" for c in result.changes)
    assert result.timeline[-1]["pods"] == 4


def test_a_service_of_one_pod_without_a_spare_gpu_turns_requests_away_while_it_changes() -> None:
    policy = {**SCENARIO["policy"], "rollout": {"allowUnavailable": True, "analysis": {"minimumRequests": 20}}}
    s = parse_scenario(text(policy=policy, replicas=1, spareGpus=0, arrivals=[{"requestsPerSecond": 1}]))
    agents = simulate(s, ["operator", "alone", "threshold-only"]).agents
    assert agents["operator"]["canaries"] >= 1
    assert agents["operator"]["requests"] < agents["alone"]["requests"]


def test_where_the_version_can_run_no_profile_nothing_is_changed() -> None:
    draft = {"name": "draft", "method": "DraftModel", "numSpeculativeTokens": 3, "draftModel": {"model": "d"}}
    result = simulate(parse_scenario(text(vllmVersion="0.12.0", duration="20m", policy={"profiles": [draft]})))
    assert {name for name in result.agents if name.startswith("static:")} == {"static:disabled"}
    assert result.changes == ()
    alone = result.agents["alone"]["tpot_mean"]
    assert [a["tpot_mean"] for a in result.agents.values()] == [pytest.approx(alone)] * len(result.agents)


@pytest.mark.parametrize("version", ["0.8.5", "0.10.2", "0.32.0"])
def test_other_versions_of_vllm_can_be_simulated(version: str) -> None:
    result = simulate(parse_scenario(text(vllmVersion=version, duration="30m")), ["operator", "schedule-only", "ema"])
    assert result.calibration is not None
    assert result.calibration["predictions"] > 0


def test_who_takes_part_can_be_chosen() -> None:
    s = parse_scenario(text(duration="10m", baselines=["alone"]))
    assert list(simulate(s).agents) == ["operator", "alone"]
    assert list(simulate(s, ["static:ngram"]).agents) == ["static:ngram"]
    with pytest.raises(ScenarioError, match="there is no nobody; there are operator, oracle"):
        simulate(s, ["nobody"])


# --- the command --------------------------------------------------------------------------------------------------


def command(tmp_path: Path, *args: str, **changes: Any) -> Any:
    (tmp_path / "short.yaml").write_text(text(**{"duration": "10m", **changes}))
    return CliRunner().invoke(app, ["simulate", str(tmp_path / "short.yaml"), *args])


def test_the_command_prints_json_and_writes_a_timeline(tmp_path: Path) -> None:
    for name in ("t.csv", "t.json"):
        agents = "alone,static:ngram"
        done = command(tmp_path, "-o", "json", "--agents", agents, "--timeline", str(tmp_path / name), "--seed", "9")
        assert done.exit_code == 0, done.output
        out = json.loads(done.stdout)
        assert (out["scenario"], out["seed"], list(out["agents"])) == ("short", 9, ["alone", "static:ngram"])
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(json.loads((tmp_path / "t.json").read_text())) == 2
    assert rows[0]["alone profile"] == "disabled"


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    done = command(tmp_path, "--agents", "operator,alone")
    assert done.exit_code == 0
    assert "short: 0.166667 h, 2 pods" in done.stdout
    assert "alone" in done.stdout
    assert "within their 90 % interval" in done.stdout


@pytest.mark.parametrize(
    ("args", "changes", "message"),
    [
        (["--agents", "x"], {}, "there is no x"),
        (["--timeline", "t.txt"], {}, "name a file that ends in .csv or .json"),
        ([], {"arrivals": []}, "short.yaml cannot be run"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path: Path, args: list[str], changes: Any, message: str) -> None:
    done = command(tmp_path, *args, **changes)
    assert done.exit_code == 1
    assert message in done.stderr


def test_whoever_else_takes_part_an_agent_fares_the_same() -> None:
    """So they may be simulated in processes of their own."""
    s = parse_scenario(text(duration="40m", spareGpus=1))
    together, apart = (simulate(s, seed=3, processes=n) for n in (1, 2))
    by_itself = simulate(s, ["alone"], seed=3)
    assert list(apart.agents) == list(together.agents)
    # Sums are added in another order, on some machines, so they are alike but for rounding.
    for one, other in zip(apart.changes, together.changes, strict=True):
        assert one["predicted_gain"] == pytest.approx(other["predicted_gain"], abs=1e-4)
        assert one | {"predicted_gain": None} == other | {"predicted_gain": None}
    for row, same in zip(apart.timeline, together.timeline, strict=True):
        assert row == pytest.approx(same)
    for name, figures in [*apart.agents.items(), *by_itself.agents.items()]:
        assert figures["tpot_mean"] == pytest.approx(together.agents[name]["tpot_mean"], rel=1e-5)
        assert figures["ttft_mean"] == pytest.approx(together.agents[name]["ttft_mean"], rel=1e-5)
