"""Runs one container of a pod as a local process: start, probes, restarts, end."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from specdecode.cluster.kube import ApiError, Kube, Resource
from specdecode.lab import environment, images, logs, probing
from specdecode.lab.backoff import BackOff
from specdecode.lab.environment import ConfigError, Json, Sources
from specdecode.lab.images import Image
from specdecode.lab.lifeline import Child, Lifeline
from specdecode.lab.podstatus import ContainerState, Placement, Running, Terminated, Waiting
from specdecode.lab.probes import Probe, Verdict

CONFIG_MAPS = Resource("v1", "configmaps")
SECRETS = Resource("v1", "secrets")

UNREACHABLE = (aiohttp.ClientError, OSError, TimeoutError)
"""What a request raises while the API server does not answer."""

_CONFIG_RETRY = 1.0
_SHORTEST_GRACE = 2.0  # what a kubelet leaves to SIGTERM when the preStop hook has used up the grace period
_FROM_THE_MACHINE = ("LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Machine:
    """What every container of a node shares. `kubeconfig` writes one for a token: path, token, namespace."""

    kube: Kube
    kubeconfig: Callable[[Path, str, str], object]
    lifeline: Lifeline
    http: httpx.AsyncClient
    images: Mapping[str, Image]
    back_off: BackOff


@dataclass(frozen=True)
class Surroundings:
    """What the containers of one pod share. `variables`: environment that the node adds to the manifest's."""

    machine: Machine
    pod: Json
    placement: Placement
    folder: Path
    variables: Mapping[str, str]


@dataclass(frozen=True)
class _Invocation:
    argv: list[str]
    env: dict[str, str]
    cwd: Path


class Container:
    """One container. `state` is what it does now; `changed` is called after every change of it."""

    def __init__(
        self, spec: Json, around: Surroundings, changed: Callable[[], None], restart_policy: str, waiting: str
    ) -> None:
        self.spec = spec
        self.state = ContainerState(spec["name"], spec["image"], Waiting(waiting))
        self._around, self._changed, self._restart_policy = around, changed, restart_policy
        self._folder: Path = around.folder / spec["name"]
        self._probes = {kind: Probe.parse(spec.get(f"{kind}Probe")) for kind in ("startup", "readiness", "liveness")}
        self._grace = float(around.pod["spec"].get("terminationGracePeriodSeconds", 30))
        self._child: Child | None = None
        self._invocation: _Invocation | None = None
        self._started = 0.0

    async def run(self) -> None:
        """Starts the container again and again, until its restart policy lets it rest."""
        series = 0
        while True:
            invocation = self._invocation = await self._prepare()
            ended = await self._run_once(invocation)
            restarts = self._restart_policy == "Always" or (self._restart_policy == "OnFailure" and ended.exit_code)
            if not restarts:
                self._set(state=ended, ready=False, started=False)
                return
            series = self._around.machine.back_off.series_after(series, time.monotonic() - self._started)
            delay = self._around.machine.back_off.delay(series)
            message = f"back-off {delay:g}s restarting failed container={self.state.name}"
            waiting = Waiting("CrashLoopBackOff", message) if delay else ended
            self._set(state=waiting, last=ended, ready=False, started=False)
            await asyncio.sleep(delay)
            series += 1
            self._set(restarts=self.state.restarts + 1)

    async def stop(self, grace: float) -> None:
        """Ends the process as a kubelet does: preStop hook, SIGTERM, and SIGKILL after the grace period.

        Call it once `run` has been cancelled.
        """
        if self._child is None or not isinstance(self.state.state, Running):
            return
        began = self.state.state.started_at
        status = await self._end(self._child, grace)
        self._set(state=Terminated.from_exit(status, began, datetime.now(UTC)), ready=False, started=False)

    def kill(self) -> None:
        """Ends the process at once."""
        if self._child is not None:
            self._child.kill()

    @property
    def _log(self) -> Path:
        """Of the run that goes on, or went last."""
        return self._folder / f"{self.state.restarts}.log"

    def _set(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self._changed()

    async def _prepare(self) -> _Invocation:
        """Waits until the image is known and all that the environment refers to is there."""
        attempts = 0
        while (image := images.find(self._around.machine.images, self.spec["image"])) is None:
            message = f'no program stands for image "{self.spec["image"]}": give the lab one for it'
            self._set(state=Waiting("ImagePullBackOff" if attempts else "ErrImagePull", message))
            attempts += 1
            await asyncio.sleep(self._around.machine.back_off.delay(attempts))
        while True:
            try:
                return self._invoke(image, await self._sources())
            except (ConfigError, ApiError, *UNREACHABLE) as e:
                self._set(state=Waiting("CreateContainerConfigError", str(e)))
                await asyncio.sleep(_CONFIG_RETRY)

    async def _sources(self) -> Sources:
        config_maps, secrets = environment.references(self.spec)
        return Sources(
            config_maps={
                name: data for name in config_maps if (data := await self._data(CONFIG_MAPS, name)) is not None
            },
            secrets={name: data for name in secrets if (data := await self._data(SECRETS, name)) is not None},
        )

    async def _data(self, resource: Resource, name: str) -> dict[str, str] | None:
        found = await self._around.machine.kube.find(resource, name, self._around.pod["metadata"]["namespace"])
        return None if found is None else environment.data_of(found)

    def _invoke(self, image: Image, sources: Sources) -> _Invocation:
        around = self._around
        declared = environment.environment(
            self.spec, around.pod, around.placement.pod_ip, around.placement.host_ip, sources
        )
        programs = image.install(self._folder / "bin")
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
        inherited = {name: os.environ[name] for name in _FROM_THE_MACHINE if name in os.environ}
        ours = {"PATH": path, "HOME": str(self._folder), **around.variables, **image.variables(self.spec["image"])}
        env = inherited | ours | declared
        working = self.spec.get("workingDir", "")
        cwd = Path(working) if working and Path(working).is_dir() else self._folder
        return _Invocation(environment.command_line(self.spec, image.entrypoint, declared), env, cwd)

    async def _run_once(self, invocation: _Invocation) -> Terminated:
        self._started = time.monotonic()
        began = datetime.now(UTC)
        program = invocation.argv[0] if invocation.argv else ""
        if shutil.which(program, path=invocation.env["PATH"]) is None:
            reason = f'exec: "{program}": executable file not found in $PATH'
            return Terminated(128, "StartError", began, began, f"failed to start container: {reason}")
        child = self._child = await self._spawn(invocation, self._log)
        needs_startup = self._probes["startup"] is not None
        self._set(
            state=Running(began),
            started=not needs_startup,
            ready=not needs_startup and self._probes["readiness"] is None,
        )
        exited = asyncio.create_task(child.wait())
        unhealthy = asyncio.create_task(self._until_unhealthy())
        try:
            await asyncio.wait({exited, unhealthy}, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                await self._end(child, unhealthy.result())
        finally:
            exited.cancel()
            unhealthy.cancel()
        ended = Terminated.from_exit(await child.wait(), began, datetime.now(UTC))
        if ended.exit_code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            return replace(ended, message=logs.termination_message(self._log))
        return ended

    async def _spawn(self, invocation: _Invocation, log: Path) -> Child:
        with log.open("ab") as output:
            return await self._around.machine.lifeline.spawn(
                invocation.argv, output=output, env=invocation.env, cwd=invocation.cwd
            )

    async def _end(self, child: Child, grace: float) -> int:
        deadline = time.monotonic() + grace
        hook = self.spec.get("lifecycle", {}).get("preStop")
        if hook and grace:
            await self._run_hook(hook, grace)
        child.terminate()
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), min(grace, _SHORTEST_GRACE))):
                return await child.wait()
        except TimeoutError:
            child.kill()
            return await child.wait()

    async def _run_hook(self, hook: Json, timeout: float) -> None:
        if "sleep" in hook:
            await asyncio.sleep(min(timeout, hook["sleep"]["seconds"]))
        elif "exec" in hook:
            await self._execute(hook["exec"]["command"], timeout)
        elif "httpGet" in hook:
            http, pod_ip = self._around.machine.http, self._around.placement.pod_ip
            with suppress(ConfigError):
                await probing.http_get(hook["httpGet"], self.spec, pod_ip, http, timeout)

    async def _execute(self, command: Sequence[str], timeout: float) -> bool:
        """Runs a command beside the container's process, in the same environment."""
        assert self._invocation is not None, "a container that runs has been prepared"
        child = await self._spawn(replace(self._invocation, argv=list(command)), self._folder / "exec.log")
        try:
            async with asyncio.timeout(timeout):
                return await child.wait() == 0
        except TimeoutError:
            return False
        finally:
            child.kill()

    async def _until_unhealthy(self) -> float:
        """Follows the probes. Returns, once the startup or liveness probe has failed, the grace period of the end."""
        startup, liveness, readiness = (self._probes[kind] for kind in ("startup", "liveness", "readiness"))
        if startup is not None:
            async with aclosing(self._verdicts(startup)) as verdicts:
                if not await anext(verdicts):
                    return self._grace if startup.grace is None else startup.grace
            self._set(started=True, ready=readiness is None)
        following = asyncio.create_task(self._follow_readiness(readiness))
        try:
            if liveness is None:
                await following
                return await asyncio.Future()
            async with aclosing(self._verdicts(liveness)) as verdicts:
                async for alive in verdicts:
                    if not alive:
                        break
            return self._grace if liveness.grace is None else liveness.grace
        finally:
            following.cancel()

    async def _follow_readiness(self, readiness: Probe | None) -> None:
        if readiness is None:
            return
        async with aclosing(self._verdicts(readiness)) as verdicts:
            async for ready in verdicts:
                if ready != self.state.ready:
                    self._set(ready=ready)

    async def _verdicts(self, probe: Probe) -> AsyncGenerator[bool, None]:
        """The verdict after each attempt, from the first decided one on."""
        verdict = Verdict()
        await asyncio.sleep(max(0.0, self._started + probe.initial_delay - time.monotonic()))
        while True:
            verdict = verdict.after(await self._attempt(probe), probe)
            if verdict.passing is not None:
                yield verdict.passing
            await asyncio.sleep(probe.period)

    async def _attempt(self, probe: Probe) -> bool:
        around = self._around
        try:
            return await probing.succeeds(probe, self.spec, around.placement.pod_ip, around.machine.http, self._execute)
        except ConfigError:
            return False
