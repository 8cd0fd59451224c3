"""What a policy's loop remembers: over its own death at any moment, in every mode, and whatever becomes of the
ConfigMap. On an API server and pods in memory and a clock that is moved by hand."""

from __future__ import annotations

from typing import Any

import pytest

from specdecode.api.conditions import ConditionType
from specdecode.api.v1alpha1 import Condition
from specdecode.cluster.kube import DEPLOYMENTS, POLICIES, ApiError
from specdecode.cluster.memory import CONFIG_MAPS, EVERY, KEY
from specdecode.controller.conditions import condition
from specdecode.model.memory import Memory, dump, load
from specdecode.policy.options import same
from support.fake_api import FakeKube
from support.small_cluster import INTERVAL, Cluster, canary_under_way
from support.world import NOW, menu, rendered, spec

NAME = ("configmaps", "specdecode-chat")
SILENT = {"10.0.0.1", "10.0.0.2"}
TICKS = int(EVERY / INTERVAL)
LEISURE: dict[str, Any] = {"mode": "Recommend", "metrics": {"interval": "30s", "window": "5m"}}
SLOW = 30.0
"""Its interval."""


def remembered(cluster: Cluster) -> Memory:
    """What the API server has."""
    assert cluster.kept is not None, "nothing was kept"
    memory = load(cluster.kept)
    assert isinstance(memory, Memory), memory
    return memory


def usable(cluster: Cluster) -> Condition:
    found = condition(cluster.status, ConditionType.MEMORY_USABLE)
    assert found is not None
    return found


# --- restarts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["Observe", "Recommend", "Auto"])
async def test_what_was_learnt_survives_a_restart_in_every_mode(mode: str) -> None:
    cluster = Cluster(**LEISURE | {"mode": mode})
    await cluster.tick(15, SLOW)
    learnt = remembered(cluster)
    assert learnt.profiles["disabled"].tpot_seconds == pytest.approx(0.02)
    # Not even the status is left.
    cluster.kube.objects["specdecodepolicies", "chat"]["status"] = {}
    cluster.restart()
    cluster.silent = SILENT
    await cluster.tick()
    assert cluster.loop.keeper.memory == learnt
    known = {p.name: p.time_per_output_token for p in cluster.status.profiles}
    assert known["disabled"] == pytest.approx(0.02)


class Dead(BaseException):
    """kill -9."""


class MortalKube(FakeKube):
    """Its client dies at one of its calls: before it is made, or after it was made and before the answer is there."""

    def __init__(self, *objects: Any) -> None:
        super().__init__(*objects)
        self.dies_at: int | None = None
        self.calls = 0


def _mortal(name: str) -> Any:
    async def call(self: MortalKube, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls * 2 == self.dies_at:
            raise Dead
        try:
            return await getattr(FakeKube, name)(self, *arguments, **options)
        finally:
            if self.calls * 2 + 1 == self.dies_at:
                raise Dead

    return call


for verb in ("get", "list", "create", "patch"):
    setattr(MortalKube, verb, _mortal(verb))


class MortalCluster(Cluster):
    """A cluster whose operator can be killed."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(**changes)
        self.mortal = MortalKube()
        self.mortal.objects = self.kube.objects
        self.kube = self.mortal
        self.restart()


@pytest.mark.parametrize("part", [i / 12 for i in range(13)])
async def test_whenever_the_operator_is_killed_at_most_five_minutes_are_lost(part: float) -> None:
    whole = MortalCluster(**LEISURE)
    await whole.tick(25, SLOW)
    calls = 2 + round(part * (2 * whole.mortal.calls - 1))
    for dies_at in (calls, calls + 1):
        cluster = MortalCluster(**LEISURE)
        cluster.mortal.dies_at = dies_at
        known = [(NOW, dump(Memory()))]
        with pytest.raises(Dead):
            for _ in range(30):
                await cluster.tick(1, SLOW)
                known.append((cluster.now, dump(cluster.loop.keeper.memory)))
        known.append((cluster.now, dump(cluster.loop.keeper.memory)))
        assert (cluster.kept or dump(Memory())) in {text for at, text in known if at >= cluster.now - EVERY}
        cluster.mortal.dies_at = None
        kept = cluster.kept
        cluster.restart()
        cluster.silent = SILENT
        await cluster.tick()
        assert usable(cluster).status == "True"
        assert dump(cluster.loop.keeper.memory) == (kept or dump(Memory()))


# --- writes -------------------------------------------------------------------------------------------------------


async def test_without_load_nothing_is_written() -> None:
    cluster = Cluster(**LEISURE)
    for serves in cluster.pages.values():
        serves |= {"batch": 0.0, "rate": 0.0}
    await cluster.tick(5, SLOW)
    kept, status = cluster.kept, len(cluster.kube.written(POLICIES))
    await cluster.tick(30, SLOW)
    assert cluster.kept == kept
    assert cluster.kube.written(CONFIG_MAPS) == []
    assert len(cluster.kube.written(POLICIES)) == status


async def test_under_load_it_is_written_every_five_minutes() -> None:
    cluster = Cluster(**LEISURE)
    await cluster.tick(6 * 10, SLOW)
    assert len(cluster.kube.created) == 1
    assert 4 <= len(cluster.kube.written(CONFIG_MAPS)) <= 6


async def test_a_change_that_starts_or_ends_is_reason_to_write() -> None:
    cluster = Cluster()
    unwritten: dict[tuple[bool, bool], bool] = {}
    await cluster.tick()
    for _ in range(100):
        before = cluster.status.rollout is not None
        await cluster.tick()
        under_way = cluster.status.rollout is not None
        unwritten[before, under_way] = cluster.kept != dump(cluster.loop.keeper.memory)
        if under_way and not before:
            cluster.add("new", 1, acceptance=0.75, step=0.3)
        if cluster.phase == "RollingBack":
            cluster.remove("new", 1)
            cluster.settle()
        if cluster.status.history:
            break
    assert unwritten == {(False, True): False, (True, True): True, (True, False): False}
    assert "ngram" in remembered(cluster).profiles, "what the canary taught is kept at once"


async def test_profiles_that_are_gone_from_the_policy_are_forgotten() -> None:
    cluster = Cluster(mode="Recommend")
    await cluster.tick(4)
    was = remembered(cluster)
    text = dump(Memory({**was.profiles, "gone": was.profiles["disabled"]}, was.loads))
    cluster.kube.objects[NAME]["data"][KEY] = text
    cluster.restart()
    await cluster.tick(4)
    assert "gone" not in remembered(cluster).profiles


async def test_while_the_workload_is_away_nothing_is_forgotten() -> None:
    cluster = Cluster(mode="Recommend")
    await cluster.tick(4)
    kept = cluster.kept
    del cluster.kube.objects["deployments", "chat"]
    cluster.restart()
    await cluster.tick(2 * TICKS)
    assert cluster.kept == kept


# --- trouble ------------------------------------------------------------------------------------------------------


async def test_a_memory_that_is_well_is_a_condition_and_no_event() -> None:
    cluster = Cluster(mode="Recommend")
    await cluster.tick(4)
    assert (usable(cluster).status, usable(cluster).reason) == ("True", "MemoryKept")
    assert not [reason for reason in cluster.told() if reason.startswith("Memory")]


async def test_a_corrupt_memory_is_told_before_it_is_overwritten() -> None:
    cluster = Cluster(mode="Recommend")
    await cluster.tick(4)
    cluster.kube.objects[NAME]["data"][KEY] = "nonsense"
    cluster.restart()
    cluster.told()
    patches = len(cluster.kube.patches)
    await cluster.tick()
    assert (usable(cluster).status, usable(cluster).reason) == ("False", "MemoryCorrupt")
    assert [(n.type, n.reason) for n in cluster.notices] == [("Warning", "MemoryCorrupt")]
    await cluster.tick(4)
    assert "disabled" in remembered(cluster).profiles
    assert usable(cluster).status == "True"
    assert [reason for reason in cluster.told() if reason.startswith("Memory")] == ["MemoryCorrupt", "MemoryKept"]
    kinds = [kind for kind, _ in cluster.kube.patches[patches:]]
    assert kinds.index("specdecodepolicies") < kinds.index("configmaps")


async def test_a_foreign_config_map_stops_no_change_and_stays_as_it_is() -> None:
    cluster = Cluster()
    theirs = {"metadata": {"name": NAME[1], "resourceVersion": "1"}, "data": {KEY: dump(Memory())}}
    cluster.kube.objects[NAME] = theirs
    await canary_under_way(cluster)
    assert cluster.kube.objects[NAME] is theirs
    assert (usable(cluster).status, usable(cluster).reason) == ("False", "MemoryForeign")
    assert cluster.told().count("MemoryForeign") == 1


@pytest.mark.parametrize(("verb", "reason"), [("get", "MemoryNotRead"), ("create", "MemoryNotWritten")])
async def test_config_maps_that_the_operator_may_not_touch_stop_no_change(verb: str, reason: str) -> None:
    cluster = Cluster()
    for _ in range(5):
        cluster.kube.failures[f"{verb} configmaps"] = ApiError(403, "Forbidden", "configmaps is forbidden")
        await cluster.tick()
    assert same(cluster.container, rendered(menu(spec()), "ngram"))
    assert (usable(cluster).status, usable(cluster).reason) == ("False", reason)
    assert cluster.told().count(reason) == 1


async def test_a_deployment_that_cannot_be_written_is_no_reason_to_forget() -> None:
    cluster = Cluster()
    for _ in range(20):
        cluster.kube.failures["patch deployments"] = ApiError(403, "Forbidden", "deployments is forbidden")
        try:
            await cluster.tick()
        except ApiError:
            break
    assert cluster.phase == "Starting" and cluster.kube.written(DEPLOYMENTS) == []
    assert cluster.kept == dump(cluster.loop.keeper.memory)


async def test_deleting_the_config_map_has_everything_forgotten_while_the_operator_runs() -> None:
    cluster = Cluster(**LEISURE)
    await cluster.tick(4, SLOW)
    was = remembered(cluster).profiles["disabled"]
    del cluster.kube.objects[NAME]
    await cluster.tick(15, SLOW)
    assert remembered(cluster).profiles["disabled"] != was
    assert usable(cluster).status == "True"


# --- the version before -------------------------------------------------------------------------------------------

BEFORE: dict[str, Any] = {
    "observedGeneration": 1,
    "profiles": [
        {
            "name": "ngram",
            "measuredAt": "2026-11-01T00:00:00Z",
            "drafts": 3,
            "draftedPerStep": 5.0,
            "perPosition": [0.8, 0.6],
            "stepTimes": [{"batchSize": 8.0, "tokens": 48.0, "promptTokens": 0.0, "seconds": 0.02}],
        }
    ],
}


async def test_a_status_that_the_version_before_wrote_is_taken_and_written_anew() -> None:
    cluster = Cluster(status=BEFORE, mode="Recommend")
    await cluster.tick(4)
    names = {p.name: set(p.model_fields_set) for p in cluster.status.profiles}
    assert set(names) == {"ngram", "disabled"}
    assert "stepTimes" not in str(cluster.policy["status"])
