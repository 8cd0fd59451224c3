"""Finds out why a canary's container does not run: from its status, and from the log of its last run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from specdecode.cluster.kube import ApiError, Json, Kube
from specdecode.vllm.startup import LOG_BYTES, LOG_LINES, Diagnosis, Ending, diagnose
from specdecode.vllm.startup_failures import Failure

_OPEN = (Failure.UNRECOGNISED, Failure.KILLED)
"""Where the log would have said more."""


class PostMortem:
    """Reads each run's log once. A log that cannot be read (no right, no kubelet) is no error: the status remains."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._logs: dict[tuple[str, int], str | ApiError] = {}
        """By the pod's uid and how often its container had been restarted."""

    def forget(self, known: Collection[str]) -> None:
        """Drops what is kept of pods that are gone; `known` are the uids of the others."""
        self._logs = {key: log for key, log in self._logs.items() if key[0] in known}

    async def diagnose(self, pod: Json, container: str) -> Diagnosis | None:
        """Why the container of a pod has failed, or waits; None where it has not, or nothing says so."""
        state: Json = next((s for s in pod["status"].get("containerStatuses") or [] if s["name"] == container), {})
        now, before = state.get("state") or {}, (state.get("lastState") or {}).get("terminated")
        ended = now.get("terminated") or before or {}
        waiting = now.get("waiting") or {}
        if not ended and not waiting:
            return None
        told = ended if waiting.get("reason") in (None, "CrashLoopBackOff") else waiting
        log = await self._log(pod, container, state, previous="terminated" not in now) if ended else ""
        unread = log if isinstance(log, ApiError) else None
        found = diagnose(
            "" if isinstance(log, ApiError) else log,
            Ending(
                waiting=waiting.get("reason") or "",
                message=told.get("message") or "",
                reason=ended.get("reason") or "",
                exit_code=ended.get("exitCode"),
            ),
        )
        if found is not None and found.failure in _OPEN and unread is not None:
            why = unread.reason or unread.status
            return replace(found, cure=f"{found.cure} (the operator could not read the pod's log: {why})")
        return found

    async def _log(self, pod: Json, container: str, state: dict[str, Any], *, previous: bool) -> str | ApiError:
        meta = pod["metadata"]
        key = (meta["uid"], state.get("restartCount", 0) + ("terminated" in (state.get("state") or {})))
        if key not in self._logs:
            try:
                self._logs[key] = await self._kube.read_log(
                    meta["name"], meta["namespace"], container, LOG_LINES, LOG_BYTES, previous=previous
                )
            except ApiError as e:
                self._logs[key] = e
        return self._logs[key]
