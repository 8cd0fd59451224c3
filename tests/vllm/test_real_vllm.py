"""The whole loop on real vLLM, with real clients: what pays is proven and kept, what does not is taken back, and
nobody notices anything but the speed."""

from __future__ import annotations

import pytest

from specdecode.lab.realvllm.clients import hot_chat, summaries
from specdecode.lab.realvllm.installation import CUT, PADDED, TARGET
from support.scene import Json
from support.vllm_scene import NGRAM, VllmScene, vllm_policy

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]

FASTER = 1.5
"""Factor by which tokens must come faster than without speculation where it suits the traffic."""
NO_SLOWER = 1.1
"""Factor by which they may be slower where it does not, once the operator has reacted."""


def draft(name: str, model: str) -> Json:
    return {"name": name, "method": "DraftModel", "numSpeculativeTokens": 3, "draftModel": {"model": model}}


async def test_ngram_comes_with_traffic_that_suits_it_and_goes_and_comes_back(scene: VllmScene) -> None:
    await scene.start(1, alone=1)
    scene.ask(summaries(2))
    await scene.lab.apply([vllm_policy([NGRAM])], scene.namespace)
    on = await scene.until_runs("ngram")
    assert (on["target"]["profile"], on["outcome"]) == ("ngram", "Successful")
    managed, alone = await scene.side_by_side(summaries(2), 30)
    assert alone.tpot > FASTER * managed.tpot

    scene.ask(hot_chat(3))
    off = await scene.until_runs("disabled")
    assert (off["target"]["profile"], off["outcome"]) == ("disabled", "Successful")
    managed, alone = await scene.side_by_side(hot_chat(3), 45)
    assert managed.tpot < NO_SLOWER * alone.tpot

    scene.ask(summaries(2))
    back = await scene.until_runs("ngram")
    assert (back["target"]["profile"], back["outcome"]) == ("ngram", "Successful")
    await scene.assert_all_served()


async def test_a_draft_that_is_no_good_is_taken_back_and_a_good_one_is_kept(scene: VllmScene) -> None:
    await scene.start(1, model=PADDED)
    # Short answers: so slow a server finishes few others in the time of an analysis.
    scene.ask(summaries(4, (16, 24)))
    await scene.lab.apply([vllm_policy([draft("large-draft", TARGET)])], scene.namespace)
    bad = await scene.until_changed(1)
    assert (bad["target"]["profile"], bad["outcome"]) == ("large-draft", "Failed")
    assert scene.status["activeProfile"] == "disabled"

    await scene.lab.apply([vllm_policy([draft("small-draft", CUT)])], scene.namespace)
    good = await scene.until_runs("small-draft")
    assert (good["target"]["profile"], good["outcome"]) == ("small-draft", "Successful")
    assert good["gain"]["low"] > 0
    await scene.assert_all_served()
