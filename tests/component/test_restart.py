"""A rolling restart, from what was learnt to the last pod, on an API server and pods in memory."""

from __future__ import annotations

import math

import pytest

from specdecode.api.v1alpha1 import Original, Outcome, RolloutPhase, SpecDecodePolicyStatus
from specdecode.cluster.memory import MemoryKeeper
from specdecode.model.knowledge import Ageing, Knowledge, RunningMean
from specdecode.model.memory import Memory
from specdecode.policy.clock import text_of
from specdecode.policy.options import RESTARTED_AT, fields_of, fingerprint, same, unmarked
from support.small_cluster import Cluster
from support.world import CONTAINER, NOW, menu, rendered, spec

NGRAM = rendered(menu(spec()), "ngram")
OLD, FRESH = 0.6, 0.75
LENGTHS = [RunningMean(math.log(1 + 5 * rate), 1e-4, 20.0, NOW - 60) for rate in (FRESH, OLD)]
AGED = Knowledge(NOW - 60, ageing=Ageing((LENGTHS[0], None, None, None, LENGTHS[1], None)))


async def grown_old() -> Cluster:
    """Two pods that run n-gram since five hours, of which it is known that they were better once."""
    original = Original(**fields_of(CONTAINER).model_dump(), adopted_at=text_of(NOW - 86_400))
    status = SpecDecodePolicyStatus(original=original, applied=fingerprint(NGRAM))
    cluster = Cluster(status.model_dump(mode="json", by_alias=True, exclude_none=True))
    cluster.remove("old", 2)
    del cluster.kube.objects["replicasets", "chat-old"]
    cluster.container.update(NGRAM)
    ready = NOW - 5 * 3600
    cluster.add("since", 2, acceptance=OLD, started=ready - 60)
    for (kind, _), o in cluster.kube.objects.items():
        if kind == "pods":
            o["status"]["conditions"][0]["lastTransitionTime"] = text_of(ready)
    keeper = MemoryKeeper(cluster.kube, cluster.policy)
    await keeper.open()
    keeper.memory = Memory({"ngram": AGED})
    await keeper.keep(NOW - 60, "once")
    cluster.restart()
    for _ in range(20):
        await cluster.tick()
        if cluster.phase is not None:
            break
    assert cluster.phase is RolloutPhase.STARTING
    return cluster


def mark(cluster: Cluster) -> str | None:
    entries = cluster.container.get("env") or []
    return next((e["value"] for e in entries if e["name"] == RESTARTED_AT), None)


async def analysed(cluster: Cluster) -> None:
    for _ in range(40):
        await cluster.tick()
        if cluster.phase is not RolloutPhase.ANALYSING:
            return


@pytest.mark.parametrize("dies", [None, "starting", "analysing", "promoting", "verifying"])
async def test_old_pods_are_replaced_by_fresh_ones_wherever_the_operator_dies(dies: str | None) -> None:
    cluster = await grown_old()
    rollout = cluster.status.rollout
    assert rollout is not None and rollout.reason == "RestartRestores"
    at = mark(cluster)
    assert at is not None and same(unmarked(cluster.container), NGRAM)

    async def perhaps(where: str) -> None:
        if where == dies:
            cluster.restart()
            await cluster.tick()

    await perhaps("starting")
    cluster.add("new", 1, acceptance=FRESH)
    await cluster.tick()
    assert cluster.phase is RolloutPhase.ANALYSING
    await perhaps("analysing")
    await analysed(cluster)
    assert cluster.phase is RolloutPhase.PROMOTING
    cluster.remove("since", 2)
    cluster.add("new", 1, acceptance=FRESH)
    cluster.settle()
    await perhaps("promoting")
    await cluster.tick()
    await perhaps("verifying")
    await cluster.tick(5)
    status = cluster.status
    assert status.rollout is None and mark(cluster) == at, "one mark for one restart"
    assert [(h.id, h.outcome) for h in status.history] == [(rollout.id, Outcome.SUCCESSFUL)]
    assert status.active_profile == "ngram" and status.original is not None and status.original.env is None
    ready = next(c for c in status.conditions if c.type == "Ready")
    assert ready.status == "True", "a mark is nobody else's doing"
    await cluster.loop.clear(cluster.policy)
    assert same(cluster.container, CONTAINER), "the policy takes its mark along"


async def test_a_restart_that_restores_nothing_is_taken_back_without_a_trace() -> None:
    cluster = await grown_old()
    cluster.add("new", 1, acceptance=OLD)
    await cluster.tick()
    await analysed(cluster)
    assert cluster.phase is RolloutPhase.ROLLING_BACK
    cluster.remove("new", 1)
    cluster.settle()
    await cluster.tick(3)
    assert same(cluster.container, NGRAM)
    assert [(h.outcome, h.outcome_reason) for h in cluster.status.history] == [(Outcome.FAILED, "GainTooSmall")]
    await cluster.tick(20)
    assert mark(cluster) is None, "it rests after that"
