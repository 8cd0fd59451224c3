"""What a person is told of a policy that is at work, on a real control plane."""

from __future__ import annotations

import asyncio
import sys

import pytest

from support.scene import NAME, Scene
from support.stories import story

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]


@story
async def test_explain_tells_and_draws_what_the_operator_would_do_and_what_would_change_its_mind(
    scene: Scene,
) -> None:
    await scene.serve()
    await scene.govern(mode="Recommend")
    await scene.until("turning points", lambda: bool((scene.status.get("recommendation") or {}).get("turningPoints")))
    picture = scene.lab.folder / f"{scene.namespace}.svg"
    where = ("-n", scene.namespace, "--kubeconfig", str(scene.lab.kubeconfig), "--plot", str(picture))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from specdecode.cli.main import app; app()", "explain", NAME, *where),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    text = " ".join(output.decode().split())
    assert process.returncode == 0, errors.decode()
    assert f"{scene.namespace}/{NAME}: Deployment {NAME}, mode Recommend" in text
    assert "It would change its mind" in text and "if acceptance of ngram" in text
    drawn = picture.read_text()
    assert "disabled, runs" in drawn and "ngram" in drawn and f"{scene.namespace}/{NAME} on vLLM 0.24.0" in drawn
