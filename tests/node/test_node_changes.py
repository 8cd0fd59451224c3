"""The whole loop as its users have it: the operator installed by its chart on real nodes, vLLM's pods with GPUs, probes
and hooks, clients that go through the Service."""

from __future__ import annotations

import pytest

from support.installed import USER
from support.real_scene import GPU, RealScene, how_it_ended, real_deployment
from support.scene import fault
from support.stories import story
from support.traffic import HOT_CHAT

pytestmark = [pytest.mark.node, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

PROMOTION = ["Starting", "Analysing", "Promoting", "Verifying", "Finishing"]
DRAFT = {
    "name": "draft",
    "method": "DraftModel",
    "numSpeculativeTokens": 3,
    "draftModel": {"model": "meta-llama/Llama-1B"},
}
ROOMY = ("node-1", "node-2")
FULL = ("node-3",)


@story
async def test_ngram_is_promoted_and_switched_off_again_without_a_failed_request(scene: RealScene) -> None:
    traffic = await scene.serve(real_deployment(2, nodes=ROOMY))
    original = scene.container["args"]
    await scene.govern(rollout__cooldown="5s")
    on = await scene.until_done()
    assert (on["target"]["profile"], on["outcome"], on["outcomeReason"]) == ("ngram", "Successful", "Promoted")
    assert scene.speculates
    assert scene.phases == PROMOTION
    scene.assert_given_back()

    traffic.kind = HOT_CHAT
    # A Service deals connections by chance: a canary of few seconds that got too many of them is tried again.
    off = ("disabled", "Successful")
    await scene.until("speculation to be off", lambda: scene.settled and how_it_ended(scene.history[0]) == off)
    assert {h["outcome"] for h in scene.history[1:-1]} <= {"Inconclusive"}
    assert scene.container["args"] == original
    scene.assert_given_back()
    await scene.assert_served()
    assert {write.user for write in scene.writes(USER)} == {USER}, "the operator is its own service account"


@story
async def test_a_draft_that_crashes_is_rolled_back_without_a_failed_request(scene: RealScene) -> None:
    await scene.serve(real_deployment(2, nodes=ROOMY, env=fault("crash-at-start", "DraftModel")))
    before, original = set(scene.ready), scene.container
    await scene.govern(profiles=[DRAFT])
    entry = await scene.until_done()
    assert how_it_ended(entry) == ("draft", "Failed")
    assert entry["outcomeReason"] == "CanaryCrashLooping"
    assert scene.container == original
    await scene.until("the pods of before, and no others", lambda: set(scene.ready) == before)
    scene.assert_given_back()
    await scene.assert_served()


@story
async def test_a_canary_that_is_slower_is_rolled_back_without_a_failed_request(scene: RealScene) -> None:
    await scene.serve(real_deployment(2, nodes=ROOMY, env=fault("slow:8")))
    before, original = set(scene.ready), scene.container
    await scene.govern()
    entry = await scene.until_done()
    assert entry["outcome"] == "Failed"
    assert entry["outcomeReason"] in {"Slower", "GainTooSmall"}
    assert scene.container == original
    await scene.until("the pods of before, and no others", lambda: set(scene.ready) == before)
    scene.assert_given_back()
    await scene.assert_served()


@story
async def test_where_all_gpus_are_taken_nothing_is_changed(scene: RealScene) -> None:
    await scene.serve(real_deployment(2, nodes=FULL, resources={GPU: "2"}))
    before, original = set(scene.ready), scene.container
    await scene.govern()
    entry = await scene.until_done()
    assert (entry["outcome"], entry["outcomeReason"]) == ("Error", "NoCapacity")
    assert scene.container == original
    await scene.until("the pods of before, and no others", lambda: set(scene.ready) == before)
    scene.assert_given_back()
    await scene.assert_served()
