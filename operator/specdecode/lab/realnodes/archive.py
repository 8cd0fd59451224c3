"""Container images without a container tool: layers and an archive of images, as `docker save` writes them.

The format is that of the Docker image specification 1.2 (manifest.json, one JSON file per image, layers as tar files);
containerd imports it.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Config:
    """How an image's containers run unless their pod says otherwise."""

    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    working_dir: str = "/"


@dataclass(frozen=True)
class Layer:
    """Files of an image, as a tar file."""

    path: Path
    digest: str
    """SHA-256 of the tar file, in hexadecimal."""


@dataclass(frozen=True)
class Image:
    """An image by its full name, with registry and tag; the first layer is the lowest."""

    name: str
    layers: Sequence[Layer]
    config: Config


def write_layer(
    path: Path, files: Mapping[str, Path], links: Mapping[str, str] | None = None, folders: Iterable[str] = ()
) -> Layer:
    """Writes a layer. All by absolute path in the image: `files` from this machine (of a symbolic link the link),
    `links` with their targets, `folders` that are empty. Owned by root, and the same bytes from the same files."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in folders:
            tar.addfile(_entry(name, tarfile.DIRTYPE, 0o1777 if name == "/tmp" else 0o755))
        for name, target in (links or {}).items():
            entry = _entry(name, tarfile.SYMTYPE, 0o777)
            entry.linkname = target
            tar.addfile(entry)
        for name, source in sorted(files.items()):
            entry = tar.gettarinfo(str(source), name.lstrip("/"))
            if entry.islnk():  # a second name of a file that is here already
                entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", source.stat().st_size
            _anonymous(entry)
            if entry.isreg():
                with source.open("rb") as content:
                    tar.addfile(entry, content)
            else:
                tar.addfile(entry)
    with path.open("rb") as content:
        return Layer(path, hashlib.file_digest(content, "sha256").hexdigest())


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name.lstrip("/"))
    entry.type, entry.mode = kind, mode
    return entry


def _anonymous(entry: tarfile.TarInfo) -> None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = int(entry.mtime)


def write_archive(path: Path, images: Sequence[Image]) -> None:
    """Writes one archive with some images; layers that they share are in it once."""
    manifest = []
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for digest, layer in {layer.digest: layer for image in images for layer in image.layers}.items():
            tar.add(layer.path, _layer_name(digest))
        for image in images:
            config = json.dumps(_image_json(image)).encode()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(tar, name, config)
            layers = [_layer_name(layer.digest) for layer in image.layers]
            manifest.append({"Config": name, "RepoTags": [image.name], "Layers": layers})
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def _layer_name(digest: str) -> str:
    return f"{digest}.tar"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _image_json(image: Image) -> dict[str, object]:
    config = image.config
    return {
        "architecture": _MACHINES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {
            "Env": [f"{key}={value}" for key, value in config.env.items()],
            "Entrypoint": list(config.entrypoint),
            "Cmd": list(config.command),
            "User": config.user,
            "WorkingDir": config.working_dir,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.digest}" for layer in image.layers]},
    }
