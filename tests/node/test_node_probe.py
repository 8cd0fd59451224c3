"""`specdecode probe temperature --job`: a Job of the operator's image, beside the servers, on a real kubelet."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from support.installed import command
from support.real_scene import RealScene, real_deployment
from support.scene import NAME, SERVE
from support.stories import story

pytestmark = [pytest.mark.node, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

SPECULATES = ("--speculative-config", json.dumps({"method": "ngram", "num_speculative_tokens": 4}))


@story
async def test_a_sweep_runs_as_a_job_in_the_cluster(scene: RealScene) -> None:
    traffic = await scene.serve(real_deployment(1, nodes=("node-1", "node-2"), args=[*SERVE, *SPECULATES]))
    await traffic.stop()
    await scene.govern(mode="Observe")
    prompts = scene.lab.folder / f"{scene.namespace}.txt"
    prompts.write_text("Summarise this: the cat sat on the mat.\nSummarise that: the dog lay on the rug.\n")
    told = await command(
        Path(sys.executable).with_name("specdecode"),
        *("probe", "temperature", f"--kubeconfig={scene.lab.kubeconfig}", f"--namespace={scene.namespace}"),
        *(f"--job={NAME}", f"--endpoint={scene.endpoints()[0]}", f"--prompts={prompts}"),
        *("--temperatures=0,1", "--requests=4", "--max-tokens=100", "--output=json"),
    )
    cool, hot = json.loads(told)["temperatures"]
    assert (cool["temperature"], hot["temperature"]) == (0.0, 1.0)
    assert cool["tokens"] == hot["tokens"] == 400 and not cool["foreign_tokens"]
    assert cool["acceptance"]["value"] > hot["acceptance"]["value"]
