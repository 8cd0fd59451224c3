"""Everything that one decision may look at, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from specdecode.api.v1alpha1 import (
    Configuration,
    HistoryEntry,
    LiveSchedule,
    Outcome,
    RolloutStatus,
    SpecDecodePolicySpec,
)
from specdecode.model.cost import Band, OfferedLoad, Option, Prediction
from specdecode.model.estimate import Estimate
from specdecode.model.knowledge import Knowledge
from specdecode.model.loads import LoadHistory
from specdecode.model.measure import Measurement
from specdecode.model.window import Window
from specdecode.policy.options import Container, Menu
from specdecode.policy.outlook import Cost, Outlook
from specdecode.vllm.effective import Told
from specdecode.vllm.live_schedule import ScheduleReport
from specdecode.vllm.startup import Diagnosis


def empty_window(policy: SpecDecodePolicySpec) -> Window:
    """For the readings of one pod, as far back as estimates or the longest analysis look."""
    rules = policy.rollout.analysis
    keep = max(policy.metrics.window, rules.longest + rules.warmup)
    return Window(keep, int(keep / policy.metrics.interval) + 2)


@dataclass(frozen=True)
class Pod:
    """One pod of the workload, as Kubernetes and its own metrics page show it."""

    name: str
    revision: str
    """`pod-template-hash`: the ReplicaSet that it belongs to."""
    option: Option | None
    """What its command line and its live schedule say it runs; None: nothing that we would have written."""
    ready: bool
    restarts: int = 0
    waiting: str | None = None
    """Reason that its container waits for, e.g. CrashLoopBackOff, ErrImagePull."""
    terminating: bool = False
    unschedulable_since: float | None = None
    """Unix seconds since the scheduler has found no node for it."""
    ready_since: float | None = None
    """Unix seconds."""
    window: Window = field(default_factory=lambda: Window(0.0))
    """Its metrics samples."""
    told: Told | None = None
    """What it says of its speculative configuration, where it has such an endpoint."""
    answered: bool = False
    """Whether it answered the scrape of this tick."""
    problem: str | None = None
    """Why it did not."""
    diagnosis: Diagnosis | None = None
    """Why its container failed or does not start; looked for in the pods of a change only."""

    @property
    def schedule(self) -> ScheduleReport | None:
        """What its plugin for live schedules told last; None where it has none."""
        return self.window.readings[-1].page.schedule if self.window.readings else None


@dataclass(frozen=True)
class Workload:
    """The Deployment."""

    name: str
    generation: int
    replicas: int
    """Asked for in its spec."""
    container: Container
    """The vLLM container of its pod template, live."""
    revision: str | None
    """`pod-template-hash` of the ReplicaSet that has its template; None while the controller has not made one."""
    settled: bool
    """Its controller has seen the spec, all pods are of the current template and available, and it is not paused."""
    deployment: Mapping[str, Any]
    """The object itself."""
    option: Option | None = None
    """What its command line says, whatever a live schedule makes of it."""

    @property
    def strategy(self) -> Mapping[str, Any]:
        """`spec.strategy`."""
        strategy: Mapping[str, Any] = self.deployment["spec"].get("strategy") or {}
        return strategy


class Obstacle(StrEnum):
    """Why a workload cannot be managed, besides a command line that is not understood (`vllm.unmanageable.Reason`)."""

    VERSION_UNKNOWN = "VersionUnknown"
    PORT_UNKNOWN = "PortUnknown"
    STATS_DISABLED = "StatsDisabled"
    ANOTHER_POLICY = "AnotherPolicy"


@dataclass(frozen=True)
class Problem:
    """Why the workload cannot be managed, with the way out."""

    reason: str
    message: str


@dataclass(frozen=True)
class Freshness:
    """What fresh pods of an option are better at than those that have served for long."""

    gain: Estimate
    """How much faster tokens come."""
    accepted_length: tuple[float, float]
    """Of fresh pods and of old ones."""
    lasts: float
    """Seconds until half of it is gone again."""
    benefit: float
    """Seconds of work that a restart saves before its effect is gone, costs subtracted: pays when positive."""


AT_THE_LIMIT = 1.1
"""Headroom below which requests soon pile up: loads and estimates are off by as much."""


@dataclass(frozen=True)
class Estimates:
    """What the model makes of the measurements."""

    load: OfferedLoad | None = None
    """Per pod; None while nothing was generated."""
    measured: Measurement | None = None
    """The pods of the active option, over the window."""
    acceptance: tuple[float, float, float, float] | None = None
    """Mean, P10, P50 and P90 of the active option across pods and sub-windows."""
    candidates: tuple[Option, ...] = ()
    """What could run, each with the schedule that it would get."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """Profiles that cannot run on this workload, and why."""
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    """Of the candidates, by profile."""
    running: Prediction | None = None
    """Of the active option, as it runs; its TPOT is the measured one."""
    modelled: Prediction | None = None
    """The same without the measurement: what another schedule of the active profile compares with."""
    outlooks: Mapping[str, Outlook] = field(default_factory=dict)
    """What a change to each of the candidates would bring, by profile."""
    cost: Cost | None = None
    """What a change costs; None while there is no load."""
    bands: Mapping[str, Band | None] = field(default_factory=dict)
    """Batch sizes at which a profile pays at its fixed K, by profile; None: at none."""
    load_corrections: Mapping[str, float] = field(default_factory=dict)
    """What the gain of each candidate is at the load of now, less what it is while a canary takes its share: logs of
    ratios of TPOTs, by profile."""
    steepness: Mapping[str, float] = field(default_factory=dict)
    """By which power of the load TPOT grows with each candidate, at the load of now and below."""
    own_is_untried: bool = False
    """Whether what the user's own manifest says never ran at batch sizes like those where it would settle now."""
    own_lately: float | None = None
    """Seconds per token that what the user's own manifest says would have taken at the loads of the last hour, by the
    model: the mean over the tokens, bursts and lulls as they were. None where it runs, or that is not known."""
    restart: Freshness | None = None
    """What fresh pods of the active option would be better at; None: nothing that is known."""

    @property
    def overloaded(self) -> bool:
        """Whether the pods fall behind: by the model, or because more requests wait than run."""
        return self.queueing or (self.running is not None and self.running.saturated)

    @property
    def queueing(self) -> bool:
        """Whether more requests wait than run."""
        m = self.measured
        return m is not None and (m.waiting or 0.0) > max(m.batch_size or 0.0, 1.0)

    def makes_room(self, profile: str) -> bool:
        """Whether the pods fall behind as it is, and would less with another profile."""
        other, here = self.predictions.get(profile), self.running
        return other is not None and here is not None and self.overloaded and other.headroom > here.headroom

    def relieved_by(self, option: Option) -> bool:
        """Whether the pods fall behind, or are about to, and would have more room with an option."""
        other, here = self.predictions.get(option.profile), self.running
        if other is None or here is None or not (self.overloaded or here.headroom < AT_THE_LIMIT):
            return False
        return other.headroom > AT_THE_LIMIT * here.headroom

    def candidate(self, profile: str) -> Option | None:
        """What a profile would run; None where it cannot."""
        return next((c for c in self.candidates if c.profile == profile), None)

    def gain(self, option: Option) -> Estimate | None:
        """How much faster tokens come with an option than with what runs, at the load of now, both as modelled: where
        model and measurement differ, they differ for both."""
        other, here = self.predictions.get(option.profile), self.modelled
        if other is None or here is None:
            return None
        # What runs is seen to cost what it does: the error is the other's.
        now = here.tpot.value
        return Estimate(now / other.tpot.value - 1, now / other.tpot.high - 1, now / other.tpot.low - 1)

    def surely_faster(self, option: Option | None) -> bool:
        """Whether an option makes tokens faster even if the model errs by all that it may."""
        gain = self.gain(option) if option is not None else None
        return gain is not None and gain.low > 0


@dataclass(frozen=True)
class Observation:
    """One look at a policy and its workload."""

    now: float
    """Unix seconds."""
    policy: SpecDecodePolicySpec
    generation: int
    menu: Menu | None = None
    """What the workload can run; None when it cannot be managed."""
    problem: Problem | None = None
    workload: Workload | None = None
    active: Option | None = None
    """What the Deployment's template and the live schedule say."""
    pods: tuple[Pod, ...] = ()
    adopted_at: float = 0.0
    """When the original command line was first seen, or seen to be changed by somebody else."""
    observing_since: float = 0.0
    """When this process began to measure: after a restart of the operator the windows are empty."""
    live_schedule: LiveSchedule | None = None
    """What the file says that the pods follow."""
    rollout: RolloutStatus | None = None
    history: tuple[HistoryEntry, ...] = ()
    """Newest first."""
    knowledge: Mapping[str, Knowledge] = field(default_factory=dict)
    """By profile."""
    loads: LoadHistory = field(default_factory=LoadHistory)
    estimates: Estimates = field(default_factory=Estimates)

    @property
    def own(self) -> Option | None:
        """What the user's own manifest runs; None where that is not known."""
        return self.menu.own if self.menu is not None else None

    def is_own(self, option: Option | Configuration | None) -> bool:
        """Whether what runs, or would, is of the profile that the user's own manifest runs."""
        return option is not None and self.own is not None and option.profile == self.own.profile

    @property
    def last_success(self) -> HistoryEntry | None:
        """The last change that succeeded."""
        return next((h for h in self.history if h.outcome is Outcome.SUCCESSFUL), None)

    @property
    def serving(self) -> int:
        """Ready pods that run what is active; at least 1, to divide by."""
        return max(1, len(self.running(self.active)))

    def running(self, option: Option | None) -> tuple[Pod, ...]:
        """The ready pods that run an option."""
        return tuple(p for p in self.pods if p.ready and not p.terminating and p.option == option)
