"""One workload, its policy, its clients and the operator, in a namespace of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import aiohttp

from specdecode.cluster.kube import DEPLOYMENTS, JSON_PATCH, PODS, POLICIES, REPLICASETS, Json, Resource
from specdecode.lab.audit import Write
from specdecode.lab.lab import Lab
from specdecode.sim.workload import Phase
from support.operators import Operator
from support.traffic import SUMMARIES, Traffic
from support.view import View

T = TypeVar("T")

NAME = "chat"
EVENTS = Resource("v1", "events")
NAMESPACES = Resource("v1", "namespaces")
NODES = Resource("v1", "nodes")
SERVE = ("--model=meta-llama/Llama-32B", "--port=8000", "--stream-interval=8")
NGRAM: Json = {
    "name": "ngram",
    "method": "NGram",
    "numSpeculativeTokens": 5,
    "ngram": {"promptLookupMin": 2, "promptLookupMax": 4},
}
STRATEGY: Json = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2, "maxUnavailable": "50%"}}
"""Not the API's defaults, and not what a canary needs: what is borrowed can be told from what is given back."""
MIN_READY_SECONDS = 1
DONE = 90.0
"""Seconds for a change from its start to its end; machines may be slow."""


def deployment(
    replicas: int = 2,
    *,
    args: Sequence[str] = SERVE,
    command: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    resources: Mapping[str, str] | None = None,
    **spec: Any,
) -> Json:
    """A vLLM Deployment, simulated; `env` of the container, with or without the simulator's prefix."""
    container = {
        "name": "vllm",
        "image": "vllm/vllm-openai:v0.24.0",
        "args": list(args),
        "ports": [{"name": "http", "containerPort": 8000}],
        "env": [{"name": name, "value": value} for name, value in (env or {}).items()],
        # Patient: a machine that is busy with other tests is no reason to take a pod out of service.
        "readinessProbe": {
            "httpGet": {"path": "/health", "port": 8000},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        **({"command": list(command)} if command else {}),
        **({"resources": {"limits": dict(resources)}} if resources else {}),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": NAME}},
            "minReadySeconds": MIN_READY_SECONDS,
            "strategy": STRATEGY,
            "template": {
                "metadata": {"labels": {"app": NAME}},
                "spec": {"terminationGracePeriodSeconds": 30, "containers": [container]},
            },
            **spec,
        },
    }


def fault(name: str, when: str = "NGram") -> dict[str, str]:
    """The simulator's environment for pods that fail when they run something."""
    return {"SPECDECODE_SIM_FAULT": name, "SPECDECODE_SIM_FAULT_WHEN": when}


def policy(**changes: Any) -> Json:
    """A policy in a hurry. `changes` by the path of their field: `rollout__cooldown="1s"`."""
    spec: Json = {
        "targetRef": {"name": NAME},
        "mode": "Auto",
        "profiles": [NGRAM],
        "rollout": {
            "analysis": {"minimumRequests": 4, "duration": "6s", "warmup": "1s"},
            "cooldown": "1h",
            "progressDeadline": "60s",
        },
        "metrics": {"interval": "1s", "window": "6s"},
    }
    for path, value in changes.items():
        *parents, field = path.split("__")
        place = spec
        for parent in parents:
            place = place.setdefault(parent, {})
        place[field] = value
    return {"apiVersion": POLICIES.api_version, "kind": "SpecDecodePolicy", "metadata": {"name": NAME}, "spec": spec}


class Scene:
    """What a test plays in."""

    def __init__(
        self, lab: Lab, view: View, session: aiohttp.ClientSession, namespace: str, operator: Operator
    ) -> None:
        self.lab, self.view, self.namespace, self.operator = lab, view, namespace, operator
        self.kube = lab.kube
        self._session = session
        self._traffic: list[Traffic] = []

    # --- what there is ---

    @property
    def _key(self) -> tuple[str, str]:
        return self.namespace, NAME

    @property
    def policy(self) -> Json | None:
        return self.view.objects[POLICIES].get(self._key)

    @property
    def status(self) -> Json:
        return (self.policy or {}).get("status") or {}

    @property
    def phase(self) -> str | None:
        """Of the change that is being made."""
        return (self.status.get("rollout") or {}).get("phase")

    @property
    def history(self) -> list[Json]:
        return self.status.get("history") or []

    @property
    def decision(self) -> str | None:
        """The reason of the recommendation."""
        return (self.status.get("recommendation") or {}).get("reason")

    def condition(self, kind: str) -> tuple[str, str]:
        """Status and reason of one of the policy's conditions."""
        found = next((c for c in self.status.get("conditions") or [] if c["type"] == kind), {})
        return found.get("status", ""), found.get("reason", "")

    @property
    def deployment(self) -> Json | None:
        return self.view.objects[DEPLOYMENTS].get(self._key)

    @property
    def container(self) -> Json:
        """The vLLM container of the Deployment's template."""
        assert self.deployment is not None, "there is no Deployment"
        container: Json = self.deployment["spec"]["template"]["spec"]["containers"][0]
        return container

    @property
    def speculates(self) -> bool:
        """Whether the Deployment's template asks for n-gram."""
        return "ngram" in json.dumps([self.container.get(f) for f in ("command", "args", "env")])

    @property
    def pods(self) -> list[Json]:
        """Those that are not on their way out."""
        pods = [pod for (namespace, _), pod in self.view.objects[PODS].items() if namespace == self.namespace]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    @property
    def ready(self) -> dict[str, Json]:
        """The ready pods by uid."""
        return {pod["metadata"]["uid"]: pod for pod in self.pods if ready(pod)}

    def endpoints(self) -> list[str]:
        """The base URLs of the ready pods."""
        return [f"http://{pod['status']['podIP']}:8000" for pod in self.ready.values()]

    @property
    def settled(self) -> bool:
        """All pods are of the Deployment's template and ready, for its controller and in our view; others are gone."""
        if self.deployment is None:
            return False
        spec, status = self.deployment["spec"], self.deployment.get("status", {})
        counts = {status.get(f, 0) for f in ("replicas", "updatedReplicas", "availableReplicas")}
        current = status.get("observedGeneration") == self.deployment["metadata"]["generation"]
        return current and counts == {spec["replicas"]} and len(self.pods) == len(self.ready) == spec["replicas"]

    @property
    def paused(self) -> bool:
        return bool(self.deployment and self.deployment["spec"].get("paused"))

    @property
    def revision(self) -> int:
        """How often the Deployment has been rolled, the first time included."""
        assert self.deployment is not None
        return int(self.deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"])

    @property
    def templates(self) -> list[Json]:
        """Every pod template that the Deployment had, oldest first."""
        found: list[Json] = []
        for state in self.view.seen[DEPLOYMENTS, self.namespace]:
            template = state["spec"]["template"]
            if not found or found[-1] != template:
                found.append(template)
        return found

    @property
    def phases(self) -> list[str]:
        """Every phase that a change was in, oldest first; a change that ended leaves no mark."""
        found: list[str] = []
        for state in self.view.seen[POLICIES, self.namespace]:
            phase = ((state.get("status") or {}).get("rollout") or {}).get("phase")
            if phase and (not found or found[-1] != phase):
                found.append(phase)
        return found

    # --- what is done ---

    async def serve(self, manifest: Json | None = None, kind: Phase = SUMMARIES) -> Traffic:
        """Starts a Deployment and, once it is up, its clients."""
        await self.lab.apply([manifest or deployment()], self.namespace)
        await self.until("the Deployment to be up", lambda: self.settled, within=60)
        return self.load(kind)

    def load(self, kind: Phase) -> Traffic:
        """Starts clients."""
        self._traffic.append(Traffic(self._session, self.endpoints, kind))
        return self._traffic[-1]

    async def govern(self, **changes: Any) -> None:
        """Makes the policy."""
        await self.lab.apply([policy(**changes)], self.namespace)

    async def edit(self, **spec: Any) -> None:
        """Changes fields of the policy's spec."""
        await self.kube.patch(POLICIES, NAME, self.namespace, {"spec": spec})

    async def change_deployment(self, *operations: Json) -> None:
        """What a user or another controller does: a JSON patch."""
        await self.kube.patch(DEPLOYMENTS, NAME, self.namespace, list(operations), JSON_PATCH)

    async def read_policy(self) -> Json:
        """The policy as the API server has it at this moment."""
        return await self.kube.get(POLICIES, NAME, self.namespace)

    async def add_resource(self, name: str, count: int) -> str:
        """Gives the node so many of a resource that only this scene asks for: GPUs that are scarce."""
        (node,) = await self.kube.list(NODES)
        resource = f"example.com/{name}"
        capacity = {"capacity": {resource: str(count)}, "allocatable": {resource: str(count)}}
        await self.kube.patch(NODES, node["metadata"]["name"], None, {"status": capacity}, subresource="status")
        return resource

    async def delete_policy(self, *, wait: bool = True) -> None:
        await self.kube.delete(POLICIES, NAME, self.namespace)
        if wait:
            await self.until("the policy to be gone", lambda: self.policy is None, within=30)

    async def until(self, what: str, check: Callable[[], T], within: float = DONE) -> T:
        return await self.view.until(f"{what} in {self.namespace}", check, within)

    async def until_phase(self, phase: str) -> None:
        await self.until(f"phase {phase}", lambda: self.phase == phase)

    async def until_done(self, changes: int = 1) -> Json:
        """The newest entry of the history once so many changes have ended and the Deployment is at rest."""
        await self.until(f"change {changes} to end", lambda: len(self.history) >= changes and self.settled)
        return self.history[0]

    async def ticks(self) -> None:
        """Several more rounds of the operator, which writes fresh figures every few while there is traffic."""
        last = self._observed
        await self.until("fresh figures", lambda: self._observed > last, within=60)

    @property
    def _observed(self) -> datetime:
        at = (self.status.get("observation") or {}).get("time")
        return datetime.fromisoformat(at) if at else datetime.fromisoformat("1970-01-01T00:00:00+00:00")

    async def events(self) -> list[tuple[str, str]]:
        """Type and reason of the Events about the policy."""
        found = await self.kube.list(EVENTS, self.namespace)
        ours = [e for e in found if e["involvedObject"]["kind"] == "SpecDecodePolicy"]
        return [(e["type"], e["reason"]) for e in sorted(ours, key=lambda e: e["metadata"]["creationTimestamp"])]

    async def replicasets(self) -> list[Json]:
        return await self.kube.list(REPLICASETS, self.namespace)

    def writes(self, user: str) -> list[Write]:
        """What a user has written in this namespace so far, by the API server's audit log."""
        return [w for w in self.lab.audit() if w.user == user and w.namespace == self.namespace]

    async def settled_writes(self, user: str) -> list[Write]:
        """The same, once nothing came for some seconds: an Event may be on its way."""
        seen = self.writes(user)
        while True:
            await asyncio.sleep(5)
            if len(now := self.writes(user)) == len(seen):
                return now
            seen = now

    async def rest(self, seconds: float) -> None:
        """Lets time pass: for what must not happen."""
        await asyncio.sleep(seconds)

    # --- what must be true ---

    def assert_given_back(self) -> None:
        """The Deployment has its own strategy again and is not held."""
        assert self.deployment is not None
        spec = self.deployment["spec"]
        assert spec["strategy"] == STRATEGY
        assert spec.get("minReadySeconds") == MIN_READY_SECONDS
        assert not spec.get("paused")

    async def assert_served(self, *kinds: Traffic) -> None:
        """Stops the clients once there were some requests, however short the story: every one was answered."""
        for traffic in kinds or self._traffic:
            await self.until("20 requests to be answered", lambda t=traffic: len(t.records) > 20)
            await traffic.stop()
            assert not traffic.failures

    async def close(self) -> None:
        """Ends what runs here."""
        for traffic in self._traffic:
            traffic.cancel()
        if self.policy is not None:
            await self.kube.delete(POLICIES, NAME, self.namespace)
            # Nobody may be there to do it.
            patch = {"metadata": {"finalizers": None}}
            await asyncio.gather(self.kube.patch(POLICIES, NAME, self.namespace, patch), return_exceptions=True)
        await self.kube.delete(NAMESPACES, self.namespace)

    def describe(self) -> str:
        """For the report of a test that failed."""
        status = {k: v for k, v in self.status.items() if k not in ("profiles", "conditions")}
        unhappy = [c for c in self.status.get("conditions") or [] if c["message"]]
        lines = self.operator.log.read_text(errors="replace").splitlines() if self.operator.log.exists() else []
        ours = [line for line in lines if self.namespace in line or "Error" in line]
        spec = (self.deployment or {}).get("spec", {})
        return "\n".join(
            [
                f"namespace {self.namespace}, phases {self.phases}",
                "the operator " + ("runs" if self.operator.running else "does not run") + "; its log:",
                *(ours or lines)[-30:],
                "Deployment: "
                + json.dumps({f: spec.get(f) for f in ("replicas", "paused", "strategy", "minReadySeconds")})
                + json.dumps((self.deployment or {}).get("status")),
                "pods: "
                + ", ".join(f"{p['metadata']['name']} {'ready' if ready(p) else 'not ready'}" for p in self.pods),
                "failed requests: " + "; ".join(f for t in self._traffic for f in t.failures[:10]),
                "status: " + json.dumps(status),
                *(f"{c['type']}: {c['message']}" for c in unhappy),
            ]
        )


def ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
