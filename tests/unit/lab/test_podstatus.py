from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from specdecode.lab.podstatus import ContainerState, Placement, Running, State, Terminated, Waiting, pod_status

T0 = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
PLACEMENT = Placement("127.10.1.1", "127.10.0.1", T0)
DONE = Terminated(0, "Completed", T0, T0)
FAILED = Terminated(1, "Error", T0, T0)
UP = Running(T0)


def container(state: State, **fields: Any) -> ContainerState:
    return ContainerState("c", "image:1", state, **fields)


def status(
    *main: ContainerState, init: tuple[ContainerState, ...] = (), before: Any = (), at: float = 0, **spec: Any
) -> dict[str, Any]:
    return pod_status({"spec": spec}, PLACEMENT, init, main, before, T0 + timedelta(seconds=at))


def conditions(found: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in found["conditions"]}


@pytest.mark.parametrize(
    ("policy", "states", "phase"),
    [
        ("Always", [Waiting()], "Pending"),
        ("Always", [UP, Waiting()], "Pending"),
        ("Always", [UP], "Running"),
        ("Always", [DONE], "Running"),
        ("OnFailure", [DONE, UP], "Running"),
        ("OnFailure", [DONE, FAILED], "Running"),
        ("OnFailure", [DONE], "Succeeded"),
        ("Never", [DONE, DONE], "Succeeded"),
        ("Never", [DONE, FAILED], "Failed"),
    ],
)
def test_the_phase_follows_from_the_containers_and_the_restart_policy(
    policy: str, states: list[State], phase: str
) -> None:
    assert status(*(container(s) for s in states), restartPolicy=policy)["phase"] == phase


def test_a_container_in_its_crash_back_off_leaves_the_pod_running() -> None:
    found = status(container(Waiting("CrashLoopBackOff"), last=FAILED, restarts=2))
    assert found["phase"] == "Running"
    shown = found["containerStatuses"][0]
    assert shown["state"] == {"waiting": {"reason": "CrashLoopBackOff"}}
    assert (shown["lastState"]["terminated"]["exitCode"], shown["restartCount"]) == (1, 2)


def test_a_pod_is_ready_when_all_its_containers_are() -> None:
    ready, unready = container(UP, ready=True), container(UP)
    assert conditions(status(ready, ready)) == dict.fromkeys(
        ("PodScheduled", "Initialized", "ContainersReady", "Ready"), "True"
    )
    assert conditions(status(ready, unready))["Ready"] == "False"


def test_a_readiness_gate_keeps_the_pod_unready_until_its_condition_is_true() -> None:
    gate = [{"conditionType": "example.com/lb"}]
    found = conditions(status(container(UP, ready=True), readinessGates=gate))
    assert (found["ContainersReady"], found["Ready"]) == ("True", "False")
    opened = [{"type": "example.com/lb", "status": "True"}]
    assert conditions(status(container(UP, ready=True), readinessGates=gate, before=opened))["Ready"] == "True"


def test_init_containers_that_are_not_done_keep_the_pod_pending() -> None:
    waiting = container(Waiting("PodInitializing"))
    found = status(waiting, init=(container(DONE), container(UP)))
    assert (found["phase"], conditions(found)["Initialized"]) == ("Pending", "False")
    assert status(waiting, init=(container(FAILED),), restartPolicy="Never")["phase"] == "Failed"


def test_a_condition_keeps_its_time_until_it_changes_and_foreign_ones_stay() -> None:
    foreign = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    first = status(container(UP), before=[foreign])
    second = status(container(UP, ready=True), before=first["conditions"], at=60)
    times = {c["type"]: c["lastTransitionTime"] for c in second["conditions"] if c["type"] != "DisruptionTarget"}
    assert times["Initialized"] == "2026-01-02T03:04:05Z"
    assert times["Ready"] == "2026-01-02T03:05:05Z"
    assert foreign in second["conditions"]


@pytest.mark.parametrize(
    ("returncode", "code", "reason"), [(0, 0, "Completed"), (3, 3, "Error"), (-15, 143, "Error"), (-9, 137, "Error")]
)
def test_an_end_by_a_signal_is_reported_as_a_container_reports_it(returncode: int, code: int, reason: str) -> None:
    ended = Terminated.from_exit(returncode, T0, T0)
    assert (ended.exit_code, ended.reason) == (code, reason)
