"""Labs side by side, and that nothing outlives its owner."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from specdecode.cli.lab import app
from specdecode.cluster.kube import PODS, Kube, Resource
from specdecode.lab import paths
from specdecode.lab.lab import Lab

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

NODES = Resource("v1", "nodes")

# A lab with one pod whose process has started a process of its own, in an owner that never ends by itself.
_OWNER = """
import asyncio
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from specdecode.cluster.kube import PODS
from specdecode.lab.images import Image
from specdecode.lab.lab import Lab

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [
    {"name": "main", "image": "test/shell", "args": ["-c", "sleep 600 & sleep 600"]}]}}

async def main():
    async with Lab(images={"test/shell": Image(("/bin/sh",))}) as lab:
        async def running():
            accounts = await lab.kube.request("GET", "/api/v1/namespaces/default/serviceaccounts")
            if accounts["items"]:
                await lab.apply([POD])
                return (await lab.kube.get(PODS, "p", "default"))["status"]["phase"] == "Running"
        await lab.wait("the pod", running)
        print(lab.folder, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def processes_of(folder: Path) -> set[int]:
    """The processes that run in a lab's folder or were started with it in their arguments."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                said = (entry / "cmdline").read_text() + str((entry / "cwd").readlink())
            except OSError:
                continue
            if str(folder) in said:
                found.add(int(entry.name))
    return found


async def test_two_labs_run_side_by_side(lab: Lab) -> None:
    async with Lab(gpus=2, node="other") as other:
        assert [node["metadata"]["name"] for node in await other.kube.list(NODES)] == ["other"]
        assert [node["metadata"]["name"] for node in await lab.kube.list(NODES)] == ["gpu-1"]
        folder = other.folder
    assert not folder.exists()
    assert processes_of(folder) == set()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_nothing_outlives_the_owner_of_a_lab(how: signal.Signals) -> None:
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _OWNER, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        await _end_and_look(owner, how)
    finally:
        with contextlib.suppress(ProcessLookupError):
            owner.kill()


async def _end_and_look(owner: asyncio.subprocess.Process, how: signal.Signals) -> None:
    assert owner.stdout is not None
    folder = Path((await owner.stdout.readline()).decode().strip())
    processes = processes_of(folder) - {owner.pid}
    assert len(processes) == 8, "four of the control plane, the watchdog, the pod's shell and its two children"

    os.kill(owner.pid, how)
    await owner.wait()

    async def all_gone() -> bool:
        return not await asyncio.to_thread(lambda: processes_of(folder) or folder.exists())

    await Lab.wait("the end of everything", all_gone, within=30)


async def test_a_named_lab_comes_up_shows_its_logs_and_goes_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").symlink_to(paths.binaries())
    monkeypatch.setenv("SPECDECODE_CACHE", str(tmp_path))

    async def specdecode_lab(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, arguments)

    up = await specdecode_lab("up", "--name", "a", "--gpus", "1")
    try:
        assert up.exit_code == 0, up.output
        assert f"export KUBECONFIG={tmp_path}/labs/a/kubeconfigs/admin.yaml" in up.stdout.splitlines()
        again = await specdecode_lab("up", "--name", "a")
        assert (again.exit_code, "is up already" in again.output) == (1, True)
        listed = await specdecode_lab("status")
        assert listed.stdout.splitlines()[1].split()[:2] == ["a", "1"]

        async with await Kube.connect(str(tmp_path / "labs/a/kubeconfigs/admin.yaml")) as kube:
            container = {"name": "main", "image": "vllm/none", "command": ["echo", "hello"]}
            pod = {"metadata": {"name": "p"}, "spec": {"containers": [container], "restartPolicy": "Never"}}
            await kube.create(PODS, {"apiVersion": "v1", "kind": "Pod", **pod}, "default")

            async def ended() -> bool:
                return bool((await kube.get(PODS, "p", "default"))["status"]["phase"] == "Succeeded")

            await Lab.wait("the pod's end", ended)
        shown = await specdecode_lab("logs", "p", "--name", "a")
        assert shown.stdout == "hello\n"
    finally:
        down = await specdecode_lab("down", "--name", "a")
    assert down.exit_code == 0, down.output
    assert processes_of(tmp_path / "labs" / "a") == set()
    assert (await specdecode_lab("status")).stdout == ""
