"""Applies manifests to a cluster in an order that works."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from specdecode.cluster.kube import Kube, Resource
from specdecode.lab.errors import LabError
from specdecode.lab.eventually import eventually

Json = dict[str, Any]

CRDS = Resource("apiextensions.k8s.io/v1", "customresourcedefinitions")

_FIRST = ("Namespace", "CustomResourceDefinition", "ServiceAccount")


def load(source: Path) -> list[Json]:
    """The objects of a YAML file, or of all YAML files of a folder. Lists are taken apart."""
    files = sorted(source.rglob("*.y*ml")) if source.is_dir() else [source]
    documents = [document for file in files for document in yaml.safe_load_all(file.read_text()) if document]
    return [item for document in documents for item in (document["items"] if _is_list(document) else [document])]


def in_order(manifests: Sequence[Json]) -> list[Json]:
    """What others need first: namespaces, custom resource definitions, service accounts; else the order given."""
    return sorted(manifests, key=lambda m: _FIRST.index(m["kind"]) if m["kind"] in _FIRST else len(_FIRST))


async def apply(kube: Kube, manifests: Sequence[Json], namespace: str) -> list[Json]:
    """Server-side apply of all; returns the objects as the API server has them then.

    `namespace` is for objects that name none. Raises `LabError` for a kind that the cluster does not know.
    """
    applied = []
    for manifest in in_order(manifests):
        resource, namespaced = await _resource(kube, manifest)
        where = manifest["metadata"].get("namespace", namespace) if namespaced else None
        applied.append(await kube.apply(resource, manifest, where))
        if manifest["kind"] == "CustomResourceDefinition":
            await _established(kube, manifest["metadata"]["name"])
    return applied


async def _resource(kube: Kube, manifest: Json) -> tuple[Resource, bool]:
    version, kind = manifest["apiVersion"], manifest["kind"]
    listing = await kube.request("GET", f"/api/{version}" if version == "v1" else f"/apis/{version}")
    for entry in listing["resources"]:
        if entry["kind"] == kind and "/" not in entry["name"]:
            return Resource(version, entry["name"]), entry["namespaced"]
    raise LabError(f"{version} has no kind {kind}: is its CustomResourceDefinition applied?")


async def _established(kube: Kube, name: str) -> None:
    async def check() -> bool:
        return _has_condition(await kube.get(CRDS, name), "Established")

    await eventually(f"the CustomResourceDefinition {name} to be established", check)


def _has_condition(object_: Json, kind: str) -> bool:
    conditions = object_.get("status", {}).get("conditions") or []
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def _is_list(document: Json) -> bool:
    return str(document.get("kind", "")).endswith("List") and "items" in document
