"""The operator as a process of this machine, with the rights that its chart gives it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from specdecode.cluster.kube import Json
from specdecode.lab.lab import Lab
from support.helm import CHART, REPOSITORY, helm

NAMESPACE = "loop-operator"
NAME = "loop-operator"


def rights() -> list[Json]:
    """The chart's service account and its ClusterRole, bound, as Helm renders them."""
    wanted = [f"--show-only=templates/{file}.yaml" for file in ("serviceaccount", "rbac")]
    command = [str(helm()), "template", "loop", str(CHART), f"--namespace={NAMESPACE}", *wanted]
    result = subprocess.run(
        [*command, f"--set=fullnameOverride={NAME}"], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return [document for document in yaml.safe_load_all(result.stdout) if document]


async def account(lab: Lab) -> Path:
    """Installs the custom resource and the rights; a kubeconfig that logs in as the operator's service account."""
    definition = yaml.safe_load((REPOSITORY / "crds/specdecodepolicies.specdecode.dev.yaml").read_text())
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    await lab.apply([namespace, definition, *rights()], NAMESPACE)
    return await lab.service_account_kubeconfig(NAMESPACE, NAME)


USER = f"system:serviceaccount:{NAMESPACE}:{NAME}"
"""The operator in the audit log."""


class Operator:
    """One operator that looks after some namespaces. It can be killed and started again; its log goes on."""

    def __init__(self, kubeconfig: Path, namespaces: Sequence[str], log: Path) -> None:
        self._kubeconfig, self._namespaces, self.log = kubeconfig, namespaces, log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        # A port that was free a moment ago may be some client's by now.
        arguments = ("operator", "run", "--health-port=0", "--metrics-port=0")
        program = Path(sys.executable).with_name("specdecode")
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(program, *arguments, *(f"--namespace={n}" for n in self._namespaces)),
                env=os.environ | {"KUBECONFIG": str(self._kubeconfig)},
                stdout=log,
                stderr=log,
            )

    async def kill(self) -> None:
        """As the kernel does when memory runs out: not one more line is executed."""
        assert self._process is not None and self.running, f"the operator ended by itself: see {self.log}"
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        if self._process is not None and self.running:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), 20)
            except TimeoutError:
                await self.kill()

    def complaints(self, namespace: str) -> list[str]:
        """Log lines about a tick that failed."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if f"policy {namespace}/" in line]
