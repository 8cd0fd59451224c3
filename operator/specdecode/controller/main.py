"""The operator process: kopf watches the policies, each gets a loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import kopf
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server

from specdecode.api.quantities import parse_duration
from specdecode.api.v1alpha1 import GROUP, PLURAL, VERSION
from specdecode.cluster.kube import ApiError, Kube
from specdecode.cluster.scrape import Scraper
from specdecode.controller.loop import PolicyLoop
from specdecode.controller.report import Notice
from specdecode.controller.telemetry import Telemetry

log = logging.getLogger("specdecode")

POLLING = 1.0
"""Seconds between two looks at whether a deleted policy's tick has ended; kopf's own 60 would keep it so long."""
PATIENCE = 300.0
"""Seconds without one finished tick, while there are policies, after which the process counts as hung."""


@dataclass
class Shared:
    """What the handlers of one process share."""

    telemetry: Telemetry
    kube: Kube | None = None
    scraper: Scraper | None = None
    loops: dict[str, PolicyLoop] = field(default_factory=dict)
    """By the policy's uid."""
    last_tick: float = field(default_factory=time.monotonic)

    def loop(self, policy: kopf.Body) -> PolicyLoop:
        """The loop of a policy, made at first sight."""
        uid = policy["metadata"]["uid"]
        if uid not in self.loops:
            assert self.kube is not None, "the startup handler connects"
            assert self.scraper is not None
            self.loops[uid] = PolicyLoop(self.kube, self.scraper, self.telemetry, time.time, policy)
        return self.loops[uid]


def handlers() -> kopf.OperatorRegistry:
    """All that kopf is to call."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, memo: Shared, **_: Any) -> None:
        configure(settings)
        memo.kube = await Kube.connect()
        memo.scraper = Scraper()

    @kopf.on.cleanup(registry=registry)
    async def stop(memo: Shared, **_: Any) -> None:
        if memo.kube is not None:
            await memo.kube.close()
        if memo.scraper is not None:
            await memo.scraper.close()

    @kopf.on.probe(id="ticks", registry=registry)
    async def ticks(memo: Shared, **_: Any) -> str:
        silent = time.monotonic() - memo.last_tick
        if memo.loops and silent > PATIENCE:
            raise kopf.PermanentError(f"no tick has finished for {silent:.0f} s")
        return f"{len(memo.loops)} policies, last tick {silent:.0f} s ago"

    @kopf.index(GROUP, VERSION, PLURAL, registry=registry, id="by_target")
    async def by_target(body: kopf.Body, **_: Any) -> dict[tuple[str, str], tuple[str, str]]:
        meta = body["metadata"]
        return {(meta["namespace"], body["spec"]["targetRef"]["name"]): (meta["creationTimestamp"], meta["name"])}

    @kopf.daemon(
        GROUP,
        VERSION,
        PLURAL,
        registry=registry,
        initial_delay=lambda **_: random.uniform(0, 0.5),
        cancellation_polling=POLLING,
    )
    async def look_after(body: kopf.Body, memo: Shared, stopped: kopf.DaemonStopped, **indices: Any) -> None:
        loop = memo.loop(body)
        key = (body["metadata"]["namespace"], body["metadata"]["name"])

        def post(notice: Notice) -> None:
            kopf.event(body, type=notice.type, reason=notice.reason, message=notice.message)

        while not stopped:
            try:
                await loop.tick(body, post, _rival(body, indices["by_target"]))
                memo.last_tick = time.monotonic()
            except asyncio.CancelledError:
                raise
            except ApiError as e:
                memo.telemetry.tick_errors.labels(*key).inc()
                log.warning("policy %s/%s: the API server answered %s", *key, e)
            except Exception:
                # Whatever it was: the next look starts from what is there, and the loop must not end.
                memo.telemetry.tick_errors.labels(*key).inc()
                log.exception("policy %s/%s: the tick failed", *key)
            await stopped.wait(parse_duration(body["spec"]["metrics"]["interval"]))

    @kopf.on.delete(GROUP, VERSION, PLURAL, registry=registry, backoff=2)
    async def clear(body: kopf.Body, memo: Shared, **_: Any) -> None:
        try:
            await memo.loop(body).clear(body)
        except ApiError as e:
            raise kopf.TemporaryError(str(e), delay=2) from e
        memo.loops.pop(body["metadata"]["uid"], None)

    return registry


def _rival(body: kopf.Body, by_target: Mapping[tuple[str, str], Iterable[tuple[str, str]]]) -> str | None:
    """The oldest policy with the same target, if that is another one: two must not act on one workload."""
    meta = body["metadata"]
    same = by_target.get((meta["namespace"], body["spec"]["targetRef"]["name"]), ())
    oldest = min(same, default=None)
    return None if oldest is None or oldest[1] == meta["name"] else oldest[1]


def configure(settings: kopf.OperatorSettings) -> None:
    """kopf's settings; its defaults keep state in annotations of its own and post every log line as an Event."""
    settings.persistence.finalizer = f"{GROUP}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP, v1=False)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP, key="last", v1=False)
    settings.posting.reporting_component = "specdecode-operator"
    settings.posting.event_name_prefix = "specdecode-"
    settings.posting.loggers = False
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.watching.connect_timeout = 10
    settings.watching.server_timeout = 600


def run(namespaces: Sequence[str], health_port: int, metrics_port: int, host: str = "0.0.0.0") -> None:
    """Runs the operator until it is told to stop. No namespaces: all of them; a port of 0: nobody listens."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    memo = Shared(Telemetry(registry))
    with contextlib.ExitStack() as opened:
        if metrics_port:
            server, thread = start_http_server(metrics_port, addr=host, registry=registry)
            opened.callback(thread.join)
            opened.callback(server.shutdown)
        kopf.run(
            registry=handlers(),
            settings=_settings(bool(namespaces)),
            memo=memo,
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            liveness_endpoint=f"http://{host}:{health_port}/healthz" if health_port else None,
        )


def _settings(namespaced: bool) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    # A namespaced operator may not list namespaces or custom resource definitions, and need not.
    settings.scanning.disabled = namespaced
    return settings
