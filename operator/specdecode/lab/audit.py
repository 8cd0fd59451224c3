"""Who wrote what: the API server's audit log, at level Metadata, of all requests that change something."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}],
}


@dataclass(frozen=True)
class Write:
    """One write request that the API server answered. `user` is e.g. `admin` or `system:serviceaccount:ns:name`."""

    at: datetime
    user: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    status: int


def read(log: Path) -> list[Write]:
    """The writes so far, oldest first. A line that is being written at this moment is left for the next reading."""
    if not log.exists():
        return []
    text = log.read_text()
    return [_write(json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]


def _write(event: dict[str, Any]) -> Write:
    target = event.get("objectRef", {})
    return Write(
        at=datetime.fromisoformat(event["stageTimestamp"].replace("Z", "+00:00")),
        user=event["user"].get("username", ""),
        verb=event["verb"],
        resource=target.get("resource", ""),
        subresource=target.get("subresource", ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        status=event.get("responseStatus", {}).get("code", 0),
    )
