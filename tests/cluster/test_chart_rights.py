"""The chart on a real API server: every object is taken; the operator's own token can do its work and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from specdecode.cluster.kube import POLICIES, ApiError, Kube, Resource
from specdecode.lab.lab import Lab
from support.helm import CHART, REPOSITORY
from support.helm import helm as installed

pytestmark = [pytest.mark.cluster, pytest.mark.charts, pytest.mark.asyncio(loop_scope="session")]

NAMESPACE = "specdecode-chart"
OPERATOR = "operator-under-test"
OTHER = "default"

# The operator's pod is not run here: no node has this label.
VALUES = {"fullnameOverride": OPERATOR, "nodeSelector": {"specdecode.dev/nowhere": "true"}}


class Helm:
    """Runs Helm against the lab."""

    def __init__(self, kubeconfig: str) -> None:
        self.binary = installed()
        self.kubeconfig = kubeconfig

    def __call__(self, *arguments: str, values: dict[str, Any] | None = None) -> str:
        command = [str(self.binary), "--kubeconfig", self.kubeconfig, "--namespace", NAMESPACE, *arguments]
        if values is not None:
            command += ["--values", "-"]
        result = subprocess.run(
            command, input=json.dumps(values or {}), capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def install(self, values: dict[str, Any]) -> None:
        self("upgrade", "--install", "sd", str(CHART), "--create-namespace", "--take-ownership", values=VALUES | values)


@pytest.fixture(scope="module")
def helm(lab: Lab) -> Iterator[Helm]:
    helm = Helm(str(lab.kubeconfig))
    yield helm
    helm("uninstall", "sd", "--ignore-not-found")


@asynccontextmanager
async def the_operator(lab: Lab) -> AsyncIterator[Kube]:
    """A connection with a token of the chart's service account."""
    kubeconfig = await lab.service_account_kubeconfig(NAMESPACE, OPERATOR)
    async with await Kube.connect(str(kubeconfig)) as kube:
        yield kube


async def may(kube: Kube, verb: str, resource: str, namespace: str) -> bool:
    """Whether the API server would allow it: `resource` is `plural[/subresource][.group]`."""
    name, _, group = resource.partition(".")
    plural, _, subresource = name.partition("/")
    attributes = {"verb": verb, "group": group, "resource": plural, "subresource": subresource, "namespace": namespace}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    path = Resource("authorization.k8s.io/v1", "selfsubjectaccessreviews").path()
    return bool((await kube.request("POST", path, body=review))["status"]["allowed"])


ALLOWED = {
    "specdecodepolicies.specdecode.dev": {"get", "list", "watch", "patch"},
    "specdecodepolicies/status.specdecode.dev": {"get", "patch"},
    "deployments.apps": {"get", "list", "watch", "patch"},
    "replicasets.apps": {"get", "list", "watch"},
    "pods/log": {"get"},
    "pods": {"get", "list", "watch"},
    "configmaps": {"get", "create", "patch"},
    "events": {"create", "patch"},
    "events.events.k8s.io": {"create", "patch"},
}
EVERYWHERE = ALLOWED | {"customresourcedefinitions.apiextensions.k8s.io": {"list", "watch"}}
NOT_ALLOWED_AT_ALL = (
    *("secrets", "nodes", "namespaces", "services", "serviceaccounts", "serviceaccounts/token"),
    *("pods/exec", "pods/eviction", "pods/portforward", "pods/proxy"),
    *("deployments/scale.apps", "deployments/status.apps", "statefulsets.apps", "daemonsets.apps"),
    *("roles.rbac.authorization.k8s.io", "clusterroles.rbac.authorization.k8s.io", "jobs.batch"),
    "leases.coordination.k8s.io",
)
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")


async def rights(kube: Kube, namespace: str) -> dict[str, set[str]]:
    """The verbs that are allowed, by resource; resources without any are left out."""
    resources = (*EVERYWHERE, *NOT_ALLOWED_AT_ALL)
    found = {resource: {verb for verb in VERBS if await may(kube, verb, resource, namespace)} for resource in resources}
    return {resource: verbs for resource, verbs in found.items() if verbs}


async def test_the_operators_token_may_do_its_work_everywhere_and_nothing_else(lab, helm):
    helm.install({})
    async with the_operator(lab) as operator:
        assert await rights(operator, OTHER) == EVERYWHERE
        assert await rights(operator, "") == EVERYWHERE


async def test_requests_beyond_the_role_are_refused(lab, helm):
    helm.install({})
    async with the_operator(lab) as operator:
        assert isinstance(await operator.list(Resource("v1", "pods"), OTHER), list)
        for refused in (
            operator.list(Resource("v1", "secrets"), OTHER),
            operator.list(Resource("v1", "configmaps"), OTHER),
            operator.delete(Resource("v1", "configmaps"), "any", OTHER),
            operator.list(Resource("v1", "nodes")),
            operator.delete(Resource("v1", "pods"), "any", OTHER),
            operator.patch(Resource("v1", "nodes"), "any", None, {"metadata": {"labels": {"a": "b"}}}),
            operator.delete(Resource("apps/v1", "deployments"), "any", OTHER),
        ):
            with pytest.raises(ApiError, match="403 Forbidden"):
                await refused


async def test_a_namespaced_operator_may_nothing_outside_its_namespaces(lab, helm, namespace):
    helm.install({"watchNamespaces": [namespace]})
    async with the_operator(lab) as operator:
        assert await rights(operator, namespace) == ALLOWED
        assert await rights(operator, OTHER) == {}
        assert await rights(operator, "") == {}


@asynccontextmanager
async def running(lab: Lab, log: Path, *arguments: str) -> AsyncIterator[None]:
    """The operator as a process of this machine, under the chart's service account."""
    environment = os.environ | {"KUBECONFIG": str(await lab.service_account_kubeconfig(NAMESPACE, OPERATOR))}
    specdecode = Path(sys.executable).with_name("specdecode")
    listen = ("--health-port=0", "--metrics-port=0")
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(specdecode, "operator", "run", *listen, *arguments), env=environment, stdout=output, stderr=output
        )
        try:
            yield
            assert process.returncode is None, "the operator ended early"
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


@pytest.mark.parametrize("namespaced", [False, True], ids=["everywhere", "in some namespaces"])
async def test_the_operator_does_its_work_with_the_rights_of_the_chart(lab, helm, namespace, tmp_path, namespaced):
    helm.install({"watchNamespaces": [namespace]} if namespaced else {})
    policy, deployment = (
        yaml.safe_load((REPOSITORY / f"examples/{kind}-gitops-env-reference.yaml").read_text())
        for kind in ("policy", "deployment")
    )
    deployment["spec"]["replicas"] = 0
    name = policy["metadata"]["name"]
    log = tmp_path / "operator.log"

    async def looked_at() -> bool:
        status = (await lab.kube.get(POLICIES, name, namespace)).get("status", {})
        return any(condition["type"] == "MetricsAvailable" for condition in status.get("conditions", ()))

    async def gone() -> bool:
        return not await lab.kube.list(POLICIES, namespace)

    async with running(lab, log, *([f"--namespace={namespace}"] if namespaced else [])):
        await lab.apply([deployment, policy], namespace)
        await lab.wait("the policy's conditions", looked_at, within=30)
        await lab.kube.delete(POLICIES, name, namespace)
        await lab.wait("the end of the policy, whose finalizer is the operator's to remove", gone, within=30)
    for refusal in ("Forbidden", "forbidden", "403", "Not enough permissions"):
        assert refusal not in log.read_text()


async def test_policies_outlive_the_chart(lab, helm):
    helm.install({})
    helm("uninstall", "sd")
    crd = await lab.kube.get(
        Resource("apiextensions.k8s.io/v1", "customresourcedefinitions"), "specdecodepolicies.specdecode.dev"
    )
    assert "deletionTimestamp" not in crd["metadata"]
    with pytest.raises(ApiError, match="404"):
        await lab.kube.get(Resource("apps/v1", "deployments"), OPERATOR, NAMESPACE)
