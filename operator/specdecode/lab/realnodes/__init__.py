"""Real nodes for the lab: kubelet, containerd, runc and kube-proxy, each node in namespaces of its own. Linux and root."""
