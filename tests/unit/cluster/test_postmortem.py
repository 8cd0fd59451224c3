"""Whose log is read, when, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from specdecode.cluster.kube import ApiError, Json
from specdecode.cluster.postmortem import PostMortem
from specdecode.vllm.startup_failures import Failure
from support.fake_api import FakeKube

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
ENDED: Json = {"terminated": {"exitCode": 1, "reason": "Error"}}
BACK_OFF: Json = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}


def pod(restarts: int = 1, *, name: str = "new-0", **status: Any) -> Json:
    container = {"name": "vllm", "restartCount": restarts} | status
    return {
        "metadata": {"name": name, "namespace": "serving", "uid": f"uid-{name}"},
        "status": {"containerStatuses": [container]},
    }


@pytest.mark.parametrize(
    ("failed", "previous"),
    {
        "in back-off": (pod(state=BACK_OFF, lastState=ENDED), True),
        "started again": (pod(state={"running": {}}, lastState=ENDED), True),
        "just ended": (pod(0, state=ENDED), False),
    }.values(),
)
async def test_the_log_of_the_run_that_failed_is_read(failed: Json, previous: bool) -> None:
    kube = FakeKube()
    kube.logs["new-0"] = OOM
    found = await PostMortem(kube).diagnose(failed, "vllm")
    assert found is not None and found.failure is Failure.GPU_OUT_OF_MEMORY
    assert kube.logs_read == [("new-0", previous)]


@pytest.mark.parametrize(
    "healthy",
    [
        pod(0, state={"running": {}}),
        pod(0, state={"waiting": {"reason": "ContainerCreating"}}),
        {"metadata": {"name": "new-0", "uid": "u"}, "status": {}},
    ],
)
async def test_the_log_of_a_pod_that_has_not_failed_is_not_read(healthy: Json) -> None:
    kube = FakeKube()
    assert await PostMortem(kube).diagnose(healthy, "vllm") is None
    assert not kube.logs_read


async def test_each_run_is_read_once_and_forgotten_with_its_pod() -> None:
    kube = FakeKube()
    kube.logs["new-0"] = OOM
    found = PostMortem(kube)
    ended, waiting = pod(0, state=ENDED), pod(1, state=BACK_OFF, lastState=ENDED)
    assert await found.diagnose(ended, "vllm") == await found.diagnose(waiting, "vllm")
    assert len(kube.logs_read) == 1, "it is the same run before and after the restart was counted"
    await found.diagnose(pod(2, state=BACK_OFF, lastState=ENDED), "vllm")
    assert len(kube.logs_read) == 2
    found.forget(set())
    await found.diagnose(waiting, "vllm")
    assert len(kube.logs_read) == 3


async def test_without_the_right_to_read_logs_the_status_says_what_it_can() -> None:
    kube = FakeKube()
    kube.failures["log pods"] = ApiError(403, "Forbidden", "pods/log is forbidden")
    found = await PostMortem(kube).diagnose(pod(state=BACK_OFF, lastState=ENDED), "vllm")
    told = "it ended with exit code 1: see the pod's log (the operator could not read the pod's log: Forbidden)"
    assert str(found) == told


async def test_where_there_is_no_log_the_termination_message_is_read() -> None:
    kube = FakeKube()
    kube.failures["log pods"] = ApiError(500, "InternalError", "no kubelet")
    last = {"terminated": {"exitCode": 1, "reason": "Error", "message": OOM}}
    found = await PostMortem(kube).diagnose(pod(state=BACK_OFF, lastState=last), "vllm")
    assert found is not None and found.failure is Failure.GPU_OUT_OF_MEMORY


async def test_a_container_that_cannot_be_created_says_why_though_it_ran_before() -> None:
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}}
    found = await PostMortem(FakeKube()).diagnose(pod(state=waiting, lastState=ENDED), "vllm")
    assert found is not None and 'secret "hub" not found' in found.cause
