"""What an engine tells of itself, read from its log by a real kubelet."""

from __future__ import annotations

import json

import pytest

from support.real_scene import RealScene, real_deployment
from support.scene import SERVE, fault
from support.stories import story

pytestmark = [pytest.mark.node, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

SPECULATES = ("--speculative-config", json.dumps({"method": "ngram", "num_speculative_tokens": 4}))


@story
async def test_an_engine_that_dropped_its_speculation_is_found_out_before_anybody_asks_it(scene: RealScene) -> None:
    """It has generated nothing, so its metrics tell nothing, and there is no `/server_info`: its log does."""
    env = fault("speculation-dropped", "speculating")
    made = real_deployment(1, nodes=("node-1", "node-2"), args=[*SERVE, *SPECULATES], env=env)
    await scene.lab.apply([made], scene.namespace)
    await scene.until("the Deployment to be up", lambda: scene.settled, within=120)
    await scene.govern(mode="Observe")
    seen = ("False", "DoesNotSpeculate")
    await scene.until("the policy to say so", lambda: scene.condition("EngineAsConfigured") == seen)
