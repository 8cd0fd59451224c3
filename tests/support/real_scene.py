"""A scene on real nodes: clients reach the workload by its Service alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import aiohttp

from specdecode.cluster.kube import Json
from specdecode.lab.endpoints import SERVICES
from specdecode.lab.realnodes.network import Sockets
from specdecode.sim.workload import Phase
from support.scene import NAME, Scene, deployment
from support.traffic import SUMMARIES, Traffic

GPU = "nvidia.com/gpu"


def session_through(sockets: Sockets) -> aiohttp.ClientSession:
    """Clients in the cluster's network, with a connection per request: a Service balances connections."""
    connector = aiohttp.TCPConnector(
        limit=0, force_close=True, socket_factory=lambda address: sockets.open(address[0], address[1], address[2])
    )
    return aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None, sock_connect=10), trust_env=False
    )


def real_deployment(
    replicas: int = 2, *, nodes: Sequence[str], env: dict[str, str] | None = None, **fields: Any
) -> Json:
    """A vLLM Deployment as it would be in production: a GPU for each pod, some nodes, a preStop hook that outlasts the
    Service's memory, all probes."""
    made = deployment(
        replicas,
        resources=fields.pop("resources", {GPU: "1"}),
        env={"SPECDECODE_SIM_LINGER_SECONDS": "0", **(env or {})},
        **fields,
    )
    pod = made["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    health = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 5}
    container |= {
        "startupProbe": {**health, "periodSeconds": 1, "failureThreshold": 60},
        "livenessProbe": {**health, "periodSeconds": 5, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "3"]}}},
    }
    wanted = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(nodes)}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [wanted]}]}
    pod["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    return made


SERVICE: Json = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": NAME},
    "spec": {"selector": {"app": NAME}, "ports": [{"port": 8000, "targetPort": "http"}]},
}


def how_it_ended(change: Json) -> tuple[str, str]:
    """What was to run, and whether it does."""
    return change["target"]["profile"], change["outcome"]


class RealScene(Scene):
    """What a test plays in."""

    _service: str

    async def open(self) -> None:
        """Makes the namespace."""
        await self.lab.make_namespaces(self.namespace)

    async def serve(self, manifest: Json | None = None, kind: Phase = SUMMARIES) -> Traffic:
        """Starts a Deployment and its Service and, once kube-proxy knows them, its clients."""
        await self.lab.apply([SERVICE, manifest or deployment()], self.namespace)
        service = await self.kube.get(SERVICES, NAME, self.namespace)
        self._service = f"http://{service['spec']['clusterIP']}:8000"
        await self.until("the Deployment to be up", lambda: self.settled, within=120)
        await self.lab.wait("the Service to answer", self._answers)
        return self.load(kind)

    async def _answers(self) -> bool:
        try:
            async with self._session.get(f"{self._service}/health") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    def endpoints(self) -> list[str]:
        """The Service's own address."""
        return [self._service]
