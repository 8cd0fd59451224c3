"""Real nodes for the lab, each in namespaces of its own: kubelet, containerd, runc, kube-proxy. Linux and root."""
