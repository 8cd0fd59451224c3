"""The user and others act at the same time: delete the policy, change, scale or remove the Deployment."""

from __future__ import annotations

import pytest

from specdecode.cluster.kube import DEPLOYMENTS
from support.operators import USER
from support.scene import NAME, SERVE, Scene, deployment
from support.stories import story

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]

ARGS = "/spec/template/spec/containers/0/args"
THEIRS = [*SERVE, "--max-num-seqs=64"]


# --- the policy goes ---


@pytest.mark.parametrize("deletion", ["Restore", "Keep"])
@story
async def test_a_deleted_policy_leaves_what_it_promises(scene: Scene, deletion: str) -> None:
    await scene.serve()
    original = scene.container
    await scene.govern(deletionPolicy=deletion)
    await scene.until_done()
    changed = scene.container
    await scene.delete_policy()
    wanted = original if deletion == "Restore" else changed
    await scene.until("the Deployment to be at rest", lambda: scene.settled and scene.container == wanted)
    assert len(scene.templates) == (3 if deletion == "Restore" else 2)
    scene.assert_given_back()
    await scene.assert_served()


@pytest.mark.parametrize("deletion", ["Restore", "Keep"])
@story
async def test_a_policy_that_is_deleted_during_a_canary_takes_it_along(scene: Scene, deletion: str) -> None:
    await scene.serve()
    before, original = set(scene.ready), scene.container
    await scene.govern(deletionPolicy=deletion)
    await scene.until_phase("Analysing")
    await scene.until("the Deployment to be held", lambda: scene.paused)
    await scene.delete_policy()
    await scene.until("the canary to go", lambda: scene.settled and scene.container == original)
    await scene.until("the pods of before, and no others", lambda: set(scene.ready) == before)
    scene.assert_given_back()
    await scene.assert_served()


@story(own_operator=True)
async def test_a_policy_that_is_deleted_while_the_operator_is_dead_is_cleared_up_when_it_is_back(scene: Scene) -> None:
    await scene.operator.start()
    await scene.serve()
    before, original = set(scene.ready), scene.container
    await scene.govern()
    await scene.until_phase("Analysing")
    await scene.until("the Deployment to be held", lambda: scene.paused)
    await scene.operator.kill()
    await scene.delete_policy(wait=False)
    await scene.until(
        "the deletion to wait", lambda: scene.policy and scene.policy["metadata"].get("deletionTimestamp")
    )
    await scene.operator.start()
    await scene.until("the policy to be gone", lambda: scene.policy is None)
    await scene.until("the canary to go", lambda: scene.settled and scene.container == original)
    await scene.until("the pods of before, and no others", lambda: set(scene.ready) == before)
    scene.assert_given_back()
    await scene.assert_served()


@story
async def test_a_policy_without_its_deployment_says_so_and_can_be_deleted(scene: Scene) -> None:
    traffic = await scene.serve()
    await scene.govern()
    await scene.until_phase("Analysing")
    await traffic.stop()
    await scene.kube.delete(DEPLOYMENTS, NAME, scene.namespace)
    await scene.until("the condition", lambda: scene.condition("Ready") == ("False", "WorkloadMissing"))
    await scene.delete_policy()
    assert scene.operator.running


@story
async def test_a_deployment_that_comes_back_starts_afresh(scene: Scene) -> None:
    traffic = await scene.serve()
    await scene.govern()
    await scene.until_phase("Analysing")
    await traffic.stop()
    await scene.kube.delete(DEPLOYMENTS, NAME, scene.namespace)
    await scene.until("the condition", lambda: scene.condition("Ready") == ("False", "WorkloadMissing"))
    await scene.until("the pods to go", lambda: not scene.pods)
    await scene.lab.apply([deployment(args=THEIRS)], scene.namespace)
    await scene.until("the change to be closed", lambda: scene.phase is None and scene.history)
    assert scene.history[0]["outcome"] == "Error"
    await scene.until("the Deployment to be managed", lambda: scene.condition("Ready") == ("True", "Managing"))
    assert scene.container["args"] == THEIRS
    scene.assert_given_back()


# --- somebody else changes the Deployment ---


@story
async def test_arguments_that_somebody_else_sets_during_a_canary_stay(scene: Scene) -> None:
    await scene.serve()
    await scene.govern()
    await scene.until_phase("Analysing")
    await scene.change_deployment({"op": "replace", "path": ARGS, "value": THEIRS})
    entry = await scene.until_done()
    assert (entry["outcome"], entry["outcomeReason"]) == ("Error", "Superseded")
    await scene.ticks()
    assert scene.container["args"] == THEIRS
    assert len(scene.history) == 1
    scene.assert_given_back()
    await scene.assert_served()


@story
async def test_an_image_that_somebody_else_sets_during_a_canary_stays_and_the_canary_goes(scene: Scene) -> None:
    await scene.serve()
    await scene.govern()
    await scene.until_phase("Analysing")
    image = "vllm/vllm-openai:v0.24.0-theirs"
    path = "/spec/template/spec/containers/0/image"
    await scene.change_deployment({"op": "replace", "path": path, "value": image})
    entry = await scene.until_done()
    assert (entry["outcome"], entry["outcomeReason"]) == ("Error", "Superseded")
    assert scene.container["image"] == image
    assert scene.container["args"] == list(SERVE), "an unproven change does not ride on theirs"
    scene.assert_given_back()
    await scene.assert_served()


@story
async def test_nobody_fights_over_arguments_that_their_owner_took_back(scene: Scene) -> None:
    await scene.serve()
    await scene.govern(rollout__cooldown="1s")
    await scene.until_done()
    await scene.change_deployment({"op": "replace", "path": ARGS, "value": list(SERVE)})
    await scene.until("the condition", lambda: scene.condition("Degraded") == ("True", "FieldContested"))
    start = len(scene.writes(USER))
    await scene.until("the Deployment to be at rest", lambda: scene.settled)
    await scene.rest(8)
    assert not [w for w in scene.writes(USER)[start:] if w.resource == "deployments"]
    assert scene.container["args"] == list(SERVE)

    await scene.edit(objective={"minimumGain": "6%"})
    await scene.until("the next change", lambda: scene.phase == "Starting")
    assert scene.condition("Degraded")[0] == "False"
    entry = await scene.until_done(2)
    assert entry["outcome"] == "Successful"
    await scene.assert_served()


@story
async def test_a_workload_may_be_scaled_during_a_canary(scene: Scene) -> None:
    await scene.serve(deployment(3))
    await scene.govern()
    await scene.until_phase("Analysing")
    await scene.change_deployment({"op": "replace", "path": "/spec/replicas", "value": 4})
    entry = await scene.until_done()
    assert (entry["outcome"], entry["outcomeReason"]) == ("Successful", "Promoted")
    assert scene.deployment is not None and scene.deployment["spec"]["replicas"] == 4
    assert len(scene.ready) == 4
    assert len(scene.templates) == 2
    scene.assert_given_back()
    await scene.assert_served()


@story
async def test_a_policy_that_is_edited_during_a_canary_takes_it_back(scene: Scene) -> None:
    await scene.serve()
    before = set(scene.ready)
    await scene.govern()
    await scene.until_phase("Analysing")
    assert scene.policy is not None
    profile = scene.policy["spec"]["profiles"][0] | {"numSpeculativeTokens": 3}
    await scene.edit(profiles=[profile])
    entry = await scene.until_done()
    assert (entry["outcome"], entry["outcomeReason"]) == ("Error", "PolicyChanged")
    await scene.until("the pods of before, and no others", lambda: set(scene.ready) == before)
    scene.assert_given_back()
    await scene.assert_served()
