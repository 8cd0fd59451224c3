from typing import Any

import pytest

from specdecode.lab.endpoints import ready_addresses

METRICS, HTTP = {"name": "metrics", "containerPort": 9}, {"name": "http", "containerPort": 8000}


class Cluster:
    """One Service and some pods; the part of `Kube` that the function asks."""

    def __init__(self, service: dict[str, Any], *pods: dict[str, Any]) -> None:
        self.service, self.pods, self.selectors = service, pods, list[str]()

    async def get(self, *_: Any) -> dict[str, Any]:
        return {"spec": self.service}

    async def list(self, _resource: Any, _namespace: str, selector: str) -> list[dict[str, Any]]:
        self.selectors.append(selector)
        return [*self.pods]


def pod(address: str, ready: str = "True", **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": metadata,
        "spec": {"containers": [{"ports": [port]} for port in (METRICS, HTTP)]},
        "status": {"podIP": address, "conditions": [{"type": "Ready", "status": ready}]},
    }


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ({"port": 80, "targetPort": "http"}, ["127.0.0.2:8000"]),
        ({"port": 80, "targetPort": 8001}, ["127.0.0.2:8001"]),
        ({"port": 80}, ["127.0.0.2:80"]),
        ({"port": 80, "targetPort": "none"}, []),
    ],
)
async def test_the_target_port_is_resolved_in_the_pod(port: dict[str, Any], expected: list[str]) -> None:
    cluster: Any = Cluster({"selector": {"app": "x", "tier": "y"}, "ports": [port]}, pod("127.0.0.2"))
    assert await ready_addresses(cluster, "ns", "web") == expected
    assert cluster.selectors == ["app=x,tier=y"]


async def test_only_ready_pods_that_stay_are_endpoints() -> None:
    leaving = pod("127.0.0.3", deletionTimestamp="2026-01-02T03:04:05Z")
    pods = (pod("127.0.0.4"), pod("127.0.0.2", ready="False"), leaving)
    cluster: Any = Cluster({"selector": {"app": "x"}, "ports": [{"port": 80}]}, *pods)
    assert await ready_addresses(cluster, "ns", "web") == ["127.0.0.4:80"]


async def test_a_service_without_a_selector_has_no_endpoints() -> None:
    cluster: Any = Cluster({"ports": [{"port": 80}]}, pod("127.0.0.2"))
    assert await ready_addresses(cluster, "ns", "web") == []
