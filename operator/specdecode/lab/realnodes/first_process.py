"""The first process of a node's namespaces: makes its mounts, says so, and reaps what is orphaned.

A program of its own (standard library only, started by `guest.py`). When it ends, the kernel ends all others.

Usage: first_process.py NAME FOLDER [CONTROLLERS…]. FOLDER holds what the node writes; the file `ready` appears in it.
CONTROLLERS: the cgroup v1 hierarchies of the node.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What a kubelet sets for the whole machine."""


def mount(*arguments: str) -> None:
    """`mount`. Raises CalledProcessError."""
    subprocess.run(["mount", *arguments], check=True)


def prepare(name: str, folder: Path, hierarchies: list[str]) -> None:
    """The mounts of a node: its own /sys, /run, /var/lib and /var/log, and only its part of the cgroups."""
    socket.sethostname(name)
    mount("--make-rshared", "/")
    mount("-t", "sysfs", "sysfs", "/sys")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/sys/fs/cgroup")
    for controllers in hierarchies:
        place = Path("/sys/fs/cgroup") / controllers.removeprefix("name=")
        place.mkdir()
        mount("-t", "cgroup", "-o", f"none,{controllers}" if "=" in controllers else controllers, "cgroup", str(place))
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for own in ("lib", "log"):
        (folder / own).mkdir()
        mount("--bind", str(folder / own), f"/var/{own}")
    # The kubelet sets these where they differ. They belong to the whole machine: it is shown files that do not differ.
    for number, (sysctl, value) in enumerate(SYSCTLS.items()):
        if not Path(f"/proc/sys/{sysctl}").exists():
            continue
        shown = Path(f"/run/sysctl-{number}")
        shown.write_text(value + "\n")
        mount("--bind", str(shown), f"/proc/sys/{sysctl}")
    # With no name server an unknown image fails at once.
    if Path("/etc/resolv.conf").is_file():
        mount("--bind", "/dev/null", "/etc/resolv.conf")


def reap() -> None:
    """For ever."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.5)


if __name__ == "__main__":
    prepare(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    (Path(sys.argv[2]) / "ready").touch()
    reap()
