"""The Deployment in virtual time does what Kubernetes' controllers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from specdecode.sim.twin.deployment import GRACE, VirtualDeployment, VirtualPod

START_UP = 60.0
STEP = 3.0
ONE_MORE = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
ONE_LESS = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}


class Cluster:
    """A Deployment of pods, and a clock."""

    def __init__(self, replicas: int = 4, spare: int = 1) -> None:
        self.t = 0.0
        rows = range(replicas + max(spare, 1) + 2)
        self.d = VirtualDeployment(
            {"name": "vllm", "args": ["old"]}, replicas, rows=rows, start_up=START_UP, spare=spare
        )
        self.served: list[VirtualPod] = []
        self.fewest, self.most = replicas, replicas

    def patch(self, **fields: Any) -> None:
        """Sets fields of the spec; `args` those of the container."""
        operations = [{"op": "add", "path": f"/spec/{field}", "value": value} for field, value in fields.items()]
        if "args" in fields:
            path = "/spec/template/spec/containers/0/args"
            operations = [o for o in operations if o["path"] != "/spec/args"]
            operations.append({"op": "add", "path": path, "value": fields["args"]})
        self.d.apply([{"op": "test", "path": "/metadata/generation", "value": 1}, *operations])

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        began = self.t
        while self.t < began + seconds and not until():
            self.t += STEP
            self.served += self.d.reconcile(self.t).serving
            self.fewest, self.most = min(self.fewest, len(self.d.serving)), max(self.most, len(self.d.serving))
        return self.t - began

    @property
    def new(self) -> list[VirtualPod]:
        return [p for p in self.d.pods if p.revision == self.d.template_revision and p.deleted is None]


def test_a_new_deployment_is_settled_and_serves() -> None:
    c = Cluster()
    assert (len(c.d.serving), c.d.settled, c.d.moving) == (4, True, False)


def test_a_roll_with_a_surge_replaces_pod_after_pod_and_never_serves_with_fewer() -> None:
    c = Cluster()
    c.patch(args=["new"], strategy=ONE_MORE)
    assert not c.d.settled
    seconds = c.wait(3600, until=lambda: c.d.settled)
    # Each new pod starts when the one given up before has freed its GPU.
    assert seconds == pytest.approx(4 * START_UP + 3 * GRACE, rel=0.1)
    assert len(c.new) == len(c.served) == 4
    assert c.fewest == 4


def test_a_roll_without_a_surge_gives_up_one_at_a_time() -> None:
    c = Cluster(spare=0)
    c.patch(args=["new"], strategy=ONE_LESS)
    c.wait(3600, until=lambda: c.d.settled)
    assert (c.fewest, c.most) == (3, 4)


def test_the_default_strategy_rolls_a_quarter_at_once() -> None:
    c = Cluster(replicas=8, spare=2)
    c.patch(args=["new"])
    c.wait(STEP)
    assert len(c.new) == 2
    c.wait(3600, until=lambda: c.d.settled)
    assert (c.fewest, c.most) == (6, 8)


def test_pods_that_are_not_available_long_enough_hold_the_roll() -> None:
    c = Cluster()
    c.patch(args=["new"], strategy=ONE_MORE, minReadySeconds=600)
    c.wait(START_UP + 2 * STEP)
    assert (len(c.new), len(c.d.serving)) == (1, 5)
    c.wait(500)
    assert len(c.new) == 1
    c.wait(100)
    assert len(c.new) == 2


def test_a_paused_roll_keeps_its_canary_until_it_goes_on() -> None:
    c = Cluster()
    c.patch(args=["new"], strategy=ONE_MORE, minReadySeconds=30)
    c.wait(STEP)
    c.patch(paused=True)
    c.wait(600)
    assert (len(c.new), len(c.d.serving), c.d.settled) == (1, 5, False)
    c.patch(paused=False, minReadySeconds=0)
    c.wait(3600, until=lambda: c.d.settled)
    assert len(c.new) == 4


def test_a_paused_deployment_makes_no_pods_of_a_new_template() -> None:
    c = Cluster()
    c.patch(args=["new"], paused=True)
    c.wait(60)
    assert (c.new, c.d.revision) == ([], None)


def test_restoring_the_template_takes_only_the_canary_away() -> None:
    c = Cluster()
    before = set(c.d.serving)
    c.patch(args=["new"], strategy=ONE_MORE, minReadySeconds=599)
    c.wait(START_UP + 2 * STEP)
    c.patch(args=["old"], minReadySeconds=0)
    c.wait(300, until=lambda: c.d.settled)
    assert set(c.d.serving) == before


def test_without_a_spare_gpu_the_additional_pod_finds_no_node() -> None:
    c = Cluster(spare=0)
    c.patch(args=["new"], strategy=ONE_MORE)
    c.wait(120)
    assert [p.unschedulable_since for p in c.new] == [STEP]
    assert len(c.d.serving) == 4
    # Giving one up makes room for it.
    c.patch(strategy=ONE_LESS)
    c.wait(GRACE + START_UP + 3 * STEP, until=lambda: bool(c.served))
    assert c.new[0].unschedulable_since is None


def test_scaling_adds_pods_that_have_to_start_and_removes_the_youngest() -> None:
    c = Cluster()
    first = set(c.d.serving)
    c.d.scale(6)
    c.wait(START_UP - STEP)
    assert len(c.d.serving) == 4
    c.wait(3 * STEP)
    assert (len(c.d.serving), c.d.settled) == (6, True)
    c.d.scale(4)
    c.wait(2 * STEP)
    assert (set(c.d.serving), c.d.settled) == (first, True)


def test_scaling_in_the_middle_of_a_canary_keeps_it() -> None:
    c = Cluster(spare=3)
    c.patch(args=["new"], strategy=ONE_MORE, minReadySeconds=599)
    c.wait(START_UP + 2 * STEP)
    c.patch(paused=True)
    c.d.scale(6)
    c.wait(START_UP + 2 * STEP)
    assert (len(c.new), len(c.d.serving)) == (1, 7)


def test_every_write_is_a_generation_and_none_without_a_change() -> None:
    c = Cluster()
    old = c.d.object
    c.d.apply([])
    c.d.scale(4)
    assert c.d.object is old
    c.patch(minReadySeconds=5)
    assert c.d.object["metadata"]["generation"] == 2
    assert "minReadySeconds" not in old["spec"]
    c.d.apply([{"op": "remove", "path": "/spec/minReadySeconds"}])
    assert "minReadySeconds" not in c.d.spec
