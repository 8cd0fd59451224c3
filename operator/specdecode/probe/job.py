"""A sweep as a Kubernetes Job: from inside the cluster, where the servers are within reach."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from specdecode.cluster.kube import DEPLOYMENTS, PODS, ApiError, Json, Kube, Resource
from specdecode.probe.acceptance import Plan
from specdecode.probe.sweep import ProbeError, SweepResult, Target

JOBS = Resource("batch/v1", "jobs")
CONFIG_MAPS = Resource("v1", "configmaps")

OPERATOR = "app.kubernetes.io/name=specdecode-operator"
"""The labels that the chart gives."""
PROMPTS_LIMIT = 900 * 1024
"""Bytes: a ConfigMap takes a MiB."""
DEADLINE = 3600
"""Seconds for the whole Job."""
KEPT = 3600
"""Seconds that it is kept for after its end."""
LOOK = 2.0
"""Seconds between two looks at it."""
RESULT_LIMIT = 1024 * 1024
FOLDER = "/prompts"


@dataclass(frozen=True)
class Request:
    """What the Job is to probe."""

    aim: Target
    plan: Plan
    file: str
    """Name of the prompts' file: its suffix says what is in it."""
    prompts: str
    chat: bool = False


def manifests(name: str, namespace: str, image: str, request: Request) -> tuple[Json, Json]:
    """The Job, and the ConfigMap with its prompts. Raises `ProbeError` when the prompts are too many for one."""
    if len(request.prompts.encode()) > PROMPTS_LIMIT:
        raise ProbeError(
            f"{request.file} is too long for a ConfigMap ({PROMPTS_LIMIT // 1024} KiB): take fewer prompts"
        )
    meta = {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/name": "specdecode-probe"}}
    key = "prompts.jsonl" if request.file.endswith(".jsonl") else "prompts.txt"
    container = {
        "name": "probe",
        "image": image,
        "args": _arguments(request, f"{FOLDER}/{key}"),
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "prompts", "mountPath": FOLDER, "readOnly": True}],
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "prompts", "configMap": {"name": name}}],
    }
    spec = {
        # A sweep that was cut is no half of one: it is not tried again.
        "backoffLimit": 0,
        "activeDeadlineSeconds": DEADLINE,
        "ttlSecondsAfterFinished": KEPT,
        "template": {"metadata": {"labels": meta["labels"]}, "spec": pod},
    }
    job: Json = {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}
    data: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {key: request.prompts}}
    return job, data


def _arguments(request: Request, file: str) -> list[str]:
    aim, plan = request.aim, request.plan
    return [
        *("probe", "temperature", "--output=json", f"--endpoint={aim.endpoint}", f"--prompts={file}"),
        *(f"--metrics={url}" for url in aim.metrics),
        f"--temperatures={','.join(f'{t:g}' for t in plan.temperatures)}",
        *(f"--requests={plan.requests}", f"--concurrency={plan.concurrency}", f"--max-tokens={plan.max_tokens}"),
        *([f"--model={aim.model}"] if aim.model else []),
        *(["--chat"] if request.chat else []),
    ]


async def image(kube: Kube) -> str:
    """The image that the operator runs from. Raises `ProbeError` when it cannot be found out."""
    try:
        operators = await kube.list(DEPLOYMENTS, selector=OPERATOR)
    except ApiError as e:
        raise ProbeError(f"the operator's Deployment cannot be looked up ({e}): name the image with --image") from e
    if not operators:
        raise ProbeError(f"no Deployment has the label {OPERATOR}: name the operator's image with --image")
    return str(operators[0]["spec"]["template"]["spec"]["containers"][0]["image"])


async def run(
    kube: Kube,
    made: tuple[Json, Json],
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> SweepResult:
    """Creates the Job, waits for its end and reads its result. It removes itself an hour later, prompts included.

    Raises `ProbeError` when it fails or does not end in time, `ApiError` when the cluster refuses.
    """
    job, prompts = made
    meta = job["metadata"]
    created = await kube.create(JOBS, job, meta["namespace"])
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": created["metadata"]["uid"]}
    owned = {**prompts, "metadata": {**prompts["metadata"], "ownerReferences": [owner]}}
    await kube.create(CONFIG_MAPS, owned, meta["namespace"])
    started = clock()
    while not (end := _end(await kube.get(JOBS, meta["name"], meta["namespace"]))):
        if clock() - started > DEADLINE + 60:
            raise ProbeError(f"Job {meta['name']} has not ended: see its pod")
        await sleep(LOOK)
    pods = await kube.list(PODS, meta["namespace"], f"batch.kubernetes.io/job-name={meta['name']}")
    if not pods:
        raise ProbeError(f"Job {meta['name']} has no pod any more: {end}")
    log = await kube.read_log(pods[-1]["metadata"]["name"], meta["namespace"], "probe", 100_000, RESULT_LIMIT)
    if end != "Complete":
        raise ProbeError(f"Job {meta['name']} failed ({end}): {log.strip()[-500:] or 'its log is empty'}")
    try:
        return SweepResult.from_json(log[log.index("{") :])
    except ValueError:
        raise ProbeError(f"the log of Job {meta['name']} is no result: {log.strip()[-300:]}") from None


def _end(job: Json) -> str | None:
    """How a Job ended: `Complete`, or why it failed; None while it runs."""
    conditions: list[dict[str, Any]] = (job.get("status") or {}).get("conditions") or []
    for c in conditions:
        if c["type"] in ("Complete", "Failed") and c["status"] == "True":
            return "Complete" if c["type"] == "Complete" else str(c.get("reason") or "Failed")
    return None
