"""The status that a node reports for a pod, computed from what its containers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]

OUR_CONDITIONS = ("PodScheduled", "Initialized", "ContainersReady", "Ready")


def timestamp(at: datetime) -> str:
    """Kubernetes' time format, whole seconds in UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Waiting:
    """Not running yet, or not any more and about to be restarted."""

    reason: str = "ContainerCreating"
    message: str = ""

    def to_json(self) -> Json:
        """As in `state` of a container status."""
        return {"waiting": {"reason": self.reason} | ({"message": self.message} if self.message else {})}


@dataclass(frozen=True)
class Running:
    """Its process runs."""

    started_at: datetime

    def to_json(self) -> Json:
        """As in `state` of a container status."""
        return {"running": {"startedAt": timestamp(self.started_at)}}


@dataclass(frozen=True)
class Terminated:
    """Its process has ended."""

    exit_code: int
    reason: str
    started_at: datetime
    finished_at: datetime
    message: str = ""

    @classmethod
    def from_exit(cls, returncode: int, started_at: datetime, finished_at: datetime) -> Terminated:
        """From a process's exit status, where a signal is negative; containers report it as 128 + signal."""
        code = returncode if returncode >= 0 else 128 - returncode
        return cls(code, "Completed" if code == 0 else "Error", started_at, finished_at)

    def to_json(self) -> Json:
        """As in `state` and `lastState` of a container status."""
        return {
            "terminated": {
                "exitCode": self.exit_code,
                "reason": self.reason,
                "startedAt": timestamp(self.started_at),
                "finishedAt": timestamp(self.finished_at),
            }
            | ({"message": self.message} if self.message else {})
        }


State = Waiting | Running | Terminated


@dataclass(frozen=True)
class ContainerState:
    """One container at one moment."""

    name: str
    image: str
    state: State = Waiting()
    last: Terminated | None = None
    restarts: int = 0
    started: bool = False
    ready: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether it has ended for good, with status 0."""
        return isinstance(self.state, Terminated) and self.state.exit_code == 0

    def to_json(self) -> Json:
        """One entry of `containerStatuses`."""
        return {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": self.state.to_json(),
            "lastState": self.last.to_json() if self.last else {},
        }


@dataclass(frozen=True)
class Placement:
    """Where a pod runs and since when."""

    pod_ip: str
    host_ip: str
    start_time: datetime


def pod_status(
    pod: Json,
    placement: Placement,
    init: Sequence[ContainerState],
    main: Sequence[ContainerState],
    before: Sequence[Json],
    now: datetime,
) -> Json:
    """The whole status of a pod.

    `before` are its conditions so far: ours keep the time of their last transition, those of others stay as they are.
    """
    initialized = all(c.succeeded for c in init)
    restart_policy = pod["spec"].get("restartPolicy", "Always")
    phase = _phase(main, initialized, restart_policy, _init_failed(init, restart_policy))
    return {
        "phase": phase,
        "podIP": placement.pod_ip,
        "podIPs": [{"ip": placement.pod_ip}],
        "hostIP": placement.host_ip,
        "hostIPs": [{"ip": placement.host_ip}],
        "startTime": timestamp(placement.start_time),
        "initContainerStatuses": [c.to_json() for c in init],
        "containerStatuses": [c.to_json() for c in main],
        "conditions": _conditions(pod, initialized, init, main, phase, before, now),
    }


def _init_failed(init: Sequence[ContainerState], restart_policy: str) -> bool:
    return restart_policy == "Never" and any(isinstance(c.state, Terminated) and c.state.exit_code for c in init)


def _phase(main: Sequence[ContainerState], initialized: bool, restart_policy: str, init_failed: bool) -> str:
    if init_failed:
        return "Failed"
    if not initialized or any(isinstance(c.state, Waiting) and c.last is None for c in main):
        return "Pending"
    ends = [c.state for c in main if isinstance(c.state, Terminated)]
    if len(ends) < len(main) or restart_policy == "Always":
        return "Running"
    if all(end.exit_code == 0 for end in ends):
        return "Succeeded"
    return "Failed" if restart_policy == "Never" else "Running"


def _conditions(
    pod: Json,
    initialized: bool,
    init: Sequence[ContainerState],
    main: Sequence[ContainerState],
    phase: str,
    earlier: Sequence[Json],
    now: datetime,
) -> list[Json]:
    before = {condition["type"]: condition for condition in earlier}
    not_done = [c.name for c in init if not c.succeeded]
    unready = [c.name for c in main if not c.ready]
    done = phase in ("Succeeded", "Failed")
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates", [])]
    closed = [gate for gate in gates if before.get(gate, {}).get("status") != "True"]

    containers_ready = _verdict(
        not unready and not done,
        "PodCompleted" if done else "ContainersNotReady",
        "" if done else f"containers with unready status: [{' '.join(unready)}]",
    )
    ready = containers_ready
    if containers_ready["status"] == "True" and closed:
        ready = _verdict(False, "ReadinessGatesNotReady", f"readiness gates not True: [{' '.join(closed)}]")
    incomplete = f"containers with incomplete status: [{' '.join(not_done)}]"
    initialization = _verdict(initialized, "ContainersNotInitialized", incomplete)
    ours = dict(zip(OUR_CONDITIONS, (_verdict(True), initialization, containers_ready, ready), strict=True))
    stamped = [
        {"type": kind, "lastTransitionTime": _transition(before.get(kind), verdict, now), **verdict}
        for kind, verdict in ours.items()
    ]
    return stamped + [condition for kind, condition in before.items() if kind not in ours]


def _verdict(true: bool, reason: str = "", message: str = "") -> Json:
    if true:
        return {"status": "True"}
    return {"status": "False", "reason": reason} | ({"message": message} if message else {})


def _transition(before: Mapping[str, Any] | None, verdict: Json, now: datetime) -> str:
    if before is not None and before["status"] == verdict["status"] and before.get("lastTransitionTime"):
        return str(before["lastTransitionTime"])
    return timestamp(now)
