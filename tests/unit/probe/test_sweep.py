"""The sweep against a server that counts as vLLM does: what it finds, what it refuses, what it warns of."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.cluster.scrape import Scraper
from specdecode.probe.acceptance import Plan, ratio, share, student90
from specdecode.probe.prompts import completion
from specdecode.probe.sweep import ProbeError, Sweep, SweepResult, target
from support.counting_server import CountingServer

PROMPTS = tuple(completion(text) for text in ("one", "two", "three"))
PLAN = Plan((0.0, 1.0), requests=6, max_tokens=31)


class Time:
    """Virtual: it goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def sweep(server: CountingServer, plan: Plan = PLAN, **aim: Any) -> SweepResult:
    clock = Time()
    where = target(**({"endpoint": "http://vllm:8000/v1", "metrics": (), "model": None, "api_key": None} | aim))
    async with httpx.AsyncClient(transport=server.transport) as http, Scraper(server.transport) as scraper:
        return await Sweep(http, scraper, where, clock, clock.sleep).run(plan, PROMPTS, random.Random(1))


async def test_acceptance_and_tokens_per_step_are_told_by_temperature() -> None:
    found = await sweep(CountingServer())
    cold, hot = found.temperatures
    assert (cold.temperature, cold.requests, cold.tokens) == (0.0, 6, 6 * 31)
    assert cold.acceptance is not None and hot.acceptance is not None
    assert (cold.acceptance.value, hot.acceptance.value) == pytest.approx((2 / 3, 1 / 3))
    assert cold.tokens_per_step is not None and cold.accepted_length is not None
    assert (cold.tokens_per_step.value, cold.accepted_length.value) == (3.0, 3.0)
    assert (cold.per_position, hot.per_position) == ((1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    assert (found.model, found.vllm_version, found.servers, found.warnings) == ("m", "0.32.0", 1, [])


async def test_each_round_has_every_temperature_with_the_same_prompts() -> None:
    server = CountingServer()
    await sweep(server)
    asked = [(a["temperature"], a["prompt"]) for a in server.asked[1:]]
    rounds = [asked[i : i + 2] for i in range(0, len(asked), 2)]
    assert [{t for t, _ in r} for r in rounds] == [{0.0, 1.0}] * 6
    assert [{p for _, p in r} for r in rounds] == [{p} for p in ("one", "two", "three")] * 2
    assert len({tuple(t for t, _ in r) for r in rounds}) == 2, "not always in the same order"


@given(
    st.lists(st.floats(0, 2), min_size=1, max_size=6, unique=True).map(tuple),
    st.integers(1, 30),
    st.integers(1, 7),
    st.integers(),
)
def test_every_request_is_made_once_at_every_temperature(
    temperatures: tuple[float, ...], requests: int, concurrency: int, seed: int
) -> None:
    plan = Plan(temperatures, requests, concurrency)
    made = [(t, i) for t, numbers in plan.blocks(random.Random(seed)) for i in numbers]
    assert Counter(made) == Counter((t, i) for t in temperatures for i in range(requests))


async def test_counters_that_lag_behind_the_answers_are_waited_for() -> None:
    found = await sweep(CountingServer(lag=3))
    assert found.temperatures[0].acceptance is not None and not found.warnings
    assert found.temperatures[0].acceptance.value == pytest.approx(2 / 3)


async def test_others_traffic_is_told() -> None:
    class Shared(CountingServer):
        def generate(self, temperature: float) -> None:
            super().generate(temperature)
            super().generate(0.9)

    found = await sweep(Shared())
    assert found.temperatures[0].disturbed
    assert found.temperatures[0].foreign_requests == 6
    (warning,) = found.warnings
    assert "12 requests, 372 tokens beside our 372" in warning


async def test_a_replica_whose_metrics_are_not_read_is_noticed() -> None:
    class Elsewhere(CountingServer):
        def generate(self, temperature: float) -> None:
            if len(self.asked) % 3:
                super().generate(temperature)

    with pytest.raises(ProbeError, match="name the metrics pages of all of them"):
        await sweep(Elsewhere())


async def test_pages_of_several_servers_are_added_up() -> None:
    found = await sweep(CountingServer(), metrics=("http://a/metrics", "http://b/metrics"))
    assert found.servers == 2
    assert found.temperatures[0].foreign_tokens == found.temperatures[0].tokens, "both pages show the same server"


async def test_a_server_that_restarts_meanwhile_ends_the_probe() -> None:
    class Mortal(CountingServer):
        def generate(self, temperature: float) -> None:
            super().generate(temperature)
            self.started += len(self.asked) == 4

    with pytest.raises(ProbeError, match="did a server restart"):
        await sweep(Mortal())


async def test_a_server_that_drafts_nothing_is_warned_of() -> None:
    found = await sweep(CountingServer(k=0, accepted=lambda _: 0))
    assert [a.acceptance for a in found.temperatures] == [None, None]
    assert found.warnings == ["nothing was drafted at temperature 0, 1: K is 0 at this load, or no n-gram matched"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(400, text="min_p is not supported"), "answered 400: min_p is not supported"),
        (httpx.Response(200, json={"choices": []}), "did not say how many tokens"),
    ],
)
async def test_what_a_server_refuses_is_told(answer: httpx.Response, words: str) -> None:
    class Refusing(CountingServer):
        def answer(self, request: httpx.Request) -> httpx.Response:
            return answer if request.method == "POST" else super().answer(request)

    with pytest.raises(ProbeError, match=words):
        await sweep(Refusing())


async def test_a_server_without_speculation_is_refused() -> None:
    with pytest.raises(ProbeError, match="does not speculate"):
        await sweep(CountingServer(speculates=False))


async def test_an_endpoint_without_metrics_is_refused() -> None:
    class Blind(CountingServer):
        def answer(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(404) if request.url.path == "/metrics" else super().answer(request)

    with pytest.raises(ProbeError, match=r"no metrics: .* HTTP status 404"):
        await sweep(Blind())


async def test_an_endpoint_that_is_no_openai_api_is_refused() -> None:
    class Other(CountingServer):
        def answer(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json=[]) if request.url.path == "/v1/models" else super().answer(request)

    with pytest.raises(ProbeError, match="names no model"):
        await sweep(Other())


async def test_a_result_can_be_written_and_read_again() -> None:
    found = await sweep(CountingServer())
    assert SweepResult.from_json(found.to_json()) == found


@pytest.mark.parametrize("endpoint", ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"])
def test_an_endpoint_may_be_written_with_or_without_v1(endpoint: str) -> None:
    aim = target(endpoint, (), None, "key")
    assert (aim.endpoint, aim.metrics) == ("http://h:8000", ("http://h:8000/metrics",))
    assert aim.headers == {"Authorization": "Bearer key"}


@pytest.mark.parametrize(("freedom", "t"), [(1, 6.314), (2, 2.920), (3, 2.353), (9, 1.833), (19, 1.729), (1000, 1.646)])
def test_students_t_is_that_of_the_tables(freedom: int, t: float) -> None:
    assert student90(freedom) == pytest.approx(t, rel=0.005)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(7)
    covered = 0
    for _ in range(500):
        chances = [min(max(rng.gauss(0.6, 0.1), 0), 1) for _ in range(20)]
        pairs = [(float(sum(rng.random() < c for _ in range(60))), 60.0) for c in chances]
        found = ratio(pairs, most=1.0)
        assert found is not None
        covered += found.low <= 0.6 <= found.high
    assert 0.86 < covered / 500 < 0.94


def test_all_or_nothing_accepted_is_no_surer_than_the_number_of_drafts() -> None:
    all_of_few, all_of_many = (share([(float(n), float(n))] * 2, trials=2 * n) for n in (5, 500))
    assert all_of_few is not None and all_of_many is not None
    assert all_of_few.low == pytest.approx(0.787, abs=0.001)
    assert all_of_many.low == pytest.approx(0.997, abs=0.001)
    assert all_of_few.high == all_of_few.value == 1.0
    none = share([(0.0, 5.0)] * 2, trials=10)
    assert none is not None and none.low == none.value == 0.0
    assert none.high == pytest.approx(0.213, abs=0.001)


def test_one_block_alone_tells_no_interval() -> None:
    found = ratio([(3.0, 6.0)], most=1.0)
    assert found is not None
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    assert ratio([(0.0, 0.0)]) is None
