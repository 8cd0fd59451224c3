"""One policy's loop: observe -> estimate -> decide -> advance the change -> report and apply."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from specdecode.api.v1alpha1 import DeletionPolicy, SpecDecodePolicySpec, SpecDecodePolicyStatus
from specdecode.cluster.gather import Gatherer
from specdecode.cluster.kube import DEPLOYMENTS, JSON_PATCH, POLICIES, ApiError, Kube
from specdecode.cluster.memory import MemoryKeeper
from specdecode.cluster.schedule_file import ScheduleFile
from specdecode.cluster.scrape import Scraper
from specdecode.controller.conditions import Troubles
from specdecode.controller.report import Notice, notices, profiles_here, report
from specdecode.controller.telemetry import Telemetry
from specdecode.model.memory import Memory
from specdecode.policy.estimating import Modeller, estimate
from specdecode.policy.gates import decide
from specdecode.policy.live import file_of
from specdecode.policy.observation import Observation, Obstacle, Problem
from specdecode.policy.turning import Latest
from specdecode.rollout.clearing import cleared
from specdecode.rollout.patch import Desired, patch
from specdecode.rollout.phases import advance

log = logging.getLogger("specdecode")

Clock = Callable[[], float]
Post = Callable[[Notice], None]

CONFLICT = (404, 409, 422)
"""The Deployment was deleted or changed since it was read (a JSON patch whose test fails answers 422)."""


class PolicyLoop:
    """Looks after one policy.

    What it is doing is in the status that it wrote last, what it has learnt in a ConfigMap: the API server keeps both
    over a crash.
    """

    def __init__(
        self, kube: Kube, scraper: Scraper, telemetry: Telemetry, clock: Clock, policy: Mapping[str, Any]
    ) -> None:
        self._kube, self._telemetry, self._clock = kube, telemetry, clock
        self._gatherer = Gatherer(kube, scraper, clock)
        self.keeper = MemoryKeeper(kube, policy)
        self.schedule_file = ScheduleFile(kube, policy)
        self.status = SpecDecodePolicyStatus.model_validate(policy.get("status") or {})
        self._written = _json(self.status)
        self._modeller = Latest(Modeller())
        self._lock = asyncio.Lock()
        self._gone = False

    async def tick(self, policy: Mapping[str, Any], post: Post, rival: str | None = None) -> None:
        """One round; `policy` is the object as it is now, `rival` an older policy with the same target.

        Raises `ApiError`: the next round starts afresh.
        """
        async with self._lock:
            if self._gone or "deletionTimestamp" in policy["metadata"]:
                return
            started = self._clock()
            spec = SpecDecodePolicySpec.model_validate(policy["spec"])
            await self.keeper.open()
            seen = _recalled(await self._gatherer.observe(policy, spec, self.status), self.keeper.memory)
            if rival is not None:
                seen = replace(seen, menu=None, problem=_taken(spec, rival))
            o = estimate(seen, self._modeller)
            self.keeper.memory = _remembered(o)
            d = decide(o)
            step = advance(o, d)
            before, troubles = self.status, Troubles(self.keeper.trouble, self.schedule_file.trouble)
            after = report(o, d, step, before, troubles, self._modeller.model)
            # Written before the Deployment is touched: who finds it after a crash knows what was meant.
            await self._write(policy, after)
            key = _key(policy)
            for notice in notices(before, after):
                log.info("%s: %s", notice.reason, notice.message, extra={"policy": policy["metadata"]["name"]})
                post(notice)
            if step.finished is not None:
                self._telemetry.changed(key, step.finished.outcome.value, step.finished.outcome_reason)
            try:
                await self.schedule_file.publish(file_of(after.live_schedule))
                if step.desired is not None and o.workload is not None:
                    await self._apply(o.workload.deployment, step.desired)
            finally:
                # A Deployment that cannot be written is no reason to forget.
                await self.keeper.keep(self._clock(), _change(after))
            self._telemetry.ticked(key, o, d, after, self._clock() - started)

    async def clear(self, policy: Mapping[str, Any]) -> None:
        """The policy goes: leaves the workload as its user wants it. Raises `ApiError` until that is done."""
        async with self._lock:
            spec = SpecDecodePolicySpec.model_validate(policy["spec"])
            await self._clear_up(policy["metadata"]["namespace"], spec)
            self._gone = True
            self._telemetry.forget(_key(policy))

    async def _clear_up(self, namespace: str, spec: SpecDecodePolicySpec) -> None:
        deployment = await self._kube.find(DEPLOYMENTS, spec.target_ref.name, namespace)
        if deployment is None:
            return
        desired = cleared(deployment, self.status, restore=spec.deletion_policy is DeletionPolicy.RESTORE)
        if desired is not None and not await self._apply(deployment, desired):
            raise ApiError(409, "Conflict", "the Deployment was changed meanwhile; trying again")

    async def _write(self, policy: Mapping[str, Any], status: SpecDecodePolicyStatus) -> None:
        """Writes what differs from the status written last: nothing when nothing does."""
        new = _json(status)
        change = merge_patch(self._written, new)
        if change:
            meta = policy["metadata"]
            body = {"status": change}
            await self._kube.patch(POLICIES, meta["name"], meta["namespace"], body, subresource="status")
        self.status, self._written = status, new

    async def _apply(self, deployment: Mapping[str, Any], desired: Desired) -> bool:
        """Makes the Deployment what is desired; False when somebody else was quicker, and the next look decides."""
        operations, meta = patch(deployment, desired), deployment["metadata"]
        if not operations:
            return True
        try:
            await self._kube.patch(DEPLOYMENTS, meta["name"], meta["namespace"], operations, JSON_PATCH)
        except ApiError as e:
            if e.status not in CONFLICT:
                raise
            log.info("Deployment %s/%s was changed or is gone: %s", meta["namespace"], meta["name"], e.message)
            return False
        return True


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) that turns `old` into `new`; lists are replaced whole."""
    change: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key not in old:
            change[key] = value
        elif isinstance(value, dict) and isinstance(old[key], dict):
            if inner := merge_patch(old[key], value):
                change[key] = inner
        elif value != old[key]:
            change[key] = value
    return change


def _recalled(o: Observation, memory: Memory) -> Observation:
    """The observation with what is known from before."""
    return replace(o, knowledge=memory.profiles, loads=memory.loads)


def _remembered(o: Observation) -> Memory:
    """What is known after the observation: the way back from `_recalled`."""
    here = profiles_here(o)
    # The same object while it says the same: what was made of it need not be made again.
    gone = o.knowledge.keys() - here
    return Memory({p: k for p, k in o.knowledge.items() if p not in gone} if gone else o.knowledge, o.loads)


def _change(status: SpecDecodePolicyStatus) -> tuple[str | None, str | None]:
    """Tells the change under way and the last one that ended."""
    return status.rollout.id if status.rollout else None, status.history[0].id if status.history else None


def _taken(spec: SpecDecodePolicySpec, rival: str) -> Problem:
    return Problem(
        Obstacle.ANOTHER_POLICY,
        f"policy {rival} looks after {spec.target_ref.kind} {spec.target_ref.name} already: delete one of the two",
    )


def _json(status: SpecDecodePolicyStatus) -> dict[str, Any]:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _key(policy: Mapping[str, Any]) -> tuple[str, str]:
    return policy["metadata"]["namespace"], policy["metadata"]["name"]
