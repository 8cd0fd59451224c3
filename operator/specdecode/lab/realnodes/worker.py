"""One real node: containerd, kubelet and kube-proxy in a guest."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from specdecode.lab import binaries
from specdecode.lab.errors import LabError
from specdecode.lab.eventually import eventually
from specdecode.lab.lifeline import Child
from specdecode.lab.realnodes import archive
from specdecode.lab.realnodes.guest import Guest
from specdecode.lab.realnodes.needs import find
from specdecode.lab.realnodes.network import HUB, PODS, address, pod_network

PAUSE_IMAGE = "docker.io/specdecode/pause:1"
DOMAIN = "cluster.local"

_SOCKET = "/run/containerd/containerd.sock"


@dataclass(frozen=True)
class Programs:
    """What a node runs. `kubernetes` has kubelet and kube-proxy in it; `folder` has containerd, its shim, `ctr` and the
    CNI plugins."""

    kubernetes: Path
    folder: Path


class Worker:
    """A node that joins the control plane as `guest.name`. Each of its two agents has its own user."""

    def __init__(self, guest: Guest, index: int, programs: Programs, kubelet: Path, kube_proxy: Path) -> None:
        self.guest, self._index, self._programs = guest, index, programs
        self._kubeconfigs = {"kubelet": kubelet, "kube-proxy": kube_proxy}
        path = (str(programs.folder), "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
        self._env = {"PATH": ":".join(path), "HOME": "/root"}

    @property
    def name(self) -> str:
        """Of the Node object."""
        return self.guest.name

    async def start(self, archives: Sequence[Path]) -> None:
        """Starts the node's programs with the images of some archives. Raises `LabError` with what went wrong."""
        folder = self.guest.folder
        (folder / "containerd.toml").write_text(containerd_config(folder, self._programs))
        (folder / "cni").mkdir()
        (folder / "cni" / "10-pods.conflist").write_text(json.dumps(cni_config(self._index)))
        (folder / "kubelet.yaml").write_text(yaml.safe_dump(KUBELET))
        containerd = await self._run("containerd", [f"--config={folder / 'containerd.toml'}"])
        await self.guest.while_alive(containerd, "containerd", eventually("containerd", self._serves))
        for file in archives:
            await self._ctr("--namespace=k8s.io", "images", "import", str(file))
        await self.start_kubelet()
        await self._kubernetes(
            "kube-proxy",
            "--proxy-mode=nftables",
            f"--cluster-cidr={PODS}",
            # The limits of connection tracking belong to the whole machine.
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
        )

    async def start_kubelet(self) -> Child:
        """Starts the kubelet, the first time or again."""
        config = self.guest.folder / "kubelet.yaml"
        return await self._kubernetes("kubelet", f"--config={config}", f"--node-ip={address(self._index)}")

    async def _kubernetes(self, component: str, *flags: str) -> Child:
        who = (f"--kubeconfig={self._kubeconfigs[component]}", f"--hostname-override={self.name}")
        return await self._run(str(self._programs.kubernetes), [component, *who, *flags], log=component)

    async def _run(self, program: str, flags: Sequence[str], log: str | None = None) -> Child:
        found = self._programs.folder / program
        return await self.guest.spawn(log or program, [str(found), *flags], self._env)

    async def _ctr(self, *arguments: str) -> str:
        return await self.guest.run([str(self._programs.folder / "ctr"), *arguments], self._env)

    async def _serves(self) -> bool:
        try:
            await self._ctr("version")
        except LabError:
            await asyncio.sleep(0.1)
            return False
        return True


def write_pause_image(path: Path) -> None:
    """The archive with the image that each pod's first container has."""
    with tempfile.TemporaryDirectory() as folder:
        layer = archive.write_layer(Path(folder) / "layer", {"/pause": binaries.node_program("pause")})
        archive.write_archive(path, [archive.Image(PAUSE_IMAGE, [layer], archive.Config(["/pause"]))])


def containerd_config(folder: Path, programs: Programs) -> str:
    """containerd.toml: runc, the lab's own CNI folder and sandbox image, nothing outside /run and /var/lib."""
    return f"""
version = 2
[grpc]
  address = "{_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true  # where we lack the right to make a process less likely to be killed
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{programs.folder}"
    conf_dir = "{folder / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{find("runc")}"
        SystemdCgroup = false
"""


def cni_config(index: int) -> dict[str, object]:
    """The pods of a node: on a bridge of its own, with addresses that all other nodes have a route to."""
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "hairpinMode": True,  # a pod may reach itself by its Service
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni",
            "ranges": [[{"subnet": str(pod_network(index))}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}


KUBELET: dict[str, object] = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": f"unix://{_SOCKET}",
    "cgroupDriver": "cgroupfs",
    "failCgroupV1": False,
    "failSwapOn": False,
    "enforceNodeAllocatable": ["none"],
    # Only the lab's own network reaches it.
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "clusterDNS": [str(HUB)],
    "clusterDomain": DOMAIN,
    "resolvConf": "",
    "makeIPTablesUtilChains": False,
    "oomScoreAdj": 0,
    "maxOpenFiles": 20000,
    "evictionHard": {"memory.available": "100Mi"},  # the disk is the machine's, and others fill it
    "imageGCHighThresholdPercent": 100,
    "nodeStatusUpdateFrequency": "2s",
    "crashLoopBackOff": {"maxContainerRestartPeriod": "20s"},
    "serializeImagePulls": False,
    "shutdownGracePeriod": "0s",
}
"""Of every node."""
