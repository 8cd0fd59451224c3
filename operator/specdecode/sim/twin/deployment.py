"""A Deployment and its pods in virtual time: what Kubernetes' controllers do between a patch and the pods that serve.

The semantics are those of pkg/controller/deployment (rolling.go, sync.go) and of the scheduler for pods that need one
GPU each. Left out: everything that a roll of one workload does not meet.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GRACE = 15.0
"""Seconds between a pod's deletion and its GPU being free: what vLLM takes to end."""

Json = dict[str, Any]


@dataclass(eq=False)
class VirtualPod:
    """One pod. Times are seconds of the scenario."""

    name: str
    revision: str
    created: float
    row: int | None = None
    """Its place in the fleet once it has a node."""
    unschedulable_since: float | None = None
    starts_serving: float = math.inf
    deleted: float | None = None

    def ready(self, t: float) -> bool:
        """Whether it serves."""
        return self.deleted is None and self.starts_serving <= t

    def available(self, t: float, min_ready: float) -> bool:
        """Whether it has been ready long enough for a rolling update to go on."""
        return self.deleted is None and self.starts_serving + min_ready <= t


@dataclass
class Happened:
    """What changed for the fleet in one reconciliation."""

    serving: list[VirtualPod] = field(default_factory=list)
    """Pods that became ready."""
    ended: list[VirtualPod] = field(default_factory=list)
    """Pods that had a row and gave it up."""


class VirtualDeployment:
    """One Deployment with its ReplicaSets' pods. `rows` are the places in the fleet that its pods may take."""

    def __init__(self, container: Json, replicas: int, *, rows: Sequence[int], start_up: float, spare: int) -> None:
        template: Json = {"metadata": {"labels": {"app": "service"}}, "spec": {"containers": [container]}}
        self.object: Json = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "service", "namespace": "default", "uid": "deployment", "generation": 1},
            "spec": {
                "replicas": replicas,
                "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                "selector": {"matchLabels": {"app": "service"}},
                "template": template,
            },
            "status": {},
        }
        self.start_up, self._spare, self._free = start_up, spare, list(rows)
        self.templates: dict[str, Json] = {revision_of(template): copy.deepcopy(template)}
        """Pod templates by revision: the ReplicaSets."""
        self.pods: list[VirtualPod] = []
        self.serving: tuple[VirtualPod, ...] = ()
        """The ready pods, oldest first."""
        self._number = 0
        self._wanted = replicas
        self.moving = False
        """Whether the next reconciliation can change anything by itself."""
        self.template_revision = revision = revision_of(template)
        """The hash of the Deployment's template, whether or not there is a ReplicaSet of it."""
        for _ in range(replicas):
            pod = self._create(revision, 0.0)
            pod.row, pod.starts_serving = self._free.pop(0), 0.0
        self.serving = tuple(self.pods)
        self._observe(0.0)

    @property
    def spec(self) -> Json:
        """The Deployment's spec."""
        spec: Json = self.object["spec"]
        return spec

    @property
    def revision(self) -> str | None:
        """The ReplicaSet that has the Deployment's template; None while the controller has made none."""
        return self.template_revision if self.template_revision in self.templates else None

    def template(self, revision: str) -> Json:
        """The pod template of a revision: a ReplicaSet's, or the Deployment's own."""
        template: Json = self.templates.get(revision) or self.spec["template"]
        return template

    @property
    def settled(self) -> bool:
        """Whether all pods are of the current template and available, and nothing is on its way."""
        spec, status = self.spec, self.object["status"]
        counts = [status[f] for f in ("replicas", "updatedReplicas", "availableReplicas")]
        seen = status["observedGeneration"] >= self.object["metadata"]["generation"]
        return seen and not spec.get("paused") and all(n == spec["replicas"] for n in counts)

    def apply(self, operations: Sequence[Mapping[str, Any]]) -> None:
        """A JSON patch, as the API server applies it: to a new object, of the next generation."""
        if not operations:
            return
        self.object = copy.deepcopy(self.object)
        for operation in operations:
            *path, last = operation["path"].split("/")[1:]
            parent: Any = self.object
            for part in path:
                parent = parent[int(part)] if isinstance(parent, list) else parent[part]
            if operation["op"] == "add":
                parent[last] = copy.deepcopy(operation["value"])
            elif operation["op"] == "remove":
                del parent[last]
        self.object["metadata"]["generation"] += 1
        self.template_revision = revision_of(self.spec["template"])
        self.moving = True

    def scale(self, replicas: int) -> None:
        """What an autoscaler writes."""
        if replicas != self.spec["replicas"]:
            self.apply([{"op": "add", "path": "/spec/replicas", "value": replicas}])

    def reconcile(self, t: float) -> Happened:
        """The controllers' next round."""
        happened = Happened()
        self.pods = [p for p in self.pods if p.deleted is None or t < p.deleted + GRACE]
        self._schedule(t)
        before = set(self.serving)
        spec = self.spec
        min_ready = float(spec.get("minReadySeconds") or 0)
        active = self._active()
        if len(active) <= 1 or spec["replicas"] != self._wanted:
            self._scale(t, active, happened)
        if not spec.get("paused"):
            self._roll(t, min_ready, happened)
        self._schedule(t)
        self.serving = tuple(p for p in self.pods if p.ready(t))
        happened.serving += [p for p in self.serving if p not in before]
        self._observe(t)
        self.moving = not self.settled or len(self.pods) != spec["replicas"]
        return happened

    # --- controllers ---

    def _active(self) -> dict[str, list[VirtualPod]]:
        """Pods that count as replicas, by revision."""
        found: dict[str, list[VirtualPod]] = {}
        for pod in self.pods:
            if pod.deleted is None:
                found.setdefault(pod.revision, []).append(pod)
        return found

    def _scale(self, t: float, active: Mapping[str, list[VirtualPod]], happened: Happened) -> None:
        """A new number of replicas: to the one ReplicaSet, or, in the middle of a roll, to the largest."""
        wanted = self.spec["replicas"]
        if len(active) <= 1:
            revision = next(iter(active), self.revision)
            pods = active.get(revision or "", [])
            # With one ReplicaSet that is not of the template a roll does the rest.
            delta = wanted - len(pods) if revision == self.revision or self.spec.get("paused") else 0
        else:
            revision = max(active, key=lambda r: len(active[r]))
            pods, delta = active[revision], wanted - self._wanted
        self._wanted = wanted
        if revision is None:
            return
        for _ in range(max(0, delta)):
            self._create(revision, t)
        for pod in _expendable(pods, t)[: max(0, -delta)]:
            self._delete(pod, t, happened)

    def _roll(self, t: float, min_ready: float, happened: Happened) -> None:
        """One round of a rolling update: reconcileNewReplicaSet, then reconcileOldReplicaSets."""
        spec = self.spec
        revision = self.template_revision
        self.templates.setdefault(revision, copy.deepcopy(spec["template"]))
        wanted = spec["replicas"]
        surge, unavailable = _limits(spec.get("strategy") or {}, wanted)
        active = self._active()
        new = active.get(revision, [])
        old = [p for r, pods in active.items() if r != revision for p in pods]
        if not old and len(new) == wanted:
            return
        create = min(wanted + surge - len(new) - len(old), wanted - len(new))
        if create > 0:
            for _ in range(create):
                self._create(revision, t)
            return
        if len(new) > wanted:
            for pod in _expendable(new, t)[: len(new) - wanted]:
                self._delete(pod, t, happened)
            return
        new_unavailable = sum(not p.available(t, min_ready) for p in new)
        down = len(new) + len(old) - (wanted - unavailable) - new_unavailable
        unhealthy = [p for p in _expendable(old, t) if not p.available(t, min_ready)][: max(0, down)]
        for pod in unhealthy:
            self._delete(pod, t, happened)
        old = [p for p in old if p not in unhealthy]
        available = sum(p.available(t, min_ready) for p in (*new, *old))
        for pod in _expendable(old, t)[: max(0, min(len(old), available - (wanted - unavailable)))]:
            self._delete(pod, t, happened)

    def _schedule(self, t: float) -> None:
        """Pods without a node get one while there are any."""
        for pod in self.pods:
            if pod.row is not None or pod.deleted is not None:
                continue
            taken = sum(p.row is not None for p in self.pods)  # one that ends holds its GPU until it is gone
            if taken < self.spec["replicas"] + self._spare and self._free:
                pod.row, pod.unschedulable_since = self._free.pop(0), None
                pod.starts_serving = t + self.start_up
            elif pod.unschedulable_since is None:
                pod.unschedulable_since = t

    def _create(self, revision: str, t: float) -> VirtualPod:
        self._number += 1
        pod = VirtualPod(f"service-{revision}-{self._number:05d}", revision, t)
        self.pods.append(pod)
        return pod

    def _delete(self, pod: VirtualPod, t: float, happened: Happened) -> None:
        pod.deleted = t
        if pod.row is None:
            self.pods.remove(pod)
            return
        happened.ended.append(pod)
        self._free.append(pod.row)

    def _observe(self, t: float) -> None:
        """The Deployment's status."""
        min_ready = float(self.spec.get("minReadySeconds") or 0)
        revision = self.template_revision
        pods = [p for p in self.pods if p.deleted is None]
        ready, available = sum(p.ready(t) for p in pods), sum(p.available(t, min_ready) for p in pods)
        status = {
            "observedGeneration": self.object["metadata"]["generation"],
            "replicas": len(pods),
            "updatedReplicas": sum(p.revision == revision for p in pods),
            "readyReplicas": ready,
            "availableReplicas": available,
        }
        if status != self.object["status"]:
            self.object = {**self.object, "status": status}


def revision_of(template: Mapping[str, Any]) -> str:
    """The hash that tells a pod template from others."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def _limits(strategy: Mapping[str, Any], replicas: int) -> tuple[int, int]:
    """maxSurge, rounded up, and maxUnavailable, rounded down; where both are 0, one pod may be unavailable
    (deployment_util.go, ResolveFenceposts)."""
    rolling = strategy.get("rollingUpdate") or {}

    def resolved(value: int | str, rounded: Any) -> int:
        share = isinstance(value, str)
        return int(rounded(float(str(value).rstrip("%")) / 100 * replicas)) if share else int(value)

    surge = resolved(rolling.get("maxSurge", "25%"), math.ceil)
    unavailable = resolved(rolling.get("maxUnavailable", "25%"), math.floor)
    return surge, unavailable if surge or unavailable else 1


def _expendable(pods: Sequence[VirtualPod], t: float) -> list[VirtualPod]:
    """The order in which a ReplicaSet gives up pods: without a node, not ready, youngest first."""
    return sorted(pods, key=lambda p: (p.row is not None, p.ready(t), -p.created, p.name))
