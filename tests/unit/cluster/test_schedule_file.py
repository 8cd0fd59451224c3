"""The ConfigMap with the live schedule."""

from __future__ import annotations

import pytest

from specdecode.cluster.kube import ApiError, Json
from specdecode.cluster.memory import name_of as memory_of
from specdecode.cluster.owned import CONFIG_MAPS, Owner
from specdecode.cluster.schedule_file import ScheduleFile, name_of
from support.fake_api import FakeKube, policy

POLICY = policy({})[1]
NAME = "vllm-schedule-chat"


def published(kube: FakeKube) -> dict[str, str] | None:
    found = kube.objects.get((CONFIG_MAPS.plural, NAME))
    return None if found is None else found["data"]


def ours(**data: str) -> Json:
    made = Owner.of(POLICY).manifest(NAME, data)
    made["metadata"]["resourceVersion"] = "1"
    return made


async def test_it_is_made_changed_and_emptied_as_it_is_asked_for() -> None:
    kube = FakeKube()
    file = ScheduleFile(kube, POLICY)
    await file.publish("one")
    assert published(kube) == {"schedule.json": "one"}
    await file.publish("two")
    assert published(kube) == {"schedule.json": "two"}
    await file.publish(None)
    assert published(kube) == {}
    assert file.trouble is None
    assert kube.created[0][1]["metadata"]["ownerReferences"][0]["uid"] == "p"


async def test_it_is_written_only_when_it_says_something_else() -> None:
    kube = FakeKube((CONFIG_MAPS, ours(**{"schedule.json": "one"})))
    await ScheduleFile(kube, POLICY).publish("one")
    assert kube.patches == []


async def test_where_none_is_wanted_it_is_looked_for_once() -> None:
    kube = FakeKube()
    file = ScheduleFile(kube, POLICY)
    await file.publish(None)
    kube.failures["get configmaps"] = ApiError(500, "InternalError", "no")
    await file.publish(None)
    assert file.trouble is None and kube.created == []


async def test_what_a_crash_left_behind_is_taken_away_at_the_start() -> None:
    kube = FakeKube((CONFIG_MAPS, ours(**{"schedule.json": "one"})))
    await ScheduleFile(kube, POLICY).publish(None)
    assert published(kube) == {}


async def test_what_somebody_wrote_into_it_does_not_last() -> None:
    kube = FakeKube((CONFIG_MAPS, ours(**{"schedule.json": "edited"})))
    await ScheduleFile(kube, POLICY).publish("one")
    assert published(kube) == {"schedule.json": "one"}


async def test_one_that_is_not_ours_is_left_alone_and_told() -> None:
    theirs = {"metadata": {"name": NAME, "resourceVersion": "1"}, "data": {"schedule.json": "theirs"}}
    kube = FakeKube((CONFIG_MAPS, theirs))
    file = ScheduleFile(kube, POLICY)
    await file.publish("one")
    assert published(kube) == {"schedule.json": "theirs"}
    assert file.trouble is not None and "does not own it" in file.trouble


@pytest.mark.parametrize("call", ["get", "create"])
async def test_an_api_server_that_refuses_is_told_and_tried_again(call: str) -> None:
    kube = FakeKube()
    file = ScheduleFile(kube, POLICY)
    kube.failures[f"{call} configmaps"] = ApiError(403, "Forbidden", "no")
    await file.publish("one")
    assert file.trouble is not None and "403" in file.trouble
    await file.publish("one")
    assert file.trouble is None and published(kube) == {"schedule.json": "one"}


@pytest.mark.parametrize("name", ["chat", "schedule-chat", "vllm-schedule-chat", "x" * 253])
def test_no_memory_of_a_policy_has_its_name(name: str) -> None:
    assert len(name_of(name)) <= 253
    assert name_of("chat") != memory_of(name)
