"""An API server in memory, as far as the operator uses one: objects by kind, patches, owner references."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from specdecode.cluster.kube import DEPLOYMENTS, JSON_PATCH, PODS, POLICIES, REPLICASETS, ApiError, Json, Kube, Resource


class FakeKube(Kube):
    """Holds objects and takes patches; `patches` has them all, `failures` the errors to answer with first.

    Like the API server it counts `resourceVersion` up at each write of a ConfigMap, and refuses a patch that names
    another one.
    """

    def __init__(self, *objects: tuple[Resource, Json]) -> None:
        self.objects: dict[tuple[str, str], Json] = {(r.plural, o["metadata"]["name"]): o for r, o in objects}
        self.patches: list[tuple[str, Any]] = []
        self.created: list[tuple[str, Json]] = []
        self.failures: dict[str, ApiError] = {}
        self.logs: dict[str, str] = {}
        """By pod."""
        self.logs_read: list[tuple[str, bool]] = []
        """Pod, and whether its previous run was asked for."""

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Json:
        self._fail(f"get {resource.plural}")
        if (resource.plural, name) not in self.objects:
            raise ApiError(404, "NotFound", f"{resource.plural} {name!r} not found")
        return copy.deepcopy(self.objects[resource.plural, name])

    async def create(self, resource: Resource, body: Json, namespace: str | None = None) -> Json:
        self._fail(f"create {resource.plural}")
        key = (resource.plural, body["metadata"]["name"])
        if key in self.objects:
            raise ApiError(409, "AlreadyExists", f"{resource.plural} {key[1]!r} already exists")
        self.created.append((resource.plural, copy.deepcopy(body)))
        self.objects[key] = merge_patched(body, {"metadata": {"resourceVersion": "1"}})
        return self.objects[key]

    async def list(self, resource: Resource, namespace: str | None = None, selector: str = "") -> list[Json]:
        self._fail(f"list {resource.plural}")
        return [copy.deepcopy(o) for (plural, _), o in self.objects.items() if plural == resource.plural]

    async def patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        body: Any,
        content_type: str = "",
        subresource: str | None = None,
    ) -> Json:
        self._fail(f"patch {resource.plural}")
        self.patches.append((resource.plural, copy.deepcopy(body)))
        if (resource.plural, name) not in self.objects:
            raise ApiError(404, "NotFound", f"{resource.plural} {name!r} not found")
        version = self.objects[resource.plural, name]["metadata"].get("resourceVersion")
        if content_type != JSON_PATCH and version is not None:
            if body.get("metadata", {}).get("resourceVersion", version) != version:
                raise ApiError(409, "Conflict", "the object has been modified")
            body = merge_patched(body, {"metadata": {"resourceVersion": str(int(version) + 1)}})
        if content_type == JSON_PATCH:
            new = json_patched(self.objects[resource.plural, name], body)
            new["metadata"]["generation"] += 1
        else:
            new = merge_patched(self.objects[resource.plural, name], body)
        self.objects[resource.plural, name] = new
        return new

    async def read_log(
        self, pod: str, namespace: str, container: str, lines: int | None, size: int, *, previous: bool = False
    ) -> str:
        self.logs_read.append((pod, previous))
        self._fail("log pods")
        return self.logs.get(pod, "")

    def _fail(self, call: str) -> None:
        if (error := self.failures.pop(call, None)) is not None:
            raise error

    def written(self, resource: Resource) -> list[Any]:
        """The patches of a kind, in order."""
        return [body for plural, body in self.patches if plural == resource.plural]


def merge_patched(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2, to the letter."""
    if not isinstance(patch, Mapping):
        return patch
    new = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = merge_patched(new.get(key), value)
    return new


def json_patched(target: Json, operations: list[Json]) -> Json:
    """RFC 6902: `test`, `add` and `remove` of object fields. Raises `ApiError` 422 when a test fails."""
    new = copy.deepcopy(target)
    for operation in operations:
        *path, last = operation["path"].lstrip("/").split("/")
        parent: Any = new
        for key in path:
            parent = parent[int(key)] if isinstance(parent, list) else parent[key]
        match operation["op"]:
            case "test":
                if parent[last] != operation["value"]:
                    raise ApiError(422, "Invalid", "testing value failed")
            case "add":
                parent[last] = operation["value"]
            case "remove":
                del parent[last]
    return new


def owned(uid: str) -> list[Json]:
    return [{"uid": uid, "controller": True}]


def replicaset(hash_: str, template: Json, owner: str = "d") -> tuple[Resource, Json]:
    """A ReplicaSet of a Deployment's template, as the controller makes it."""
    made = copy.deepcopy(template)
    made["metadata"].setdefault("labels", {})["pod-template-hash"] = hash_
    meta = {
        "name": f"chat-{hash_}",
        "uid": f"rs-{hash_}",
        "labels": {"pod-template-hash": hash_},
        "ownerReferences": owned(owner),
    }
    return REPLICASETS, {"metadata": meta, "spec": {"template": made}}


def running(
    name: str, hash_: str, template: Json, ip: str | None = "127.0.0.1", **fields: Any
) -> tuple[Resource, Json]:
    """A ready pod of a ReplicaSet."""
    meta: Json = {
        "name": name,
        "namespace": "serving",
        "uid": f"pod-{name}",
        "labels": {"pod-template-hash": hash_},
        "ownerReferences": owned(f"rs-{hash_}"),
    }
    status: Json = {
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [{"name": "vllm", "restartCount": 0, "state": {"running": {}}}],
    }
    if ip is not None:
        status["podIP"] = ip
    status |= fields.pop("status", {})
    return PODS, {"metadata": meta | fields, "spec": copy.deepcopy(template["spec"]), "status": status}


def policy(spec: Mapping[str, Any], status: Json | None = None, generation: int = 1) -> tuple[Resource, Json]:
    """A policy object."""
    meta = {"name": "chat", "namespace": "serving", "generation": generation, "uid": "p"}
    return POLICIES, {"metadata": meta, "spec": dict(spec), "status": status or {}}


def deployed(deployment: Json) -> tuple[Resource, Json]:
    """A Deployment whose roll is over."""
    n = deployment["spec"].get("replicas", 1)
    counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas", "readyReplicas"), n)
    deployment["status"] = counts | {"observedGeneration": deployment["metadata"]["generation"]}
    deployment["spec"].setdefault("selector", {"matchLabels": {"app": "chat"}})
    return DEPLOYMENTS, deployment
