"""Real vLLM servers for tests.

`SPECDECODE_VLLM` names a folder with `venv` (vLLM for this machine) and `models/tiny`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

MODEL = "tiny"
START = 240.0
"""Seconds that a start may take on a busy machine; 20 are usual."""

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",  # n-gram's look-ups stall each other with more on few cores
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class RealServer:
    """A server that answers."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def serving(
    host: str, folder: Path, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[RealServer]:
    """A server of the tiny model with further arguments, until the block ends; it must still live then."""
    if not (where := os.environ.get("SPECDECODE_VLLM")):
        pytest.skip("SPECDECODE_VLLM does not name a folder with venv and models/tiny")
    command = [f"{where}/venv/bin/vllm", "serve", f"{where}/models/tiny", "--served-model-name", MODEL]
    command += ["--host", host, "--port", "8083", "--max-model-len", "1024", "--max-num-seqs", "16"]
    command += ["--enforce-eager", "--kv-cache-memory-bytes", "64M", *arguments]
    log, url = folder / "server.log", f"http://{host}:8083"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **_ENVIRONMENT, **(environment or {})},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
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
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
