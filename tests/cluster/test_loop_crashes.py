"""The operator is killed in every phase of a change, and started again: the change ends once, and rightly."""

from __future__ import annotations

import pytest
from support.scene import Scene, deployment, fault
from support.stories import stage, story

__all__ = ["stage"]

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]

PROMOTION = ["Starting", "Analysing", "Promoting", "Verifying", "Finishing"]
ROLL_BACK = ["Starting", "Analysing", "RollingBack", "Finishing"]
SLOW = fault("slow:8")


async def killed_in(scene: Scene, phase: str) -> None:
    """Kills the operator at the first sight of a phase: most often between the status and the Deployment."""
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


@pytest.mark.parametrize("phase", PROMOTION)
@story(own_operator=True)
async def test_a_promotion_survives_the_operators_death_in_any_phase(scene: Scene, phase: str) -> None:
    await scene.operator.start()
    await scene.serve()
    await scene.govern()
    await killed_in(scene, phase)
    await scene.operator.start()
    await assert_changed_once(scene, "Successful", templates=2)
    assert scene.phases == PROMOTION


@pytest.mark.parametrize("phase", ROLL_BACK[2:])
@story(own_operator=True)
async def test_a_roll_back_survives_the_operators_death_in_any_phase(scene: Scene, phase: str) -> None:
    await scene.operator.start()
    await scene.serve(deployment(env=SLOW))
    before = set(scene.ready)
    await scene.govern()
    await killed_in(scene, phase)
    await scene.operator.start()
    await assert_changed_once(scene, "Failed", templates=3)
    assert scene.phases == ROLL_BACK
    assert set(scene.ready) == before, "only the canary went"


@story(own_operator=True)
async def test_a_promotion_survives_the_operators_death_in_every_phase(scene: Scene) -> None:
    await scene.operator.start()
    await scene.serve()
    await scene.govern()
    for phase in PROMOTION:
        await killed_in(scene, phase)
        await scene.operator.start()
    await assert_changed_once(scene, "Successful", templates=2)
    assert scene.phases == PROMOTION


@story(own_operator=True)
async def test_a_promotion_that_was_ordered_goes_on_while_the_operator_is_dead(scene: Scene) -> None:
    await scene.operator.start()
    await scene.serve(deployment(3))
    await scene.govern()
    await scene.until_phase("Promoting")
    await scene.until("the Deployment to be released", lambda: not scene.paused)
    await scene.operator.kill()
    await scene.until("all pods to be replaced", lambda: scene.settled)
    assert scene.phase == "Promoting"
    await scene.operator.start()
    await assert_changed_once(scene, "Successful", templates=2)
