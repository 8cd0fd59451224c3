"""Canaries that are worse, do not start or find no room: taken back in time, and nobody notices."""

from __future__ import annotations

import pytest

from specdecode.policy.clock import seconds_of
from support.scene import NGRAM, Scene, deployment, fault
from support.stories import story

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]

BAD = {
    "is slow": ("slow:8", {"Slower", "GainTooSmall"}),
    "guesses badly": ("bad-draft:0.02", {"Slower", "GainTooSmall"}),
    "never gets ready": ("never-ready", {"CanaryNotReady"}),
    "crashes at start": ("crash-at-start", {"CanaryCrashLooping"}),
    "crashes while it serves": ("crash-after:1", {"CanaryCrashLooping", "RequestsFail"}),
}


@pytest.mark.parametrize("how", BAD)
@story
async def test_a_bad_canary_is_taken_back_and_nothing_else_is_touched(scene: Scene, how: str) -> None:
    struck, reasons = BAD[how]
    traffic = await scene.serve(deployment(env=fault(struck)))
    before, original = set(scene.ready), scene.container
    # Only what never gets ready waits for the deadline; others need time to start on a busy machine.
    await scene.govern(rollout__progressDeadline="16s" if how == "never gets ready" else "60s")
    entry = await scene.until_done()
    assert (entry["outcome"], entry["target"]["profile"]) == ("Failed", "ngram")
    assert entry["outcomeReason"] in reasons
    assert seconds_of(entry["finishedAt"]) - seconds_of(entry["startedAt"]) < 60
    assert scene.container == original
    await scene.until("the pods of before, and no others", lambda: set(scene.ready) == before)
    assert not any(pod["status"]["containerStatuses"][0]["restartCount"] for pod in scene.pods)
    scene.assert_given_back()

    # A failure doubles the rest of one hour.
    await scene.ticks()
    assert scene.decision in ("CoolingDown", "BestAlready", "GainTooSmall")
    if scene.decision == "CoolingDown":
        assert "for 1h59m" in scene.status["recommendation"]["message"]
    assert len(scene.history) == 1 and scene.phase is None
    events = await scene.events()
    assert ("Warning", "ChangeRollingBack") in events
    assert ("Warning", "ChangeFailed") in events
    if how == "crashes while it serves":
        # What a process takes with it when it dies, nobody can save; the pods that stayed failed nobody.
        await traffic.stop()
        survivors = {f"http://{pod['status']['podIP']}:8000" for pod in scene.pods}
        assert not [r for r in traffic.records if r.error and r.pod in survivors]
    else:
        await scene.assert_served()


@story
async def test_why_a_canary_does_not_start_is_told_with_the_way_out(scene: Scene) -> None:
    manifest = deployment()
    # The process node has no kubelet that would give the log to the operator.
    manifest["spec"]["template"]["spec"]["containers"][0]["terminationMessagePolicy"] = "FallbackToLogsOnError"
    await scene.serve(manifest)
    await scene.govern(profiles=[{**NGRAM, "args": {"no-such-argument": "1"}}])
    entry = await scene.until_done()
    assert (entry["outcome"], entry["outcomeReason"]) == ("Failed", "CanaryCrashLooping")
    assert "does not know the argument --no-such-argument: remove it from the profile's args" in entry["message"]
    scene.assert_given_back()
    await scene.assert_served()


@story
async def test_without_a_spare_gpu_nothing_is_changed(scene: Scene) -> None:
    gpu = await scene.add_resource("scarce", 2)
    await scene.serve(deployment(2, resources={gpu: "1"}))
    before, original = set(scene.ready), scene.container
    await scene.govern()
    entry = await scene.until_done()
    assert (entry["outcome"], entry["outcomeReason"]) == ("Error", "NoCapacity")
    assert "allowUnavailable" in entry["message"]
    assert scene.container == original
    await scene.until("the pods of before, and no others", lambda: set(scene.ready) == before)
    scene.assert_given_back()
    await scene.assert_served()


@story
async def test_without_a_spare_gpu_one_pod_is_given_up_where_that_is_allowed(scene: Scene) -> None:
    gpu = await scene.add_resource("given-up", 3)
    await scene.serve(deployment(3, resources={gpu: "1"}))
    await scene.govern(rollout__allowUnavailable=True)
    await scene.until_phase("Analysing")
    assert len(scene.ready) == 3, "two old pods and the canary"
    entry = await scene.until_done()
    assert (entry["outcome"], entry["outcomeReason"]) == ("Successful", "Promoted")
    assert scene.speculates
    assert len(scene.templates) == 2
    scene.assert_given_back()
    await scene.assert_served()
