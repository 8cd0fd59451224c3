"""The operator as its users have it: installed by the chart, in the cluster, from its image."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from specdecode.cluster.kube import PODS, Json
from specdecode.lab.realnodes.cluster import RealLab
from specdecode.lab.realnodes.products import OPERATOR
from support.helm import CHART, helm

NAMESPACE = "specdecode"
NAME = "specdecode-operator"
USER = f"system:serviceaccount:{NAMESPACE}:{NAME}"
"""The operator in the audit log."""


async def command(*argv: str | Path) -> str:
    """Runs a program beside the lab, which goes on meanwhile; what it prints."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complaint = (text.decode(errors="replace") for text in await process.communicate())
    assert process.returncode == 0, f"{' '.join(map(str, argv))}: {complaint}{said}"
    return said


async def kubectl(lab: RealLab, *arguments: str) -> str:
    """kubectl as the cluster's administrator."""
    return await command(Path(sys.executable).with_name("kubectl"), f"--kubeconfig={lab.kubeconfig}", *arguments)


class ContainerLogs:
    """What the containers of some pods have written, wherever they ran; read from the nodes' disks as if a file."""

    def __init__(self, folder: Path, pods: str) -> None:
        self._folder, self._pods = folder, pods

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"node-*/log/pods/{self._pods}/*/*.log"), key=lambda file: file.stat().st_mtime)

    def exists(self) -> bool:
        return bool(self._files())

    def read_text(self, errors: str = "replace") -> str:
        """The lines, without the runtime's time stamps."""
        lines = [line for file in self._files() for line in file.read_text(errors=errors).splitlines()]
        return "\n".join(line.split(" ", 3)[-1] for line in lines)


class InstalledOperator:
    """The release of the chart. Its log is that of all pods that it has had."""

    running = True
    """Its Deployment sees to that."""

    def __init__(self, lab: RealLab) -> None:
        self._lab = lab
        self.log = ContainerLogs(lab.folder, f"{NAMESPACE}_{NAME}-*")

    async def helm(self, *arguments: str) -> str:
        """Helm in the operator's namespace."""
        return await command(helm(), "--kubeconfig", self._lab.kubeconfig, "--namespace", NAMESPACE, *arguments)

    async def install(self) -> None:
        """`helm install`, which returns once the operator is ready."""
        image = OPERATOR.rpartition(":")[0]
        wait = ("--create-namespace", "--wait", "--timeout=120s")
        await self.helm("install", NAME, str(CHART), *wait, f"--set=image.repository={image}")

    async def pod(self) -> Json:
        """The operator's pod."""
        (pod,) = await self._lab.kube.list(PODS, NAMESPACE, f"app.kubernetes.io/name={NAME}")
        return pod

    async def start(self) -> None:
        """It runs."""

    async def stop(self) -> None:
        """It stays."""

    def complaints(self, namespace: str) -> list[str]:
        """Log lines about a tick that failed."""
        return [line for line in self.log.read_text().splitlines() if f"policy {namespace}/" in line]
