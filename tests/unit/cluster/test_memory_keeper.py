"""The ConfigMap that keeps a policy's memory: made, read, brought up to date, and left alone when it is not ours."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdecode.cluster.kube import ApiError, Json
from specdecode.cluster.memory import CONFIG_MAPS, EVERY, KEY, RETRY, MemoryKeeper, name_of
from specdecode.model.knowledge import Knowledge
from specdecode.model.memory import MAX_BYTES, Memory, Trouble, dump
from support.fake_api import FakeKube, policy
from support.world import NOW, SPEC

_, POLICY = policy(SPEC)
NAME = "specdecode-chat"
OLD, NEW, NEWEST = (Memory({"ngram": Knowledge(measured_at=NOW + t)}) for t in (0.0, 1000.0, 2000.0))
LABELS = {"app.kubernetes.io/managed-by": "specdecode", "specdecode.dev/policy": "chat"}
OWNER = {"apiVersion": "specdecode.dev/v1alpha1", "kind": "SpecDecodePolicy", "name": "chat", "uid": "p"}


def config_map(text: str | None = None, **meta: Any) -> Json:
    """One that is ours, but for what is said."""
    base = {"name": NAME, "namespace": "serving", "resourceVersion": "7", "labels": LABELS, "ownerReferences": [OWNER]}
    return {"metadata": base | meta} | ({} if text is None else {"data": {KEY: text}})


def kube_with(*objects: Json) -> FakeKube:
    return FakeKube(*((CONFIG_MAPS, o) for o in objects))


async def opened(kube: FakeKube) -> MemoryKeeper:
    keeper = MemoryKeeper(kube, POLICY)
    await keeper.open()
    return keeper


def stored(kube: FakeKube) -> str | None:
    found = kube.objects.get(("configmaps", NAME))
    return None if found is None else found["data"].get(KEY)


def reason(keeper: MemoryKeeper) -> Trouble | None:
    return keeper.trouble.reason if keeper.trouble else None


# --- its life -----------------------------------------------------------------------------------------------------


async def test_what_was_kept_is_there_for_the_next_process() -> None:
    kube = kube_with()
    first = await opened(kube)
    assert first.memory == Memory() and first.trouble is None
    first.memory = OLD
    await first.keep(NOW, None)
    assert kube.created == [
        (
            "configmaps",
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": NAME,
                    "namespace": "serving",
                    "labels": LABELS,
                    "ownerReferences": [OWNER],
                },
                "data": {KEY: dump(OLD)},
            },
        )
    ]
    assert (await opened(kube)).memory == OLD


async def test_it_is_read_once() -> None:
    kube = kube_with(config_map(dump(OLD)))
    keeper = await opened(kube)
    kube.objects["configmaps", NAME] = config_map(dump(NEW))
    await keeper.open()
    assert keeper.memory == OLD


async def test_of_a_config_map_that_is_there_only_the_text_is_written() -> None:
    kube = kube_with(config_map(dump(OLD)) | {"data": {KEY: dump(OLD), "note": "mine"}})
    keeper = await opened(kube)
    keeper.memory = NEW
    await keeper.keep(NOW, None)
    assert kube.patches == [("configmaps", {"metadata": {"resourceVersion": "7"}, "data": {KEY: dump(NEW)}})]
    assert kube.objects["configmaps", NAME]["data"]["note"] == "mine"


async def test_nothing_is_written_when_nothing_was_learnt() -> None:
    for kube in (kube_with(), kube_with(config_map(dump(OLD)))):
        keeper = await opened(kube)
        for at in range(0, 100_000, 1000):
            await keeper.keep(NOW + at, at)
        assert kube.patches == kube.created == []


async def test_between_two_writes_are_five_minutes_unless_a_change_starts_or_ends() -> None:
    kube = kube_with()
    keeper = await opened(kube)
    written = []
    for second in range(0, 1000, 5):
        keeper.memory = Memory({"ngram": Knowledge(measured_at=NOW + second)})
        before = stored(kube)
        await keeper.keep(NOW + second, "change" if 400 <= second < 450 else None)
        written += [second] if stored(kube) != before else []
    assert written == [0, 300, 400, 450, 750]


async def test_a_clock_that_is_set_back_does_not_stop_the_writing() -> None:
    kube = kube_with()
    keeper = await opened(kube)
    for memory, now in ((OLD, NOW), (NEW, NOW - 86_400)):
        keeper.memory = memory
        await keeper.keep(now, None)
    assert stored(kube) == dump(NEW)


async def test_deleting_the_config_map_is_how_everything_is_forgotten() -> None:
    kube = kube_with()
    keeper = await opened(kube)
    keeper.memory = OLD
    await keeper.keep(NOW, None)
    del kube.objects["configmaps", NAME]
    keeper.memory = NEW
    await keeper.keep(NOW + EVERY, None)
    assert keeper.memory == Memory() and stored(kube) is None and keeper.trouble is None
    keeper.memory = NEWEST
    await keeper.keep(NOW + EVERY + RETRY, None)
    assert stored(kube) == dump(NEWEST)


# --- what is not ours, or cannot be used --------------------------------------------------------------------------

FOREIGN: dict[str, Json] = {
    "of a user": {"labels": {"app": "chat"}, "ownerReferences": []},
    "without any metadata": {"labels": None, "ownerReferences": None},
    "without our label": {"labels": {}},
    "with the label of another manager": {"labels": LABELS | {"app.kubernetes.io/managed-by": "Helm"}},
    "without an owner": {"ownerReferences": []},
    "of another policy": {"ownerReferences": [OWNER | {"name": "other", "uid": "q"}]},
}


@pytest.mark.parametrize("whose", FOREIGN)
async def test_a_config_map_that_is_not_ours_is_neither_read_nor_written_until_it_is_gone(whose: str) -> None:
    theirs = config_map(dump(OLD), **FOREIGN[whose])
    kube = kube_with(copy.deepcopy(theirs))
    keeper = await opened(kube)
    assert keeper.memory == Memory()
    assert reason(keeper) is Trouble.FOREIGN
    keeper.memory = NEW
    for at in range(10):
        await keeper.keep(NOW + at * EVERY, at)
    assert reason(keeper) is Trouble.FOREIGN and keeper.memory == NEW
    assert kube.objects["configmaps", NAME] == theirs and kube.patches == []
    del kube.objects["configmaps", NAME]
    await keeper.keep(NOW + 10 * EVERY, None)
    assert stored(kube) == dump(NEW) and keeper.trouble is None, "what was learnt meanwhile is not lost"


WORDS = st.sampled_from(["", "Helm", "specdecode", "chat", "p", "q", "SpecDecodePolicy"])
METADATA = st.fixed_dictionaries(
    {},
    optional={
        "labels": st.none() | st.dictionaries(st.sampled_from([*LABELS, "app"]), WORDS),
        "ownerReferences": st.none()
        | st.lists(st.dictionaries(st.sampled_from(["kind", "name", "uid"]), WORDS), max_size=2),
    },
)


@given(METADATA, st.none() | st.dictionaries(st.sampled_from([KEY, "other"]), st.text(max_size=5)))
def test_no_config_map_without_our_label_and_owner_is_ever_overwritten(meta: Json, data: Json | None) -> None:
    theirs = {"metadata": {"name": NAME, "resourceVersion": "7"} | meta} | ({} if data is None else {"data": data})
    ours = (meta.get("labels") or {}).get("app.kubernetes.io/managed-by") == "specdecode" and any(
        owner.get("uid") == "p" for owner in meta.get("ownerReferences") or []
    )
    kube = kube_with(copy.deepcopy(theirs))

    async def story() -> MemoryKeeper:
        keeper = await opened(kube)
        keeper.memory = NEW
        await keeper.keep(NOW, None)
        return keeper

    keeper = asyncio.run(story())
    assert (kube.objects["configmaps", NAME] == theirs) is not ours
    assert reason(keeper) is (None if ours else Trouble.FOREIGN)


async def test_that_of_a_deleted_policy_of_the_same_name_is_waited_out_in_silence() -> None:
    kube = kube_with(config_map(dump(OLD), ownerReferences=[OWNER | {"uid": "before"}]))
    keeper = await opened(kube)
    assert keeper.memory == Memory() and keeper.trouble is None
    del kube.objects["configmaps", NAME]
    keeper.memory = NEW
    await keeper.keep(NOW, None)
    assert stored(kube) == dump(NEW)


async def test_that_of_a_deleted_policy_which_does_not_go_is_told() -> None:
    kube = kube_with(config_map(dump(OLD), ownerReferences=[OWNER | {"uid": "before"}]))
    keeper = await opened(kube)
    keeper.memory = NEW
    await keeper.keep(NOW, None)
    assert reason(keeper) is Trouble.FOREIGN and stored(kube) == dump(OLD)


@pytest.mark.parametrize("text", ["", "nonsense", '{"format":1}', None])
async def test_a_corrupt_one_of_ours_is_told_and_overwritten_by_what_is_learnt_next(text: str | None) -> None:
    kube = kube_with(config_map(text))
    keeper = await opened(kube)
    assert keeper.memory == Memory()
    assert reason(keeper) is Trouble.CORRUPT and keeper.trouble is not None
    assert NAME in keeper.trouble.message and "overwritten" in keeper.trouble.message
    await keeper.keep(NOW, None)
    assert kube.patches == [], "there is nothing to write yet"
    keeper.memory = NEW
    await keeper.keep(NOW, None)
    assert stored(kube) == dump(NEW) and keeper.trouble is None


async def test_one_that_a_newer_version_wrote_is_left_alone_until_it_is_deleted() -> None:
    text = json.dumps({"format": 2})
    kube = kube_with(config_map(text))
    keeper = await opened(kube)
    assert reason(keeper) is Trouble.NEWER
    keeper.memory = NEW
    await keeper.keep(NOW, None)
    assert stored(kube) == text and reason(keeper) is Trouble.NEWER
    del kube.objects["configmaps", NAME]
    await keeper.keep(NOW + RETRY, None)
    keeper.memory = NEWEST
    await keeper.keep(NOW + 2 * RETRY, None)
    assert stored(kube) == dump(NEWEST) and keeper.trouble is None


# --- when the API server does not do it ---------------------------------------------------------------------------

FORBIDDEN = ApiError(403, "Forbidden", "configmaps is forbidden")


async def test_without_the_right_to_read_nothing_is_overwritten_and_it_is_asked_again() -> None:
    kube = kube_with(config_map(dump(OLD)))
    kube.failures["get configmaps"] = FORBIDDEN
    keeper = await opened(kube)
    assert reason(keeper) is Trouble.NOT_READ and keeper.trouble is not None
    assert "configmaps is forbidden" in keeper.trouble.message
    keeper.memory = NEW
    await keeper.keep(NOW, None)
    assert kube.patches == []
    await keeper.open()
    assert keeper.memory == OLD and keeper.trouble is None


@pytest.mark.parametrize("call", ["get", "create", "patch"])
async def test_what_could_not_be_written_is_told_and_tried_again(call: str) -> None:
    kube = kube_with(*([config_map(dump(OLD))] if call == "patch" else []))
    keeper = await opened(kube)
    keeper.memory = NEW
    kube.failures[f"{call} configmaps"] = ApiError(503, "ServiceUnavailable", "later")
    await keeper.keep(NOW, None)
    assert reason(keeper) is Trouble.NOT_WRITTEN and keeper.memory == NEW
    await keeper.keep(NOW + RETRY - 1, None)
    assert stored(kube) != dump(NEW), "not at every tick"
    await keeper.keep(NOW + RETRY, None)
    assert stored(kube) == dump(NEW) and keeper.trouble is None


async def test_a_writer_who_was_quicker_is_not_overwritten() -> None:
    class Meanwhile(FakeKube):
        """Somebody else writes between our look and our write."""

        async def get(self, *arguments: Any) -> Json:
            found = await super().get(*arguments)
            self.objects["configmaps", NAME] = config_map(dump(NEWEST), resourceVersion="8", labels={})
            return found

    kube = Meanwhile((CONFIG_MAPS, config_map(dump(OLD))))
    keeper = await opened(kube)
    kube.objects["configmaps", NAME] = config_map(dump(OLD))
    keeper.memory = NEW
    await keeper.keep(NOW, None)
    assert reason(keeper) is Trouble.NOT_WRITTEN and stored(kube) == dump(NEWEST)
    await keeper.keep(NOW + RETRY, None)
    assert reason(keeper) is Trouble.FOREIGN


async def test_a_memory_that_cannot_be_written_down_is_told() -> None:
    kube = kube_with()
    keeper = await opened(kube)
    keeper.memory = Memory({f"{i:063}": Knowledge() for i in range(MAX_BYTES // 63)})
    await keeper.keep(NOW, None)
    assert reason(keeper) is Trouble.NOT_WRITTEN and keeper.trouble is not None
    assert f"more than {MAX_BYTES}" in keeper.trouble.message
    keeper.memory = NEW
    await keeper.keep(NOW + RETRY, None)
    assert stored(kube) == dump(NEW) and keeper.trouble is None


async def test_an_error_without_words_is_told_by_its_name() -> None:
    class Hanging(FakeKube):
        async def get(self, *_: Any) -> Json:
            raise TimeoutError

    keeper = await opened(Hanging())
    assert keeper.trouble is not None and "TimeoutError" in keeper.trouble.message


# --- names --------------------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?", fullmatch=True)


@given(NAMES)
def test_every_policy_has_a_config_map_with_a_valid_name_and_label(name: str) -> None:
    kube = kube_with()
    keeper = MemoryKeeper(kube, {"metadata": POLICY["metadata"] | {"name": name}})

    async def story() -> None:
        await keeper.open()
        keeper.memory = NEW
        await keeper.keep(NOW, None)

    asyncio.run(story())
    ((_, made),) = kube.created
    label = made["metadata"]["labels"]["specdecode.dev/policy"]
    found = made["metadata"]["name"]
    assert 0 < len(label) <= 63 and label[-1].isalnum()
    assert found == name_of(name) and found.startswith("specdecode-") and len(found) <= 253
    if len(name) <= 63:
        assert (found, label) == (f"specdecode-{name}", name)


def test_long_names_that_begin_alike_are_told_apart() -> None:
    assert name_of("a" * 250) != name_of("a" * 251)
    assert name_of("a" * 252 + "b") != name_of("a" * 253)
