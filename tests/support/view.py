"""What the API server of a lab tells, kept up to date by watching: waiting costs no requests, and nothing is missed."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from specdecode.cluster.kube import DEPLOYMENTS, PODS, POLICIES, ApiError, Json, Kube, Resource

log = logging.getLogger(__name__)

T = TypeVar("T")
WATCHED = (POLICIES, DEPLOYMENTS, PODS)


class View:
    """All policies, Deployments and pods: as they are now (`objects`), and every state they were in (`seen`)."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._changed = asyncio.Condition()
        self.objects: dict[Resource, dict[tuple[str, str], Json]] = {resource: {} for resource in WATCHED}
        self.seen: dict[tuple[Resource, str], list[Json]] = defaultdict(list)
        """States by kind and namespace, oldest first; of pods only the present counts."""

    @classmethod
    @asynccontextmanager
    async def open(cls, kube: Kube) -> AsyncIterator[View]:
        """Watches until the end of the block."""
        view = cls(kube)
        tasks = [asyncio.create_task(view._follow(resource)) for resource in WATCHED]
        try:
            yield view
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, Exception):
                    raise ended

    async def until(self, what: str, check: Callable[[], T], within: float) -> T:
        """The first true result of `check`, looked at after every change. Raises AssertionError after `within` s."""
        try:
            async with asyncio.timeout(within), self._changed:
                while not (result := check()):
                    await self._changed.wait()
                return result
        except TimeoutError:
            raise AssertionError(f"waited {within:g} s in vain for {what}") from None

    async def _follow(self, resource: Resource) -> None:
        while True:
            try:
                await self._watch(resource)
            except ApiError as e:
                # A custom resource that was defined just now is not served yet.
                log.info("watching %s: %s", resource.plural, e)
                await asyncio.sleep(0.1)

    async def _watch(self, resource: Resource) -> None:
        answer = await self._kube.request("GET", resource.path())
        known = self.objects[resource]
        known.clear()
        for item in answer["items"]:
            await self._take(resource, item)
        version = answer["metadata"]["resourceVersion"]
        async for event in self._kube.watch(resource, resource_version=version, seconds=3600):
            match event["type"]:
                case "ADDED" | "MODIFIED":
                    await self._take(resource, event["object"])
                case "DELETED":
                    known.pop(_key(event["object"]), None)
                    await self._tell()
                case "ERROR":
                    return

    async def _take(self, resource: Resource, item: Json) -> None:
        key = _key(item)
        self.objects[resource][key] = item
        if resource is not PODS:
            self.seen[resource, key[0]].append(item)
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _key(item: Json) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]
