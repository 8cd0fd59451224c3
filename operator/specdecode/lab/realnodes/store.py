"""What containerd keeps of the images, unpacked once and then shared by all nodes of all labs.

A node's containerd never changes a file of an image that it has unpacked: a container writes into a layer of its own.
So nodes get hard links to one store, and copies of its small databases alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from specdecode.lab import paths
from specdecode.lab.errors import LabError
from specdecode.lab.realnodes.containerd import Containerd
from specdecode.lab.realnodes.guest import Guest


async def prepared(guest: Guest, archives: Sequence[Path]) -> Path:
    """The store with the images of some archives; made in a guest when there is none yet."""
    folder = paths.cache() / "images" / "stores"
    store = folder / _stamp(archives)
    if not store.exists():
        shutil.rmtree(folder, ignore_errors=True)  # of images that are no more
        folder.mkdir(parents=True)
        containerd = Containerd(guest)
        await containerd.start()
        for archive in archives:
            await containerd.load(archive)
        await containerd.stop()
        await _copy(guest.folder / "lib" / "containerd", store)
    return store


async def give(store: Path, guest: Guest) -> None:
    """Gives a guest that has started, and whose containerd has not, all images of a store."""
    own = guest.folder / "lib" / "containerd"
    await _copy(store, own)
    for database in own.glob("*/*.db"):
        copy = database.with_suffix(".copy")
        shutil.copy2(database, copy)
        copy.replace(database)


async def _copy(source: Path, destination: Path) -> None:
    """By hard links where both are on one file system."""
    for links in (("--link",), ()):
        process = await asyncio.create_subprocess_exec(
            "cp", "--archive", *links, str(source), str(destination), stderr=asyncio.subprocess.PIPE
        )
        said = (await process.communicate())[1].decode(errors="replace")
        if not process.returncode:
            return
        shutil.rmtree(destination, ignore_errors=True)
    raise LabError(f"{source} cannot be copied to {destination}: {said[-500:]}")


def _stamp(archives: Sequence[Path]) -> str:
    states = [(str(archive), (stat := archive.stat()).st_size, stat.st_mtime_ns) for archive in archives]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]
