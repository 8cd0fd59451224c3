"""A cluster on this machine, whatever its nodes are: how it is opened and closed, and what it offers meanwhile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from specdecode.cluster.kube import Kube
from specdecode.lab import audit, manifests
from specdecode.lab.controlplane import ADMIN, ControlPlane
from specdecode.lab.eventually import eventually
from specdecode.lab.pod import SERVICE_ACCOUNTS

Json = dict[str, Any]


class LocalCluster(ABC):
    """All of it ends with the `async with` block or the process."""

    def __init__(self, folder: Path | None) -> None:
        self._given_folder = folder
        self._stack = AsyncExitStack()
        self.kube: Kube
        self.folder: Path
        self._control_plane: ControlPlane

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @abstractmethod
    async def _start(self, stack: AsyncExitStack) -> None:
        """Starts everything; what `stack` holds is undone in the end."""

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of the cluster's administrator, for programs of this machine."""
        return self._control_plane.kubeconfig(ADMIN)

    async def apply(self, source: Sequence[Json] | Path, namespace: str = "default") -> list[Json]:
        """Server-side apply of objects, or of the YAML in a file or folder; what others need goes first."""
        objects = manifests.load(source) if isinstance(source, Path) else source
        return await manifests.apply(self.kube, objects, namespace)

    async def make_namespaces(self, *names: str) -> None:
        """Makes them, and waits for what every pod in them needs: the default service account."""
        await self.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names])
        await self.ready_for_pods(*names)

    async def ready_for_pods(self, *names: str) -> None:
        """Waits until namespaces have a default service account."""

        async def accounts() -> bool:
            return {a["metadata"]["namespace"] for a in await self.kube.list(SERVICE_ACCOUNTS)} >= set(names)

        await eventually(f"the default service account of {', '.join(names)}, which every pod needs", accounts)

    def audit(self) -> list[audit.Write]:
        """All write requests so far, whoever made them."""
        return audit.read(self._control_plane.audit_log)

    wait = staticmethod(eventually)
