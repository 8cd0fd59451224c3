"""What servers tell of their own configuration and their live schedule, as it is gathered."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from specdecode.api.v1alpha1 import SpecDecodePolicyStatus
from specdecode.cluster.gather import ASK, Gatherer
from specdecode.cluster.kube import ApiError
from specdecode.cluster.scrape import Scraper
from specdecode.policy.observation import Observation
from specdecode.vllm.effective import Told
from specdecode.vllm.speculation import BatchRange
from support.fake_api import FakeKube, deployed, policy, replicaset, running
from support.live import STARTED, scheduled
from support.vllm_page import page
from support.world import NOW, SPEC, deployment, menu, spec


class Server:
    """One pod that was started with a schedule; `info` answers /server_info, `schedule` is in force."""

    def __init__(self, info: Any = None, schedule: Any = None) -> None:
        self.info, self.schedule, self.problem, self.asked, self.now = info, schedule, "", 0, NOW
        container = menu(spec(), version="0.32.0").render(scheduled(menu(spec(), version="0.32.0"), STARTED))
        assert isinstance(container, dict)
        made = deployment(container, 1)
        template = made["spec"]["template"]
        self.kube = FakeKube(deployed(made), replicaset("old", template), running("p0", "old", template, "10.0.0.1"))
        self.gatherer = Gatherer(self.kube, Scraper(httpx.MockTransport(self.answer)), lambda: self.now)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/version":
            return httpx.Response(200, json={"version": "0.32.0"})
        if request.url.path == "/server_info":
            self.asked += 1
            if isinstance(self.info, Exception):
                raise self.info
            return httpx.Response(404 if self.info is None else 200, json=self.info)
        text = page(self.now - NOW + 100.0, acceptance=0.5)
        if self.schedule is not None:
            labels = f'state="Live",schedule="{json.dumps(self.schedule)}",problem="{self.problem}"'
            text = f"specdecode_schedule_info{{{labels}}} 1\n".encode() + text
        return httpx.Response(200, content=text)

    async def look(self, times: int = 1) -> Observation:
        for _ in range(times):
            self.now += 5
            o = await self.gatherer.observe(policy(SPEC)[1], spec(), SpecDecodePolicyStatus())
        return o


async def test_a_server_is_asked_for_its_configuration_once() -> None:
    config = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 5}}
    server = Server({"vllm_config": config})
    o = await server.look(3)
    assert (o.pods[0].told, server.asked) == (Told("ngram", 5, ()), 1)


async def test_a_server_without_such_an_endpoint_is_not_asked_again() -> None:
    server = Server()
    o = await server.look(3)
    assert (o.pods[0].told, server.asked) == (None, 1)


CONFIGURED = "INFO Initializing a V1 LLM engine (v0.32.0) with config: model='m', speculative_config={}, tokenizer='m'"
NGRAM = "SpeculativeConfig(method='ngram', model=None, num_spec_tokens=5)"


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (CONFIGURED.format(NGRAM), Told("ngram", 5)),
        (CONFIGURED.format("None"), Told(None)),
        ("INFO another day", None),
        (ApiError(403, "Forbidden", "no"), None),
    ],
    ids=["drafts", "none", "not there", "no right"],
)
async def test_its_log_is_the_last_resort_and_read_once(log: str | ApiError, told: Told | None) -> None:
    server = Server()
    if isinstance(log, ApiError):
        server.kube.failures["log pods"] = log
    else:
        server.kube.logs["p0"] = log
    o = await server.look(3)
    assert (o.pods[0].told, server.kube.logs_read) == (told, [("p0", False)])


async def test_a_log_is_not_read_where_the_server_tells() -> None:
    server = Server({"vllm_config": {"speculative_config": None}})
    await server.look()
    assert not server.kube.logs_read


async def test_a_server_that_is_slow_to_answer_is_asked_again_but_not_for_ever() -> None:
    server = Server(httpx.ReadTimeout("slow"))
    await server.look()
    server.info = {"vllm_config": {"speculative_config": None}}
    assert (await server.look()).pods[0].told == Told(None)
    server = Server(httpx.ReadTimeout("slow"))
    await server.look(ASK + 2)
    assert server.asked == ASK


async def test_a_pod_runs_the_schedule_that_it_tells_and_its_window_begins_anew_with_another() -> None:
    server = Server(schedule=[[r.start, r.end, r.k] for r in STARTED])
    o = await server.look(3)
    assert o.active is not None and o.pods[0].option == o.active
    assert len(o.pods[0].window.readings) == 3
    server.problem = "NotJson"
    o = await server.look()
    assert len(o.pods[0].window.readings) == 4, "a problem changes nothing that is in force"
    server.schedule = [[1, 256, 0]]
    o = await server.look()
    runs = o.pods[0].option
    assert runs is not None and runs.speculation is not None and runs.speculation.schedule == (BatchRange(1, 256, 0),)
    assert o.active != runs, "the template and the file say something else"
    assert len(o.pods[0].window.readings) == 1
