"""The whole loop on a real control plane: a change is measured, proven on a canary, made, verified, and undone when it
no longer pays; users notice nothing but the speed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.operators import USER
from support.scene import SERVE, Scene, deployment
from support.stories import story
from support.traffic import HOT_CHAT, NOTHING

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]

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
    assert [reason for _, reason in await scene.events()].count("ChangeSuccessful") == 2


WRITTEN: dict[str, dict[str, Any]] = {
    "as one shell string": {
        "command": ["/bin/sh", "-c"],
        "args": [f"echo starting; exec vllm serve meta-llama/Llama-32B {' '.join(SERVE[1:])}"],
    },
    "with a reference to a variable": {
        "args": [*SERVE, "--speculative-config=$(SPECDECODE_CONFIG)"],
        "env": {"SPECDECODE_CONFIG": "null"},
    },
    "as vllm serve": {"command": ["vllm", "serve", "meta-llama/Llama-32B"], "args": SERVE[1:]},
}


@pytest.mark.parametrize("how", WRITTEN)
@story
async def test_a_command_line_is_managed_however_it_is_written(scene: Scene, how: str) -> None:
    await scene.serve(deployment(2, **WRITTEN[how]))
    before = scene.container
    await scene.govern()
    entry = await scene.until_done()
    assert entry["outcome"] == "Successful"
    assert scene.speculates
    assert len(scene.templates) == 2
    after = scene.container
    if how == "with a reference to a variable":
        assert (after["args"], after.get("command")) == (before["args"], before.get("command"))
        (variable,) = after["env"]
        assert json.loads(variable["value"])["method"] == "ngram"
    else:
        assert after.get("env") == before.get("env")
    scene.assert_given_back()
    await scene.delete_policy()
    await scene.until("the original to be back", lambda: scene.settled and scene.container == before)
    await scene.assert_served()


@story
async def test_nothing_is_written_while_nobody_asks_for_anything(scene: Scene) -> None:
    await scene.serve(kind=NOTHING)
    await scene.govern()
    await scene.until("the first look", lambda: scene.condition("MetricsAvailable")[0] == "True")
    # Two scrapes make the first measurement: the operator then knows that there is no load.
    await scene.until("the operator to see that it is idle", lambda: scene.decision == "Idle")
    start = len(await scene.settled_writes(USER))
    await scene.rest(60)
    writes = scene.writes(USER)[start:]
    assert not writes
    assert scene.operator.running


@story
async def test_steady_load_is_reported_every_few_ticks_and_in_nothing_but_the_status(scene: Scene) -> None:
    await scene.serve()
    await scene.govern(mode="Recommend")
    await scene.until("a recommendation", lambda: scene.decision is not None)
    await scene.ticks()
    start = len(scene.writes(USER))
    await scene.rest(20)
    writes = scene.writes(USER)[start:]
    # Figures are refreshed at most every fourth tick; a decision that changes its mind is told at once, with an Event.
    status = [w for w in writes if (w.resource, w.subresource) == ("specdecodepolicies", "status")]
    assert {w.resource for w in writes} <= {"specdecodepolicies", "events"}
    assert 0 < len(status) <= 10
    assert not scene.speculates
