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
from specdecode.cluster.scrape import Scraper
from specdecode.controller.report import Notice, knowledge_of, notices, report
from specdecode.controller.telemetry import Telemetry
from specdecode.model.cost import RooflineModel
from specdecode.policy.estimating import estimate
from specdecode.policy.gates import decide
from specdecode.policy.observation import Obstacle, Problem
from specdecode.rollout.clearing import cleared
from specdecode.rollout.patch import Desired, patch
from specdecode.rollout.phases import advance

log = logging.getLogger("specdecode")

Clock = Callable[[], float]
Post = Callable[[Notice], None]

CONFLICT = (404, 409, 422)
"""The Deployment was deleted or changed since it was read (a JSON patch whose test fails answers 422)."""


class PolicyLoop:
    """Looks after one policy. The status that it wrote last is its memory; the API server keeps it over a crash."""

    def __init__(
        self, kube: Kube, scraper: Scraper, telemetry: Telemetry, clock: Clock, policy: Mapping[str, Any]
    ) -> None:
        self._kube, self._telemetry, self._clock = kube, telemetry, clock
        self._gatherer = Gatherer(kube, scraper, clock)
        self.status = SpecDecodePolicyStatus.model_validate(policy.get("status") or {})
        self._knowledge = knowledge_of(self.status)
        self._written = _json(self.status)
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
            seen = replace(await self._gatherer.observe(policy, spec, self.status), knowledge=self._knowledge)
            if rival is not None:
                seen = replace(seen, menu=None, problem=_taken(spec, rival))
            o = estimate(seen, RooflineModel)
            d = decide(o)
            step = advance(o, d)
            before, after = self.status, report(o, d, step, self.status)
            # Written before the Deployment is touched: who finds it after a crash knows what was meant.
            await self._write(policy, after)
            self._knowledge = o.knowledge
            key = _key(policy)
            for notice in notices(before, after):
                log.info("%s: %s", notice.reason, notice.message, extra={"policy": policy["metadata"]["name"]})
                post(notice)
            if step.finished is not None:
                self._telemetry.changed(key, step.finished.outcome.value, step.finished.outcome_reason)
            if step.desired is not None and o.workload is not None:
                await self._apply(o.workload.deployment, step.desired)
            self._telemetry.ticked(key, o, d, after, self._clock() - started)

    async def clear(self, policy: Mapping[str, Any]) -> None:
        """The policy goes: leaves the workload as its user wants it. Raises `ApiError` until that is done."""
        async with self._lock:
            spec = SpecDecodePolicySpec.model_validate(policy["spec"])
            await self._clear_up(policy["metadata"]["namespace"], spec)
            self._gone = True
            self._telemetry.forget(_key(policy))

    async def _clear_up(self, namespace: str, spec: SpecDecodePolicySpec) -> None:
        try:
            deployment = await self._kube.get(DEPLOYMENTS, spec.target_ref.name, namespace)
        except ApiError as e:
            if e.status == 404:
                return
            raise
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


def _taken(spec: SpecDecodePolicySpec, rival: str) -> Problem:
    return Problem(
        Obstacle.ANOTHER_POLICY,
        f"policy {rival} looks after {spec.target_ref.kind} {spec.target_ref.name} already: delete one of the two",
    )


def _json(status: SpecDecodePolicyStatus) -> dict[str, Any]:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _key(policy: Mapping[str, Any]) -> tuple[str, str]:
    return policy["metadata"]["namespace"], policy["metadata"]["name"]
