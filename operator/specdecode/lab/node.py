"""The process node: one Node object whose pods run as local processes, each pod on a loopback address of its own.

It does what a Deployment, a Job or an operator can see of a kubelet, and nothing else: no volumes, no limits on
resources, no `kubectl logs` or `exec`.
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from specdecode.cluster.kube import PODS, ApiError, Resource
from specdecode.lab.container import UNREACHABLE, Machine
from specdecode.lab.environment import Json
from specdecode.lab.pod import PodWorker
from specdecode.lab.podstatus import Placement, timestamp
from specdecode.lab.subnet import Subnet

NODES = Resource("v1", "nodes")

_RETRY = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeSpec:
    """What the Node object advertises. Nothing of it is enforced by the node; the scheduler counts it."""

    name: str = "gpu-1"
    gpus: int = 4
    cpu: str = "256"
    memory: str = "2Ti"
    pods: int = 250
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_json(self, address: str, version: str, now: datetime) -> Json:
        """The Node object, ready for pods."""
        at = timestamp(now)
        resources = {"cpu": self.cpu, "memory": self.memory, "pods": str(self.pods), "nvidia.com/gpu": str(self.gpus)}
        labels = {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", **self.labels}
        ready = {"type": "Ready", "status": "True", "reason": "ProcessNodeReady", "message": "pods run as processes"}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels},
            "status": {
                "capacity": resources,
                "allocatable": resources,
                "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": self.name}],
                "conditions": [{**ready, "lastHeartbeatTime": at, "lastTransitionTime": at}],
                "nodeInfo": {
                    "architecture": platform.machine(),
                    "bootID": "",
                    "containerRuntimeVersion": "process://1",
                    "kernelVersion": platform.release(),
                    "kubeProxyVersion": "",
                    "kubeletVersion": version,
                    "machineID": "",
                    "operatingSystem": "linux",
                    "osImage": platform.platform(),
                    "systemUUID": "",
                },
            },
        }


class Node:
    """A running process node. `folder` gets one folder a pod, with its logs."""

    def __init__(self, spec: NodeSpec, machine: Machine, subnet: Subnet, folder: Path) -> None:
        self.spec = spec
        self._machine, self._subnet, self._folder = machine, subnet, folder
        self._workers: dict[str, PodWorker] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def register(self) -> None:
        """Creates the Node object and makes it schedulable."""
        kube = self._machine.kube
        version = (await kube.request("GET", "/version"))["gitVersion"]
        await kube.create(NODES, self.spec.to_json(self._subnet.host, version, datetime.now(UTC)))
        # Admission gives a new node the taint `not-ready`, which the node-lifecycle controller would take away.
        await kube.patch(NODES, self.spec.name, None, {"spec": {"taints": None}})

    async def run(self) -> None:
        """Runs the pods that the scheduler binds to this node, until cancelled."""
        try:
            while True:
                try:
                    await self._follow(await self._list())
                except (ApiError, *UNREACHABLE) as e:
                    log.warning("node %s: %s", self.spec.name, e)
                    await asyncio.sleep(_RETRY)
                except Exception:
                    log.exception("node %s", self.spec.name)  # a node that has stopped would leave pods running
                    await asyncio.sleep(_RETRY)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _fields(self) -> str:
        return f"spec.nodeName={self.spec.name}"

    async def _list(self) -> str:
        """Brings the workers in line with the pods that there are; returns the resource version to watch from."""
        answer = await self._machine.kube.request("GET", PODS.path(), {"fieldSelector": self._fields})
        pods = {pod["metadata"]["uid"]: pod for pod in answer["items"]}
        for uid in self._workers.keys() - pods.keys():
            self._forget(uid)
        for pod in pods.values():
            self._see(pod)
        return str(answer["metadata"]["resourceVersion"])

    async def _follow(self, resource_version: str) -> None:
        async for event in self._machine.kube.watch(PODS, fields=self._fields, resource_version=resource_version):
            match event["type"]:
                case "ADDED" | "MODIFIED":
                    self._see(event["object"])
                case "DELETED":
                    self._forget(event["object"]["metadata"]["uid"])
                case "ERROR":
                    return  # e.g. 410 Gone: list again

    def _see(self, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        if uid in self._workers:
            self._workers[uid].update(pod)
            return
        metadata = pod["metadata"]
        folder = self._folder / f"{metadata['namespace']}_{metadata['name']}_{uid}"
        for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]):
            (folder / container["name"]).mkdir(parents=True, exist_ok=True)
        placement = Placement(self._subnet.take(), self._subnet.host, datetime.now(UTC))
        worker = self._workers[uid] = PodWorker(pod, self._machine, placement, folder)
        task = asyncio.create_task(self._run(worker), name=f"pod {metadata['namespace']}/{metadata['name']}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, worker: PodWorker) -> None:
        try:
            await worker.run()
        finally:
            self._subnet.give_back(worker.placement.pod_ip)

    def _forget(self, uid: str) -> None:
        # Not before the object is gone: until then, events about a pod that has left may still come.
        if worker := self._workers.pop(uid, None):
            worker.vanish()
