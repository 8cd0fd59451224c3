"""A control plane and real nodes, as one thing to open and close."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from specdecode.cluster.kube import Kube
from specdecode.lab import binaries, paths
from specdecode.lab.controlplane import ControlPlane, Site, User
from specdecode.lab.eventually import eventually
from specdecode.lab.lifeline import Lifeline
from specdecode.lab.local_cluster import Json, LocalCluster
from specdecode.lab.node import NODES
from specdecode.lab.realnodes import cgroups, network, store
from specdecode.lab.realnodes.containerd import pause_image
from specdecode.lab.realnodes.guest import Guest
from specdecode.lab.realnodes.needs import require
from specdecode.lab.realnodes.worker import DOMAIN, Worker

_API_PORT = 6443
_GPU = "nvidia.com/gpu"
_RBAC = "rbac.authorization.k8s.io"
_DNS = "lab:dns"
_RIGHTS: list[Json] = [
    {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": _DNS},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    },
    *(
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"lab:bind:{role}"},
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": _RBAC, "kind": kind, "name": name}],
        }
        for role, kind, name in (("system:node", "Group", "system:nodes"), (_DNS, "User", _DNS))
    ),
]
_PATIENCE = 5
"""Seconds until the pods of a node that is not ready are evicted."""
_JOINS_WITHIN = 60.0


class RealLab(LocalCluster):
    """A local cluster with real nodes. Open it with `async with RealLab(nodes=3, gpus=2) as lab:`; all of it ends with
    the block or the process.

    `gpus`: of each node. `archives`: of images that the nodes have. `folder`: where state and logs go; without one a
    temporary folder, removed at the end.
    Raises `LabError` if something has not been built, is missing on this machine, or does not start.
    """

    def __init__(
        self, nodes: int = 1, gpus: int = 4, archives: Sequence[Path] = (), *, folder: Path | None = None
    ) -> None:
        self._count, self._gpus, self._archives = nodes, gpus, archives
        super().__init__(folder)
        self.sockets: network.Sockets
        """This process's, in the first node's network: they reach pods, and Services through kube-proxy."""

    async def _start(self, stack: AsyncExitStack) -> None:
        require()
        ours = cgroups.below(cgroups.own(), f"specdecode-lab-{os.getpid()}")
        remove = [group.path for group in ours]
        if self._given_folder is None:
            # On the file system of the images, which are then shared.
            labs = paths.lab_folder("any").parent
            labs.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix="temporary-", dir=labs))
            remove.append(self.folder)
        else:
            self.folder = self._given_folder.resolve()
            self.folder.mkdir(parents=True, exist_ok=True)
        cgroups.create(ours)
        lifeline = Lifeline(remove)
        stack.push_async_callback(lifeline.close)

        hub = Guest("hub", self.folder / "hub", [], lifeline)
        await hub.start()
        await network.make_hub(hub)
        names = [f"node-{index}" for index in range(1, self._count + 1)]
        await self._start_control_plane(stack, hub, lifeline, names)
        self._store = await store.prepared(hub, [pause_image(), *self._archives])
        guests = []
        for name in names:
            groups = cgroups.below(ours, name)
            cgroups.create(groups)
            guests.append(Guest(name, self.folder / name, groups, lifeline))
        await asyncio.gather(*(self._join(hub, guest, index) for index, guest in enumerate(guests, 1)))
        self.sockets = stack.enter_context(network.Sockets(guests[0]))

    async def _start_control_plane(
        self, stack: AsyncExitStack, hub: Guest, lifeline: Lifeline, nodes: Sequence[str]
    ) -> None:
        into_hub = stack.enter_context(network.Sockets(hub))
        port = await stack.enter_async_context(network.forward(into_hub, str(network.HUB), _API_PORT))
        site = Site(
            host=str(network.HUB),
            etcd_port=2379,
            peer_port=2380,
            api_port=_API_PORT,
            server=f"https://localhost:{port}",
            api_flags=(
                "--bind-address=0.0.0.0",  # the certificate is then for `localhost` as well
                "--kubelet-preferred-address-types=InternalIP",
                f"--default-not-ready-toleration-seconds={_PATIENCE}",
                f"--default-unreachable-toleration-seconds={_PATIENCE}",
            ),
            controller_flags=("--node-monitor-period=1s", "--node-monitor-grace-period=8s"),
            enter=hub.enter("net"),
        )
        plane = self._control_plane = ControlPlane(self.folder, binaries.control_plane(), site, lifeline)
        users = [User(f"system:node:{name}", ("system:nodes",)) for name in nodes]
        await plane.start([*users, User("system:kube-proxy"), User(_DNS)])
        self.kube = await stack.enter_async_context(await Kube.connect(str(self.kubeconfig)))
        await self.apply(_RIGHTS)
        await self._start_dns(hub, lifeline, into_hub)

    async def _start_dns(self, hub: Guest, lifeline: Lifeline, into_hub: network.Sockets) -> None:
        file = self.folder / "Corefile"
        file.write_text(
            f".:53 {{\n  errors\n  kubernetes {DOMAIN} {{\n"
            f"    kubeconfig {self._control_plane.kubeconfig(_DNS)}\n    ttl 0\n  }}\n}}\n"
        )
        program, said = binaries.node_program("coredns"), self.folder / "coredns.log"
        with said.open("wb") as log:
            await lifeline.spawn([*hub.enter("net"), str(program), "-conf", str(file)], output=log)

        async def listens() -> bool:
            with into_hub.open() as probe:
                return probe.connect_ex((str(network.HUB), 53)) == 0

        await eventually(f"the name server: see {said}", listens)

    async def _join(self, hub: Guest, guest: Guest, index: int) -> None:
        await guest.start()
        await network.attach(hub, guest, index, self._count)
        kubeconfigs = (
            self._control_plane.kubeconfig(f"system:node:{guest.name}"),
            self._control_plane.kubeconfig("system:kube-proxy"),
        )
        await Worker(guest, index, *kubeconfigs).start(self._store)

        async def ready() -> bool:
            nodes = [n for n in await self.kube.list(NODES) if n["metadata"]["name"] == guest.name]
            return any(c["type"] == "Ready" and c["status"] == "True" for n in nodes for c in n["status"]["conditions"])

        await eventually(f"{guest.name} to be ready: see {guest.log('kubelet')}", ready, _JOINS_WITHIN)
        gpus = {_GPU: str(self._gpus)}
        status = {"status": {"capacity": gpus, "allocatable": gpus}}
        await self.kube.patch(NODES, guest.name, None, status, subresource="status")
