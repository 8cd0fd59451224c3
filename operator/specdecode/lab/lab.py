"""A control plane and a process node, as one thing to open and close."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from specdecode.cluster.kube import Kube
from specdecode.lab import binaries, kubeconfig, probing
from specdecode.lab.backoff import BackOff
from specdecode.lab.container import Machine
from specdecode.lab.controlplane import ControlPlane, User, loopback
from specdecode.lab.images import DEFAULT_IMAGES, Image
from specdecode.lab.lifeline import Lifeline
from specdecode.lab.local_cluster import LocalCluster
from specdecode.lab.node import Node, NodeSpec
from specdecode.lab.pod import service_account_token
from specdecode.lab.subnet import Subnet

_NODE_ROLE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "lab:nodes"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:nodes"}],
}


class Lab(LocalCluster):
    """A local cluster. Open it with `async with Lab(gpus=4) as lab:`; all of it ends with the block or the process.

    `images`: patterns of image names and what runs instead, looked at before the default ones (vLLM, the operator).
    `folder`: where state and logs go; without one a temporary folder, removed at the end.
    `back_off`: of crashing containers, as a kubelet's unless tests want it shorter.
    Raises `LabError` if the control plane has not been built or does not start.
    """

    def __init__(
        self,
        gpus: int = 4,
        images: Mapping[str, Image] | None = None,
        *,
        node: str = "gpu-1",
        labels: Mapping[str, str] | None = None,
        back_off: BackOff | None = None,
        folder: Path | None = None,
    ) -> None:
        self.images: dict[str, Image] = {**(images or {}), **DEFAULT_IMAGES}
        self._node = NodeSpec(node, gpus, labels=labels or {})
        self._back_off = back_off or BackOff()
        super().__init__(folder)

    async def _start(self, stack: AsyncExitStack) -> None:
        program = binaries.control_plane()
        if self._given_folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="specdecode-lab-"))
            lifeline = Lifeline(remove=[self.folder])
        else:
            self.folder = self._given_folder.resolve()
            self.folder.mkdir(parents=True, exist_ok=True)
            lifeline = Lifeline()
        stack.push_async_callback(lifeline.close)
        subnet = Subnet.claim()
        stack.callback(subnet.close)

        plane = self._control_plane = ControlPlane(self.folder, program, loopback(subnet), lifeline)
        user = User(f"system:node:{self._node.name}", ("system:nodes",))
        await plane.start([user])
        self.kube = await stack.enter_async_context(await Kube.connect(str(self.kubeconfig)))
        await self.apply([_NODE_ROLE])

        machine = Machine(
            kube=await stack.enter_async_context(await Kube.connect(str(plane.kubeconfig(user.name)))),
            kubeconfig=self._write_kubeconfig,
            lifeline=lifeline,
            http=await stack.enter_async_context(probing.http_client()),
            images=self.images,
            back_off=self._back_off,
        )
        node = Node(self._node, machine, subnet, self.folder / "pods")
        await node.register()
        await self.ready_for_pods("default")
        stack.push_async_callback(_cancel, asyncio.create_task(node.run(), name=f"node {self._node.name}"))

    async def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """A kubeconfig that logs in as a service account, with a token of the TokenRequest API."""
        token = await service_account_token(self.kube, namespace, name)
        return self._write_kubeconfig(self.folder / "kubeconfigs" / f"{namespace}-{name}.yaml", token, namespace)

    def _write_kubeconfig(self, path: Path, token: str, namespace: str) -> Path:
        plane = self._control_plane
        return kubeconfig.write(path, plane.server, plane.certificate_authority, token, namespace)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
