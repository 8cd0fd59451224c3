"""ConfigMaps that belong to a policy: they carry its owner reference and go with it. One that is not ours is left
alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdecode.api.v1alpha1 import API_VERSION, GROUP, KIND
from specdecode.cluster.kube import Json, Resource

CONFIG_MAPS = Resource("v1", "configmaps")
MANAGED_BY = "app.kubernetes.io/managed-by"
POLICY = f"{GROUP}/policy"
MANAGER = "specdecode"

MAX_NAME, _MAX_LABEL = 253, 63


@dataclass(frozen=True)
class Owner:
    """A policy, as the owner of ConfigMaps."""

    name: str
    namespace: str
    uid: str

    @classmethod
    def of(cls, policy: Mapping[str, Any]) -> Owner:
        """The owner that a policy object is."""
        meta = policy["metadata"]
        return cls(meta["name"], meta["namespace"], meta["uid"])

    def owns(self, found: Json) -> bool:
        """Whether a ConfigMap is ours."""
        labelled = (found["metadata"].get("labels") or {}).get(MANAGED_BY) == MANAGER
        return labelled and any(owner.get("uid") == self.uid for owner in _owners(found))

    def succeeds(self, found: Json) -> bool:
        """Whether it belongs to a policy of this name that was deleted: the garbage collector is about to take it."""
        uids = {o.get("uid") for o in _owners(found) if (o.get("kind"), o.get("name")) == (KIND, self.name)}
        return bool(uids) and self.uid not in uids

    def manifest(self, name: str, data: Mapping[str, str]) -> Json:
        """A ConfigMap of ours."""
        # No blockOwnerDeletion: to set it takes rights on the policy's finalizers where admission checks that.
        owner = {"apiVersion": API_VERSION, "kind": KIND, "name": self.name, "uid": self.uid}
        return {
            "apiVersion": CONFIG_MAPS.api_version,
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": {MANAGED_BY: MANAGER, POLICY: shortened(self.name, _MAX_LABEL)},
                "ownerReferences": [owner],
            },
            "data": dict(data),
        }


def shortened(name: str, limit: int = MAX_NAME) -> str:
    """The name itself, or its beginning and a hash: still a name, and no other's."""
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: limit - 9].rstrip('-.')}-{digest}"


def _owners(found: Json) -> list[Json]:
    return list(found["metadata"].get("ownerReferences") or [])
