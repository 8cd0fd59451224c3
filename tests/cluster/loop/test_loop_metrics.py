"""Pods whose metrics cannot be had: no decision is taken from what was not measured."""

from __future__ import annotations

import pytest

from support.scene import Scene, deployment, fault
from support.stories import story

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]

FAULTS = ["metrics-hang", "metrics-missing", "metrics-half"]


@pytest.mark.parametrize("struck", FAULTS)
@story
async def test_without_metrics_nothing_is_decided(scene: Scene, struck: str) -> None:
    await scene.serve(deployment(1, env=fault(struck, when="off")))
    await scene.govern()
    await scene.until("the condition", lambda: scene.condition("MetricsAvailable") == ("False", "MetricsMissing"))
    await scene.rest(8)
    assert scene.condition("MetricsAvailable") == ("False", "MetricsMissing")
    assert scene.decision is None
    assert len(scene.templates) == 1
    await scene.assert_served()


@pytest.mark.parametrize("struck", FAULTS)
@story
async def test_a_canary_without_metrics_is_taken_back_as_not_measured(scene: Scene, struck: str) -> None:
    await scene.serve(deployment(1, env=fault(struck)))
    before = set(scene.ready)
    await scene.govern()
    entry = await scene.until_done()
    assert (entry["outcome"], entry["outcomeReason"]) == ("Error", "NotMeasured")
    await scene.until("the pods of before, and no others", lambda: set(scene.ready) == before)
    scene.assert_given_back()
    await scene.assert_served()


@story
async def test_the_pods_that_answer_are_enough(scene: Scene) -> None:
    # The first pod that starts is struck, the others are not.
    mark = scene.lab.folder / scene.namespace
    script = f"mkdir {mark} && export SPECDECODE_SIM_FAULT=metrics-missing; exec vllm serve m/Llama-32B --port=8000"
    await scene.serve(deployment(3, command=["/bin/sh", "-c"], args=[script]))
    await scene.govern()
    await scene.until("the figures", lambda: (scene.status.get("observation") or {}).get("batchSize"))
    assert scene.status["observation"]["pods"] == 2
    assert scene.condition("MetricsAvailable")[0] == "True"
    entry = await scene.until_done()
    assert entry["outcome"] == "Successful"
    scene.assert_given_back()
    await scene.assert_served()
