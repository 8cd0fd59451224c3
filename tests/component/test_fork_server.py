"""The fork server of real vLLM, on a package of that name that only tells what it got."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from specdecode.lab.realvllm.image import READY
from specdecode.lab.realvllm.installation import FORK_SERVER

MAIN = """
import os, signal, sys, time

def main():
    print(sys.argv, os.environ.get("MARK"), os.getcwd(), os.getpid(), flush=True)
    if "wait" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        print("waiting", flush=True)
        time.sleep(60)
    if "fail" in sys.argv:
        sys.exit("no such model")
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    package = tmp_path / "packages" / "vllm"
    for folder in (package, package / "utils", package / "entrypoints", package / "entrypoints" / "cli"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    (package / "utils" / "system_utils.py").touch()
    (package / "entrypoints" / "cli" / "main.py").write_text(MAIN)
    path = str(tmp_path / "socket")
    command = [sys.executable, str(FORK_SERVER), "serve", path]
    env = os.environ | {"PYTHONPATH": str(package.parent)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, cwd=tmp_path, text=True
    ) as p:
        assert p.stdout is not None and p.stdout.readline().strip() == READY
        yield path
        p.kill()


def client(address: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-S", str(FORK_SERVER), "run", address, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
        cwd="/",
        text=True,
    )


def test_a_server_has_the_clients_arguments_environment_and_output_and_the_fork_servers_folder(
    address: str, tmp_path: Path
) -> None:
    with client(address, "serve", "--model=m", MARK="here") as p:
        output, _ = p.communicate(timeout=20)
    assert output.startswith(f"['vllm', 'serve', '--model=m'] here {tmp_path}")
    assert p.returncode == 0


def test_the_exit_code_and_the_last_words_of_a_server_that_fails_are_the_clients(address: str) -> None:
    with client(address, "fail") as p:
        output, _ = p.communicate(timeout=20)
    assert (p.returncode, output.splitlines()[-1]) == (1, "no such model")


def waiting(p: subprocess.Popen[str]) -> int:
    """The process of a server that waits."""
    assert p.stdout is not None
    pid = int(p.stdout.readline().split()[-1])
    assert p.stdout.readline().strip() == "waiting"
    return pid


def test_a_server_gets_the_clients_signals(address: str) -> None:
    with client(address, "wait") as p:
        waiting(p)
        p.send_signal(signal.SIGTERM)
        assert p.wait(timeout=20) == 7


def test_a_client_that_is_killed_takes_its_server_with_it(address: str) -> None:
    with client(address, "wait") as p:
        server = waiting(p)
        p.kill()
        deadline = time.monotonic() + 20
        while Path(f"/proc/{server}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not Path(f"/proc/{server}").exists()


def test_servers_run_side_by_side(address: str) -> None:
    with client(address, "wait") as one, client(address, "wait") as other:
        assert waiting(one) != waiting(other)
        for p in (one, other):
            p.terminate()
            assert p.wait(timeout=20) == 7


def test_a_client_whose_fork_server_is_gone_fails(tmp_path: Path) -> None:
    path = tmp_path / "nobody"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
    with client(str(path), "serve") as p:
        output, _ = p.communicate(timeout=20)
    assert p.returncode != 0
    assert "ConnectionRefusedError" in output
