"""The fluid engine against the exact one, and what it must never lose."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import yaml

from specdecode.model.cost import Option
from specdecode.model.measure import Change, Measurement, change_between, measurement
from specdecode.sim.acceptance import Acceptance
from specdecode.sim.engine import Engine, EngineConfig, Request
from specdecode.sim.families import RECORDED, RECORDED_LATER
from specdecode.sim.metrics import VllmMetrics
from specdecode.sim.twin.agents import Alone, Operator
from specdecode.sim.twin.counters import Counters
from specdecode.sim.twin.fleet import Fleet
from specdecode.sim.twin.measured import acceptance_of
from specdecode.sim.twin.scenario import Scenario, parse_scenario
from specdecode.sim.twin.service import Service
from specdecode.sim.twin.simulation import Player, Simulation
from specdecode.sim.twin.truth import Truth
from specdecode.sim.twin.world import World, world_of
from specdecode.vllm.metrics import EngineSample, Page, read_page
from specdecode.vllm.speculation import BatchRange, Method
from specdecode.vllm.version import Version

DENSE, MOE = "h200-llama32b-draft1b", "h200-qwen3moe30b"
PODS = 8
WARM = 60.0


def scenario(surface: str = DENSE, rate: float = 4.0, **changes: Any) -> Scenario:
    profiles: list[Any] = [{"name": "ngram", "method": "NGram", "numSpeculativeTokens": 5}]
    if surface == DENSE:
        draft = {"name": "draft", "method": "DraftModel", "numSpeculativeTokens": 3, "draftModel": {"model": "d"}}
        profiles.append(draft)
    mix = {"chat": 0.5, "summarise": 0.5}
    arrivals = {"requestsPerSecond": rate, "mix": mix, "temperature": 0.3, "promptTokens": [50, 100]}
    base = {
        "name": "test",
        "duration": "10m",
        "surface": surface,
        "replicas": PODS,
        "arrivals": [{**arrivals, "outputTokens": [150, 250]}],
        "policy": {"profiles": profiles},
    }
    return parse_scenario(yaml.safe_dump({**base, **changes}))


def option(world: World, profile: str, schedule: tuple[tuple[int, int, int], ...] = ()) -> Option:
    o = world.options[profile]
    if o.speculation is None or not schedule:
        return o
    return replace(o, speculation=replace(o.speculation, schedule=tuple(BatchRange(*r) for r in schedule)))


# --- against the exact engine -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    tpot: float
    batch: float
    tokens_per_step: float
    tokens_per_second: float
    ttft: float


def exact(world: World, o: Option, seconds: float) -> Figures:
    """One pod of `sim.engine`, step by step."""
    s, rng = world.scenario, random.Random(1)
    piece, speculation = s.arrivals[0], o.speculation
    method = speculation.method if speculation else Method.DISABLED
    pool = world.times.surface.kv_pool_tokens(method, scheduled=bool(speculation and speculation.schedule))
    engine = Engine(EngineConfig(speculation, kv_tokens=pool), world.times.surface, acceptance_of(s).at, rng)
    rate = (piece.requests_per_second or 0.0) / PODS
    t, due, running, tokens, steps, first, ttft = 0.0, rng.expovariate(rate), 0.0, 0, 0, 0, 0.0
    while t < seconds:
        while due <= t:
            kind = rng.choices(list(piece.kinds), list(piece.kinds.values()))[0]
            prompt, output = (rng.randint(*map(int, n or ())) for n in (piece.prompt_tokens, piece.output_tokens))
            request = Request(f"{due}", due, prompt, output, kind, temperature=0.3)
            engine.add(request)
            due += rng.expovariate(rate)
        step = engine.schedule(t)
        if step is None:
            t = due
            continue
        t += step.seconds
        for out in engine.complete(step, t).outputs:
            if t < WARM:
                continue
            if out.since_last is None:
                first, ttft = first + 1, ttft + t - out.request.arrival
            else:
                running, tokens, steps = running + out.since_last, tokens + out.tokens, steps + 1
    return Figures(
        running / tokens, running / (seconds - WARM), tokens / steps, tokens / (seconds - WARM), ttft / first
    )


class Reader(Operator):
    """Reads the pages of all pods at the first and last tick, and decides nothing."""

    def __init__(self, s: Scenario, k: int) -> None:
        super().__init__(s)
        self.k, self.first, self.last = k, (0.0, list[Page]()), (0.0, list[Page]())

    def act(self, service: Service, t: float) -> None:
        assert service.counters is not None
        self.last = t, [service.counters.page(int(row), 1.0, self.k) for row in service.serving_rows]
        self.first = self.last if t <= WARM else self.first

    def measured(self) -> tuple[Measurement, float]:
        (start, before), (end, after) = self.first, self.last
        changes = [change_between(a, b, end - start) for a, b in zip(before, after, strict=True)]
        assert all(isinstance(c, Change) for c in changes)
        return measurement([c for c in changes if isinstance(c, Change)]), end - start


def fluid(world: World, o: Option) -> tuple[Figures, Measurement]:
    """All pods of the twin, as their pages tell."""
    k = o.speculation.num_speculative_tokens or 0 if o.speculation else 0
    reader = Reader(world.scenario, k)
    Simulation(world, [Player("operator", reader, o)], seed=1).run()
    m, seconds = reader.measured()
    assert m.step_seconds and m.request_steps and m.tokens_per_step and m.ttft_seconds and m.generation_tokens
    running = m.step_seconds * m.request_steps
    tokens = m.tokens_per_step * m.request_steps
    pods = seconds * PODS
    return Figures(running / tokens, running / pods, m.tokens_per_step, tokens / pods, m.ttft_seconds), m


SCHEDULE = ((1, 32, 5), (33, 85, 2), (86, 256, 0))


@pytest.mark.parametrize(
    ("surface", "profile", "schedule", "rate"),
    [
        (DENSE, "disabled", (), 0.4),
        (DENSE, "disabled", (), 6.0),
        (DENSE, "draft", (), 1.0),
        (DENSE, "draft", (), 10.0),
        (DENSE, "ngram", (), 4.0),
        (MOE, "ngram", SCHEDULE, 12.0),  # passes from K = 5 to K = 2 and back
        (MOE, "ngram", (), 32.0),  # some 500 tokens a step: at the end of the CUDA graphs
    ],
)
def test_the_fluid_engine_settles_where_the_exact_one_does(
    surface: str, profile: str, schedule: tuple[tuple[int, int, int], ...], rate: float
) -> None:
    world = world_of(scenario(surface, rate * PODS))
    o = option(world, profile, schedule)
    ours, m = fluid(world, o)
    seconds = 1000.0 if rate < 2 else 260.0 if rate < 12 else 120.0
    theirs = exact(world, o, seconds)
    assert ours.tokens_per_step == pytest.approx(theirs.tokens_per_step, rel=0.03)
    assert ours.tpot == pytest.approx(theirs.tpot, rel=0.05)
    assert ours.ttft == pytest.approx(theirs.ttft, rel=0.05)
    # A batch follows the number of requests that came, which chance decides: less so what each of them costs.
    assert ours.batch / ours.tokens_per_second == pytest.approx(theirs.batch / theirs.tokens_per_second, rel=0.05)
    assert ours.batch == pytest.approx(theirs.batch, rel=0.12)
    assert m.tpot_seconds == pytest.approx(ours.tpot, rel=0.03)


@pytest.mark.parametrize("profile", ["disabled", "ngram"])
def test_answers_shorter_than_a_time_step_are_no_exception(profile: str) -> None:
    asked = {"requestsPerSecond": 25.0 * PODS, "mix": {"code": 1}, "temperature": 0.3}
    arrivals = [{**asked, "promptTokens": [400, 600], "outputTokens": [20, 40]}]
    world = world_of(scenario("h200-llama8b-ctx3000", arrivals=arrivals))
    ours, _ = fluid(world, world.options[profile])
    theirs = exact(world, world.options[profile], 160.0)
    assert ours.tpot == pytest.approx(theirs.tpot, rel=0.06)
    assert ours.tokens_per_step == pytest.approx(theirs.tokens_per_step, rel=0.03)
    assert ours.batch == pytest.approx(theirs.batch, rel=0.08)


@pytest.mark.parametrize("profile", ["disabled", "ngram"])
def test_a_queue_of_long_prompts_is_worked_off_as_fast(profile: str) -> None:
    """The batch is full, and most of the time goes to prompts: one is computed for each request that ends."""
    asked = {"requestsPerSecond": 25.0 * PODS, "mix": {"chat": 1}, "temperature": 0.3}
    arrivals = [{**asked, "promptTokens": [1600, 2400], "outputTokens": [100, 200]}]
    world = world_of(scenario("h200-llama8b-ctx3000", arrivals=arrivals, duration="5m"))
    ours, m = fluid(world, world.options[profile])
    theirs = exact(world, world.options[profile], 200.0)
    assert m.waiting and m.waiting > 500
    assert ours.tokens_per_second == pytest.approx(theirs.tokens_per_second, rel=0.05)
    assert ours.tpot == pytest.approx(theirs.tpot, rel=0.08)
    assert m.tpot_seconds == pytest.approx(ours.tpot, rel=0.05)


@pytest.mark.parametrize(("profile", "rate"), [("disabled", 1.0), ("disabled", 8.0), ("draft", 8.0), ("ngram", 5.0)])
def test_the_truth_is_where_the_fluid_settles(profile: str, rate: float) -> None:
    world = world_of(scenario(DENSE, rate * PODS, duration="1h"))
    simulation = Simulation(world, [Player("p", Alone(), world.options[profile])], seed=1)
    simulation.run()
    seconds, tokens = simulation.tally.request_seconds[2:].sum(), simulation.tally.tokens[2:].sum()
    truth = Truth(world.times, world.gains).steady(world.options[profile], world.demand.mixes[0], 0.0, rate)
    assert seconds / tokens == pytest.approx(truth.tpot, rel=0.03)
    assert truth.batch_size == pytest.approx(seconds / (3600 - 600) / PODS, rel=0.05)
    assert not truth.saturated


def test_the_truth_of_an_overload_with_long_prompts_is_where_the_fluid_settles() -> None:
    lengths = {"promptTokens": [1600, 2400], "outputTokens": [100, 200], "requestsPerSecond": 25.0 * PODS}
    world = world_of(scenario("h200-llama8b-ctx3000", arrivals=[lengths], duration="10m"))
    ours, _ = fluid(world, world.options["disabled"])
    truth = Truth(world.times, world.gains).steady(world.options["disabled"], world.demand.mixes[0], 0.0, 25.0)
    assert truth.saturated
    assert truth.tpot == pytest.approx(ours.tpot, rel=0.05)


def test_an_option_that_cannot_carry_the_load_is_saturated() -> None:
    world = world_of(scenario())
    truth = Truth(world.times, world.gains).steady(world.options["disabled"], world.demand.mixes[0], 0.0, 60.0)
    assert truth.saturated
    assert truth.batch_size == 256


# --- what must not be lost ----------------------------------------------------------------------------------------


def fleet(world: World, rows: int = 4) -> Fleet:
    f = Fleet(world.times, world.gains, rows, len(world.demand.mixes[0].shares), world.dt, np.random.default_rng(1))
    for row in range(rows):
        f.start(row, world.times.variant(world.options["disabled"]), 0.0)
    f.enter(world.demand.mixes[0], 0.0)
    return f


def test_requests_are_whole_and_none_is_lost() -> None:
    f, rng = fleet(world_of(scenario())), np.random.default_rng(2)
    came, went = np.zeros(4), np.zeros(4)
    for i in range(500):
        arrivals = rng.poisson(5.0, 4).astype(np.float64)
        passed = f.step(arrivals, 3.0 * i)
        came, went = came + arrivals, went + passed.left.sum(axis=0)
        running = f.running.sum(axis=0)
        assert running == pytest.approx(np.rint(running))
        assert f.running.min() >= 0
    assert came - went == pytest.approx(running + f.waiting)


def test_requests_beyond_the_largest_batch_wait_their_turn() -> None:
    world = world_of(scenario(maxNumSeqs=8))
    f = fleet(world, 1)
    for i in range(200):
        passed = f.step(np.array([20.0 if i < 100 else 0.0]), 3.0 * i)
        assert f.running.sum() <= 8 + 1e-9
        if i == 99:
            queue = f.waiting[0]
            assert float(f.wait(passed)[0]) > 10
    assert queue > 100
    assert f.waiting[0] < queue


def test_a_full_kv_pool_holds_requests_back() -> None:
    lengths = {"promptTokens": 2000, "outputTokens": 2000, "requestsPerSecond": 1}
    world = world_of(scenario(arrivals=[lengths]))
    f = fleet(world, 1)
    for i in range(100):
        f.step(np.array([6.0]), 3.0 * i)
    pool = world.times.kv_tokens[f.variant[0]]
    assert 0.9 * pool <= f.running.sum() * 3000 <= pool
    assert f.waiting[0] > 0


def test_a_pod_that_ends_hands_its_requests_over() -> None:
    f = fleet(world_of(scenario()))
    for i in range(20):
        f.step(np.full(4, 6.0), 3.0 * i)
    f.waiting[0] = 7.0
    before = f.running.sum() + f.waiting.sum()
    f.hand_over(0, [1, 2, 3])
    assert f.running[:, 0].sum() == f.waiting[0] == 0
    assert f.running.sum() + f.waiting.sum() == pytest.approx(before)
    assert f.running.sum(axis=0) == pytest.approx(np.rint(f.running.sum(axis=0)))


def test_cliffs_of_a_surface_stay_cliffs() -> None:
    world = world_of(scenario(MOE))
    held = np.full(257, 5, dtype=np.int64)
    variant = world.times.variant_of("ngram", held, scheduled=True)
    times, surface = world.times, world.times.surface
    for tokens in (6, 511, 512, 513, 514, 1536):
        here = times.seconds[times.table_at[variant, 100], tokens]
        assert here == surface.step_seconds(Method.NGRAM, 5, 1, scheduled=True, tokens=tokens)
    row = times.seconds[times.table_at[variant, 100]]
    assert row[513] > 1.3 * row[512]


def test_services_that_do_the_same_fare_the_same() -> None:
    world = world_of(scenario())
    off = world.options["disabled"]
    simulation = Simulation(world, [Player("a", Alone(), off), Player("b", Alone(), off)], seed=3)
    simulation.run()
    a, b = simulation.tally.tokens.T
    assert a == pytest.approx(b, rel=1e-3)


def test_acceptance_decays_with_the_uptime_of_a_pod() -> None:
    changes = [{"profile": "draft", "halfLife": "10m"}]
    world = world_of(scenario(acceptance={"changes": changes}))
    f = fleet(world, 2)
    f.turn(np.arange(len(f.variant)), world.times.variant(world.options["draft"]))
    f.started[1] = 3600.0
    per_step = f.step(np.full(2, 5.0), 3600.0).per_step.mean(axis=0)
    assert per_step[0] < 1.05 < 2.5 < per_step[1]


# --- pages --------------------------------------------------------------------------------------------------------


def of_the_server(version: Version, *, speculating: bool) -> EngineSample:
    """What `read_page` makes of the page that the simulated server shows."""
    world = world_of(scenario(vllmVersion=str(version)))
    config = EngineConfig(world.options["ngram"].speculation if speculating else None)
    engine = Engine(config, world.times.surface, lambda *_: Acceptance((0.5,)), random.Random(1))
    metrics = VllmMetrics(version, engine, model_name="m", max_model_len=32_768, now=1.0)
    engine.add(Request("r", 0.0, 10, 20))
    t = 0.0
    while (step := engine.schedule(t)) is not None:
        t += step.seconds
        metrics.record(engine.complete(step, t))
    return read_page(metrics.page().encode()).engines[0]


def lacking(sample: EngineSample) -> set[str]:
    return {f.name for f in fields(sample) if getattr(sample, f.name) is None}


@pytest.mark.parametrize("speculating", [False, True])
@pytest.mark.parametrize("version", [Version(0, 8, 5), Version(0, 10, 1), Version(0, 11, 2), RECORDED, RECORDED_LATER])
def test_a_page_shows_what_the_simulated_server_shows(version: Version, speculating: bool) -> None:
    world = world_of(scenario(vllmVersion=str(version)))
    f = fleet(world)
    f.turn(np.arange(len(f.variant)), world.times.variant(world.options["ngram" if speculating else "disabled"]))
    counters = Counters(f, 2, version)
    for i in range(10):
        counters.record(f.step(np.full(4, 5.0), 3.0 * i))
    theirs = of_the_server(version, speculating=speculating)
    ours = counters.page(0, 1.0, 5 if speculating else 0).engines[0]
    assert lacking(ours) == lacking(theirs)
    assert ours.requests.keys() == theirs.requests.keys()
    assert len(ours.accepted_per_position) == len(theirs.accepted_per_position)
    for name in ("ttft", "inter_token", "tpot", "iteration_tokens", "queue_time", "prompt_length", "output_length"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert (mine and mine.bounds) == (other and other.bounds), name
        if mine is not None:
            assert mine.count == mine.counts[-1]
            assert list(mine.counts) == sorted(mine.counts)


def test_a_new_process_counts_from_zero() -> None:
    f = fleet(world_of(scenario()))
    counters = Counters(f, 2, RECORDED)
    for i in range(10):
        counters.record(f.step(np.full(4, 5.0), 3.0 * i))
    assert (counters.page(1, 1.0, 0).engines[0].generation_tokens or 0) > 0
    counters.clear(1)
    fresh = counters.page(1, 2.0, 0)
    assert fresh.process_start == 2.0
    assert fresh.engines[0].generation_tokens == fresh.engines[0].inter_token.count == 0  # type: ignore[union-attr]
    assert (counters.page(0, 1.0, 0).engines[0].generation_tokens or 0) > 0
