"""Runs one pod and reports its status, from its binding to the node until its object is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from specdecode.cluster.kube import PODS, ApiError, Kube, Resource
from specdecode.lab import podstatus
from specdecode.lab.container import UNREACHABLE, Container, Machine, Surroundings
from specdecode.lab.environment import Json
from specdecode.lab.podstatus import Placement

SERVICE_ACCOUNTS = Resource("v1", "serviceaccounts")

_TOKEN_LIFETIME = 30 * 24 * 3600
_RETRY = 0.5

log = logging.getLogger(__name__)


async def service_account_token(kube: Kube, namespace: str, name: str, pod: Json | None = None) -> str:
    """A token of a service account from the TokenRequest API, valid no longer than the pod if one is given."""
    spec: Json = {"expirationSeconds": _TOKEN_LIFETIME}
    if pod is not None:
        reference = {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
        spec["boundObjectRef"] = reference
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    answer = await kube.request("POST", SERVICE_ACCOUNTS.path(namespace, name, "token"), body=body)
    return str(answer["status"]["token"])


class PodWorker:
    """One pod on the node. `run` ends when the pod's object is gone."""

    def __init__(self, pod: Json, machine: Machine, placement: Placement, folder: Path) -> None:
        self.pod, self.placement = pod, placement
        self._machine = machine
        self._written: Json = {}
        self._dirty, self._leaving, self._gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

        spec = pod["spec"]
        self._account = spec.get("serviceAccountName", "default")
        self._kubeconfig = folder / "kubeconfig.yaml"
        self._logs_in = self._account != "default" or bool(spec.get("automountServiceAccountToken"))
        variables = {"POD_IP": placement.pod_ip, "HOSTNAME": pod["metadata"]["name"]}
        if self._logs_in:
            variables["KUBECONFIG"] = str(self._kubeconfig)
        around = Surroundings(machine, pod, placement, folder, variables)
        policy, init = spec.get("restartPolicy", "Always"), spec.get("initContainers", [])
        waiting = "PodInitializing" if init else "ContainerCreating"
        self._main = [Container(c, around, self._dirty.set, policy, waiting) for c in spec["containers"]]
        policy = "Never" if policy == "Never" else "OnFailure"
        self._init = [Container(c, around, self._dirty.set, policy, waiting) for c in init]
        self.update(pod)

    def update(self, pod: Json) -> None:
        """Takes note of the object's newest version."""
        self.pod = pod
        self._dirty.set()
        if pod["metadata"].get("deletionTimestamp"):
            self._leaving.set()

    def vanish(self) -> None:
        """Takes note that the object is gone, e.g. after a forced deletion."""
        self._gone.set()
        self._leaving.set()

    async def run(self) -> None:
        """Runs the containers until the pod is deleted, then ends them and removes the object."""
        work = asyncio.create_task(self._work(), name=f"work {self._name}")
        work.add_done_callback(_log_failure)
        report = asyncio.create_task(self._report(), name=f"report {self._name}")
        report.add_done_callback(_log_failure)
        try:
            await self._leaving.wait()
            work.cancel()
            await asyncio.wait({work})
            await self._stop_containers()
        finally:
            work.cancel()
            report.cancel()
            await asyncio.wait({work, report})
        if not self._gone.is_set():
            await self._until_done(self._write_status)
            await self._until_done(self._remove)

    @property
    def _name(self) -> str:
        return f"{self.pod['metadata']['namespace']}/{self.pod['metadata']['name']}"

    async def _work(self) -> None:
        if self._logs_in:
            await self._log_in()
        for container in self._init:
            await container.run()
            if not container.state.succeeded:
                return
        async with asyncio.TaskGroup() as group:
            for container in self._main:
                group.create_task(container.run(), name=f"{self._name}/{container.spec['name']}")

    async def _log_in(self) -> None:
        while True:
            if await self._until_done(self._write_kubeconfig):
                return
            await asyncio.sleep(_RETRY)  # its service account is not there (any more)

    async def _write_kubeconfig(self) -> None:
        namespace = self.pod["metadata"]["namespace"]
        token = await service_account_token(self._machine.kube, namespace, self._account, self.pod)
        self._machine.kubeconfig(self._kubeconfig, token, namespace)

    async def _stop_containers(self) -> None:
        grace = 0.0 if self._gone.is_set() else float(self.pod["metadata"].get("deletionGracePeriodSeconds", 30))
        containers = [*self._init, *self._main]
        stops = asyncio.gather(*(container.stop(grace) for container in containers))
        gone = asyncio.create_task(self._gone.wait())
        either: set[asyncio.Future[Any]] = {stops, gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not stops.done():
                for container in containers:
                    container.kill()
            await stops
        finally:
            gone.cancel()

    async def _report(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._until_done(self._write_status)

    async def _write_status(self) -> None:
        status = self._status()
        if status == self._written:
            return
        # The uid makes the API server refuse a status meant for an earlier pod of the same name.
        body = {"metadata": {"uid": self.pod["metadata"]["uid"]}, "status": status}
        namespace, name = self.pod["metadata"]["namespace"], self.pod["metadata"]["name"]
        await self._machine.kube.patch(PODS, name, namespace, body, subresource="status")
        self._written = status

    def _status(self) -> Json:
        # What we wrote is newer than what the watch has shown so far, but only of our own conditions.
        seen = self.pod.get("status", {}).get("conditions", [])
        ours = [c for c in self._written.get("conditions", []) if c["type"] in podstatus.OUR_CONDITIONS]
        init, main = ([container.state for container in group] for group in (self._init, self._main))
        return podstatus.pod_status(self.pod, self.placement, init, main, [*seen, *ours], datetime.now(UTC))

    async def _remove(self) -> None:
        metadata = self.pod["metadata"]
        await self._machine.kube.delete(PODS, metadata["name"], metadata["namespace"], grace_seconds=0)

    async def _until_done(self, request: Callable[[], Awaitable[None]]) -> bool:
        """Makes a request until the API server accepts it (True) or says that its object is gone (False)."""
        while True:
            try:
                await request()
            except (ApiError, *UNREACHABLE) as e:
                if isinstance(e, ApiError) and e.status in (404, 409):
                    return False
                log.warning("%s: %s", self._name, e)
                await asyncio.sleep(_RETRY)
            else:
                return True


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed", task.get_name(), exc_info=error)
