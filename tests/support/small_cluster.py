"""A cluster in memory for one policy's loop: its workload, its pods, and a clock that is moved by hand."""

from __future__ import annotations

import copy
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from specdecode.api.v1alpha1 import RolloutPhase, SpecDecodePolicyStatus
from specdecode.cluster.kube import Json
from specdecode.cluster.memory import CONFIG_MAPS, KEY, name_of
from specdecode.cluster.scrape import Scraper
from specdecode.controller.loop import PolicyLoop
from specdecode.controller.report import Notice
from specdecode.controller.telemetry import Telemetry
from support.fake_api import FakeKube, deployed, policy, replicaset, running
from support.vllm_page import page
from support.world import CONTAINER, NOW, SPEC, deployment, merged

INTERVAL = 5.0


class Cluster:
    """Two pods, their Deployment and its policy. `settle` does what the Deployment's controller would."""

    def __init__(self, status: Json | None = None, **changes: Any) -> None:
        self.now = NOW
        self.kube = FakeKube(policy(merged(SPEC, changes), status), deployed(deployment(CONTAINER, 2)))
        self.registry = CollectorRegistry()
        self.telemetry = Telemetry(self.registry)
        self.scraper = Scraper(httpx.MockTransport(self.answer))
        self.notices: list[Notice] = []
        self.pages: dict[str, dict[str, Any]] = {}
        self.silent: set[str] = set()
        self._made = 0
        self.add("old", 2)
        self.restart()

    def restart(self) -> None:
        """The operator process starts anew, with what the API server keeps."""
        self.loop = PolicyLoop(self.kube, self.scraper, self.telemetry, lambda: self.now, self.policy)

    @property
    def policy(self) -> Json:
        return self.kube.objects["specdecodepolicies", "chat"]

    @property
    def kept(self) -> str | None:
        """The memory as the API server has it."""
        found = self.kube.objects.get((CONFIG_MAPS.plural, name_of("chat")))
        return None if found is None else found["data"][KEY]

    @property
    def deployment(self) -> Json:
        return self.kube.objects["deployments", "chat"]

    @property
    def container(self) -> Json:
        container: Json = self.deployment["spec"]["template"]["spec"]["containers"][1]
        return container

    @property
    def status(self) -> SpecDecodePolicyStatus:
        return SpecDecodePolicyStatus.model_validate(self.policy["status"])

    @property
    def phase(self) -> RolloutPhase | None:
        return self.status.rollout.phase if self.status.rollout else None

    def add(self, revision: str, pods: int, **serves: Any) -> None:
        """Pods of the live template."""
        template = self.deployment["spec"]["template"]
        made = [replicaset(revision, template)]
        for _ in range(pods):
            self._made += 1
            made.append(running(f"{revision}-{self._made}", revision, template, f"10.0.0.{self._made}"))
            self.pages[f"10.0.0.{self._made}"] = serves
        for resource, o in made:
            self.kube.objects[resource.plural, o["metadata"]["name"]] = o

    def remove(self, revision: str, pods: int) -> None:
        names = [key for key in self.kube.objects if key[0] == "pods" and key[1].startswith(revision)]
        for key in names[:pods]:
            del self.kube.objects[key]

    def settle(self) -> None:
        deployed(self.deployment)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.host in self.silent:
            raise httpx.ConnectError("connection refused")
        if request.url.path == "/version":
            return httpx.Response(200, json={"version": "0.24.0"})
        return httpx.Response(200, content=page(self.now - NOW + 1000.0, **self.pages[request.url.host]))

    async def tick(self, times: int = 1, interval: float = INTERVAL) -> None:
        for _ in range(times):
            # The watch delivers what was written.
            await self.loop.tick(copy.deepcopy(self.policy), self.notices.append)
            self.now += interval

    def told(self) -> list[str]:
        """Reasons of the Events since the last call."""
        found, self.notices = [n.reason for n in self.notices], []
        return found

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"namespace": "serving", "policy": "chat", **labels})


async def canary_under_way(cluster: Cluster, **serves: Any) -> None:
    """Up to the first tick of the analysis."""
    for _ in range(20):
        await cluster.tick()
        if cluster.phase is not None:
            break
    assert cluster.phase is RolloutPhase.STARTING
    cluster.add("new", 1, **serves)
    await cluster.tick()
    assert cluster.phase is RolloutPhase.ANALYSING
