"""Another schedule without a restart, by the loop: status, ConfigMap, the pods' metrics, and crashes at every step."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from typing import Any

import httpx
import pytest

import specdecode_vllm as plugin
from specdecode.api.v1alpha1 import Outcome, RolloutPhase
from specdecode.cluster.kube import DEPLOYMENTS, ApiError
from specdecode.cluster.owned import CONFIG_MAPS
from specdecode.controller import loop as loop_module
from specdecode.policy.decision import Decision, Reason
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation
from support.fake_api import deployed
from support.live import OTHER, STARTED, scheduled
from support.small_cluster import Cluster
from support.vllm_page import page
from support.world import NOW, deployment, menu, spec

SERVER = plugin.Server("ngram", None, 5, tuple((r.start, r.end, r.k) for r in STARTED), "")


class Live(Cluster):
    """Two pods with the plugin, which see the ConfigMap as it is."""

    def __init__(self, **changes: Any) -> None:
        self.mounted, self.faster = True, 1.0
        tuning = {"mode": "Auto", "apply": "Live"}
        super().__init__(**{"batchSizeTuning": tuning, "metrics": {"window": "20s"}} | changes)
        made = menu(spec(), version="0.32.0")
        container = made.render(scheduled(made, STARTED))
        assert isinstance(container, dict)
        self.remove("old", 2)
        resource, o = deployed(deployment(container, 2))
        self.kube.objects[resource.plural, o["metadata"]["name"]] = o
        self.add("old", 2)

    @property
    def file(self) -> str | None:
        found = self.kube.objects.get((CONFIG_MAPS.plural, "vllm-schedule-chat"))
        return None if found is None else found["data"].get("schedule.json")

    def runs(self, ip: str) -> plugin.InForce:
        """What the plugin makes of the file in the pod with an address."""
        pods = [o for (kind, _), o in self.kube.objects.items() if kind == "pods"]
        name = next(p["metadata"]["name"] for p in pods if p["status"]["podIP"] == ip)
        started = plugin.InForce(SERVER.schedule, "arguments")
        of = plugin.Server(SERVER.method, None, SERVER.k, SERVER.schedule, name)
        return started if self.file is None or not self.mounted else plugin.read(self.file.encode(), of)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/version":
            return httpx.Response(200, json={"version": "0.32.0"})
        if request.url.path != "/metrics":
            return httpx.Response(404)
        found = self.runs(request.url.host)
        labels = f'state="Live",source="{found.source}",schedule="{json.dumps(found.schedule)}",problem=""'
        step = 0.02 / (self.faster if found.schedule != SERVER.schedule else 1.0)
        text = page(self.now - NOW + 1000.0, acceptance=0.6, step=step)
        return httpx.Response(200, content=f"specdecode_schedule_info{{{labels}}} 1\n".encode() + text)

    async def until(self, phase: RolloutPhase | None) -> None:
        for _ in range(120):
            await self.tick()
            if self.phase is phase:
                return
        pytest.fail(f"it is {self.phase}: {self.status.rollout or self.status.conditions}")

    def condition(self, type_: str) -> tuple[str, str]:
        return next((c.status, c.reason) for c in self.status.conditions if c.type == type_)


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision for the other schedule once, wherever the real one may make one."""

    def decided(o: Observation) -> Decision:
        d = decide(o)
        if o.history or o.rollout or o.menu is None or not o.estimates.load or d.held_back:
            return d
        return Decision(Reason.BETTER_THRESHOLD, "it pays", scheduled(o.menu, OTHER), change=True)

    monkeypatch.setattr(loop_module, "decide", decided)


async def test_another_schedule_is_proven_on_one_pod_and_goes_to_all_without_a_restart() -> None:
    cluster = Live()
    cluster.faster = 1.5
    before = copy.deepcopy(cluster.deployment)
    await cluster.until(RolloutPhase.ANALYSING)
    assert sorted(cluster.runs(f"10.0.0.{i}").source for i in (3, 4)) == ["file", "pod"]
    await cluster.until(None)
    last = cluster.status.history[0]
    assert (last.outcome, last.outcome_reason, last.live) == (Outcome.SUCCESSFUL, "Promoted", True)
    assert cluster.runs("10.0.0.3") == cluster.runs("10.0.0.4") == plugin.InForce(((1, 32, 5), (33, 256, 0)), "file")
    assert cluster.deployment == before and cluster.kube.written(DEPLOYMENTS) == []
    await cluster.tick(10)
    active = cluster.status.active
    assert active is not None and [(r.start, r.end, r.k) for r in active.schedule] == [(1, 32, 5), (33, 256, 0)]
    assert cluster.condition("Degraded") == ("False", "AsExpected"), "what is live is not taken for somebody's change"
    assert cluster.condition("LiveTuning") == ("True", "PodsFollow")
    assert cluster.condition("EngineAsConfigured") == ("True", "AsConfigured")
    assert cluster.told()[:4] == ["ChangeStarted", "ChangeAnalysing", "ChangePromoting", "ChangeSuccessful"]


async def test_what_is_slower_is_taken_back() -> None:
    cluster = Live()
    cluster.faster = 0.5
    await cluster.until(RolloutPhase.ROLLING_BACK)
    await cluster.until(None)
    assert (cluster.status.history[0].outcome_reason, cluster.file) == ("Slower", None)
    assert cluster.kube.written(DEPLOYMENTS) == []


async def test_pods_that_do_not_mount_the_file_get_the_schedule_by_a_roll_next_time() -> None:
    cluster = Live()
    cluster.mounted = False
    await cluster.until(RolloutPhase.ROLLING_BACK)
    await cluster.until(None)
    assert (cluster.status.history[0].outcome_reason, cluster.file) == ("NotInForce", None)
    await cluster.tick()
    assert cluster.condition("LiveTuning") == ("False", "NotTakenOver")


@pytest.mark.parametrize("at", range(0, 24, 3))
async def test_an_operator_that_dies_after_any_tick_goes_on_where_it_was(at: int) -> None:
    cluster = Live()
    cluster.faster = 1.5
    await cluster.until(RolloutPhase.STARTING)
    await cluster.tick(at)
    cluster.restart()
    await cluster.until(None)
    assert cluster.status.history[0].outcome is Outcome.SUCCESSFUL
    assert cluster.runs("10.0.0.3").source == cluster.runs("10.0.0.4").source == "file"


@pytest.mark.parametrize(
    "call", ["create configmaps", "patch configmaps", "get configmaps", "patch specdecodepolicies"]
)
async def test_what_could_not_be_written_is_written_next_time(call: str) -> None:
    cluster = Live()
    cluster.faster = 1.5
    for i in range(120):
        cluster.kube.failures = {call: ApiError(500, "InternalError", "no")} if i % 3 == 0 else {}
        with suppress(ApiError):
            await cluster.tick()
        if cluster.status.history:
            break
    assert cluster.status.history[0].outcome is Outcome.SUCCESSFUL
    cluster.kube.failures.clear()
    await cluster.tick()
    assert cluster.runs("10.0.0.3").source == cluster.runs("10.0.0.4").source == "file"


async def test_a_policy_that_no_longer_wants_it_gives_the_arguments_back() -> None:
    cluster = Live()
    cluster.faster = 1.5
    await cluster.until(RolloutPhase.STARTING)
    await cluster.until(None)
    cluster.policy["spec"]["batchSizeTuning"]["apply"] = "Roll"
    cluster.policy["metadata"]["generation"] = 2
    await cluster.tick(2)
    assert (cluster.file, cluster.status.live_schedule) == (None, None)
    assert cluster.runs("10.0.0.3").source == "arguments"
    assert "LiveTuning" not in [c.type for c in cluster.status.conditions]
