"""The ConfigMap with the live schedule, which the pods mount: made to say what the status says."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from specdecode.cluster.kube import Kube
from specdecode.cluster.owned import CONFIG_MAPS, Owner, shortened
from specdecode.vllm.live_schedule import FILE

log = logging.getLogger("specdecode")


class ScheduleFile:
    """Publishes one policy's schedule. Nothing here raises or stops a tick: `trouble` tells."""

    def __init__(self, kube: Kube, policy: Mapping[str, Any]) -> None:
        self._kube, self._owner = kube, Owner.of(policy)
        self.name = name_of(self._owner.name)
        self.trouble: str | None = None
        """Why it could not be written; None: all is well."""
        self._gone = False
        """Whether there was no file when last looked, so that none is looked for again."""

    async def publish(self, text: str | None) -> None:
        """Makes the ConfigMap hold the text, whatever anybody wrote into it; None: no file."""
        if text is None and self._gone:
            return
        try:
            trouble = await self._publish(text)
            self._gone = text is None
        except Exception as e:  # whatever it was, the loop must go on
            trouble = f"{str(e) or type(e).__name__}: may the operator get, create and patch ConfigMaps here?"
        if trouble is not None:
            trouble = f"ConfigMap {self.name}: {trouble}"
            if trouble != self.trouble:
                log.warning("%s", trouble, extra={"policy": self._owner.name})
        self.trouble = trouble

    async def _publish(self, text: str | None) -> str | None:
        found = await self._kube.find(CONFIG_MAPS, self.name, self._owner.namespace)
        if found is None:
            if text is not None:
                manifest = self._owner.manifest(self.name, {FILE: text})
                await self._kube.create(CONFIG_MAPS, manifest, self._owner.namespace)
            return None
        if not self._owner.owns(found):
            if text is None:
                return None
            return "this policy does not own it, so it is left alone: delete or rename it, or rename the policy"
        if (found.get("data") or {}).get(FILE) != text:
            # The resource version makes the API server refuse (409) when somebody else was quicker.
            body = {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}, "data": {FILE: text}}
            await self._kube.patch(CONFIG_MAPS, self.name, self._owner.namespace, body)
        return None


def name_of(policy: str) -> str:
    """Name of the ConfigMap with the live schedule of a policy. No policy's memory has such a name."""
    return shortened(f"vllm-schedule-{policy}")
