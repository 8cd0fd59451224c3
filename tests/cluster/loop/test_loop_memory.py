"""What was learnt is in a ConfigMap: it outlives the operator, goes with the policy, and is never somebody else's."""

from __future__ import annotations

import pytest

from specdecode.cluster.kube import POLICIES, ApiError, Json
from specdecode.cluster.memory import CONFIG_MAPS, KEY, name_of
from specdecode.model.memory import Memory, load
from support.operators import USER
from support.scene import NAME, Scene
from support.stories import story

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]


async def config_map(scene: Scene) -> Json | None:
    try:
        return await scene.kube.get(CONFIG_MAPS, name_of(NAME), scene.namespace)
    except ApiError as e:
        if e.status != 404:
            raise
        return None


@story(own_operator=True)
async def test_what_was_learnt_outlives_the_operator_and_goes_with_the_policy(scene: Scene) -> None:
    await scene.operator.start()
    await scene.serve()
    await scene.govern()
    await scene.until_done()
    # It is written last in a tick, but in the one in which the change ends.
    found = await scene.lab.wait("what the canary taught", lambda: _with_profiles(scene, {"disabled", "ngram"}))
    (owner,) = found["metadata"]["ownerReferences"]
    assert scene.policy is not None and owner["uid"] == scene.policy["metadata"]["uid"]
    assert scene.condition("MemoryUsable") == ("True", "MemoryKept")
    await scene.operator.kill()
    await scene.assert_served()

    # The status no longer says it, and nobody asks the pods for anything.
    await scene.kube.patch(POLICIES, NAME, scene.namespace, {"status": {"profiles": []}}, subresource="status")
    await scene.until("the status to be empty", lambda: not scene.status.get("profiles"))
    await scene.edit(objective={"minimumGain": "6%"})
    await scene.operator.start()
    await scene.until(
        "what was learnt",
        lambda: (
            {p["name"] for p in scene.status.get("profiles") or () if "timePerOutputToken" in p}
            == {"disabled", "ngram"}
        ),
    )
    await scene.delete_policy()
    await scene.lab.wait("the garbage collector", lambda: _gone(scene), within=60)


async def _with_profiles(scene: Scene, profiles: set[str]) -> Json | None:
    found = await config_map(scene)
    memory = load(found["data"][KEY]) if found else None
    return found if isinstance(memory, Memory) and memory.profiles.keys() == profiles else None


async def _gone(scene: Scene) -> bool:
    return await config_map(scene) is None


@story
async def test_a_config_map_that_somebody_else_made_stays_theirs_and_stops_no_change(scene: Scene) -> None:
    meta = {"name": name_of(NAME)}
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {KEY: "mine"}}
    await scene.lab.apply([theirs], scene.namespace)
    before = await config_map(scene)
    await scene.serve()
    await scene.govern()
    entry = await scene.until_done()
    assert entry["outcome"] == "Successful"
    assert scene.condition("MemoryUsable") == ("False", "MemoryForeign")
    assert ("Warning", "MemoryForeign") in await scene.events()
    assert await config_map(scene) == before
    assert not [w for w in scene.writes(USER) if w.resource == "configmaps"]
    await scene.assert_served()
