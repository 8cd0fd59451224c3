"""The only reader: fills one frozen `Observation` from the API server and the pods' metrics pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from specdecode.api.v1alpha1 import RolloutPhase, SpecDecodePolicySpec, SpecDecodePolicyStatus
from specdecode.cluster.kube import DEPLOYMENTS, PODS, REPLICASETS, ApiError, Json, Kube
from specdecode.cluster.postmortem import PostMortem
from specdecode.cluster.scrape import Scrape, Scraper
from specdecode.model.cost import Option
from specdecode.model.window import Window
from specdecode.policy.clock import seconds_of
from specdecode.policy.live import by_file, by_report
from specdecode.policy.observation import Observation, Obstacle, Pod, Problem, Workload, empty_window
from specdecode.policy.options import Container, Menu, fingerprint, option_of, same, with_fields
from specdecode.vllm.command import Server, find_container, read
from specdecode.vllm.effective import Told, read_text
from specdecode.vllm.live_schedule import Schedule
from specdecode.vllm.metrics import Page
from specdecode.vllm.startup import Diagnosis
from specdecode.vllm.unmanageable import Unmanageable
from specdecode.vllm.version import Version

HASH = "pod-template-hash"
_MAY_FAIL_TO_START = (RolloutPhase.STARTING, RolloutPhase.ANALYSING, RolloutPhase.PROMOTING)
ASK = 3
"""Times that a server is asked for its configuration at most."""
BEGINNING = 128 * 1024
"""Bytes of a log that hold an engine's configuration, which it logs before it loads the model."""


class Gatherer:
    """Observes one policy's workload. Remembers what Kubernetes does not: the pods' metrics of the last minutes."""

    def __init__(self, kube: Kube, scraper: Scraper, clock: Callable[[], float]) -> None:
        self._kube, self._scraper, self._clock = kube, scraper, clock
        self._since = clock()
        self._windows: dict[str, Window] = {}
        self._versions: dict[str, Version | None] = {}
        self._postmortem = PostMortem(kube)
        self._told: dict[str, Told | None] = {}
        self._asked: dict[str, int] = {}

    async def observe(
        self, policy: Mapping[str, Any], spec: SpecDecodePolicySpec, status: SpecDecodePolicyStatus
    ) -> Observation:
        """One look. Raises `ApiError` when the API server does not answer; pods that do not are part of the look."""
        meta = policy["metadata"]
        base = Observation(
            now=self._clock(),
            policy=spec,
            generation=meta["generation"],
            live_schedule=status.live_schedule,
            rollout=status.rollout,
            history=tuple(status.history),
            observing_since=self._since,
        )
        deployment = await self._kube.find(DEPLOYMENTS, spec.target_ref.name, meta["namespace"])
        if deployment is None:
            return base
        template = deployment["spec"]["template"]
        container = find_container(template["spec"], spec.target_ref.container)
        if isinstance(container, Unmanageable):
            return replace(base, problem=Problem(container.reason, container.message))
        replicasets, pods = await self._owned(deployment)
        server = read(container, None)
        port = _port(spec, container, server)
        if isinstance(port, Problem):
            return replace(base, problem=port)
        version = await self._version(spec, container, pods, port)
        if version is None and status.rollout is not None and status.vllm_version:
            # A change under way must be taken back even while no server answers.
            version = Version.parse(status.vllm_version)
        if version is None:
            return replace(
                base,
                problem=Problem(
                    Obstacle.VERSION_UNKNOWN,
                    f"the image {container.get('image')} does not say its vLLM version and no server answers /version:"
                    " set spec.vllmVersion",
                ),
            )
        found = _menu(base, status, container, version)
        if isinstance(found, Unmanageable):
            return replace(base, problem=Problem(found.reason, found.message))
        menu, live, adopted_at = found
        if not menu.server.log_stats:
            text = "--disable-log-stats hides the server's metrics: remove it, or nothing can be measured"
            return replace(base, problem=Problem(Obstacle.STATS_DISABLED, text))
        revision = next((r["metadata"]["labels"][HASH] for r in replicasets if _same_template(r, template)), None)
        workload = Workload(
            name=deployment["metadata"]["name"],
            generation=deployment["metadata"]["generation"],
            replicas=deployment["spec"].get("replicas", 1),
            container=container,
            revision=revision,
            settled=_settled(deployment),
            deployment=deployment,
            option=live,
        )
        options = {r["metadata"]["labels"][HASH]: _option(r, container, menu, live) for r in replicasets}
        scrapes = await self._scrape(spec, pods, port, container["name"])
        diagnoses = await self._diagnose(status, pods, container["name"], revision)
        return replace(
            base,
            now=self._clock(),
            menu=menu,
            workload=workload,
            active=_active(status, menu, by_file(live, status.live_schedule)),
            adopted_at=adopted_at,
            pods=tuple(self._pod(p, container["name"], options, scrapes, diagnoses, spec) for p in pods),
        )

    async def _owned(self, deployment: Json) -> tuple[list[Json], list[Json]]:
        """The Deployment's ReplicaSets and their pods, by owner reference: labels alone may lie."""
        namespace, selector = deployment["metadata"]["namespace"], _selector(deployment["spec"]["selector"])
        replicasets, pods = await asyncio.gather(
            self._kube.list(REPLICASETS, namespace, selector), self._kube.list(PODS, namespace, selector)
        )
        mine = [r for r in replicasets if _owner(r) == deployment["metadata"]["uid"]]
        uids = {r["metadata"]["uid"] for r in mine}
        return mine, [p for p in pods if _owner(p) in uids]

    async def _version(
        self, spec: SpecDecodePolicySpec, container: Container, pods: list[Json], port: int
    ) -> Version | None:
        """From a running server of the template's image, else the image's tag, else the policy."""
        for pod in pods:
            uid, ip = pod["metadata"]["uid"], pod["status"].get("podIP")
            image = next((c.get("image") for c in pod["spec"]["containers"] if c["name"] == container["name"]), None)
            if not ip or image != container.get("image") or not _ready(pod):
                continue
            if self._versions.get(uid) is None:
                self._versions[uid] = await self._scraper.version(f"http://{_host(ip)}:{port}")
            if (version := self._versions[uid]) is not None:
                return version
        told = Version.parse(spec.vllm_version) if spec.vllm_version else None
        return Version.from_image(container.get("image", "")) or told

    async def _scrape(
        self, spec: SpecDecodePolicySpec, pods: list[Json], port: int, container: str
    ) -> dict[str, Scrape]:
        """Reads the ready pods' pages and adds them to their windows."""
        servers = {
            p["metadata"]["uid"]: f"http://{_host(p['status']['podIP'])}:{port}"
            for p in pods
            if p["status"].get("podIP") and _ready(p)
        }
        scrapes = await self._scraper.scrape({uid: server + spec.metrics.path for uid, server in servers.items()})
        empty = empty_window(spec)
        known = {p["metadata"]["uid"]: p for p in pods}
        self._windows = {uid: w for uid, w in self._windows.items() if uid in known}
        self._versions = {uid: v for uid, v in self._versions.items() if uid in known}
        self._told = {uid: t for uid, t in self._told.items() if uid in known}
        self._asked = {uid: n for uid, n in self._asked.items() if uid in known}
        answered = [uid for uid, s in scrapes.items() if s.page is not None]
        await asyncio.gather(*(self._ask(known[uid], container, servers[uid]) for uid in answered))
        now = self._clock()
        for uid, scrape in scrapes.items():
            if scrape.page is not None:
                window = self._windows.get(uid) or empty
                if window.readings and _in_force(window.readings[-1].page) != _in_force(scrape.page):
                    window = empty  # what it did by another schedule says nothing of this one
                self._windows[uid] = window.add(scrape.page, now)
        return scrapes

    async def _diagnose(
        self, status: SpecDecodePolicyStatus, pods: list[Json], container: str, revision: str | None
    ) -> dict[str, Diagnosis | None]:
        """Why pods of a change under way do not run, or did not, by uid. Nobody else's log is read."""
        self._postmortem.forget({p["metadata"]["uid"] for p in pods})
        if status.rollout is None or status.rollout.phase not in _MAY_FAIL_TO_START:
            return {}
        ours = [p for p in pods if p["metadata"].get("labels", {}).get(HASH) == revision]
        found = await asyncio.gather(*(self._postmortem.diagnose(p, container) for p in ours))
        return {p["metadata"]["uid"]: d for p, d in zip(ours, found, strict=True)}

    async def _ask(self, pod: Json, container: str, server: str) -> None:
        """Asks a server for its configuration, else its log: once, for it does not change, and again where it was too
        slow. vLLM lists the machine's packages with the first answer, which takes seconds."""
        meta = pod["metadata"]
        uid = meta["uid"]
        if uid not in self._told and self._asked.get(uid, 0) < ASK:
            self._asked[uid] = self._asked.get(uid, 0) + 1
            with suppress(TimeoutError):
                self._told[uid] = await self._scraper.told(server) or await self._told_by_log(meta, container)

    async def _told_by_log(self, meta: Json, container: str) -> Told | None:
        """What the beginning of a pod's log says; None also without the right to read it, or a node that answers."""
        try:
            log = await self._kube.read_log(meta["name"], meta["namespace"], container, None, BEGINNING)
        except ApiError:
            return None
        return read_text(log)

    def _pod(
        self,
        pod: Json,
        container: str,
        options: Mapping[str, Option | None],
        scrapes: Mapping[str, Scrape],
        diagnoses: Mapping[str, Diagnosis | None],
        spec: SpecDecodePolicySpec,
    ) -> Pod:
        meta, status = pod["metadata"], pod["status"]
        state: Json = next((s for s in status.get("containerStatuses") or [] if s["name"] == container), {})
        conditions = {c["type"]: c for c in status.get("conditions") or []}
        scheduled = conditions.get("PodScheduled", {})
        unschedulable = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
        revision = meta.get("labels", {}).get(HASH, "")
        scrape = scrapes.get(meta["uid"], Scrape())
        window = self._windows.get(meta["uid"]) or Window(spec.metrics.window)
        return Pod(
            name=meta["name"],
            revision=revision,
            option=by_report(options.get(revision), window.readings[-1].page.schedule if window.readings else None),
            ready=_ready(pod),
            restarts=state.get("restartCount", 0),
            waiting=state.get("state", {}).get("waiting", {}).get("reason"),
            terminating="deletionTimestamp" in meta,
            unschedulable_since=seconds_of(scheduled["lastTransitionTime"]) if unschedulable else None,
            ready_since=_ready_since(conditions.get("Ready", {})),
            window=window,
            told=self._told.get(meta["uid"]),
            answered=scrape.page is not None,
            problem=scrape.problem,
            diagnosis=diagnoses.get(meta["uid"]),
        )


def _in_force(page: Page) -> Schedule:
    return page.schedule.schedule if page.schedule is not None else ()


def _menu(
    base: Observation, status: SpecDecodePolicyStatus, container: Container, version: Version
) -> tuple[Menu, Option | None, float] | Unmanageable:
    """The menu of the original command line, what runs, and since when the original is known.

    A command line that neither we nor the original explain is somebody else's: it becomes the new original, unless a
    change is under way (which then ends as superseded).
    """
    kept = status.original
    if kept is not None and kept.container == container["name"]:
        menu = Menu.of(with_fields(container, kept), version, base.policy.profiles)
        if isinstance(menu, Unmanageable):
            return menu
        active = menu.identify(container)
        if active is None and fingerprint(container) == status.applied and status.active is not None:
            # Ours, of a profile that was edited since.
            server = read(container, version)
            active = None if isinstance(server, Unmanageable) else Option(status.active.profile, server.speculation)
        if active is not None or base.rollout is not None:
            return menu, active, seconds_of(kept.adopted_at)
    menu = Menu.of(container, version, base.policy.profiles)
    if isinstance(menu, Unmanageable):
        return menu
    return menu, menu.identify(container), base.now


def _active(status: SpecDecodePolicyStatus, menu: Menu, live: Option | None) -> Option | None:
    """What runs: until a change is proven and promoted, that is what ran before, whatever the template says."""
    rollout = status.rollout
    if rollout is None or rollout.phase in (RolloutPhase.VERIFYING, RolloutPhase.FINISHING):
        return live
    return option_of(rollout.source, menu)


def _option(replicaset: Json, live: Container, menu: Menu, option: Option | None) -> Option | None:
    """What the pods of a ReplicaSet run; `option` is what the live template's do."""
    containers = replicaset["spec"]["template"]["spec"]["containers"]
    container = next((c for c in containers if c["name"] == live["name"]), None)
    if container is None:
        return None
    return option if same(container, live) else menu.identify(container)


def _port(spec: SpecDecodePolicySpec, container: Container, server: Server | Unmanageable) -> int | Problem:
    """Where the metrics are: as the policy says, else where the server's arguments say."""
    port = spec.metrics.port
    if isinstance(port, int):
        return port
    if port is not None:
        named = {p.get("name"): p["containerPort"] for p in container.get("ports") or []}
        if port not in named:
            return Problem(
                Obstacle.PORT_UNKNOWN,
                f"container {container['name']} has no port named {port}: name one of its ports in"
                " spec.metrics.port, or write the number",
            )
        return int(named[port])
    told = None if isinstance(server, Unmanageable) else server.port
    return told or 8000


def _settled(deployment: Json) -> bool:
    spec, status, meta = deployment["spec"], deployment.get("status", {}), deployment["metadata"]
    wanted = spec.get("replicas", 1)
    counts = [status.get(f, 0) for f in ("replicas", "updatedReplicas", "availableReplicas")]
    seen = status.get("observedGeneration", 0) >= meta["generation"]
    return seen and not spec.get("paused") and all(count == wanted for count in counts)


def _same_template(replicaset: Json, template: Json) -> bool:
    """Whether a ReplicaSet is of a pod template (as the Deployment controller compares: without its own hash label)."""
    other = replicaset["spec"]["template"]
    labels = {k: v for k, v in (other["metadata"].get("labels") or {}).items() if k != HASH}
    theirs, ours = dict(other["metadata"]), dict(template["metadata"])
    theirs["labels"], ours["labels"] = labels, ours.get("labels") or {}
    return bool(theirs == ours and other["spec"] == template["spec"])


def _selector(selector: Json) -> str:
    """A LabelSelector in the form of a query."""
    parts = [f"{k}={v}" for k, v in (selector.get("matchLabels") or {}).items()]
    for e in selector.get("matchExpressions") or []:
        values = f"({','.join(e.get('values') or [])})"
        parts.append(
            {"In": f"{e['key']} in {values}", "NotIn": f"{e['key']} notin {values}", "Exists": e["key"]}.get(
                e["operator"], f"!{e['key']}"
            )
        )
    return ",".join(parts)


def _owner(child: Json) -> str | None:
    owners = child["metadata"].get("ownerReferences") or []
    return next((o["uid"] for o in owners if o.get("controller")), None)


def _ready(pod: Json) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _ready_since(condition: Json) -> float | None:
    """Unix seconds; None while the pod is not ready."""
    at = condition.get("lastTransitionTime") if condition.get("status") == "True" else None
    return None if at is None else seconds_of(at)


def _host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip
