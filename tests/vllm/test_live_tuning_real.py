"""The operator tunes two real vLLM servers without a restart: its own loop, their metrics, users who notice nothing.

The API server is in memory; a kubelet's part, to renew the mounted ConfigMap, is done here after each tick.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from specdecode.api.v1alpha1 import Outcome, RolloutPhase, SpecDecodePolicyStatus
from specdecode.cluster.kube import DEPLOYMENTS
from specdecode.cluster.owned import CONFIG_MAPS
from specdecode.cluster.scrape import Scraper
from specdecode.controller import loop as loop_module
from specdecode.controller.loop import PolicyLoop
from specdecode.controller.report import Notice
from specdecode.controller.telemetry import Telemetry
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation
from specdecode.vllm.dialect import to_json
from specdecode.vllm.metrics import read_page
from specdecode.vllm.speculation import BatchRange
from support.fake_api import FakeKube, deployed, policy, replicaset, running
from support.live import scheduled
from support.real_vllm import MODEL, Mount, RealServer, serving, with_plugin
from support.world import SPEC, deployment, menu, merged, spec

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PODS = {"chat-1": "127.0.0.86", "chat-2": "127.0.0.87"}
CLIENTS = 2
"""On each server: more than one, so that the first schedule drafts nothing for them."""
CHANGES: dict[str, Any] = {
    "profiles": [
        {"name": "ngram", "method": "NGram", "numSpeculativeTokens": 3, "ngram": {"promptLookupMin": 1}},
    ],
    "batchSizeTuning": {"mode": "Auto", "apply": "Live"},
    "rollout": {"analysis": {"minimumRequests": 5, "duration": "20s", "warmup": "1s"}, "progressDeadline": "2m"},
    "metrics": {"port": 8083, "interval": "1s", "window": "10s"},
}
POLICY, MENU = spec(**CHANGES), menu(spec(**CHANGES), version="0.32.0")
FIRST = scheduled(MENU, (BatchRange(1, 1, 3), BatchRange(2, 16, 0)))
BETTER = scheduled(MENU, (BatchRange(1, 8, 3), BatchRange(9, 16, 0)))


@pytest.fixture
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[RealServer, Mount]]]:
    with ExitStack() as stack:
        made = {}
        for pod, host in PODS.items():
            folder = tmp_path_factory.mktemp(pod)
            mount = Mount(folder / "mount")
            assert FIRST.speculation is not None
            arguments = ["--speculative-config", to_json(FIRST.speculation)]
            server = stack.enter_context(serving(host, folder, arguments, with_plugin(folder, mount, pod)))
            made[pod] = server, mount
        yield made


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision for the other schedule, once, and for no other change before: that a change is right is not what is
    tested here."""

    def decided(o: Observation) -> Decision:
        d = decide(o)
        if o.history or o.rollout:
            return d
        if not o.estimates.load or len(o.pods[0].window.readings) < 8:
            return replace(d, change=False)
        return Decision(Reason.BETTER_THRESHOLD, "it pays", BETTER, change=True, required_gain=0.05)

    monkeypatch.setattr(loop_module, "decide", decided)


async def test_a_schedule_is_proven_on_one_server_and_promoted_without_a_restart(
    servers: dict[str, tuple[RealServer, Mount]],
) -> None:
    container = MENU.render(FIRST)
    assert isinstance(container, dict)
    made = deployment(container, len(PODS))
    template = made["spec"]["template"]
    pods = [running(name, "old", template, ip) for name, ip in PODS.items()]
    kube = FakeKube(policy(merged(SPEC, CHANGES)), deployed(made), replicaset("old", template), *pods)
    before, told = copy.deepcopy(kube.objects["deployments", "chat"]), list[Notice]()
    took: list[tuple[float, float]] = []
    """When a request ended, and its seconds."""

    async def client(http: httpx.AsyncClient, url: str) -> None:
        body = {"model": MODEL, "prompt": "one two three four " * 4, "max_tokens": 64, "temperature": 0}
        while True:
            at = time.time()
            (await http.post(f"{url}/v1/completions", json=body | {"ignore_eos": True})).raise_for_status()
            took.append((time.time(), time.time() - at))

    def status() -> SpecDecodePolicyStatus:
        return SpecDecodePolicyStatus.model_validate(kube.objects["specdecodepolicies", "chat"]["status"])

    async with Scraper() as scraper, httpx.AsyncClient(timeout=60) as http:
        pages = {s.url: read_page((await http.get(f"{s.url}/metrics")).content) for s, _ in servers.values()}
        loop = PolicyLoop(
            kube, scraper, Telemetry(CollectorRegistry()), time.time, kube.objects["specdecodepolicies", "chat"]
        )
        clients = [asyncio.create_task(client(http, s.url)) for s, _ in servers.values() for _ in range(CLIENTS)]
        phases: list[RolloutPhase] = []
        try:
            until = time.monotonic() + 150
            while time.monotonic() < until:
                await loop.tick(copy.deepcopy(kube.objects["specdecodepolicies", "chat"]), told.append)
                if (found := kube.objects.get((CONFIG_MAPS.plural, "vllm-schedule-chat"))) is not None:
                    for _, mount in servers.values():
                        mount.put(found["data"]["schedule.json"].encode())
                if (rollout := status().rollout) is not None and rollout.phase not in phases:
                    phases.append(rollout.phase)
                if status().history:
                    break
                await asyncio.sleep(1)
            assert not [c.exception() for c in clients if c.done()], "a request failed"
        finally:
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        assert status().history, f"no end in time: {phases}, {status().rollout}, {status().recommendation}"
        last = status().history[0]
        assert (last.outcome, last.live) == (Outcome.SUCCESSFUL, True), last.message
        assert phases == [RolloutPhase.STARTING, RolloutPhase.ANALYSING, RolloutPhase.PROMOTING]
        assert kube.written(DEPLOYMENTS) == [] and kube.objects["deployments", "chat"] == before
        for server, _ in servers.values():
            page = read_page((await http.get(f"{server.url}/metrics")).content)
            assert BETTER.speculation is not None and page.schedule is not None
            assert page.schedule.schedule == BETTER.speculation.schedule
            assert page.process_start == pages[server.url].process_start, "it was not restarted"
            assert page.engines[0].draft_tokens
    print(json.dumps({"requests": len(took), "failed": 0, "change": last.message, "slowest": max(s for _, s in took)}))
