"""The main job, shown: one workload under a policy, and two like it that stay as they are, all under the same load.

The operator runs as its chart installs it, with no more rights than that. The clients measure what users feel; whether
the operator did its job is judged by them alone.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from specdecode.api.v1alpha1 import DISABLED, HistoryEntry, Outcome, SpecDecodePolicyStatus
from specdecode.cluster.kube import DEPLOYMENTS, POLICIES, Kube
from specdecode.lab import manifests, paths
from specdecode.lab.endpoints import ready_addresses
from specdecode.lab.errors import LabError
from specdecode.lab.lab import Lab
from specdecode.sim.load import LoadGenerator, Record
from specdecode.sim.workload import Phase

Json = dict[str, Any]

SERVING, SYSTEM = "serving", "specdecode-system"
MANAGED, OFF, NGRAM = "chat", "chat-off", "chat-ngram"
TITLES = {MANAGED: "with the operator", OFF: "without: always off", NGRAM: "without: always n-gram"}

SUMMARIES, CHAT, MIXED = {"summarise": 1.0}, {"chat": 1.0}, {"summarise": 0.6, "chat": 0.4}
PHASES = (
    Phase("quiet, summaries", 50, rate=8, mix=SUMMARIES, prompt_tokens=(200, 400), output_tokens=(100, 140)),
    Phase("busy, mixed", 46, rate=29, mix=MIXED, prompt_tokens=(60, 100), output_tokens=(280, 320)),
    Phase("quiet, summaries again", 46, rate=8, mix=SUMMARIES, prompt_tokens=(200, 400), output_tokens=(100, 140)),
    Phase("quiet, hot chat", 44, rate=8, mix=CHAT, temperature=1.0, prompt_tokens=(60, 100), output_tokens=(100, 140)),
)


@dataclass
class Run:
    """What has happened so far; the view reads it, the scenario writes it."""

    phase: str = "starting"
    started: float = 0.0
    """Seconds of the clock at which the load began."""
    records: dict[str, list[Record]] = field(default_factory=lambda: {name: [] for name in TITLES})
    status: SpecDecodePolicyStatus = field(default_factory=SpecDecodePolicyStatus)
    profiles: list[tuple[float, str, str | None]] = field(default_factory=list)
    """(seconds, active profile, profile being tried) whenever one of them changed."""

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
    """The demo's own test: rolls made and kept, no request failed, faster than leaving the workload alone."""
    changes = tuple(reversed(run.status.history))
    total = {name: figures(records) for name, records in run.records.items()}
    by_phase = {
        p.name: {name: figures([r for r in records if r.phase == p.name]) for name, records in run.records.items()}
        for p in PHASES
    }
    complaints = []
    kept = [h for h in changes if h.outcome is Outcome.SUCCESSFUL]
    on = [h for h in kept if h.source.profile == DISABLED]
    off = [h for h in kept if h.target.profile == DISABLED]
    if len(on) < 2:
        complaints.append("speculation was not turned on in both quiet phases")
    if len(off) < 2:
        complaints.append("speculation was not turned off in both the busy phase and the hot one")
    failed = total[MANAGED].failed
    if failed:
        errors = sorted({r.error for r in run.records[MANAGED] if r.error})
        complaints.append(f"{failed} requests failed: {', '.join(errors)}")
    slower = [name for name in (OFF, NGRAM) if not total[MANAGED].tpot < total[name].tpot]
    complaints += [f"tokens came no faster than {TITLES[name]}" for name in slower]
    return Verdict(changes, total, by_phase, tuple(complaints))


async def play(run: Run, repository: Path, say: Callable[[str], None]) -> None:
    """Sets everything up, plays the phases, and tears everything down. Fills `run` on the way."""
    async with AsyncExitStack() as stack:
        say("starting the control plane and a node with 8 GPUs")
        lab = await stack.enter_async_context(Lab(gpus=8))
        say(f"export KUBECONFIG={lab.kubeconfig}")
        say("installing the operator from its chart")
        await lab.apply(rendered_chart(repository), SYSTEM)
        workload = manifests.load(Path(__file__).with_name("demo.yaml"))
        policy = next(m for m in workload if m["kind"] == "SpecDecodePolicy")
        await lab.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SERVING}}])
        for name in TITLES:
            await lab.apply(twin([m for m in workload if m is not policy], name), SERVING)
        say("waiting for the operator and for six vLLM pods")
        for namespace, name in ((SYSTEM, "specdecode-operator"), *((SERVING, n) for n in TITLES)):
            available = partial(_available, lab.kube, namespace, name)
            await lab.wait(f"Deployment {name} to be available", available, within=60)
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


def twin(workload: Sequence[Json], name: str) -> list[Json]:
    """The workload under another name; the n-gram one with speculation always on."""
    made = json.loads(json.dumps(deepcopy(list(workload))).replace('"chat"', json.dumps(name)))
    if name == NGRAM:
        config = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
        deployment = next(m for m in made if m["kind"] == "Deployment")
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        container["args"] += ["--speculative-config", json.dumps(config)]
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
    """Plays the same requests, at the same times, to each of the workloads."""
    endpoints: dict[str, list[str]] = {name: [] for name in TITLES}

    async def follow() -> None:
        while True:
            for name in TITLES:
                endpoints[name] = [f"http://{a}" for a in await ready_addresses(kube, SERVING, name)]
            await asyncio.sleep(0.25)

    async def play_all() -> None:
        async with asyncio.TaskGroup() as group:
            for name in TITLES:
                # The same seed for all: the same arrivals, lengths and kinds.
                ready = partial(endpoints.__getitem__, name)
                generator = LoadGenerator(session, ready, run.records[name].append, rng=random.Random(7))
                group.create_task(generator.run(PHASES))

    async def tell() -> None:
        for phase in PHASES:
            run.phase = phase.name
            await asyncio.sleep(phase.seconds)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        helpers = [asyncio.create_task(follow()), asyncio.create_task(tell())]
        while not all(endpoints.values()):
            await asyncio.sleep(0.1)
        playing = asyncio.create_task(play_all())
        try:
            yield playing
        finally:
            for task in (*helpers, playing):
                task.cancel()
            await asyncio.gather(*helpers, playing, return_exceptions=True)
