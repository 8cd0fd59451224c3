"""containerd of one node."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from specdecode.lab import binaries, paths
from specdecode.lab.errors import LabError
from specdecode.lab.eventually import eventually
from specdecode.lab.lifeline import Child
from specdecode.lab.realnodes.archive import Config, Image, write_archive, write_layer
from specdecode.lab.realnodes.guest import Guest
from specdecode.lab.realnodes.needs import find

SOCKET = "/run/containerd/containerd.sock"
PAUSE_IMAGE = "docker.io/specdecode/pause:1"


def pause_image() -> Path:
    """The archive with the image of each pod's first container."""
    path, program = paths.cache() / "images" / "pause.tar", binaries.node_program("pause")
    if not path.is_file() or path.stat().st_mtime < program.stat().st_mtime:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            layer = write_layer(Path(folder) / "layer", {"/pause": program})
            write_archive(path, [Image(PAUSE_IMAGE, [layer], Config(["/pause"]))])
    return path


class Containerd:
    """The container runtime of a guest; all that it keeps is in the guest's /run and /var/lib."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._child: Child

    async def start(self) -> None:
        """Returns once it answers. Raises `LabError` with its last words if it ends."""
        file = self._guest.folder / "containerd.toml"
        file.write_text(config(self._guest.folder / "cni"))
        program = str(binaries.node_program("containerd"))
        self._child = await self._guest.spawn("containerd", [program, f"--config={file}"])
        await self._guest.while_alive(self._child, "containerd", eventually("containerd", self._serves))

    async def stop(self) -> None:
        """Lets it end in good order."""
        await self._guest.run(["pkill", "-TERM", "-x", "containerd"])
        await self._child.wait()

    async def load(self, archive: Path) -> None:
        """Takes all images of an archive."""
        await self._ctr("--namespace=k8s.io", "images", "import", str(archive))

    async def _serves(self) -> bool:
        try:
            await self._ctr("version")
        except LabError:
            await asyncio.sleep(0.1)
            return False
        return True

    async def _ctr(self, *arguments: str) -> str:
        return await self._guest.run([str(binaries.node_program("ctr")), *arguments])


def config(cni: Path) -> str:
    """containerd.toml: runc, the lab's own CNI folder and sandbox image, nothing outside /run and /var/lib."""
    return f"""
version = 2
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true  # where we lack the right to make a process less likely to be killed
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{paths.node_binaries()}"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{find("runc")}"
        SystemdCgroup = false
"""
