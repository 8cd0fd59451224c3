"""vLLM's releases on the package index that pip uses: found, fetched, and their Python modules taken out."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

CACHE = Path(__file__).parents[1] / ".cache" / "compatibility"
_JSON = {"Accept": "application/vnd.pypi.simple.v1+json"}  # PEP 691
_NAME = re.compile(r"vllm-(\d+\.\d+\.\d+(?:\.post\d+)?)(?:\.tar\.gz|-cp38-abi3-manylinux\w+_x86_64\.whl)")
_TIMEOUT = 300.0


@dataclass(frozen=True)
class Distribution:
    """The file that a release's modules are read from."""

    version: str
    """As the index has it: `0.8.5.post1`."""
    name: str
    url: str
    sha256: str
    size: int

    @property
    def is_source(self) -> bool:
        """Whether it is a source distribution. Few releases have wheels alone."""
        return self.name.endswith(".tar.gz")


def distributions(client: httpx.Client) -> dict[str, Distribution]:
    """Every release by version: its source distribution, or the wheel of one that has none."""
    page = client.get(f"{_index()}/vllm/", headers=_JSON, timeout=_TIMEOUT).raise_for_status().json()
    found: dict[str, Distribution] = {}
    for file in sorted(page["files"], key=lambda f: not f["filename"].endswith(".tar.gz")):
        if name := _NAME.fullmatch(file["filename"]):
            of = Distribution(name[1], name[0], file["url"], file["hashes"]["sha256"], file["size"])
            found.setdefault(of.version, of)
    return found


def _index() -> str:
    """The package index that pip is set to, or pip's own."""
    if set_here := os.environ.get("PIP_INDEX_URL"):
        return set_here.rstrip("/")
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    from pip._internal.models.index import PyPI

    return (asked.stdout.strip() or str(PyPI.simple_url)).rstrip("/")


def modules(of: Distribution, client: httpx.Client) -> Path:
    """The folder that holds the release's `vllm` package; only its Python modules, kept for the next time.

    Raises httpx.HTTPError, and ValueError for a file that is not the one the index promised.
    """
    folder = CACHE / of.version
    if (folder / "complete").exists():
        return folder
    for name, text in _from_source(of, client) if of.is_source else _from_wheel(of, client):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    (folder / "complete").touch()
    return folder


def _wanted(name: str) -> bool:
    return name.startswith("vllm/") and name.endswith(".py") and ".." not in name


def _from_source(of: Distribution, client: httpx.Client) -> Iterator[tuple[str, bytes]]:
    content = client.get(of.url, timeout=_TIMEOUT, follow_redirects=True).raise_for_status().content
    if (found := hashlib.sha256(content).hexdigest()) != of.sha256:
        raise ValueError(f"{of.name}: its hash is {found}, the index says {of.sha256}; try again")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if member.isfile() and _wanted(name) and (file := archive.extractfile(member)) is not None:
                yield name, file.read()


def _from_wheel(of: Distribution, client: httpx.Client) -> Iterator[tuple[str, bytes]]:
    """A wheel holds half a gigabyte of kernels: only the parts that are modules are fetched."""
    with zipfile.ZipFile(_Remote(of, client)) as archive:
        for name in archive.namelist():
            if _wanted(name):
                yield name, archive.read(name)


class _Remote(io.RawIOBase):
    """A file on the index, read in blocks."""

    BLOCK = 4 << 20

    def __init__(self, of: Distribution, client: httpx.Client) -> None:
        self._of, self._client, self._at = of, client, 0
        self._blocks: dict[int, bytes] = {}

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._of.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        block, within = divmod(self._at, self.BLOCK)
        part = self._block(block)[within : within + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * self.BLOCK
            wanted = {"Range": f"bytes={start}-{min(start + self.BLOCK, self._of.size) - 1}"}
            answer = self._client.get(self._of.url, headers=wanted, timeout=_TIMEOUT, follow_redirects=True)
            self._blocks = {**dict(list(self._blocks.items())[-8:]), number: answer.raise_for_status().content}
        return self._blocks[number]
