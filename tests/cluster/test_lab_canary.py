"""The in-place canary on a Deployment's own rolling update: what the operator's rollout relies on."""

from __future__ import annotations

from typing import Any

import pytest

from specdecode.cluster.kube import DEPLOYMENTS, PODS, REPLICASETS
from specdecode.lab.lab import Lab

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

Json = dict[str, Any]


def web(version: str, replicas: int = 3, **spec: Any) -> Json:
    container = {
        "name": "main",
        "image": "test/http:1",
        "env": [{"name": "VERSION", "value": version}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8000}, "periodSeconds": 1},
    }
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template, **spec},
    }


ONE_AT_A_TIME: Json = {
    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
    "minReadySeconds": 300,
}


async def status_of(lab: Lab, namespace: str) -> dict[str, int]:
    found = await lab.kube.get(DEPLOYMENTS, "web", namespace)
    status = found["status"]
    if status.get("observedGeneration") != found["metadata"]["generation"]:
        return {}
    return {key: status.get(key, 0) for key in ("replicas", "updatedReplicas", "readyReplicas")}


async def settles_at(lab: Lab, namespace: str, replicas: int, updated: int, ready: int) -> None:
    wanted = {"replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready}

    async def check() -> bool:
        return await status_of(lab, namespace) == wanted

    await lab.wait(f"the deployment at {wanted}", check, within=60)


async def pods_by_version(lab: Lab, namespace: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for pod in await lab.kube.list(PODS, namespace):
        if not pod["metadata"].get("deletionTimestamp"):
            version = pod["spec"]["containers"][0]["env"][0]["value"]
            found.setdefault(version, set()).add(pod["metadata"]["uid"])
    return found


async def start_canary(lab: Lab, namespace: str) -> dict[str, set[str]]:
    """Three old pods, one new one that is ready, and a paused rollout."""
    await lab.apply([web("old")], namespace)
    await settles_at(lab, namespace, replicas=3, updated=3, ready=3)
    await lab.apply([web("new", **ONE_AT_A_TIME)], namespace)
    await settles_at(lab, namespace, replicas=4, updated=1, ready=4)
    await lab.kube.patch(DEPLOYMENTS, "web", namespace, {"spec": {"paused": True}})
    return await pods_by_version(lab, namespace)


async def test_one_new_pod_serves_beside_all_old_ones_for_as_long_as_the_rollout_is_paused(
    lab: Lab, namespace: str
) -> None:
    before = await start_canary(lab, namespace)
    assert {version: len(pods) for version, pods in before.items()} == {"old": 3, "new": 1}

    await lab.kube.patch(DEPLOYMENTS, "web", namespace, {"spec": {"minReadySeconds": 0}})
    await settles_at(lab, namespace, replicas=4, updated=1, ready=4)
    assert await pods_by_version(lab, namespace) == before


async def test_restoring_the_template_takes_only_the_canary_away(lab: Lab, namespace: str) -> None:
    before = await start_canary(lab, namespace)
    # A pod younger than minReadySeconds is not available, and the controller removes no canary while one is not.
    restored = {"paused": None, "minReadySeconds": 0, "template": web("old")["spec"]["template"]}
    await lab.kube.patch(DEPLOYMENTS, "web", namespace, {"spec": restored})
    await settles_at(lab, namespace, replicas=3, updated=3, ready=3)
    assert await pods_by_version(lab, namespace) == {"old": before["old"]}


async def test_unpausing_promotes_the_canary(lab: Lab, namespace: str) -> None:
    before = await start_canary(lab, namespace)
    await lab.kube.patch(DEPLOYMENTS, "web", namespace, {"spec": {"paused": None, "minReadySeconds": 0}})
    await settles_at(lab, namespace, replicas=3, updated=3, ready=3)
    after = await pods_by_version(lab, namespace)
    assert set(after) == {"new"}
    assert before["new"] <= after["new"]


async def test_scaling_while_paused_changes_the_old_replica_set_only(lab: Lab, namespace: str) -> None:
    await start_canary(lab, namespace)
    for replicas in (5, 2):
        await lab.kube.patch(DEPLOYMENTS, "web", namespace, {"spec": {"replicas": replicas}})
        await settles_at(lab, namespace, replicas=replicas + 1, updated=1, ready=replicas + 1)


async def test_a_paused_deployment_starts_nothing_when_its_template_changes(lab: Lab, namespace: str) -> None:
    await lab.apply([web("old")], namespace)
    await settles_at(lab, namespace, replicas=3, updated=3, ready=3)
    await lab.apply([web("new", paused=True)], namespace)
    await settles_at(lab, namespace, replicas=3, updated=0, ready=3)
    assert len(await lab.kube.list(REPLICASETS, namespace)) == 1
