"""The operator is killed in every phase of a change, and started again: the change ends once, and rightly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.scene import Scene, deployment, fault
from support.stories import story

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]

PROMOTION = ["Starting", "Analysing", "Promoting", "Verifying", "Finishing"]
ROLL_BACK = ["Starting", "Analysing", "RollingBack", "Finishing"]

ORDERED: dict[str, Callable[[Scene], bool]] = {
    "Starting": lambda scene: len(scene.templates) == 2,
    "Analysing": lambda scene: scene.paused,
    "Promoting": lambda scene: not scene.paused,
}
"""By phase: the Deployment shows what the operator wrote into it. The other phases write nothing, or end with it."""


UNHURRIED: dict[str, Any] = {
    "metrics__interval": "3s",
    "metrics__window": "12s",
    "rollout__analysis": {"minimumRequests": 4, "duration": "20s", "warmup": "1s"},
    "rollout__progressDeadline": "120s",
}
"""A phase lasts at least an interval: time to see it and to kill, however busy the machine is."""


async def kill_in(scene: Scene, phase: str) -> None:
    """Kills the operator; the API server says whether the phase was hit."""
    await scene.until_phase(phase)
    await scene.operator.kill()
    status = (await scene.read_policy())["status"]
    assert status["rollout"]["phase"] == phase, "the phase was over before the operator was dead"


async def assert_changed_once(scene: Scene, outcome: str, templates: int) -> None:
    """One change, one entry, one roll there (and one back)."""
    entry = await scene.until_done()
    assert entry["outcome"] == outcome
    await scene.ticks()
    assert len(scene.history) == 1
    assert scene.phase is None
    assert len(scene.templates) == templates
    assert len(await scene.replicasets()) == 2
    assert scene.revision == templates, "every change of the template is a revision"
    assert scene.speculates is (outcome == "Successful")
    scene.assert_given_back()
    await scene.assert_served()


@story(own_operator=True)
async def test_a_promotion_survives_the_operators_death_at_the_beginning_of_every_phase(scene: Scene) -> None:
    """Most deaths fall between the status, which is written first, and the Deployment."""
    await scene.operator.start()
    await scene.serve()
    await scene.govern(**UNHURRIED)
    for phase in PROMOTION:
        await kill_in(scene, phase)
        await scene.operator.start()
    await assert_changed_once(scene, "Successful", templates=2)
    assert scene.phases == PROMOTION


@story(own_operator=True)
async def test_a_roll_back_survives_the_operators_death_at_the_beginning_of_every_phase(scene: Scene) -> None:
    await scene.operator.start()
    await scene.serve(deployment(env=fault("slow:8")))
    before = set(scene.ready)
    await scene.govern(**UNHURRIED)
    for phase in ROLL_BACK:
        await kill_in(scene, phase)
        await scene.operator.start()
    await assert_changed_once(scene, "Failed", templates=3)
    assert scene.phases == ROLL_BACK
    await scene.until("the pods of before, and no others", lambda: set(scene.ready) == before)


@story(own_operator=True)
async def test_a_promotion_survives_the_operators_death_after_each_of_its_orders(scene: Scene) -> None:
    """While the operator is dead the Deployment controller goes on, up to where it was told to wait."""
    await scene.operator.start()
    await scene.serve(deployment(3))
    await scene.govern(**UNHURRIED)
    for phase, ordered in ORDERED.items():
        await scene.until_phase(phase)
        await scene.until(f"the order of phase {phase}", lambda: ordered(scene))  # noqa: B023
        await kill_in(scene, phase)
        if phase == "Starting":
            await scene.until("the canary to be ready", lambda: len(scene.ready) == 4)
        if phase == "Promoting":
            await scene.until("all pods to be replaced", lambda: scene.settled)
        await scene.operator.start()
    await assert_changed_once(scene, "Successful", templates=2)
    assert scene.phases == PROMOTION
