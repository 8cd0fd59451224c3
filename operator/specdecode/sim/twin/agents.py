"""Who looks after the service: the operator itself, and the simple ways that it is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from specdecode.api.v1alpha1 import HistoryEntry, RolloutPhase, RolloutStatus
from specdecode.model.estimate import Estimate
from specdecode.model.window import Window
from specdecode.policy.decision import Decision
from specdecode.policy.estimating import Modeller, estimate
from specdecode.policy.gates import decide
from specdecode.policy.observation import Observation, Pod, Workload, empty_window
from specdecode.policy.options import option_of
from specdecode.policy.past import remembered
from specdecode.rollout.patch import patch
from specdecode.rollout.phases import advance
from specdecode.sim.twin.deployment import VirtualPod
from specdecode.sim.twin.scenario import Scenario
from specdecode.sim.twin.service import Service

START = 1_767_225_600.0
"""Unix seconds at which every scenario starts: 2026-01-01T00:00:00Z."""

CARRIED = ("knowledge", "loads")
"""Fields of an observation that the next one starts from: what the operator remembers."""


class Agent(Protocol):
    """Acts on its service from time to time."""

    interval: float
    """Seconds between two acts."""

    def act(self, service: Service, t: float) -> None:
        """Look, and change what should be changed."""


class Alone:
    """Nobody: what runs at first stays."""

    interval = float("inf")

    def act(self, service: Service, t: float) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Change:
    """A change that the operator made, with what it had predicted."""

    entry: HistoryEntry
    predicted: Estimate | None


@dataclass(frozen=True)
class Look:
    """What one tick of the operator saw and said."""

    t: float
    observation: Observation
    decision: Decision
    rollout: RolloutStatus | None


class Operator:
    """The operator's own code, fed with what it would see of the service: the same five steps as in the cluster."""

    def __init__(self, scenario: Scenario, watch: Callable[[Look], None] | None = None) -> None:
        policy = scenario.policy
        self.interval = policy.metrics.interval
        self._policy, self._watch = policy, watch
        self._empty = empty_window(policy)
        self._windows: dict[VirtualPod, Window] = {}
        self._carried: Mapping[str, Any] = {}
        self._modeller = Modeller()
        self._rollout: RolloutStatus | None = None
        self._predicted: dict[str, Estimate | None] = {}
        self.history: list[HistoryEntry] = []
        self.changes: list[Change] = []
        """All that ended, oldest first."""
        self.canaries = 0
        """Changes that were started."""
        self.canary_pod_seconds = 0.0
        """Time that canaries were measured."""

    def act(self, service: Service, t: float) -> None:
        """One tick: observe, estimate, decide, advance, apply."""
        o = estimate(self._observe(service, t), self._modeller)
        d = decide(o)
        step = advance(o, d)
        if step.rollout is not None and step.rollout.id not in self._predicted:
            self._predicted[step.rollout.id] = d.gain
            self.canaries += 1
        if step.rollout is not None and step.rollout.phase is RolloutPhase.ANALYSING:
            self.canary_pod_seconds += self.interval
        if step.finished is not None:
            self.history = remembered([step.finished, *self.history], o.now)
            self.changes.append(Change(step.finished, self._predicted.get(step.finished.id)))
        self._rollout = step.rollout
        self._carried = {name: getattr(o, name) for name in CARRIED}
        if step.desired is not None:
            service.deployment.apply(patch(service.deployment.object, step.desired))
        if self._watch is not None:
            self._watch(Look(t, o, d, step.rollout))

    def _observe(self, service: Service, t: float) -> Observation:
        deployment, menu = service.deployment, service.menu
        now, container = START + t, deployment.spec["template"]["spec"]["containers"][0]
        pods = tuple(self._pod(service, pod, t) for pod in deployment.pods)
        self._windows = {pod: w for pod, w in self._windows.items() if pod in deployment.pods}
        workload = Workload(
            name="service",
            generation=deployment.object["metadata"]["generation"],
            replicas=deployment.spec["replicas"],
            container=container,
            revision=deployment.revision,
            settled=deployment.settled,
            deployment=deployment.object,
        )
        r = self._rollout
        live = service.option(deployment.template_revision)
        proven = r is None or r.phase in (RolloutPhase.VERIFYING, RolloutPhase.FINISHING)
        return Observation(
            now=now,
            policy=self._policy,
            generation=1,
            menu=menu,
            workload=workload,
            active=live if r is None or proven else option_of(r.source, menu),
            pods=pods,
            adopted_at=START,
            observing_since=START,
            rollout=r,
            history=tuple(self.history),
            **self._carried,
        )

    def _pod(self, service: Service, pod: VirtualPod, t: float) -> Pod:
        option, ready = service.option(pod.revision), pod.ready(t)
        if ready and pod.row is not None and service.counters is not None:
            speculation = option.speculation if option else None
            k = (speculation.num_speculative_tokens or 0) if speculation else 0
            page = service.counters.page(pod.row, START + pod.starts_serving, k)
            self._windows[pod] = (self._windows.get(pod) or self._empty).add(page, START + t)
        return Pod(
            name=pod.name,
            revision=pod.revision,
            option=option,
            ready=ready,
            terminating=pod.deleted is not None,
            unschedulable_since=None if pod.unschedulable_since is None else START + pod.unschedulable_since,
            ready_since=START + pod.starts_serving if ready else None,
            window=self._windows.get(pod) or self._empty,
            answered=ready,
        )
