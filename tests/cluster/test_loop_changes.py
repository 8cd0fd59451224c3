"""The whole loop on a real control plane: a change is measured, proven on a canary, made, verified, and undone when it
no longer pays; users notice nothing but the speed."""

from __future__ import annotations

import pytest
from support.operators import USER
from support.scene import SERVE, Scene, deployment
from support.stories import stage, story
from support.traffic import HOT_CHAT

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

PROMOTION = ["Starting", "Analysing", "Promoting", "Verifying", "Finishing"]


@story
async def test_ngram_is_proven_and_rolled_out_and_switched_off_when_the_traffic_no_longer_suits_it(
    scene: Scene,
) -> None:
    traffic = await scene.serve(deployment(3))
    original = scene.container["args"]
    await scene.govern()
    on = await scene.until_done()
    assert (on["source"]["profile"], on["target"]["profile"]) == ("disabled", "ngram")
    assert (on["outcome"], on["outcomeReason"]) == ("Successful", "Promoted")
    assert on["gain"]["low"] > 0
    assert scene.status["activeProfile"] == "ngram"
    assert scene.speculates
    assert scene.phases == PROMOTION
    assert len(scene.templates) == 2
    scene.assert_given_back()

    traffic.kind = HOT_CHAT
    off = await scene.until_done(2)
    assert (off["target"]["profile"], off["reason"]) == ("disabled", "AcceptanceBelowFloor")
    assert (off["outcome"], off["outcomeReason"]) == ("Successful", "Promoted")
    assert scene.container["args"] == original
    assert scene.phases == 2 * PROMOTION
    assert len(scene.templates) == 3
    assert len(await scene.replicasets()) == 2
    scene.assert_given_back()
    await scene.assert_served()
    assert [reason for _, reason in await scene.events() if reason == "ChangeSuccessful"] == 2 * ["ChangeSuccessful"]
