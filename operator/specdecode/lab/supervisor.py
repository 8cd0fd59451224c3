"""Keeps a named lab up, in the foreground or detached from the terminal.

A lock file that the supervising process holds says whether a lab is up: the kernel frees it with the process, so there
is no stale pid to mistake for a lab.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from specdecode.lab import paths
from specdecode.lab.errors import LabError

_START_WITHIN = 180.0
_STOP_WITHIN = 30.0
_EVERY = 0.1


@dataclass(frozen=True)
class LabState:
    """A lab that is up. `since` is a Unix time."""

    name: str
    pid: int
    folder: str
    kubeconfig: str
    gpus: int
    """Of each node."""
    nodes: int
    """Real ones; 0 for a process node."""
    since: float


async def serve(name: str, gpus: int, nodes: int, ready: Callable[[LabState], None]) -> None:
    """Runs a lab until SIGINT or SIGTERM. Raises `LabError` if one of this name is up or this one cannot start."""
    # Late: all other commands start faster without the Kubernetes client.
    from specdecode.lab.lab import Lab
    from specdecode.lab.realnodes import products
    from specdecode.lab.realnodes.cluster import RealLab

    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    folder = paths.lab_folder(name)
    with _lock(name), suppress(asyncio.CancelledError):
        shutil.rmtree(folder, ignore_errors=True)
        opening = RealLab(nodes, gpus, [products.build()], folder=folder) if nodes else Lab(gpus, folder=folder)
        async with opening as lab:
            state = LabState(name, os.getpid(), str(folder), str(lab.kubeconfig), gpus, nodes, time.time())
            (folder / "lab.json").write_text(json.dumps(asdict(state)))
            ready(state)
            await asyncio.Event().wait()


def detach(name: str, gpus: int, nodes: int) -> LabState:
    """Starts a lab in a process of its own and returns once it is up. Raises `LabError` if that fails."""
    if find(name) is not None:
        raise LabError(f"lab {name} is up already: `specdecode lab down --name {name}` ends it")
    log = paths.lab_folder(name).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "specdecode.lab.supervisor", name, str(gpus), str(nodes)],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    deadline = time.monotonic() + _START_WITHIN
    while time.monotonic() < deadline:
        if (state := find(name)) is not None:
            return state
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            raise LabError(f"lab {name} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(_EVERY)
    os.kill(pid, signal.SIGKILL)
    raise LabError(f"lab {name} is not up after {_START_WITHIN:.0f} s: see {log}")


def find(name: str) -> LabState | None:
    """The lab of this name if it is up."""
    if not _is_locked(name):
        return None
    try:
        return LabState(**json.loads((paths.lab_folder(name) / "lab.json").read_text()))
    except (FileNotFoundError, ValueError):
        return None  # on its way up


def all_up() -> list[LabState]:
    """Every lab that is up."""
    names = sorted(lock.stem for lock in paths.lab_folder("any").parent.glob("*.lock"))
    return [state for name in names if (state := find(name)) is not None]


def stop(name: str) -> None:
    """Ends a lab and returns once all of it is gone. Raises `LabError` if it is not up or does not end."""
    state = find(name)
    if state is None:
        up = ", ".join(other.name for other in all_up()) or "none"
        raise LabError(f"lab {name} is not up (up: {up})")
    os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_WITHIN
    while _is_locked(name):
        if time.monotonic() > deadline:
            raise LabError(f"lab {name} has not ended after {_STOP_WITHIN:.0f} s: its process is {state.pid}")
        time.sleep(_EVERY)


def _lock_file(name: str) -> Path:
    return paths.lab_folder(name).with_suffix(".lock")


@contextmanager
def _lock(name: str) -> Iterator[None]:
    path = _lock_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(f"lab {name} is up already: `specdecode lab down --name {name}` ends it") from None
        yield


def _is_locked(name: str) -> bool:
    path = _lock_file(name)
    if not path.exists():
        return False
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def main() -> None:
    """The detached process: `python -m specdecode.lab.supervisor NAME GPUS NODES`."""
    name, gpus, nodes = sys.argv[1:]
    try:
        asyncio.run(serve(name, int(gpus), int(nodes), ready=lambda _: None))
    except LabError as e:
        sys.exit(str(e))


if __name__ == "__main__":
    main()
