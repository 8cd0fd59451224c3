"""What was learnt about a policy's workload, kept in a ConfigMap beside the policy, so that it outlives the process.

Read once, written seldom. The ConfigMap has an owner reference to the policy and goes with it. One that is not ours is
left alone, and so is one that a newer version wrote. Deleting it is how a user has everything forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from specdecode.cluster.kube import Json, Kube
from specdecode.cluster.owned import CONFIG_MAPS as CONFIG_MAPS
from specdecode.cluster.owned import Owner, shortened
from specdecode.model.memory import Memory, Trouble, Unusable, dump, load

log = logging.getLogger("specdecode")

KEY = "memory.json"

EVERY = 300.0
"""Seconds between two writes; a change that starts or ends does not wait."""
RETRY = 60.0
"""Seconds until what could not be written is tried again."""

_NOTHING = dump(Memory())

_WAYS_OUT = {
    Trouble.CORRUPT: "it is ignored, and overwritten with what is learnt from now on",
    Trouble.NEWER: "nothing is remembered until that version runs again or the ConfigMap is deleted",
    Trouble.FOREIGN: "it is left alone and nothing is remembered: delete or rename it, or rename the policy",
    Trouble.NOT_READ: "the operator goes on without what it knew, and tries again: may it get, create and patch"
    " ConfigMaps here?",
    Trouble.NOT_WRITTEN: "what was learnt since the last write is lost if the operator ends; it is tried again",
}


class MemoryKeeper:
    """Holds one policy's memory and keeps it. Nothing here raises or stops a decision: `trouble` tells."""

    def __init__(self, kube: Kube, policy: Mapping[str, Any]) -> None:
        self._kube, self._owner = kube, Owner.of(policy)
        self._policy, self._namespace = self._owner.name, self._owner.namespace
        self.name = name_of(self._policy)
        self.memory = Memory()
        """What is known; the loop brings it up to date."""
        self.trouble: Unusable | None = None
        """Why the memory cannot be used or kept; None: all is well."""
        self._opened = False
        self._there = False
        """Whether a ConfigMap of ours was there when last looked."""
        self._text = _NOTHING
        """What it holds that can be used."""
        self._tried_at, self._wait = 0.0, 0.0
        self._change: object = None

    async def open(self) -> None:
        """Reads what was kept, once; asks again next time where there was no answer."""
        if self._opened:
            return
        try:
            found = await self._get()
        except Exception as e:  # whatever it was, the loop must go on
            self._tell(Unusable(Trouble.NOT_READ, _text_of(e)))
            return
        self._opened, self.trouble = True, None
        if found is None or self._owner.succeeds(found):
            return
        self._there = self._owner.owns(found)
        text, memory = self._contents(found)
        if isinstance(memory, Unusable):
            self._tell(memory)
        else:
            self.memory, self._text = memory, text

    async def keep(self, now: float, change: object) -> None:
        """Writes the memory if it is due and says something new.

        `change` tells the change under way and the last one that ended: when it differs, a write is due at once.
        """
        # A clock that was set back must not stop the writing.
        due = change != self._change or not 0 <= now - self._tried_at < self._wait
        # As long as it is not known what is there, it must not be overwritten.
        if not due or not self._opened:
            return
        try:
            text = dump(self.memory)
            if text != self._text:
                self._tried_at, self._wait = now, RETRY
                if await self._write(text):
                    self._wait = EVERY
        except Exception as e:  # whatever it was, the loop must go on
            self._tried_at, self._wait = now, RETRY
            self._tell(Unusable(Trouble.NOT_WRITTEN, _text_of(e)))
        self._change = change

    async def _write(self, text: str) -> bool:
        """Makes the ConfigMap say `text`, unless it is not ours to write."""
        found = await self._get()
        if found is None and self._there:
            log.info("ConfigMap %s/%s was deleted: what was learnt is forgotten", self._namespace, self.name)
            self.memory, self._text, self._there, self.trouble = Memory(), _NOTHING, False, None
            return False
        if found is None:
            await self._kube.create(CONFIG_MAPS, self._owner.manifest(self.name, {KEY: text}), self._namespace)
        else:
            _, held = self._contents(found)
            self._there = self._owner.owns(found)
            if isinstance(held, Unusable):
                self._tell(held)
                if held.reason is not Trouble.CORRUPT:
                    return False
            # The resource version makes the API server refuse (409) when somebody else was quicker.
            body = {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}, "data": {KEY: text}}
            await self._kube.patch(CONFIG_MAPS, self.name, self._namespace, body)
        self._text, self._there, self.trouble = text, True, None
        return True

    async def _get(self) -> Json | None:
        return await self._kube.find(CONFIG_MAPS, self.name, self._namespace)

    def _contents(self, found: Json) -> tuple[str, Memory | Unusable]:
        """The text in a ConfigMap and what it says."""
        if not self._owner.owns(found):
            return "", Unusable(Trouble.FOREIGN, "this policy does not own it")
        text = (found.get("data") or {}).get(KEY)
        if text is None:
            return "", Unusable(Trouble.CORRUPT, f"there is no {KEY} in it")
        return text, load(text)

    def _tell(self, trouble: Unusable) -> None:
        told = replace(trouble, message=f"ConfigMap {self.name}: {trouble.message}; {_WAYS_OUT[trouble.reason]}")
        if told != self.trouble:
            log.warning("%s: %s", told.reason, told.message, extra={"policy": self._policy})
        self.trouble = told


def name_of(policy: str) -> str:
    """Name of the ConfigMap that keeps the memory of a policy."""
    return shortened(f"specdecode-{policy}")


def _text_of(e: Exception) -> str:
    return str(e) or type(e).__name__
