"""The cgroups of one node: one in each hierarchy, below the one that we are in, so that what runs there counts as ours.

cgroup v1, which mounts controllers apart (`cpu`, or `cpu,cpuacct`, or the named `name=systemd`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/sys/fs/cgroup")
NEEDED = frozenset({"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "name=systemd"})
"""What kubelet, containerd and runc ask for."""


@dataclass(frozen=True)
class Cgroup:
    """A cgroup in one hierarchy. `controllers` as in /proc/PID/cgroup, which are also its mount options."""

    controllers: str
    path: Path

    @property
    def folder(self) -> str:
        """The name under which the hierarchy is mounted."""
        return self.controllers.removeprefix("name=")


def own() -> list[Cgroup]:
    """Ours, as far as a node needs them."""
    return read(Path("/proc/self/cgroup").read_text())


def read(table: str) -> list[Cgroup]:
    """The cgroups of a process that a node needs, from its /proc/PID/cgroup."""
    found = []
    for line in table.splitlines():
        _, controllers, path = line.split(":", 2)
        if NEEDED.intersection(controllers.split(",")):
            found.append(Cgroup(controllers, MOUNTS / controllers.removeprefix("name=") / path.lstrip("/")))
    return found


def missing(groups: list[Cgroup]) -> set[str]:
    """The controllers that the machine does not offer as cgroup v1, by what we are in."""
    return set(NEEDED) - {name for group in groups for name in group.controllers.split(",")}


def below(parents: list[Cgroup], name: str) -> list[Cgroup]:
    """A cgroup of this name in each of the parents; made by `create`."""
    return [Cgroup(parent.controllers, parent.path / name) for parent in parents]


def create(groups: list[Cgroup]) -> None:
    """Makes the cgroups, ready for processes."""
    for group in groups:
        group.path.mkdir()
        if "cpuset" in group.controllers.split(","):
            for file in ("cpuset.cpus", "cpuset.mems"):  # a new cpuset is empty, and then takes no process
                (group.path / file).write_text((group.path.parent / file).read_text())
