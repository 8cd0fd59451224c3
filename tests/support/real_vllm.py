"""Real vLLM servers for tests, of what `make vllm` installs."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from specdecode.lab import watchdog
from specdecode.lab.realvllm import installation
from specdecode.lab.realvllm.image import ENVIRONMENT
from specdecode_vllm import FILE, INTERVAL

MODEL = "tiny"
START = 240.0
"""Seconds that a start may take on a busy machine; 20 are usual."""


def installed() -> installation.Installation:
    """What `make vllm` installed; skips the test where it cannot be, fails it where it was not."""
    if (problem := installation.obstacle()) is not None:
        pytest.skip(f"real vLLM cannot run here: {problem}")
    found = installation.find()
    if not found.complete:
        pytest.fail("real vLLM is not installed: run `make vllm`", pytrace=False)
    return found


@dataclass(frozen=True)
class RealServer:
    """A server that answers."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


class Mount:
    """A mounted ConfigMap: the kubelet writes a new folder and turns a symlink to it (AtomicWriter)."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self._number = folder, itertools.count()
        (folder / "schedule.json").symlink_to("..data/schedule.json")

    @property
    def file(self) -> Path:
        """Where the server finds it."""
        return self.folder / "schedule.json"

    def put(self, text: bytes) -> None:
        """Exchanges the file."""
        data, new, old = self.folder / "..data", self.folder / "..data_tmp", self._at()
        at = self.folder / f"..{next(self._number)}"
        at.mkdir()
        (at / "schedule.json").write_bytes(text)
        new.symlink_to(at.name)
        new.replace(data)
        if old is not None:
            shutil.rmtree(old)

    def clear(self) -> None:
        """Takes the file away."""
        old = self._at()
        if old is not None:
            (self.folder / "..data").unlink()
            shutil.rmtree(old)

    def _at(self) -> Path | None:
        data = self.folder / "..data"
        return data.resolve() if data.exists() else None


PLUGIN = Path(__file__).parents[2] / "plugin"


def with_plugin(folder: Path, mount: Mount, pod: str) -> dict[str, str]:
    """The environment of a server with the plugin as a pod has it: two files on PYTHONPATH, and a mounted schedule."""
    info = folder / "package" / "specdecode_vllm.dist-info"
    info.mkdir(parents=True)
    shutil.copy(PLUGIN / "specdecode_vllm.py", info.parent)
    shutil.copy(PLUGIN / "entry_points.txt", info)
    return {"PYTHONPATH": str(info.parent), FILE: str(mount.file), INTERVAL: "0.02", "POD_NAME": pod}


@contextmanager
def serving(
    host: str, folder: Path, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[RealServer]:
    """A server of the tiny model with further arguments, until the block ends; it must still live then."""
    found = installed()
    command = [str(found.python.with_name("vllm")), "serve", str(found.models / installation.TINY)]
    command += ["--served-model-name", MODEL]
    command += ["--host", host, "--port", "8083", "--max-model-len", "1024", "--max-num-seqs", "16"]
    command += ["--enforce-eager", "--kv-cache-memory-bytes", "64M", *arguments]
    log, url = folder / "server.log", f"http://{host}:8083"
    assert not _healthy(url), f"another server has {url}"
    # However the tests end, even by SIGKILL: the server goes with them.
    guarding = [sys.executable, "-I", "-S", watchdog.__file__]
    with (
        log.open("wb") as output,
        subprocess.Popen(guarding, stdin=subprocess.PIPE, start_new_session=True, text=True) as guard,
        subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        assert guard.stdin is not None
        print(process.pid, file=guard.stdin, flush=True)
        try:
            until = time.monotonic() + START
            while not _healthy(url):
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-4000:]
                time.sleep(0.5)
            yield RealServer(url, process, log)
            assert process.poll() is None, log.read_text()[-4000:]
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                guard.stdin.close()  # it kills what is left of the server


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
