"""Child processes that end when we end, however we end.

Each child leads a process group of its own and announces it to the watchdog before it becomes its program. When the
last end of the watchdog's pipe closes, by `close` or because we were killed, the watchdog kills every group left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from specdecode.lab import watchdog

# `$$` stays the same through `exec`, so the shell announces the program's own process group.
_ANNOUNCE = 'echo $$ >&0 && exec "$@" </dev/null'


class Child:
    """A running child. When its first process ends, the rest of its group is killed, as in a container."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: int) -> None:
        self.pid = process.pid
        self._pipe = pipe
        self._reaped = asyncio.create_task(self._reap(process), name=f"reap {process.pid}")

    async def _reap(self, process: asyncio.subprocess.Process) -> int:
        status = await process.wait()
        self.kill()
        os.write(self._pipe, b"-%d\n" % self.pid)
        return status

    async def wait(self) -> int:
        """The exit status of the first process, negative for the signal that ended it."""
        return await asyncio.shield(self._reaped)

    def on_end(self, call: Callable[[Child], None]) -> None:
        """Calls back once the child has ended."""
        self._reaped.add_done_callback(lambda _: call(self))

    def terminate(self) -> None:
        """Sends SIGTERM to the first process, as a container runtime does."""
        if not self._reaped.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL to the whole group."""
        if not self._reaped.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


class Lifeline:
    """The children of one lab. `remove`: folders that the watchdog removes at the end."""

    def __init__(self, remove: Sequence[Path] = ()) -> None:
        self._children: set[Child] = set()
        reading, self._pipe = os.pipe()
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", watchdog.__file__, *map(str, remove)],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal is for us, not for the watchdog
        )
        os.close(reading)

    async def spawn(
        self, argv: Sequence[str], *, output: IO[bytes], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Child:
        """Starts a program with its standard output and error in `output` and nothing to read."""
        starting = asyncio.create_task(self._start(argv, output, env, cwd))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            (await starting).kill()  # or nobody would know of it
            raise

    async def _start(
        self, argv: Sequence[str], output: IO[bytes], env: Mapping[str, str] | None, cwd: Path | None
    ) -> Child:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", _ANNOUNCE, "sh", *argv,
            stdin=self._pipe, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=cwd, start_new_session=True,
        )  # fmt: skip
        child = Child(process, self._pipe)
        self._children.add(child)
        child.on_end(self._children.discard)
        return child

    async def close(self) -> None:
        """Kills every child and waits until all are gone, and the temporary folder with them."""
        children = list(self._children)
        for child in children:
            child.kill()
        await asyncio.gather(*(child.wait() for child in children))
        os.close(self._pipe)
        await asyncio.to_thread(self._watchdog.wait)
