"""A machine within this one: mount, network, process, IPC, host name and cgroup namespaces with a first process.

Killing the first process ends all that runs inside; its mounts and network devices go with it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TypeVar

from specdecode.lab import paths
from specdecode.lab.errors import LabError
from specdecode.lab.eventually import eventually
from specdecode.lab.lifeline import Child, Lifeline
from specdecode.lab.realnodes import first_process
from specdecode.lab.realnodes.cgroups import Cgroup
from specdecode.lab.realnodes.needs import SEARCHED

T = TypeVar("T")

_ALL = ("mount", "net", "pid", "ipc", "uts", "cgroup")

_JOIN = 'while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs" || exit; shift; done; shift; exec "$@"'
"""`0` is the process that writes. A cgroup namespace begins where its maker is, and `nsenter` moves nobody."""

_ENVIRONMENT = {"PATH": f"{paths.node_binaries()}:{SEARCHED}", "HOME": "/root"}


class Guest:
    """`folder` holds its logs, and what it writes under /var; `cgroups` have been created."""

    def __init__(self, name: str, folder: Path, cgroups: Sequence[Cgroup], lifeline: Lifeline) -> None:
        self.name, self.folder = name, folder
        self._cgroups, self._lifeline = cgroups, lifeline
        self._first: Child
        self.pid: int
        """Of the first process, as this machine sees it."""

    async def start(self) -> None:
        """Raises `LabError` with the first process's last words if it ends."""
        self.folder.mkdir(parents=True)
        unshare = ["unshare", *(f"--{n}" for n in _ALL), "--fork", "--mount-proc", "--kill-child"]
        program = [sys.executable, "-I", "-S", first_process.__file__, self.name, str(self.folder)]
        argv = [*self._join(), *unshare, *program, *(group.controllers for group in self._cgroups)]
        self._first = await self._spawn("first_process", argv)
        ready = eventually(f"the namespaces of {self.name}", self._is_ready)
        await self.while_alive(self._first, "first_process", ready)
        self.pid = _child_of(self._first.pid)

    async def _is_ready(self) -> bool:
        return (self.folder / "ready").exists()

    def _join(self) -> list[str]:
        return ["/bin/sh", "-c", _JOIN, "sh", *(str(group.path) for group in self._cgroups), "--"]

    def enter(self, *namespaces: str) -> tuple[str, ...]:
        """The command that runs its arguments in some of the namespaces, e.g. `net`; in all without a name."""
        return ("nsenter", f"--target={self.pid}", *(f"--{n}" for n in namespaces or _ALL), "--")

    async def spawn(self, name: str, argv: Sequence[str]) -> Child:
        """Starts a program in the guest; its output goes to `NAME.log`."""
        return await self._spawn(name, [*self._join(), *self.enter(), *argv])

    async def _spawn(self, name: str, argv: Sequence[str]) -> Child:
        with self.log(name).open("ab") as log:
            return await self._lifeline.spawn(argv, output=log, env=_ENVIRONMENT, cwd=self.folder)

    async def run(self, argv: Sequence[str]) -> str:
        """Runs a program in the guest to its end; what it prints. Raises `LabError` with that if it fails."""
        process = await asyncio.create_subprocess_exec(
            *self._join(),
            *self.enter(),
            *argv,
            env=_ENVIRONMENT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode(errors="replace")
        if process.returncode:
            raise LabError(f"`{' '.join(argv)}` failed in {self.name}:\n{said[-2000:]}")
        return said

    def log(self, name: str) -> Path:
        """What a program that was started has written."""
        return self.folder / f"{name}.log"

    async def while_alive(self, child: Child, name: str, waiting: Awaitable[T]) -> T:
        """Waits for what a child brings about. Raises `LabError` with the child's last words if it ends first."""
        wait, end = asyncio.ensure_future(waiting), asyncio.create_task(child.wait())
        try:
            await asyncio.wait({wait, end}, return_when=asyncio.FIRST_COMPLETED)
            if not wait.done():
                words = "\n".join(self.log(name).read_text(errors="replace").splitlines()[-15:])
                raise LabError(f"{name} of {self.name} ended; the end of {self.log(name)}:\n{words}")
            return wait.result()
        finally:
            wait.cancel()
            end.cancel()


def _child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
