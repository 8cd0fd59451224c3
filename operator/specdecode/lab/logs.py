"""Finds what the containers of the process node have written."""

from __future__ import annotations

from pathlib import Path

from specdecode.lab.errors import LabError

MESSAGE_LINES = 80
MESSAGE_BYTES = 2048
"""How much of a log a kubelet takes as termination message (pkg/kubelet/container/runtime.go)."""


def container_logs(lab_folder: Path, namespace: str, pod: str, container: str | None = None) -> list[Path]:
    """The log files of a container, one for each of its runs, oldest first; of the newest pod of that name.

    Raises `LabError` if there is no such pod or container, or no container is named and there are several.
    """
    pods = sorted(lab_folder.glob(f"pods/{namespace}_{pod}_*"), key=lambda folder: folder.stat().st_mtime)
    if not pods:
        known = sorted({folder.name.split("_")[1] for folder in lab_folder.glob(f"pods/{namespace}_*")})
        were = ", ".join(known) or "none"
        raise LabError(f"no pod {pod} has run in namespace {namespace} of {lab_folder} (there were: {were})")
    containers = sorted(folder.name for folder in pods[-1].iterdir() if folder.is_dir())
    if container is None:
        if len(containers) > 1:
            raise LabError(f"pod {pod} has several containers, name one: {', '.join(containers)}")
        container = containers[0]
    if container not in containers:
        raise LabError(f"pod {pod} has no container {container} (it has: {', '.join(containers)})")
    return sorted(pods[-1].glob(f"{container}/[0-9]*.log"), key=lambda log: int(log.stem))


def termination_message(log: Path) -> str:
    """The end of a log, as a kubelet reports it where `terminationMessagePolicy` is `FallbackToLogsOnError`."""
    text = log.read_bytes()[-MESSAGE_BYTES:].decode(errors="replace")
    return "".join(text.splitlines(keepends=True)[-MESSAGE_LINES:])
