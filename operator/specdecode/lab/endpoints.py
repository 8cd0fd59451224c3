"""Where the pods behind a Service answer."""

from __future__ import annotations

from typing import Any

from specdecode.cluster.kube import PODS, Kube, Resource

SERVICES = Resource("v1", "services")


async def ready_addresses(kube: Kube, namespace: str, service: str) -> list[str]:
    """`host:port` of each ready pod that a Service selects, for its first port.

    The API accepts no loopback address in an EndpointSlice, so this applies the endpoint controller's rule itself:
    pods that match the selector, are Ready and are not being deleted.
    """
    spec = (await kube.get(SERVICES, service, namespace))["spec"]
    selector = ",".join(f"{key}={value}" for key, value in spec.get("selector", {}).items())
    if not selector:
        return []
    pods = await kube.list(PODS, namespace, selector)
    ports = ((pod["status"]["podIP"], _target_port(pod, spec["ports"][0])) for pod in pods if _serves(pod))
    return sorted(f"{address}:{port}" for address, port in ports if port is not None)


def _serves(pod: dict[str, Any]) -> bool:
    conditions = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True" and not pod["metadata"].get("deletionTimestamp")


def _target_port(pod: dict[str, Any], port: dict[str, Any]) -> int | None:
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    declared = (declared for container in pod["spec"]["containers"] for declared in container.get("ports", []))
    return next((int(d["containerPort"]) for d in declared if d.get("name") == target), None)
