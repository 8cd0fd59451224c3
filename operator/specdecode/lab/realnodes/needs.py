"""What a machine must have for real nodes."""

from __future__ import annotations

import os
import shutil
import sys

from specdecode.lab.errors import LabError
from specdecode.lab.realnodes import cgroups

PROGRAMS = {
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "pkill": "procps",
}
"""Program and the Debian package that has it."""

SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH on a node and in its images: what is only on root's PATH is there, too."""


def find(program: str) -> str | None:
    """The path of a program of this machine."""
    return shutil.which(program, path=SEARCHED)


def lacking() -> list[str]:
    """Why real nodes cannot run here, one reason each; nothing if they can."""
    if not sys.platform.startswith("linux"):
        return ["this is not Linux"]
    reasons = []
    if os.geteuid() != 0:
        reasons.append("this is not root")
    if absent := {package for program, package in PROGRAMS.items() if find(program) is None}:
        reasons.append(f"programs are missing: apt-get install {' '.join(sorted(absent))}")
    if absent := cgroups.missing(cgroups.own()):
        reasons.append(f"cgroup v1 hierarchies are missing: {', '.join(sorted(absent))}")
    return reasons


def require() -> None:
    """Raises `LabError` with all that is lacking."""
    if reasons := lacking():
        raise LabError(f"real nodes cannot run here: {'; '.join(reasons)}")
