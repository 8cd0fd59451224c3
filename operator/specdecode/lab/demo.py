"""The main job, shown: one workload under a policy, and two like it that stay as they are, all under the same load.

The operator runs as its chart installs it, with no more rights than that. The clients measure what users feel; whether
the operator did its job is judged by them alone.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import yaml

from specdecode.api.v1alpha1 import DISABLED, HistoryEntry, Outcome, SpecDecodePolicyStatus
from specdecode.cluster.kube import DEPLOYMENTS, POLICIES, Kube
from specdecode.lab import manifests, paths
from specdecode.lab.endpoints import ready_addresses
from specdecode.lab.errors import LabError
from specdecode.lab.images import Image
from specdecode.lab.lab import Lab
from specdecode.sim.load import Record

Json = dict[str, Any]

SERVING, SYSTEM = "serving", "specdecode-system"
MANAGED, OFF, NGRAM = "chat", "chat-off", "chat-ngram"
TITLES = {MANAGED: "with the operator", OFF: "without: always off", NGRAM: "without: always n-gram"}


@dataclass(frozen=True)
class Act:
    """A stretch of one kind of load."""

    name: str
    seconds: float
    """At most."""


Endpoints = Callable[[str], Sequence[str]]
"""The base URLs of a workload's ready pods."""


class Cast(Protocol):
    """What plays the part of vLLM, and of its clients."""

    @property
    def acts(self) -> Sequence[Act]:
        """What is played, in this order."""

    @property
    def manifests(self) -> Path:
        """The workload and its policy."""

    @property
    def always_ngram(self) -> Mapping[str, Any]:
        """The speculative configuration of the workload that always runs n-gram."""

    @property
    def gpus(self) -> int:
        """Of the node."""

    @property
    def up_within(self) -> float:
        """Seconds for the pods to be ready."""

    def images(self) -> AbstractAsyncContextManager[Mapping[str, Image]]:
        """What runs for the pods' image."""

    async def load(self, run: Run, endpoints: Endpoints) -> None:
        """Plays the acts to each of the workloads: tells `run` when one begins, and fills its records."""

    def complaints(self, run: Run) -> Iterator[str]:
        """Why it cannot be said that the operator did its job, beside what goes for every cast."""


@dataclass
class Run:
    """What has happened so far; the view reads it, the scenario writes it."""

    cast: Cast
    acts: list[tuple[float, str]] = field(default_factory=list)
    """(seconds, name) when each act began."""
    started: float = 0.0
    """Seconds of the clock at which the load began."""
    records: dict[str, list[Record]] = field(default_factory=lambda: {name: [] for name in TITLES})
    status: SpecDecodePolicyStatus = field(default_factory=SpecDecodePolicyStatus)
    profiles: list[tuple[float, str, str | None]] = field(default_factory=list)
    """(seconds, active profile, profile being tried) whenever one of them changed."""

    def enter(self, act: Act) -> None:
        """An act begins."""
        self.acts.append((self.elapsed(), act.name))

    @property
    def phase(self) -> str:
        """The act that is played."""
        return self.acts[-1][1] if self.acts else "starting"

    def elapsed(self) -> float:
        """Seconds of load."""
        return time.monotonic() - self.started if self.started else 0.0


@dataclass(frozen=True)
class Figures:
    """What clients of one workload measured over some time."""

    requests: int
    failed: int
    tpot: float
    """Mean over tokens, seconds."""
    tpot_p99: float
    ttft: float
    tokens: int


@dataclass(frozen=True)
class Verdict:
    """Whether the loop did its job."""

    changes: tuple[HistoryEntry, ...]
    """Oldest first."""
    total: dict[str, Figures]
    """Of the phases that all workloads took part in; requests, and those that failed, of all."""
    phases: dict[str, dict[str, Figures]]
    """By phase and workload."""
    complaints: tuple[str, ...]
    """Why it did not; empty when it did."""


def figures(records: Sequence[Record]) -> Figures:
    """Sums up records; failed requests count as requests and nowhere else."""
    good = [r for r in records if r.error is None]
    timed = [r for r in good if r.tpot is not None]
    tokens = sum(r.tokens for r in timed)
    ordered = sorted(r.tpot or 0.0 for r in timed)
    return Figures(
        requests=len(records),
        failed=len(records) - len(good),
        tpot=math.fsum((r.tpot or 0.0) * r.tokens for r in timed) / tokens if tokens else math.nan,
        tpot_p99=ordered[int(0.99 * (len(ordered) - 1))] if ordered else math.nan,
        ttft=math.fsum(r.ttft or 0.0 for r in good) / len(good) if good else math.nan,
        tokens=sum(r.tokens for r in good),
    )


def judge(run: Run) -> Verdict:
    """The demo's own test: changes made and kept, no request failed, and what its cast asks for."""
    changes = tuple(reversed(run.status.history))
    by_phase = {
        act.name: {name: figures([r for r in records if r.phase == act.name]) for name, records in run.records.items()}
        for act in run.cast.acts
    }
    together = [act for act, by_name in by_phase.items() if all(f.requests for f in by_name.values())]
    total = {}
    for name, records in run.records.items():
        every = figures(records)
        compared = figures([r for r in records if r.phase in together])
        total[name] = replace(compared, requests=every.requests, failed=every.failed)
    complaints = list(run.cast.complaints(run))
    if failed := total[MANAGED].failed:
        errors = sorted({r.error for r in run.records[MANAGED] if r.error})
        complaints.append(f"{failed} requests failed: {', '.join(errors)}")
    return Verdict(changes, total, by_phase, tuple(complaints))


def kept(run: Run) -> tuple[int, int]:
    """How often speculation was turned on and kept, and turned off."""
    done = [h for h in run.status.history if h.outcome is Outcome.SUCCESSFUL]
    return sum(h.source.profile == DISABLED for h in done), sum(h.target.profile == DISABLED for h in done)


async def play(run: Run, repository: Path, say: Callable[[str], None]) -> None:
    """Sets everything up, plays the phases, and tears everything down. Fills `run` on the way."""
    async with AsyncExitStack() as stack:
        cast = run.cast
        images = await stack.enter_async_context(cast.images())
        say(f"starting the control plane and a node with {cast.gpus} GPUs")
        lab = await stack.enter_async_context(Lab(gpus=cast.gpus, images=images))
        say(f"export KUBECONFIG={lab.kubeconfig}")
        say("installing the operator from its chart")
        await lab.apply(rendered_chart(repository), SYSTEM)
        workload = manifests.load(cast.manifests)
        policy = next(m for m in workload if m["kind"] == "SpecDecodePolicy")
        await lab.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SERVING}}])
        for name in TITLES:
            await lab.apply(twin([m for m in workload if m is not policy], name, cast.always_ngram), SERVING)
        say("waiting for the operator and for the vLLM pods")
        for namespace, name in ((SYSTEM, "specdecode-operator"), *((SERVING, n) for n in TITLES)):
            available = partial(_available, lab.kube, namespace, name)
            await lab.wait(f"Deployment {name} to be available", available, within=cast.up_within)
        await lab.apply([policy], SERVING)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(_watch(run, lab.kube))
            async with _load(run, lab.kube) as playing:
                run.started = time.monotonic()
                await playing
            # The last change may still be on its way; what it did is in the history once it has ended.
            with suppress(TimeoutError):
                async with asyncio.timeout(30):
                    while run.status.rollout is not None:
                        await asyncio.sleep(0.5)
            watching.cancel()


def rendered_chart(repository: Path) -> list[Json]:
    """The chart's manifests, rendered by Helm."""
    helm, chart = paths.binaries() / "helm", repository / "charts" / "specdecode-operator"
    if not helm.exists():
        raise LabError(f"{helm} is not there: run `specdecode lab build --helm`")
    settings = ["--namespace", SYSTEM, "--set", "logFormat=plain"]
    command = [str(helm), "template", "specdecode-operator", str(chart), *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"helm template failed: {done.stderr}")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}
    return [namespace, *(m for m in yaml.safe_load_all(done.stdout) if m)]


def twin(workload: Sequence[Json], name: str, always_ngram: Mapping[str, Any]) -> list[Json]:
    """The workload under another name; the n-gram one with speculation always on."""
    made = json.loads(json.dumps(deepcopy(list(workload))).replace('"chat"', json.dumps(name)))
    if name == NGRAM:
        deployment = next(m for m in made if m["kind"] == "Deployment")
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        container["args"] += ["--speculative-config", json.dumps(always_ngram)]
    return list(made)


async def _available(kube: Kube, namespace: str, name: str) -> bool:
    deployment = await kube.get(DEPLOYMENTS, name, namespace)
    return bool(deployment.get("status", {}).get("availableReplicas") == deployment["spec"]["replicas"])


async def _watch(run: Run, kube: Kube) -> None:
    """Keeps the policy's status up to date, and notes every change of profile."""
    while True:
        policy = await kube.get(POLICIES, MANAGED, SERVING)
        run.status = SpecDecodePolicyStatus.model_validate(policy.get("status") or {})
        trying = run.status.rollout.target.profile if run.status.rollout else None
        now = (run.status.active_profile or "unknown", trying)
        if not run.profiles or run.profiles[-1][1:] != now:
            run.profiles.append((run.elapsed(), *now))
        await asyncio.sleep(0.5)


@asynccontextmanager
async def _load(run: Run, kube: Kube) -> AsyncIterator[asyncio.Task[None]]:
    """Plays the acts, and follows the pods that are ready."""
    endpoints: dict[str, list[str]] = {name: [] for name in TITLES}

    async def follow() -> None:
        while True:
            for name in TITLES:
                endpoints[name] = [f"http://{a}" for a in await ready_addresses(kube, SERVING, name)]
            await asyncio.sleep(0.25)

    following = asyncio.create_task(follow())
    while not all(endpoints.values()):
        await asyncio.sleep(0.1)
    playing = asyncio.create_task(run.cast.load(run, endpoints.__getitem__))
    try:
        yield playing
    finally:
        for task in (following, playing):
            task.cancel()
        await asyncio.gather(following, playing, return_exceptions=True)
