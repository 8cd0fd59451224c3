"""What a workload should look like once its policy is gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specdecode.api.v1alpha1 import SpecDecodePolicyStatus
from specdecode.policy.options import fingerprint, same, with_fields
from specdecode.rollout.patch import Desired, borrowed, given_back


def cleared(deployment: Mapping[str, Any], status: SpecDecodePolicyStatus, *, restore: bool) -> Desired | None:
    """The Deployment without its policy; None: leave it alone.

    An unproven change never stays, and what it borrowed is given back. A command line that is not of our writing is its
    owner's. Only the status is asked, so that it works on a workload that can no longer be understood.
    """
    original, rollout = status.original, status.rollout
    if original is None:
        return None
    containers = deployment["spec"]["template"]["spec"]["containers"]
    live = next((c for c in containers if c["name"] == original.container), None)
    if live is None:
        return None
    container, ours = live, fingerprint(live) == status.applied
    if rollout is not None:
        source, target = (with_fields(live, f) for f in (rollout.source_fields, rollout.target_fields))
        if same(live, target) or same(live, source):
            container, ours = source, True
    if restore and ours:
        container = with_fields(live, original)
    if rollout is None and same(container, live):
        return None
    return given_back(container, rollout.borrowed if rollout is not None else borrowed(deployment))
