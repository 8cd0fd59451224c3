"""The Job of a temperature sweep is one that Kubernetes takes, in a namespace with the strictest pod security too."""

from __future__ import annotations

import pytest

from specdecode.cluster.kube import PODS, Kube, Resource
from specdecode.lab.lab import Lab
from specdecode.probe import job
from specdecode.probe.acceptance import Plan
from specdecode.probe.sweep import target

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]


async def test_job_and_prompts_are_accepted_unchanged(lab: Lab, namespace: str) -> None:
    request = job.Request(target("http://chat:8000", (), None, None), Plan((0.0, 1.0), 4), "p.txt", "Hello\n")
    kube: Kube = lab.kube
    for resource, body in zip(
        (job.JOBS, job.CONFIG_MAPS), job.manifests("probe", namespace, "op:1", request), strict=True
    ):
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        taken = await kube.request("POST", resource.path(namespace), query, body)
        assert taken["metadata"]["name"] == "probe"


async def test_its_pod_meets_the_restricted_standard(lab: Lab, namespace: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    await lab.kube.patch(Resource("v1", "namespaces"), namespace, None, {"metadata": {"labels": labels}})
    request = job.Request(target("http://chat:8000", (), None, None), Plan((0.0, 1.0), 4), "p.txt", "Hello\n")
    made, _ = job.manifests("probe", namespace, "op:1", request)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": made["spec"]["template"]["spec"]}
    await lab.kube.request("POST", PODS.path(namespace), {"dryRun": "All", "fieldValidation": "Strict"}, pod)
