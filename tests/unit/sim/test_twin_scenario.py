"""A scenario file says what is wrong with it; its traffic is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from specdecode.model.surface import Surface
from specdecode.sim.twin.demand import Demand, Drafts, demand_of
from specdecode.sim.twin.measured import acceptance_of, surface_of
from specdecode.sim.twin.scenario import Scenario, ScenarioError, load_scenario, parse_scenario
from specdecode.sim.twin.world import world_of
from specdecode.vllm.speculation import Method

NGRAM = {"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5}
MINIMAL: dict[str, Any] = {
    "name": "test",
    "duration": "1h",
    "arrivals": [{"requestsPerSecond": 4}],
    "policy": {"profiles": [NGRAM]},
}


def scenario(folder: Path | None = None, **changes: Any) -> Scenario:
    return parse_scenario(yaml.safe_dump({**MINIMAL, **changes}), "file.yaml", folder)


def demand(**changes: Any) -> Demand:
    return demand_of(scenario(**changes), 3.0)


def at(d: Demand, hours: float) -> float:
    return float(d.rate[int(hours * 3600 / d.dt)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surfaces": "x"}, "surfaces: unknown field"),
        ({"arrivals": []}, "arrivals: Tuple should have at least 1 item"),
        ({"arrivals": [{"mix": {"chat": 1}}]}, "arrivals[0]: give one of requestsPerSecond, steps, diurnal and trace"),
        ({"arrivals": [{"requestsPerSecond": 1, "diurnal": {"mean": 1, "amplitude": 1}}]}, "arrivals[0]: give one of"),
        ({"arrivals": [{"requestsPerSecond": -1}]}, "arrivals[0].requestsPerSecond: Input should be greater"),
        ({"arrivals": [{"requestsPerSecond": 1, "from": "2h", "to": "1h"}]}, "to must be later than from"),
        (
            {"arrivals": [{"requestsPerSecond": 1, "to": "40m"}, {"requestsPerSecond": 2, "from": "30m"}]},
            "arrivals: pieces overlap",
        ),
        ({"duration": "long"}, "duration: 'long' is not a duration"),
        ({"vllmVersion": "latest"}, "vllmVersion: this is no version"),
        ({"start": "draft"}, "no profile 'draft'; profiles are disabled, ngram"),
        ({"acceptance": {"changes": [{"profile": "x", "factor": 1}]}}, "acceptance.changes: no profile 'x'"),
        ({"acceptance": {"changes": [{"factor": 1}]}}, "name the method or the profile"),
        ({"acceptance": {"changes": [{"profile": "ngram"}]}}, "give one of factor, rows and halfLife"),
        ({"acceptance": {"changes": [{"profile": "ngram", "halfLife": "1h", "at": "1h"}]}}, "leave out at and kind"),
        ({"acceptance": {"table": "a", "kinds": {}}}, "acceptance: give a table (a file) or kinds (inline), not both"),
        ({"policy": {"profiles": [NGRAM], "rolout": {}}}, "policy: unknown field policy.rolout"),
        ({"policy": {"profiles": [{**NGRAM, "k": 3}]}}, "policy: unknown field policy.profiles[0].k"),
        ({"policy": {"profiles": [{"name": "x"}]}}, "policy.profiles[0].method: this field is required"),
        ({"replicas": {"minimum": 3, "maximum": 2, "requestsPerSecondPerPod": 1}}, "minimum must not be larger"),
    ],
)
def test_what_is_wrong_with_a_scenario_is_said_with_file_and_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        scenario(**changes)
    assert "file.yaml" in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surface": "h300"}, "surface: no 'h300'"),
        ({"arrivals": [{"requestsPerSecond": 1, "from": "2h"}]}, "arrivals: no piece lies within the duration"),
        ({"surface": "h200-qwen3moe30b", "policy": {"profiles": [
            {"name": "d", "method": "DraftModel", "numSpeculativeTokens": 3, "draftModel": {"model": "m"}}
        ]}}, "has no step times of DraftModel (profile d)"),
        ({"arrivals": [{"requestsPerSecond": 1, "mix": {"poems": 1}}]}, "nothing is known of 'poems' requests"),
        ({"arrivals": [{"trace": {"file": "nowhere.csv"}}]}, "trace 'nowhere.csv' is neither"),
        ({"acceptance": {"table": "nowhere.json"}}, "acceptance.table:"),
        ({"start": "d", "vllmVersion": "0.12.0", "policy": {"profiles": [
            {"name": "d", "method": "DraftModel", "numSpeculativeTokens": 3, "draftModel": {"model": "m"}}
        ]}}, "start: d cannot run on vLLM 0.12.0"),
    ],
)  # fmt: skip
def test_a_scenario_that_names_what_is_not_there_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        world_of(scenario(**changes))
    assert message in str(raised.value)


def test_text_that_is_no_scenario_is_refused() -> None:
    for text in ("[1, 2]", "a: [", ""):
        with pytest.raises(ScenarioError, match=r"file\.yaml"):
            parse_scenario(text, "file.yaml")
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_scenario(Path("nowhere.yaml"))


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[3].glob("examples/scenarios/*.yaml")), ids=lambda p: p.stem
)
def test_the_examples_can_be_run(path: Path) -> None:
    world = world_of(load_scenario(path))
    assert world.demand.rate.max() > 0
    assert len(world.options) == len(world.scenario.policy.profiles) + 1


# --- traffic ------------------------------------------------------------------------------------------------------


def test_a_rate_may_be_constant_stepped_or_follow_the_sun() -> None:
    stepped = demand(duration="24h", arrivals=[{"steps": [{"at": "0s", "rate": 1}, {"at": "10h", "rate": 5}]}])
    sun = demand(duration="24h", arrivals=[{"diurnal": {"mean": 10, "amplitude": 12, "peakAt": "14h"}}])
    assert np.all(demand().rate == 4)
    assert (at(stepped, 9.9), at(stepped, 10.1)) == (1, 5)
    assert at(sun, 14) == pytest.approx(22, rel=1e-3)
    assert at(sun, 2) == 0  # never negative
    assert sun.rate.mean() == pytest.approx(10, rel=0.05)


def test_bursts_multiply_the_end_of_each_period() -> None:
    d = demand(arrivals=[{"requestsPerSecond": 2, "bursts": {"every": "10m", "length": "1m", "factor": 5}}])
    assert at(d, 8.5 / 60) == 2
    assert at(d, 9.5 / 60) == 10
    assert d.rate.mean() == pytest.approx(2 * (1 + 4 / 10))


def test_a_piece_without_an_end_ends_where_the_next_begins_and_gaps_are_quiet() -> None:
    pieces = [
        {"requestsPerSecond": 1},
        {"requestsPerSecond": 2, "from": "20m", "to": "30m"},
        {"requestsPerSecond": 3, "from": "40m"},
    ]
    d = demand(arrivals=pieces)
    assert [at(d, minutes / 60) for minutes in (19, 21, 35, 45)] == [1, 2, 0, 3]


def test_temperature_moves_in_a_straight_line_over_its_piece() -> None:
    d = demand(duration="10h", arrivals=[{"requestsPerSecond": 1, "temperature": {"from": 0, "to": 1}}])
    assert d.mixes[0].temperature == pytest.approx(0, abs=0.01)
    assert d.mixes[300].temperature == pytest.approx(0.5, abs=0.01)
    assert d.mixes[-1].temperature == pytest.approx(1, abs=0.01)


def test_a_mix_is_split_by_kind_and_by_how_requests_of_a_kind_differ() -> None:
    d = demand(arrivals=[{"requestsPerSecond": 1, "mix": {"chat": 3, "code": 1}, "outputTokens": [100, 300]}])
    mix = d.mixes[0]
    assert mix.kinds == ("chat", "code")
    assert mix.shares.tolist() == pytest.approx([0.125, 0.5, 0.125, 0.125 / 3, 0.5 / 3, 0.125 / 3])
    assert mix.output.tolist() == [200.0] * 6
    assert mix.prompt.tolist() == [175.0] * 3 + [600.0] * 3  # the kinds' own


def test_a_trace_is_scaled_and_repeated_and_brings_its_lengths() -> None:
    once = demand(duration="2h", arrivals=[{"trace": {"repeat": False}}])
    often = demand(duration="2h", arrivals=[{"trace": {"scale": 3, "timeScale": 2}}])
    assert once.rate.sum() * once.dt == pytest.approx(8819)
    assert at(once, 1.5) == 0
    assert often.rate.sum() * often.dt == pytest.approx(3 * 8819 * 7200 / (3436 / 2), rel=0.03)  # it is 57 minutes long
    assert once.recorded[:1000].all()
    prompts = [float(mix.shares @ mix.prompt) for mix in once.mixes[:57]]
    assert np.mean(prompts) == pytest.approx(2048, rel=0.2)
    assert max(prompts) > 1.2 * min(prompts)


@pytest.mark.parametrize(
    ("replicas", "rates", "wanted"),
    [
        (3, [(0, 10.0)], {0.1: 3, 0.9: 3}),
        ([{"at": "0s", "count": 2}, {"at": "30m", "count": 4}], [(0, 1.0)], {0.4: 2, 0.6: 4}),
        # Up within minutes, down five minutes later, and not for less than a tenth.
        ({"minimum": 1, "maximum": 6, "requestsPerSecondPerPod": 2}, [(0, 4.0), (20, 4.3), (30, 10.0), (40, 2.0)],
         {0.1: 2, 0.45: 2, 0.55: 5, 0.69: 5, 0.9: 1}),
    ],
)  # fmt: skip
def test_the_number_of_pods_follows_its_plan(replicas: Any, rates: list[Any], wanted: dict[float, int]) -> None:
    s = scenario(replicas=replicas, arrivals=[{"steps": [{"at": f"{m}m", "rate": r} for m, r in rates]}])
    d = demand_of(s, 3.0)
    pods = d.replicas(s)
    assert {hours: int(pods[int(hours * 1200)]) for hours in wanted} == wanted


def test_a_window_of_demand_is_weighted_by_requests() -> None:
    d = demand(arrivals=[
        {"requestsPerSecond": 1, "outputTokens": 100, "to": "10m"},
        {"requestsPerSecond": 3, "outputTokens": 500, "from": "10m"},
    ])  # fmt: skip
    rate, mix = d.over(0, 400)
    assert rate == pytest.approx(2)
    assert mix.output[0] == pytest.approx(400)
    assert d.offered_tokens(0, 400) == pytest.approx(600 * 100 + 600 * 3 * 500)


# --- acceptance ---------------------------------------------------------------------------------------------------


def chance(s: Scenario, hours: float) -> float:
    return Drafts(s, acceptance_of(s), {"ngram": Method.NGRAM}).at("ngram", "code", 0.0, hours * 3600).accept[0]


def test_changes_of_acceptance_hold_from_their_time_on() -> None:
    changes = [
        {"at": "3h", "profile": "ngram", "factor": 1},
        {"at": "1h", "method": "NGram", "factor": 0.5},
        {"at": "2h", "profile": "ngram", "kind": "code", "rows": [{"accept": [0.3]}]},
        {"at": "4h", "profile": "ngram", "kind": "chat", "factor": 0},
        {"at": "5h", "profile": "ngram", "factor": 9},
    ]
    s = scenario(acceptance={"changes": changes})
    assert [chance(s, h) for h in (0.5, 1.5, 2.5, 3.5, 4.5, 5.5)] == pytest.approx([0.76, 0.38, 0.3, 0.3, 0.3, 1.0])


def test_acceptance_may_be_written_inline_or_in_a_file(tmp_path: Path) -> None:
    kinds = {"code": {"NGram": [{"temperature": 0, "accept": [0.25], "match": 0.5}]}}
    (tmp_path / "table.json").write_text(json.dumps({"kinds": kinds}))
    arrivals = [{"requestsPerSecond": 1, "mix": {"code": 1}}]
    for acceptance in ({"kinds": kinds}, {"table": "table.json"}):
        assert chance(scenario(tmp_path, acceptance=acceptance, arrivals=arrivals), 0) == 0.25


# --- surfaces -----------------------------------------------------------------------------------------------------


def raw(name: str, k: int, batch: int, step_ms: float) -> str:
    return json.dumps(
        {"name": name, "K": k, "B": batch, "ctx": 300, "step_ms": step_ms, "kv_tokens": 1000, "init_s": 9}
    )


def test_raw_rows_of_a_benchmark_are_a_surface_too(tmp_path: Path) -> None:
    rows = [raw("off", 0, 1, 10), raw("off", 0, 100, 20), raw("off", 0, 200, 30), raw("ngram-k5", 5, 1, 12)]
    rows += [raw("draft-dyn", k, 1, 11 + k) for k in (0, 3)]
    (tmp_path / "raw.jsonl").write_text("\n".join(rows) + "\n")
    surface = surface_of(scenario(tmp_path, surface={"file": "raw.jsonl", "graphLimitTokens": 256, "kvTokenMicros": 2}))
    assert isinstance(surface, Surface)
    assert set(surface.columns) == {(Method.DISABLED, False), (Method.NGRAM, False), (Method.DRAFT_MODEL, True)}
    assert (surface.context, surface.graph_limit_tokens) == (300, 256)
    assert surface.prompt_token_seconds == pytest.approx(100e-6)  # the slope of the last stretch of `off`
    assert surface.kv_token_seconds == pytest.approx(2e-6)
    assert surface.step_seconds(Method.DISABLED, 0, 100) == pytest.approx(0.020)


def test_figures_given_inline_override_a_surface_of_the_package() -> None:
    inline = {"file": "h200-llama32b-draft1b", "graphLimitTokens": 1024, "promptTokenMicros": 0}
    world = world_of(scenario(surface=inline))
    assert world.times.surface.prompt_token_seconds == 0
    assert world.menu.original["args"][-2:] == ["--max-cudagraph-capture-size", "1024"]


def test_rows_that_are_no_surface_are_refused(tmp_path: Path) -> None:
    for text in ("", raw("eagle-k3", 3, 1, 10), raw("ngram-k5", 5, 1, 10), "no json", '{"name": "off"}'):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(ScenarioError, match="surface: "):
            surface_of(scenario(tmp_path, surface="bad.jsonl"))
