"""The environment, command line and ports of a container, from its spec, as a kubelet makes them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specdecode.lab.expansion import expand

Json = dict[str, Any]
Key = tuple[str, str]


class ConfigError(Exception):
    """A container refers to something that is not there; a kubelet reports it as CreateContainerConfigError."""


@dataclass(frozen=True)
class Sources:
    """What `valueFrom` and `envFrom` may refer to: data by ConfigMap name and by Secret name of the pod's namespace."""

    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def references(container: Json) -> tuple[set[str], set[str]]:
    """The names of the ConfigMaps and of the Secrets that a container's environment refers to."""
    config_maps, secrets = set(), set()
    for source in [entry.get("valueFrom", {}) for entry in container.get("env", [])]:
        config_maps |= {source["configMapKeyRef"]["name"]} if "configMapKeyRef" in source else set()
        secrets |= {source["secretKeyRef"]["name"]} if "secretKeyRef" in source else set()
    for source in container.get("envFrom", []):
        config_maps |= {source["configMapRef"]["name"]} if "configMapRef" in source else set()
        secrets |= {source["secretRef"]["name"]} if "secretRef" in source else set()
    return config_maps, secrets


def data_of(source: Json) -> dict[str, str]:
    """The data of a ConfigMap as it is, that of a Secret decoded from base64."""
    data = source.get("data") or {}
    if source.get("kind") == "Secret":
        return {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}
    return dict(data)


def environment(container: Json, pod: Json, pod_ip: str, host_ip: str, sources: Sources) -> dict[str, str]:
    """The variables of `envFrom`, then those of `env`, each expanded with those before it.

    Raises `ConfigError` for a reference to what is missing and not optional, or to a field that a node cannot tell.
    """
    result: dict[str, str] = {}
    for source in container.get("envFrom", []):
        kind, reference, known = _source(source, "configMapRef", "secretRef", sources)
        data = known.get(reference["name"])
        if data is None:
            if reference.get("optional"):
                continue
            raise ConfigError(f'{kind} "{reference["name"]}" not found')
        result |= {source.get("prefix", "") + key: value for key, value in data.items()}
    for entry in container.get("env", []):
        if "valueFrom" in entry:
            value = _value_from(entry["valueFrom"], pod, pod_ip, host_ip, sources)
            if value is None:
                continue
        else:
            value = expand(entry.get("value", ""), result)
        result[entry["name"]] = value
    return result


def command_line(container: Json, entrypoint: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    """`command`, or else the image's entrypoint, followed by `args`."""
    command = [expand(word, variables) for word in container.get("command") or []]
    return (command or list(entrypoint)) + [expand(word, variables) for word in container.get("args") or []]


def port_number(container: Json, port: int | str) -> int:
    """A port given by its number or by its name in `ports`. Raises `ConfigError` for a name that is not there."""
    if isinstance(port, int):
        return port
    for declared in container.get("ports", []):
        if declared.get("name") == port:
            return int(declared["containerPort"])
    if port.isdigit():
        return int(port)
    raise ConfigError(f'couldn\'t find port "{port}" in container "{container["name"]}"')


def _source(
    source: Json, config_map: str, secret: str, known: Sources
) -> tuple[str, Json, Mapping[str, Mapping[str, str]]]:
    if config_map in source:
        return "configmap", source[config_map], known.config_maps
    return "secret", source[secret], known.secrets


def _value_from(value_from: Json, pod: Json, pod_ip: str, host_ip: str, sources: Sources) -> str | None:
    if "fieldRef" in value_from:
        return _field(value_from["fieldRef"]["fieldPath"], pod, pod_ip, host_ip)
    if "configMapKeyRef" not in value_from and "secretKeyRef" not in value_from:
        raise ConfigError(f"valueFrom {', '.join(value_from)} is not supported by the process node")
    kind, reference, known = _source(value_from, "configMapKeyRef", "secretKeyRef", sources)
    data = known.get(reference["name"])
    if data is not None and reference["key"] in data:
        return data[reference["key"]]
    if reference.get("optional"):
        return None
    if data is None:
        raise ConfigError(f'{kind} "{reference["name"]}" not found')
    raise ConfigError(f'couldn\'t find key {reference["key"]} in {kind} "{reference["name"]}"')


def _field(path: str, pod: Json, pod_ip: str, host_ip: str) -> str:
    metadata, spec = pod["metadata"], pod["spec"]
    match path:
        case "metadata.name" | "metadata.namespace" | "metadata.uid":
            return str(metadata[path.removeprefix("metadata.")])
        case "spec.nodeName" | "spec.serviceAccountName":
            return str(spec.get(path.removeprefix("spec."), ""))
        case "status.podIP" | "status.podIPs":
            return pod_ip
        case "status.hostIP" | "status.hostIPs":
            return host_ip
    for kind in ("labels", "annotations"):
        if path.startswith(f"metadata.{kind}['") and path.endswith("']"):
            return str(metadata.get(kind, {}).get(path[len(f"metadata.{kind}['") : -2], ""))
    raise ConfigError(f"fieldPath {path} is not supported by the process node")
