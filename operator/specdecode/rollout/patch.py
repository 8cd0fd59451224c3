"""The few fields of a Deployment that a change touches, and the patch that makes them so.

A JSON patch (RFC 6902) guarded by a test of `metadata.generation`: it changes exactly the fields named here, and is
refused when anybody changed the spec since it was read. (A server-side apply would delete what it stops naming, such as
the user's own rolling-update strategy after the change.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdecode.api.v1alpha1 import RollingParameters
from specdecode.policy.options import OURS, Container, digest

Operation = dict[str, Any]


@dataclass(frozen=True)
class Desired:
    """What the Deployment should say."""

    container: Container
    """The vLLM container's command line and environment (`OURS`); its other fields are left alone."""
    strategy: Mapping[str, Any]
    min_ready_seconds: int
    paused: bool


def borrowed(deployment: Mapping[str, Any]) -> RollingParameters:
    """What a change will have to give back."""
    spec = deployment["spec"]
    return RollingParameters(
        strategy=dict(spec.get("strategy") or {}),
        min_ready_seconds=spec.get("minReadySeconds"),
        paused=spec.get("paused"),
    )


def given_back(container: Container, fields: RollingParameters) -> Desired:
    """The Deployment with a container, and the borrowed fields as they were."""
    return Desired(container, fields.strategy, fields.min_ready_seconds or 0, fields.paused or False)


def rest_of_template(deployment: Mapping[str, Any], container: str) -> str:
    """A fingerprint of what a change leaves alone in the pod template: the same until somebody else touches it."""
    template = deployment["spec"]["template"]
    containers = [
        {f: v for f, v in c.items() if f not in OURS} if c["name"] == container else c
        for c in template["spec"]["containers"]
    ]
    return digest({**template, "spec": {**template["spec"], "containers": containers}})


def patch(deployment: Mapping[str, Any], desired: Desired) -> list[Operation]:
    """The operations that make a Deployment what is desired; none when it is that already."""
    spec = deployment["spec"]
    containers = spec["template"]["spec"]["containers"]
    index = next(i for i, c in enumerate(containers) if c["name"] == desired.container["name"])
    path = f"/spec/template/spec/containers/{index}"
    changes: list[Operation] = []
    for field in OURS:
        changes += _set(containers[index], field, desired.container.get(field) or None, path)
    changes += _set(spec, "strategy", dict(desired.strategy) or None, "/spec")
    changes += _set(spec, "minReadySeconds", desired.min_ready_seconds or None, "/spec")
    changes += _set(spec, "paused", desired.paused or None, "/spec")
    if not changes:
        return []
    return [{"op": "test", "path": "/metadata/generation", "value": deployment["metadata"]["generation"]}, *changes]


def _set(parent: Mapping[str, Any], field: str, value: Any, path: str) -> list[Operation]:
    """Makes one field a value; None removes it. Empty and absent are the same."""
    live = parent.get(field) or None
    if live == value:
        return []
    if value is None:
        return [{"op": "remove", "path": f"{path}/{field}"}]
    return [{"op": "add", "path": f"{path}/{field}", "value": value}]
