"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler as child processes.

Where they listen and what they leave out is their `Site`: the loopback network of a process node (`loopback`), or the
network of real nodes. Real at both: RBAC, admission, validation, scheduling by extended resources, garbage collection,
token requests.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import httpx
import yaml

from specdecode.lab import audit, kubeconfig
from specdecode.lab.errors import LabError
from specdecode.lab.lifeline import Child, Lifeline
from specdecode.lab.subnet import Subnet

CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "disruption-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "replicaset-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "statefulset-controller",
)

ADMIN = "admin"
CONTROLLER_MANAGER = "system:kube-controller-manager"
SCHEDULER = "system:kube-scheduler"

_READY_WITHIN = 60.0


SERVICES = IPv4Network("10.0.0.0/24")


@dataclass(frozen=True)
class Site:
    """Where a control plane is, and how it differs from one in production."""

    host: str
    """Its address."""
    etcd_port: int
    peer_port: int
    api_port: int
    server: str
    """The URL at which this process reaches the API server."""
    api_flags: tuple[str, ...] = ()
    controller_flags: tuple[str, ...] = ()
    enter: tuple[str, ...] = ()
    """The command that runs its argument where the control plane is to be; none: here."""


def loopback(subnet: Subnet) -> Site:
    """A control plane for a process node. It goes without
    - a node-lifecycle controller: the node never goes away while the lab runs;
    - endpoint controllers: the API accepts no loopback address in an EndpointSlice (`endpoints.ready_addresses` asks
      the pods instead);
    - aggregation, volumes, cloud: nothing here uses them.
    """
    etcd, peer, api = subnet.free_ports(3)
    return Site(
        host=subnet.host,
        etcd_port=etcd,
        peer_port=peer,
        api_port=api,
        server=f"https://{subnet.host}:{api}",
        api_flags=(
            f"--bind-address={subnet.host}",
            "--endpoint-reconciler-type=none",  # it would write that address into an EndpointSlice, which may hold none
        ),
        controller_flags=(f"--controllers={','.join(CONTROLLERS)}",),
    )


@dataclass(frozen=True)
class User:
    """Who may log in with a fixed token."""

    name: str
    groups: tuple[str, ...] = ()
    inside: bool = True
    """Whether it lives where the control plane is, and uses that address."""


class ControlPlane:
    """A running control plane. `folder` holds its state, its logs and its kubeconfigs."""

    def __init__(self, folder: Path, program: Path, site: Site, lifeline: Lifeline) -> None:
        self.folder = folder
        self._program, self._site, self._lifeline = program, site, lifeline
        self.server = site.server
        self.certificate_authority = folder / "certificates" / "apiserver.crt"
        self.audit_log = folder / "audit.jsonl"
        self._key = folder / "service-account.key"

    def kubeconfig(self, user: str) -> Path:
        """The kubeconfig of one of the users given to `start`."""
        return self.folder / "kubeconfigs" / f"{user.replace(':', '-')}.yaml"

    async def start(self, users: Sequence[User] = ()) -> None:
        """Starts the four processes and returns once the API server is ready. Raises `LabError` if one of them ends."""
        everybody = (User(ADMIN, ("system:masters",), inside=False), User(CONTROLLER_MANAGER), User(SCHEDULER), *users)
        self._write_files(everybody)
        key = await self._run("service-account-key", [str(self._key)])
        if await key.wait() != 0:
            raise LabError(f"no service account key could be made:\n{self._log_end('service-account-key')}")
        serving = {"etcd": await self._run("etcd", self._etcd_flags())}
        serving["kube-apiserver"] = await self._run("kube-apiserver", self._api_flags())
        await self._until_ready(serving)
        await self._run("kube-controller-manager", self._controller_manager_flags())
        await self._run("kube-scheduler", self._scheduler_flags())

    def _write_files(self, users: Sequence[User]) -> None:
        tokens = {user: secrets.token_urlsafe(24) for user in users}
        rows = [f'{token},{user.name},{user.name},"{",".join(user.groups)}"\n' for user, token in tokens.items()]
        self._tokens = self.folder / "tokens.csv"
        self._tokens.touch(mode=0o600)
        self._tokens.write_text("".join(rows))
        self._policy = self.folder / "audit-policy.yaml"
        self._policy.write_text(yaml.safe_dump(audit.POLICY))
        for user, token in tokens.items():
            server = f"https://{self._site.host}:{self._site.api_port}" if user.inside else self.server
            kubeconfig.write(self.kubeconfig(user.name), server, self.certificate_authority, token)

    async def _run(self, component: str, flags: Sequence[str]) -> Child:
        with self._log(component).open("wb") as log:
            argv = [*self._site.enter, str(self._program), component, *flags]
            return await self._lifeline.spawn(argv, output=log, cwd=self.folder)

    def _log(self, component: str) -> Path:
        return self.folder / f"{component}.log"

    def _log_end(self, component: str) -> str:
        return "\n".join(self._log(component).read_text(errors="replace").splitlines()[-15:])

    async def _until_ready(self, serving: dict[str, Child]) -> None:
        ends = {asyncio.create_task(child.wait()): name for name, child in serving.items()}
        ready = asyncio.create_task(self._poll_readyz())
        try:
            done, _ = await asyncio.wait([ready, *ends], timeout=_READY_WITHIN, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ready, *ends):
                task.cancel()
        for task, name in ends.items():
            if task in done:
                raise LabError(f"{name} ended at start; the end of {self._log(name)}:\n{self._log_end(name)}")
        if not done:
            raise LabError(
                f"the API server is not ready after {_READY_WITHIN:.0f} s: see {self._log('kube-apiserver')}"
            )

    async def _poll_readyz(self) -> None:
        # Anonymous requests may ask for health, so this needs no token and no trust in the certificate being made.
        async with httpx.AsyncClient(verify=False, trust_env=False, timeout=2.0) as http:
            while True:
                try:
                    if (await http.get(f"{self.server}/readyz")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)

    def _etcd_flags(self) -> list[str]:
        client, peer = (f"http://{self._site.host}:{port}" for port in (self._site.etcd_port, self._site.peer_port))
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # a lab's state need not survive a power cut
            "--log-level=warn",
        ]

    def _api_flags(self) -> list[str]:
        return [
            f"--etcd-servers=http://{self._site.host}:{self._site.etcd_port}",
            f"--advertise-address={self._site.host}",
            f"--secure-port={self._site.api_port}",
            f"--cert-dir={self.certificate_authority.parent}",
            f"--token-auth-file={self._tokens}",
            "--authorization-mode=RBAC",
            f"--service-cluster-ip-range={SERVICES}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._key}",
            f"--service-account-signing-key-file={self._key}",
            f"--audit-policy-file={self._policy}",
            f"--audit-log-path={self.audit_log}",
            *self._site.api_flags,
        ]

    def _controller_manager_flags(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig(CONTROLLER_MANAGER)}",
            "--use-service-account-credentials",  # each controller under its own name and role, also in the audit log
            f"--service-account-private-key-file={self._key}",
            f"--root-ca-file={self.certificate_authority}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            *self._site.controller_flags,
        ]

    def _scheduler_flags(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig(SCHEDULER)}",
            "--leader-elect=false",
            "--secure-port=0",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ]
