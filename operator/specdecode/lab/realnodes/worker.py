"""One real node: containerd, kubelet and kube-proxy in a guest."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from specdecode.lab import binaries
from specdecode.lab.realnodes.containerd import SOCKET, Containerd
from specdecode.lab.realnodes.guest import Guest
from specdecode.lab.realnodes.network import HUB, PODS, address, pod_network
from specdecode.lab.realnodes.store import give

DOMAIN = "cluster.local"


class Worker:
    """A node that joins the control plane as `guest.name`. Each of its two agents has its own user."""

    def __init__(self, guest: Guest, index: int, kubelet: Path, kube_proxy: Path) -> None:
        self.guest, self._index = guest, index
        self._kubeconfigs = {"kubelet": kubelet, "kube-proxy": kube_proxy}

    @property
    def name(self) -> str:
        """Of the Node object."""
        return self.guest.name

    async def start(self, store: Path) -> None:
        """Starts the node's programs with the images of a store. Raises `LabError` with what went wrong."""
        folder = self.guest.folder
        (folder / "cni").mkdir()
        (folder / "cni" / "10-pods.conflist").write_text(json.dumps(cni_config(self._index)))
        (folder / "kubelet.yaml").write_text(yaml.safe_dump(KUBELET))
        await give(store, self.guest)
        await Containerd(self.guest).start()
        await self._run("kubelet", f"--config={folder / 'kubelet.yaml'}", f"--node-ip={address(self._index)}")
        await self._run(
            "kube-proxy",
            "--proxy-mode=nftables",
            f"--cluster-cidr={PODS}",
            # The limits of connection tracking belong to the whole machine.
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
        )

    async def _run(self, component: str, *flags: str) -> None:
        who = (f"--kubeconfig={self._kubeconfigs[component]}", f"--hostname-override={self.name}")
        await self.guest.spawn(component, [str(binaries.control_plane()), component, *who, *flags])


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
    "containerRuntimeEndpoint": f"unix://{SOCKET}",
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
