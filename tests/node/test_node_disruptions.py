"""What the cluster does to pods while a change is under way: the change ends once, and nobody's request fails."""

from __future__ import annotations

import pytest

from specdecode.cluster.kube import PODS, Json
from support.installed import InstalledOperator, kubectl
from support.real_scene import RealScene, how_it_ended, real_deployment
from support.scene import NAME

pytestmark = [pytest.mark.node, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

EVERYWHERE = ("node-1", "node-2", "node-3")
UNHURRIED = {
    "rollout__analysis": {"minimumRequests": 4, "duration": "20s", "warmup": "1s"},
    "rollout__progressDeadline": "120s",
}
BUDGET: Json = {
    "apiVersion": "policy/v1",
    "kind": "PodDisruptionBudget",
    "metadata": {"name": NAME},
    "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": NAME}}},
}


def canary(scene: RealScene) -> Json:
    """The youngest pod."""
    return max(scene.pods, key=lambda pod: pod["metadata"]["creationTimestamp"])


async def test_a_drain_in_the_middle_of_a_change_loses_no_request_even_if_it_takes_the_operator(
    scene: RealScene, operator: InstalledOperator
) -> None:
    await scene.serve(real_deployment(3, nodes=EVERYWHERE))
    await scene.lab.apply([BUDGET], scene.namespace)
    await scene.govern(**UNHURRIED)
    await scene.until_phase("Analysing")
    before = await operator.pod()
    node = before["spec"]["nodeName"]
    try:
        await kubectl(scene.lab, "drain", node, "--timeout=90s", "--delete-emptydir-data")
        entry = await scene.until_done()
        assert len(scene.history) == 1
        assert entry["outcome"] in {"Successful", "Inconclusive", "Failed"}
        assert scene.speculates == (entry["outcome"] == "Successful")
        assert node not in {pod["spec"]["nodeName"] for pod in scene.pods}
        after = await operator.pod()
        assert after["spec"]["nodeName"] != node
        scene.assert_given_back()
        await scene.assert_served()
    finally:
        await kubectl(scene.lab, "uncordon", node)


async def test_a_canary_that_is_evicted_is_replaced_and_the_change_goes_on(scene: RealScene) -> None:
    await scene.serve(real_deployment(2, nodes=EVERYWHERE))
    await scene.govern(**UNHURRIED)
    await scene.until_phase("Analysing")
    evicted = canary(scene)["metadata"]
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": evicted["name"], "namespace": scene.namespace},
    }
    await scene.kube.request("POST", PODS.path(scene.namespace, evicted["name"], "eviction"), body=eviction)
    entry = await scene.until_done()
    assert evicted["uid"] not in scene.ready
    assert how_it_ended(entry) == ("ngram", "Successful")
    scene.assert_given_back()
    await scene.assert_served()


async def test_logs_of_a_pod_are_read_through_the_api(scene: RealScene) -> None:
    await scene.serve(real_deployment(1, nodes=EVERYWHERE))
    (pod,) = scene.pods
    said = await kubectl(scene.lab, "logs", f"--namespace={scene.namespace}", pod["metadata"]["name"])
    assert "Application startup complete." in said
