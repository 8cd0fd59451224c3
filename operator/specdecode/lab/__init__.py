"""A local Kubernetes control plane with a node that runs pods as local processes."""
