"""The process node as Deployments and users see it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from specdecode.cluster.kube import DEPLOYMENTS, PODS, Kube
from specdecode.lab.endpoints import ready_addresses
from specdecode.lab.errors import LabError
from specdecode.lab.lab import Lab

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="session")]

Json = dict[str, Any]
READY: Json = {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1}


def container(**fields: Any) -> Json:
    base = {"name": "main", "image": "test/http:1", "ports": [{"name": "http", "containerPort": 8000}]}
    return base | fields


def shell(script: str, **fields: Any) -> Json:
    return {"name": "main", "image": "test/shell:1", "command": ["/bin/sh", "-c", script]} | fields


def pod(name: str, *containers: Json, **spec: Any) -> Json:
    metadata = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": list(containers), **spec}}


def deployment(name: str, replicas: int, *containers: Json, **spec: Any) -> Json:
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": list(containers)}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template, **spec},
    }


async def wait_for_pod(lab: Lab, namespace: str, name: str, what: str, predicate: Any) -> Json:
    async def check() -> Json | None:
        found = await lab.kube.get(PODS, name, namespace)
        return found if predicate(found) else None

    try:
        result = await lab.wait(f"pod {name} {what}", check, within=60)
    except LabError as e:
        raise AssertionError(
            f"{e}: {json.dumps((await lab.kube.get(PODS, name, namespace))['status'], indent=1)}"
        ) from e
    assert result is not None
    return result


async def wait_for_status(lab: Lab, namespace: str, name: str, **wanted: int) -> Json:
    """A Deployment whose controller has seen its newest spec and reports these numbers."""

    async def check() -> Json | None:
        found = await lab.kube.get(DEPLOYMENTS, name, namespace)
        status = found["status"]
        current = status.get("observedGeneration") == found["metadata"]["generation"]
        return found if current and all(status.get(key, 0) == value for key, value in wanted.items()) else None

    result = await lab.wait(f"deployment {name} with {wanted}", check, within=60)
    assert result is not None
    return result


def state(p: Json) -> Json:
    statuses = p["status"].get("containerStatuses") or [{"state": {}, "lastState": {}, "restartCount": 0}]
    found: Json = statuses[0]
    return found


def is_ready(p: Json) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", []))


async def test_a_deployment_becomes_ready_and_each_pod_answers_on_its_own_address(lab: Lab, namespace: str) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    }
    await lab.apply([deployment("web", 3, container(readinessProbe=READY)), service], namespace)
    await wait_for_status(lab, namespace, "web", readyReplicas=3, availableReplicas=3)

    addresses = await ready_addresses(lab.kube, namespace, "web")
    assert len(set(addresses)) == 3
    async with httpx.AsyncClient(trust_env=False) as http:
        seen = [(await http.get(f"http://{address}/env")).json() for address in addresses]
    assert {f"{env['POD_IP']}:8000" for env in seen} == set(addresses)
    assert len({env["HOSTNAME"] for env in seen}) == 3


async def test_a_new_template_rolls_through_and_the_old_pods_leave(lab: Lab, namespace: str) -> None:
    await lab.apply([deployment("web", 2, container(readinessProbe=READY))], namespace)
    await wait_for_status(lab, namespace, "web", readyReplicas=2)
    before = {p["metadata"]["uid"] for p in await lab.kube.list(PODS, namespace)}

    await lab.apply(
        [deployment("web", 2, container(readinessProbe=READY, env=[{"name": "A", "value": "2"}]))], namespace
    )
    await wait_for_status(lab, namespace, "web", updatedReplicas=2, readyReplicas=2, replicas=2)

    async def only_new() -> bool:
        after = {p["metadata"]["uid"] for p in await lab.kube.list(PODS, namespace)}
        return len(after) == 2 and not after & before

    await lab.wait("the old pods to be gone", only_new)


async def test_the_environment_is_what_a_kubelet_would_give(lab: Lab, namespace: str) -> None:
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"MODEL": "m", "K": "3"}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"token": "t0p"}}
    env = [
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}},
        {"name": "GREETING", "value": "$(NAME) on $(NODE), $$(NAME), $(UNKNOWN)"},
    ]
    script = 'echo "$GREETING|$C_MODEL|$TOKEN|$IP"; echo "$0"; sleep 60'
    c = shell(script, env=env, envFrom=[{"configMapRef": {"name": "cm"}, "prefix": "C_"}], args=["k=$(C_K)"])
    await lab.apply([config_map, secret, pod("p", c)], namespace)
    running = await wait_for_pod(lab, namespace, "p", "running", is_ready)

    log = next(lab.folder.glob(f"pods/{namespace}_p_*/main/0.log"))
    first, second = await asyncio.to_thread(lambda: log.read_text().splitlines())
    assert first == f"p on gpu-1, $(NAME), $(UNKNOWN)|m|t0p|{running['status']['podIP']}"
    assert second == "k=3"


async def test_a_container_that_refers_to_a_missing_secret_waits_for_it(lab: Lab, namespace: str) -> None:
    env = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "late", "key": "token"}}}]
    await lab.apply([pod("p", shell("sleep 60", env=env))], namespace)
    waiting = await wait_for_pod(
        lab, namespace, "p", "waiting", lambda p: "CreateContainerConfigError" in json.dumps(state(p)["state"])
    )
    assert state(waiting)["state"]["waiting"]["message"] == 'secret "late" not found'

    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late"}, "stringData": {"token": "x"}}
    await lab.apply([secret], namespace)
    await wait_for_pod(lab, namespace, "p", "running", is_ready)


async def test_a_crashing_container_is_restarted_with_back_off(lab: Lab, namespace: str) -> None:
    await lab.apply([pod("p", shell("exit 7"))], namespace)
    looping = await wait_for_pod(
        lab,
        namespace,
        "p",
        "in a crash loop",
        lambda p: (
            state(p)["restartCount"] >= 2 and state(p)["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff"
        ),
    )
    last = state(looping)["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (7, "Error")
    assert looping["status"]["phase"] == "Running"
    assert not is_ready(looping)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"image": "nobody/knows:this"}, "ErrImage|ImagePullBackOff"),
        ({"command": ["no-such-program"]}, "CrashLoopBackOff"),
    ],
)
async def test_a_container_that_cannot_start_says_why(lab: Lab, namespace: str, broken: Json, reason: str) -> None:
    await lab.apply([pod("p", container(**broken))], namespace)
    found = await wait_for_pod(
        lab,
        namespace,
        "p",
        f"waiting with {reason}",
        lambda p: any(word in state(p)["state"].get("waiting", {}).get("reason", "") for word in reason.split("|")),
    )
    if "command" in broken:
        last = state(found)["lastState"]["terminated"]
        assert (last["reason"], last["exitCode"]) == ("StartError", 128)
        assert 'exec: "no-such-program": executable file not found in $PATH' in last["message"]
    else:
        assert found["status"]["phase"] == "Pending"


async def test_a_pod_is_ready_only_while_its_probe_says_so(lab: Lab, namespace: str) -> None:
    probe = {"exec": {"command": ["/bin/sh", "-c", "test -e $HOME/ready"]}, "periodSeconds": 1, "failureThreshold": 1}
    await lab.apply([pod("p", shell("sleep 60", readinessProbe=probe))], namespace)
    started = await wait_for_pod(lab, namespace, "p", "running", lambda p: "running" in state(p)["state"])
    assert not is_ready(started)
    flag = next(lab.folder.glob(f"pods/{namespace}_p_*/main")) / "ready"
    flag.touch()
    await wait_for_pod(lab, namespace, "p", "ready", is_ready)
    flag.unlink()
    unready = await wait_for_pod(lab, namespace, "p", "unready", lambda p: not is_ready(p))
    assert state(unready)["restartCount"] == 0


async def test_a_failed_liveness_probe_restarts_the_container(lab: Lab, namespace: str) -> None:
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    await lab.apply([pod("p", shell("sleep 60", livenessProbe=probe))], namespace)
    restarted = await wait_for_pod(lab, namespace, "p", "restarted", lambda p: state(p)["restartCount"] >= 1)
    assert state(restarted)["lastState"]["terminated"]["exitCode"] == 128 + 15


async def test_a_startup_probe_holds_back_the_other_probes(lab: Lab, namespace: str) -> None:
    startup = {"exec": {"command": ["/bin/sh", "-c", "test -e $HOME/up"]}, "periodSeconds": 1, "failureThreshold": 60}
    liveness = {"exec": {"command": ["/bin/sh", "-c", "touch $HOME/asked"]}, "periodSeconds": 1}
    c = shell("sleep 60", startupProbe=startup, livenessProbe=liveness)
    await lab.apply([pod("p", c)], namespace)
    waiting = await wait_for_pod(lab, namespace, "p", "running", lambda p: "running" in state(p)["state"])
    home = next(lab.folder.glob(f"pods/{namespace}_p_*/main"))
    assert (state(waiting)["started"], is_ready(waiting), (home / "asked").exists()) == (False, False, False)
    (home / "up").touch()
    started = await wait_for_pod(lab, namespace, "p", "started", is_ready)
    assert state(started)["started"] is True


async def test_deletion_runs_the_hook_then_terminates_and_kills_after_the_grace_period(
    lab: Lab, namespace: str
) -> None:
    script = 'trap "echo term" TERM; echo up; while true; do sleep 0.1; done'
    hook = {"preStop": {"exec": {"command": ["/bin/sh", "-c", "echo hook > $HOME/hook"]}}}
    await lab.apply([pod("p", shell(script, lifecycle=hook))], namespace)
    await wait_for_pod(lab, namespace, "p", "running", is_ready)
    home = next(lab.folder.glob(f"pods/{namespace}_p_*/main"))

    await lab.kube.delete(PODS, "p", namespace, grace_seconds=1)
    leaving = await lab.kube.get(PODS, "p", namespace)
    assert leaving["metadata"]["deletionGracePeriodSeconds"] == 1

    async def gone() -> bool:
        return not await lab.kube.list(PODS, namespace)

    await lab.wait("the pod to be gone", gone, within=30)
    assert (home / "hook").read_text() == "hook\n"
    assert "term" in (home / "0.log").read_text().split()


async def test_a_forced_deletion_ends_the_process_too(lab: Lab, namespace: str) -> None:
    await lab.apply([pod("p", shell("echo $$$$; trap '' TERM; while true; do sleep 0.1; done"))], namespace)
    await wait_for_pod(lab, namespace, "p", "running", is_ready)
    log = next(lab.folder.glob(f"pods/{namespace}_p_*/main/0.log"))
    pid = int(log.read_text())
    await lab.kube.delete(PODS, "p", namespace, grace_seconds=0)

    async def ended() -> bool:
        return not _alive(pid)

    await lab.wait("the process to end", ended, within=30)


async def test_init_containers_run_in_order_and_before_the_others(lab: Lab, namespace: str) -> None:
    order = "$HOME/../order"
    init = [shell(f"sleep 0.2; echo {n} >> {order}", name=n) for n in ("one", "two")]
    await lab.apply([pod("p", shell(f"echo main >> {order}; sleep 60"), initContainers=init)], namespace)
    done = await wait_for_pod(lab, namespace, "p", "ready", is_ready)
    assert next(lab.folder.glob(f"pods/{namespace}_p_*/order")).read_text().split() == ["one", "two", "main"]
    assert [s["state"]["terminated"]["reason"] for s in done["status"]["initContainerStatuses"]] == ["Completed"] * 2


@pytest.mark.parametrize(("script", "phase"), [("exit 0", "Succeeded"), ("exit 4", "Failed")])
async def test_a_pod_that_never_restarts_ends_in_a_final_phase(
    lab: Lab, namespace: str, script: str, phase: str
) -> None:
    await lab.apply([pod("p", shell(script), restartPolicy="Never")], namespace)
    await wait_for_pod(lab, namespace, "p", phase, lambda p: p["status"]["phase"] == phase)


async def test_a_pod_that_finds_no_gpu_waits_until_one_is_freed(lab: Lab, namespace: str) -> None:
    gpus: Json = {"resources": {"limits": {"nvidia.com/gpu": "5"}}}
    await lab.apply([pod("first", shell("sleep 60", **gpus))], namespace)
    await wait_for_pod(lab, namespace, "first", "running", is_ready)
    await lab.apply([pod("second", shell("sleep 60", **gpus))], namespace)
    pending = await wait_for_pod(
        lab, namespace, "second", "unschedulable", lambda p: "Unschedulable" in json.dumps(p["status"])
    )
    assert pending["status"]["phase"] == "Pending"
    assert "Insufficient nvidia.com/gpu" in json.dumps(pending["status"])

    await lab.kube.delete(PODS, "first", namespace, grace_seconds=1)
    await wait_for_pod(lab, namespace, "second", "running", is_ready)


async def test_a_pod_acts_with_the_rights_of_its_service_account(lab: Lab, namespace: str) -> None:
    await lab.apply(_account("reader"), namespace)
    script = "python - <<'EOF'\n" + _LIST_PODS_AND_SECRETS + "\nEOF\nsleep 60"
    env = [{"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}]
    await lab.apply([pod("p", shell(script, env=env), serviceAccountName="reader")], namespace)
    await wait_for_pod(lab, namespace, "p", "running", is_ready)
    log = next(lab.folder.glob(f"pods/{namespace}_p_*/main/0.log"))

    async def said() -> list[str]:
        words = log.read_text().split()
        return words if len(words) == 2 else []

    assert await lab.wait("the pod's two answers", said) == ["200", "403"], log.read_text()


async def test_a_service_account_may_do_what_its_role_says_and_the_audit_log_names_it(lab: Lab, namespace: str) -> None:
    await lab.apply(_account("reader"), namespace)
    kubeconfig = await lab.service_account_kubeconfig(namespace, "reader")
    user = f"system:serviceaccount:{namespace}:reader"
    async with await Kube.connect(str(kubeconfig)) as kube:
        assert await kube.list(PODS, namespace) == []
        with pytest.raises(Exception, match="403 Forbidden"):
            await kube.create(PODS, pod("p", shell("true")), namespace)
    writes = [(w.verb, w.resource, w.status) for w in lab.audit() if w.user == user]
    assert writes == [("create", "pods", 403)]


def _account(name: str) -> list[Json]:
    group = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]
    role_ref = {"apiGroup": group, "kind": "Role", "name": name}
    metadata = {"name": name}
    subjects = [{"kind": "ServiceAccount", "name": name}]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": role_ref,
            "subjects": subjects,
        },
    ]


_LIST_PODS_AND_SECRETS = """
import os, ssl, urllib.request, urllib.error, yaml
config = yaml.safe_load(open(os.environ["KUBECONFIG"]))
cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
trust = ssl.create_default_context(cafile=cluster["certificate-authority"])
for resource in ("pods", "secrets"):
    url = f"{cluster['server']}/api/v1/namespaces/{os.environ['NAMESPACE']}/{resource}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {user['token']}"})
    try:
        print(urllib.request.urlopen(request, context=trust).status, flush=True)
    except urllib.error.HTTPError as e:
        print(e.code, flush=True)
"""


def _alive(pid: int) -> bool:
    from pathlib import Path

    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
