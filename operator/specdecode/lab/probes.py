"""What a probe is, and what its results add up to. The probing itself is in `probing.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Probe:
    """A container's startup, readiness or liveness probe with the API's defaults. Times in seconds."""

    handler: Json
    initial_delay: float = 0.0
    period: float = 10.0
    timeout: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3
    grace: float | None = None

    @classmethod
    def parse(cls, probe: Json | None) -> Probe | None:
        """A probe of a container spec; None if there is none."""
        if probe is None:
            return None
        return cls(
            handler=probe,
            initial_delay=probe.get("initialDelaySeconds", 0),
            period=probe.get("periodSeconds") or 10,
            timeout=probe.get("timeoutSeconds") or 1,
            success_threshold=probe.get("successThreshold") or 1,
            failure_threshold=probe.get("failureThreshold") or 3,
            grace=probe.get("terminationGracePeriodSeconds"),
        )


@dataclass(frozen=True)
class Verdict:
    """What a probe's results have shown so far; `passing` changes when a threshold is reached, None is undecided."""

    passing: bool | None = None
    streak: int = 0
    last: bool | None = None

    def after(self, success: bool, probe: Probe) -> Verdict:
        """The verdict after one more result."""
        streak = self.streak + 1 if success == self.last else 1
        threshold = probe.success_threshold if success else probe.failure_threshold
        return replace(self, passing=success if streak >= threshold else self.passing, streak=streak, last=success)
