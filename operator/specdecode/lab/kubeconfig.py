"""Kubeconfig files."""

from __future__ import annotations

from pathlib import Path

import yaml


def write(path: Path, server: str, certificate_authority: Path, token: str, namespace: str = "default") -> Path:
    """Writes a kubeconfig for one user of one server, readable by us alone."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "lab", "cluster": {"server": server, "certificate-authority": str(certificate_authority)}}
        ],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user", "namespace": namespace}}],
        "current-context": "lab",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
