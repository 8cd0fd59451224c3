"""The sweep as a Job: what is created, and what is made of its end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specdecode.cluster.kube import DEPLOYMENTS, PODS, Json, Resource
from specdecode.model.estimate import Estimate
from specdecode.probe import job
from specdecode.probe.acceptance import AtTemperature, Plan
from specdecode.probe.sweep import ProbeError, SweepResult, target
from support.fake_api import FakeKube

REQUEST = job.Request(
    target("http://vllm-chat:8000", (), "m", None), Plan((0.0, 0.7), 10, 2, 64), "mine.jsonl", '{"prompt": "a"}\n'
)
RESULT = SweepResult(
    "http://vllm-chat:8000",
    "m",
    1,
    "0.32.0",
    1,
    64,
    2,
    [AtTemperature(0.0, 10, 640, Estimate(0.7, 0.6, 0.8), None, None, (0.7,), 100.0, 0.0, 0.0)],
    [],
)


class Cluster(FakeKube):
    """Ends every Job at the second look."""

    def __init__(self, log: str, end: Json) -> None:
        pod = {"metadata": {"name": "probe-pod", "namespace": "serving"}}
        super().__init__((PODS, pod))
        self.logs["probe-pod"] = log
        self._end, self._looks = end, 0

    async def create(self, resource: Resource, body: Json, namespace: str | None = None) -> Json:
        assert namespace == "serving"
        made = await super().create(resource, body, namespace)
        made["metadata"]["uid"] = f"uid-{resource.plural}"
        return made

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Json:
        self._looks += 1
        return {} if self._looks < 2 else {"status": {"conditions": [self._end]}}


async def run(cluster: Cluster) -> SweepResult:
    async def at_once(seconds: float) -> None:
        pass

    return await job.run(cluster, job.manifests("probe-1", "serving", "op:1", REQUEST), lambda: 0.0, at_once)


def test_the_job_asks_for_what_the_command_line_did() -> None:
    made, prompts = job.manifests("probe-1", "serving", "op:1", REQUEST)
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "op:1"
    assert container["args"] == [
        *("probe", "temperature", "--output=json", "--endpoint=http://vllm-chat:8000"),
        *("--prompts=/prompts/prompts.jsonl", "--metrics=http://vllm-chat:8000/metrics", "--temperatures=0,0.7"),
        *("--requests=10", "--concurrency=2", "--max-tokens=64", "--model=m"),
    ]
    assert prompts["data"] == {"prompts.jsonl": '{"prompt": "a"}\n'}
    assert made["metadata"]["namespace"] == prompts["metadata"]["namespace"] == "serving"
    assert made["spec"]["backoffLimit"] == 0


def test_the_job_has_no_rights_and_is_no_root() -> None:
    pod = job.manifests("probe-1", "serving", "op:1", REQUEST)[0]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_prompts_that_no_configmap_takes_are_refused() -> None:
    with pytest.raises(ProbeError, match="take fewer prompts"):
        job.manifests("probe-1", "serving", "op:1", replace(REQUEST, prompts="x" * 1_000_000))


async def test_the_result_is_read_from_the_log_and_the_prompts_go_with_the_job() -> None:
    cluster = Cluster(f"a warning of some library\n{RESULT.to_json()}\n", {"type": "Complete", "status": "True"})
    assert await run(cluster) == RESULT
    (_, _), (_, prompts) = cluster.created
    assert prompts["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "probe-1", "uid": "uid-jobs"}
    ]


@pytest.mark.parametrize(
    ("log", "end", "words"),
    [
        (
            "specdecode: the server does not speculate",
            {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"},
            "failed .BackoffLimitExceeded.: specdecode: the server does not speculate",
        ),
        ("", {"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}, "its log is empty"),
        ("hello", {"type": "Complete", "status": "True"}, "is no result: hello"),
        ('{"a": 1}', {"type": "Complete", "status": "True"}, "is no result"),
    ],
)
async def test_a_job_that_fails_says_why(log: str, end: Json, words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        await run(Cluster(log, end))


async def test_the_image_is_the_operators() -> None:
    containers: Any = [{"image": "registry.example.com/specdecode-operator:0.1.0"}]
    operator = {"metadata": {"name": "op"}, "spec": {"template": {"spec": {"containers": containers}}}}
    assert await job.image(FakeKube((DEPLOYMENTS, operator))) == "registry.example.com/specdecode-operator:0.1.0"
    with pytest.raises(ProbeError, match="--image"):
        await job.image(FakeKube())
